"""Least-squares repair: what a changed model's blocks write is fitted to what the original has there.

Both models are walked through block by block over the same text, so only two blocks' activations are held. At each
block of the changed model, whose input x' has drifted from the original's x already, its two writers (see `layout`) are
refitted by ridge regression: with z the writer's input and e what the residual stream lacks to the original's,

    minimise over D:   Σ_t w_t |e_t - D z_t|² + λ |D|²,     W ← W + D,     w_t = 1 / mean of the target's squares.

The weights w_t make errors relative, because the next norm does too; a few tokens with huge activations would decide
alone otherwise. Where channels were removed, D on the remaining ones is their exact optimum: it absorbs what of the
removed channels' output the kept ones predict (and their mean, where the writer has a bias). Where blocks were removed,
the block before the gap is fitted to the state after it. Where a norm follows the writer (Gemma 2 and 3) the regression
aims at the writer's own output, and states drift.

λ is chosen on a part of the text that D was not fitted on, and the whole repair stays only if it lowers the measured
KL divergence there.

N tokens, C inputs and R outputs of a writer, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from edgegen.errors import UnsupportedError
from edgegen.modeling.forward import batch_tokens_for, padded_ids
from edgegen.modeling.text import Window, batches
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.layout import (
    Part,
    attention,
    bias_of,
    blocks,
    blocks_name,
    copy_structure,
    feed_forward,
    is_parallel,
    is_plain,
    norm_follows,
    put,
    weight_of,
)

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""λ in units of the mean diagonal of Σ w z zᵀ."""
_NOTHING = 1e-10
"""Relative squared error below which there is nothing to repair but rounding."""


def refit(model: Any, calibration: Calibration, origins: Sequence[int], *, first: int = 0) -> bool:
    """Repair a changed model.

    Args:
        model: changed in place.
        calibration: of the model as it was before.
        origins: of each block of `model`, the block of the calibration's model that it was.
        first: blocks before this one are as they were, inputs and all.

    Returns:
        Whether the repair lowered the KL divergence and was kept.

    Raises:
        UnsupportedError: blocks share matrices or have factors, which a repair of one would undo.
    """
    if not is_plain(model):
        raise UnsupportedError(
            "blocks with shared or factorised matrices cannot be cut", hint="Cut first, then share or factorise."
        )
    fitted, checked = calibration.parts
    before = checked.distance(model)
    old = {}
    for layer in range(len(origins)):
        for part in (attention(model, layer), feed_forward(model, layer)):
            old[part.name] = (part.module, part.writer, getattr(part.module, part.writer))
    with torch.no_grad():
        _Walk(model, calibration.model, fitted.windows, checked.windows).go(list(origins), first)
    if checked.distance(model) < before:
        return True
    for owner, leaf, module in old.values():
        setattr(owner, leaf, module)
    return False


class _Batch(msgspec.Struct):
    """Some windows' way through both models."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What the original's blocks are called with besides the hidden states."""
    real: torch.Tensor
    """(positions,) False where padded."""
    fit: bool
    theirs: torch.Tensor
    """(B, L, H) hidden states of the original."""
    ours: torch.Tensor
    """(B, L, H) of the changed model."""


class _Recorder(torch.nn.Module):
    """Takes a block's place and passes its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.call, self.states = (args, kwargs), hidden_states
        return hidden_states


class _Walk:
    """Through both models at once.

    Attributes:
        model: repaired in place.
        original: what it should be like.
    """

    def __init__(self, model: Any, original: Any, fitted: list[Window], checked: list[Window]) -> None:
        self.model, self.original = model, original
        self._normed, self._parallel = norm_follows(model), is_parallel(model)
        shell = copy_structure(original)
        recorders = torch.nn.ModuleList(_Recorder() for _ in blocks(original))
        owner, _, leaf = blocks_name(shell).rpartition(".")
        setattr(shell.get_submodule(owner), leaf, recorders)
        self._batches = []
        limit = batch_tokens_for(original.get_input_embeddings().weight.shape[0])
        for windows, fit in ((fitted, True), (checked, False)):
            for group in batches(windows, batch_tokens=limit):
                ids = padded_ids(group)
                real = torch.zeros(ids.shape, dtype=torch.bool)
                for row, window in enumerate(group):
                    real[row, : len(window.ids)] = True
                shell.base_model(ids, use_cache=False)
                states = recorders[0].states
                calls = [recorder.call for recorder in recorders]
                self._batches.append(_Batch(calls, real.flatten(), fit, states, states))

    def go(self, origins: list[int], first: int) -> None:
        """Refit block after block."""
        total = len(blocks(self.original))
        done = 0
        for layer, origin in enumerate(origins):
            self._pass_original(range(done, origin))
            until = origins[layer + 1] if layer + 1 < len(origins) else total
            if layer >= first:
                self._refit_block(layer, origin, until)
            else:
                self._pass_original(range(origin, until))
            for batch in self._batches:
                batch.ours = self._call(self.model, layer, origin, batch, batch.ours)[0]
            done = until

    def _refit_block(self, layer: int, origin: int, until: int) -> None:
        """Attention aims at the original's state in the middle of its block, feed-forward at the one after `until`."""
        parts = attention(self.original, origin), feed_forward(self.original, origin)
        ours, mine = attention(self.model, layer), feed_forward(self.model, layer)
        states, attended, fed = [], [], []
        for batch in self._batches:
            state, (_, first), (_, second) = self._call(self.original, origin, origin, batch, batch.theirs, *parts)
            states.append(state)
            attended.append(first)
            fed.append(second)
        local = self._normed or self._parallel
        normal = _Normal()
        for batch, wanted in zip(self._batches, attended, strict=True):
            _, (z, y) = self._call(self.model, layer, origin, batch, batch.ours, ours)
            target = wanted if local else batch.theirs + wanted
            normal.add(batch, z, target - (y if local else batch.ours + y), target)
        normal.solve(ours)

        for batch, state in zip(self._batches, states, strict=True):
            batch.theirs = state
        self._pass_original(range(origin + 1, until))
        normal = _Normal()
        for batch, wanted in zip(self._batches, fed, strict=True):
            state, (z, y) = self._call(self.model, layer, origin, batch, batch.ours, mine)
            target = wanted if self._normed else batch.theirs
            normal.add(batch, z, target - (y if self._normed else state), target)
        normal.solve(mine)

    def _pass_original(self, layers: range) -> None:
        for layer in layers:
            for batch in self._batches:
                batch.theirs = self._call(self.original, layer, layer, batch, batch.theirs)[0]

    def _call(self, model: Any, layer: int, origin: int, batch: _Batch, states: torch.Tensor, *parts: Part) -> Any:
        """A block's output, and for each of the parts what went into and came out of its writer."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def hook(name: str) -> Any:
            def see(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                seen[name] = (inputs[0], output)

            return see

        hooks = [getattr(part.module, part.writer).register_forward_hook(hook(part.name)) for part in parts]
        args, kwargs = batch.calls[origin]
        try:
            output = blocks(model)[layer](states, *args, **kwargs)
        finally:
            for handle in hooks:
                handle.remove()
        output = output[0] if isinstance(output, tuple) else output
        return output, *(seen[part.name] for part in parts)


class _Normal:
    """The normal equations of one writer, over the fitted and over the checked text."""

    def __init__(self) -> None:
        self._sums: dict[bool, list[torch.Tensor]] = {}

    def add(self, batch: _Batch, z: torch.Tensor, error: torch.Tensor, target: torch.Tensor) -> None:
        """
        Args:
            z: (B, L, C) input of the writer.
            error: (B, L, R) what its output lacks.
            target: (B, L, R) what errors are relative to.
        """
        z, error, target = (x.flatten(0, -2)[batch.real].float() for x in (z, error, target))
        z = torch.cat([z, torch.ones(len(z), 1)], -1)
        weights = 1 / target.square().mean(-1, keepdim=True).clamp_min(1e-20)
        found = [
            (z.T @ (weights * z)).double(),
            ((weights * error).T @ z).double(),
            (weights * error.square()).sum(dtype=torch.float64),
            torch.tensor(error.numel(), dtype=torch.float64),
        ]
        known = self._sums.get(batch.fit)
        self._sums[batch.fit] = found if known is None else [a + b for a, b in zip(known, found, strict=True)]

    def solve(self, part: Part) -> None:
        """Change a part's writer, unless that does not help on the checked text."""
        module = getattr(part.module, part.writer)
        weight, bias = weight_of(module), bias_of(module)
        columns = weight.shape[1] + (bias is not None)
        gram, cross, _, _ = self._sums[True]
        gram, cross = gram[:columns, :columns], cross[:, :columns]
        other_gram, other_cross, best, count = self._sums[False]
        if float(best / count) < _NOTHING:
            return
        scale = gram.diagonal()[: weight.shape[1]].mean()
        ridge = torch.full((columns,), float(scale), dtype=torch.float64)
        ridge[weight.shape[1] :] = 0
        chosen = None
        for strength in _STRENGTHS:
            lower, failed = torch.linalg.cholesky_ex(gram + (strength * ridge + 1e-9 * scale).diag())
            if int(failed):
                continue
            change = torch.cholesky_solve(cross.T, lower).T
            error = (
                (change @ other_gram[:columns, :columns] * change).sum()
                - 2 * (change * other_cross[:, :columns]).sum()
                + self._sums[False][2]
            )
            if error < best:
                best, chosen = error, change
        if chosen is not None:
            put(
                part.module,
                part.writer,
                weight.double() + chosen[:, : weight.shape[1]],
                None if bias is None else bias.double() + chosen[:, -1],
            )
