"""The calibration pass over a sentence encoder: `statistics` for models whose output is one vector a text.

Let e be a text's normalised vector and u a random direction with unit variance in each coordinate. A small change D
of one layer's weights moves e by Δe, and the gradients g_t of u·e at the layer's outputs give

    u·Δe ≈ Σ_t g_tᵀ D x_t,        E_u[(u·Δe)²] = ‖Δe‖²,        1 - cos ≈ ½ ‖Δe‖².

So the expected fall of the cosine similarity is ½ E[(Σ_t g_tᵀ D x_t)²], the same quadratic as the Fisher
information's. Here all tokens of a text are summed before squaring: they share one output, so their errors meet in it.
The gradient of a normalised vector has no part along the vector itself, hence u needs no projecting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgegen.modeling.encoder import padded
from edgegen.modeling.pooling import pool
from edgegen.modeling.statistics import SAMPLE_BYTES, LayerSample, Statistics
from edgegen.modeling.text import Window, batches
from edgegen.records.model import ModelSummary

_DIRECTIONS = 4
"""Random directions a text: each costs one more backward pass and halves nothing but noise."""
_BATCH_TOKENS = 2048


def collect_vector_statistics(
    model: Any,
    summary: ModelSummary,
    windows: list[Window],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Forward over the windows, and backward over a random part of them.

    Args:
        model: not changed; its parameters need no gradients.
        windows: whole texts; all their tokens give importance.
        seed: of the directions and the sampled texts.
        progress: called with (windows done, windows in all).
    """
    assert summary.pooling is not None, "an encoder has a pooling"
    generator = torch.Generator().manual_seed(seed)
    linear = [t for t in summary.tensors if t.quantizable and t.layer >= 0]
    sampled, rest = _drawn(windows, _wanted_tokens(linear), generator)
    watched = _Watched(model, [t.name for t in linear])
    done = texts = 0
    try:
        for part, backward in ((sampled, True), (rest, False)):
            for group in batches(part, batch_tokens=_BATCH_TOKENS):
                ids, mask = padded(group)
                watched.begin(mask, texts if backward else None)
                with torch.set_grad_enabled(backward):
                    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                    if backward:
                        unit = torch.nn.functional.normalize(pool(hidden, mask, summary.pooling), dim=-1)
                        for number in range(_DIRECTIONS):
                            direction = torch.randn(unit.shape, generator=generator)
                            (unit * direction).sum().backward(retain_graph=number + 1 < _DIRECTIONS)
                        texts += len(group)
                done += len(group)
                if progress:
                    progress(done, len(windows))
    finally:
        watched.remove()
    total = sum(len(window.ids) for window in windows)
    return Statistics(importance=watched.importance(total), samples=watched.samples(), weight=1.0)


class _Watched:
    """Hooks that gather the inputs and the outputs' gradients of linear layers."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self._squares: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._gradients: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._texts: list[torch.Tensor] = []
        self._real = torch.zeros(0, dtype=torch.long)
        self._first: int | None = None
        modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self._hooks = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]
        # Gradients flow from here on without any weight needing one.
        table = model.get_input_embeddings()
        self._hooks.append(table.register_forward_hook(lambda m, i, out: out.requires_grad_(torch.is_grad_enabled())))

    def begin(self, mask: torch.Tensor, first: int | None) -> None:
        """Before a batch: which tokens are real, and the number of its first text if it is a sampled one."""
        self._real, self._first = mask.flatten().nonzero().squeeze(1), first
        if first is not None:
            self._texts.append(first + mask.nonzero()[:, 0])

    def importance(self, tokens: int) -> dict[str, Any]:
        return {name: (squares / tokens).numpy() for name, squares in self._squares.items()}

    def samples(self) -> dict[str, LayerSample]:
        """Autograd runs each layer's batches, and each batch's directions, in order, so the lists pair up."""
        texts = torch.cat(self._texts)
        return {
            name: LayerSample(
                inputs=torch.cat(self._inputs[name]),
                gradients=torch.cat(
                    [
                        torch.stack(self._gradients[name][start : start + _DIRECTIONS])
                        for start in range(0, len(self._gradients[name]), _DIRECTIONS)
                    ],
                    dim=1,
                ),
                groups=texts,
            )
            for name in self._inputs
        }

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2)[self._real].float()
            self._squares[name] = self._squares.get(name, 0) + x.square().sum(0)
            if self._first is not None:
                real = self._real
                self._inputs[name].append(x)
                output.register_hook(lambda g: self._gradients[name].append(g.flatten(0, -2)[real].float()))

        return hook


def _wanted_tokens(linear: list[Any]) -> int:
    """Sampled tokens that keep the samples of all layers within their memory."""
    return int(np.clip(SAMPLE_BYTES / (4 * sum(_DIRECTIONS * t.rows + t.columns for t in linear)), 96, 2048))


def _drawn(windows: list[Window], tokens: int, generator: torch.Generator) -> tuple[list[Window], list[Window]]:
    """Random whole texts with at least so many tokens, and the others."""
    order = [windows[i] for i in torch.randperm(len(windows), generator=generator).tolist()]
    total = np.cumsum([len(window.ids) for window in order])
    number = int(np.searchsorted(total, tokens)) + 1
    return order[:number], order[number:]
