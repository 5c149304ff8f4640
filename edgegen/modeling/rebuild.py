"""A torch model out of a compressed folder: what exporters convert.

Its parameters hold the values that the packed weights stand for, in float32. Structure that compression changed is
rebuilt from the stored tensors (see `structure`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.modeling.load import model_class, quiet_transformers, without_pooler
from edgegen.modeling.structure import reshape_layers, share
from edgegen.modeling.summary import is_transposed
from edgegen.records.compressed import Compressed, PackedTensor


class Rebuilt(msgspec.Struct, frozen=True):
    """A model and where each of its parameters came from."""

    model: Any
    """In evaluation mode, without gradients."""
    tensors: dict[str, PackedTensor]
    """Parameter name → stored tensor; of shared weights only the stored name."""
    weights: NDArray[np.uint8]
    """weights.bin."""

    def packed(self, name: str) -> NDArray[np.uint8]:
        """A parameter's packed rows: (R, row bytes), (outputs, inputs) whichever way the module stores it."""
        tensor = self.tensors[name]
        return self.weights[tensor.offset : tensor.offset + tensor.bytes].reshape(tensor.rows, -1)


def rebuild_model(
    folder: Path, compressed: Compressed, weights: NDArray[np.uint8], *, attention: str = "eager"
) -> Rebuilt:
    """Build the model of a compressed folder.

    Args:
        folder: with config.json.
        weights: its weights.bin, checked.
        attention: transformers' name of the attention implementation.

    Raises:
        ConfigError: tensors are missing, or do not belong to the configuration.
        DeviceError: too little memory.
    """
    from transformers import AutoConfig

    stored = {tensor.name: tensor for tensor in compressed.tensors}
    count = sum(tensor.rows * tensor.columns for tensor in compressed.tensors)
    needed, free = 4 * count + 300_000_000, psutil.virtual_memory().available
    if needed > free:
        raise DeviceError(
            f"{folder}: converting needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free",
            hint="Close other programs or use a machine with more memory.",
        )
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(folder)
            build = model_class(config.model_type).from_config
            model = without_pooler(build(config, dtype=torch.float32, attn_implementation=attention))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnsupportedError(f"{folder}: transformers cannot build this configuration: {error}") from error
    reshape_layers(model, {name: (tensor.rows, tensor.columns) for name, tensor in stored.items()})
    share(model, compressed.shared)
    filled = {}
    transposed = {name for name, _ in model.named_parameters() if is_transposed(model, name)}
    for name, parameter in model.named_parameters():
        source = stored.get(name) or stored.get(_alias(model, name))
        if source is None:
            raise ConfigError(f"{folder}: tensor {name!r} is missing", hint="Run the compression again.")
        raw = weights[source.offset : source.offset + source.bytes].reshape(source.rows, -1)
        values = torch.from_numpy(grids.unpack(raw, source.grid, source.columns))
        values = values.T if name in transposed else values
        if values.numel() != parameter.numel():
            raise ConfigError(f"{folder}: tensor {name!r} has another shape than config.json says")
        parameter.data.copy_(values.reshape(parameter.shape))
        filled[name] = source
    surplus = {tensor.name for tensor in compressed.tensors} - {tensor.name for tensor in filled.values()}
    if surplus:
        raise ConfigError(f"{folder}: tensor {sorted(surplus)[0]!r} has no place in the model")
    return Rebuilt(model=model.eval().requires_grad_(False), tensors=filled, weights=weights)


def _alias(model: Any, name: str) -> str:
    """Other names under which a parameter may be stored: a factorised layer's bias, a tied table as head."""
    if name.endswith(".1.bias"):
        return name.removesuffix(".1.bias") + ".bias"
    table = model.get_input_embeddings().weight
    return "lm_head.weight" if model.get_parameter(name) is table else name
