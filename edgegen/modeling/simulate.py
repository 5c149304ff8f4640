"""Put rounded weights into a torch model, with the runtime's rounding of activations, and take them out again.

Runtimes multiply quantized weights with activations that they round to int8: llama.cpp in blocks of 32 or 256 inputs,
ONNX Runtime in the weights' own blocks (scale = max|x| / 127, round to nearest), LiteRT over a token's whole input with
a zero point. That costs up to a thousandth of a nat, which weights alone would not show, so it is simulated too.

Originals are read again from the checkpoint rather than kept, so a model is never in memory twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from edgegen.modeling.source import TensorSource
from edgegen.modeling.structure import users_of

ACTIVATION_BLOCKS = {f"int8_{block}": block for block in (16, 32, 64, 128, 256)} | {"int8_row": 0}
"""How a runtime rounds activations → inputs that share a scale; 0: all, with a zero point."""


def round_activations(x: torch.Tensor, block: int) -> torch.Tensor:
    """int8 rounding of the last dimension in blocks; the last block may be shorter. Shape is kept.

    Args:
        block: inputs that share a scale; 0: the whole dimension, over its own range instead of a symmetric one.
    """
    if not block:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        step = torch.where(high > low, (high - low) / 255, torch.ones_like(low))
        zero = (-low / step).round()
        return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step
    width = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -width % block)).unflatten(-1, (-1, block))
    scale = padded.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((padded / scale).round() * scale).flatten(-2)[..., :width]


@contextlib.contextmanager
def rounded_model(
    model: Any, source: TensorSource, grids: dict[str, str], activation_of: Mapping[str, str]
) -> Iterator[None]:
    """Inside the block, the model computes as the runtime would with these grids.

    Args:
        model: mutated inside, restored after.
        source: where rounded and original tensors come from.
        grids: tensor name → grid; tensors left out stay as they are.
        activation_of: grid → how the runtime rounds the other operand (a key of `ACTIVATION_BLOCKS`, or `float`).
    """
    parameters = dict(model.named_parameters())
    hooks = []
    table, users = model.get_input_embeddings(), users_of(model)
    try:
        items, together = list(grids.items()), os.cpu_count() or 1
        with concurrent.futures.ThreadPoolExecutor(together) as pool:
            # A few at a time: what is rounded ahead of its use would be the model once more.
            for start in range(0, len(items), together):
                group = items[start : start + together]
                rounded = pool.map(lambda item: source.rounded(*item), group)
                for (name, _), values in zip(group, rounded, strict=True):
                    parameters[name].data.copy_(source.as_parameter(name, values))
        for name, grid in grids.items():
            block = ACTIVATION_BLOCKS.get(activation_of.get(grid, "float"))
            for module in users[id(parameters[name])]:
                if block is not None and module is not table:
                    hooks.append(module.register_forward_pre_hook(rounding_hook(block)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name in grids:
            parameters[name].data.copy_(source.original_parameter(name))


def rounding_hook(block: int) -> Any:
    """A module's forward pre-hook that rounds its first input, see `round_activations`."""

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (round_activations(inputs[0], block), *inputs[1:])

    return hook
