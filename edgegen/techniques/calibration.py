"""What techniques know about a model in use: its text, and what flows through its layers.

T counted tokens, N tokens in all, C inputs of a layer, V vocabulary entries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from edgegen.modeling.forward import batch_tokens_for, counted_log_probs, mean_kl, padded_ids
from edgegen.modeling.statistics import Statistics
from edgegen.modeling.text import Window, batches
from edgegen.records.model import ModelSummary

_KEPT_BYTES = 1_000_000_000
"""Of moments, so that several changes to one model look at the text once."""


class Calibration:
    """A model that stays as it is, and text to look at it with.

    Attributes:
        model: not to be changed.
        summary: its sizes.
        windows: calibration text.
        remembered: what techniques found out with it and need again, under keys of their own.
        early: folder of an early checkpoint, or None.
    """

    def __init__(
        self,
        model: Any,
        summary: ModelSummary,
        windows: list[Window],
        statistics: Callable[[], Statistics],
        *,
        original: Any = None,
        early: Path | None = None,
    ) -> None:
        """
        Args:
            statistics: called when they are first asked for: inputs' importance and Fisher samples of `model`.
            original: the model that changes are judged against, where `model` was changed already; None: `model`.
            early: folder of a checkpoint from early in the training of `model`, where there is one.
        """
        self.model = model
        self.summary = summary
        self.windows = windows
        self.early = early
        self._statistics = statistics
        self._original = model if original is None else original
        self.remembered: dict[str, Any] = {}
        self._moments: dict[tuple[str, bool], torch.Tensor] = {}

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Importance of inputs and paired Fisher samples, see `modeling.statistics`."""
        return self._statistics()

    @functools.cached_property
    def parts(self) -> tuple[Calibration, Calibration]:
        """Three quarters of the text to fit something on, and every fourth window to judge it on.

        A single window is both.
        """
        judged = self.windows[3::4] or self.windows[-1:]
        fitted = [window for window in self.windows if not any(window is other for other in judged)] or judged
        fit, judge = (
            Calibration(self.model, self.summary, windows, lambda: self.statistics, original=self._original)
            for windows in (fitted, judged)
        )
        return fit, judge

    @functools.cached_property
    def reference(self) -> torch.Tensor:
        """(T, V) log-probabilities of the original on `windows`."""
        return counted_log_probs(self._original, self.windows)

    def distance(self, model: Any) -> float:
        """Mean KL divergence of the original's predictions to a model's on `windows`, nats per token."""
        return mean_kl(self.reference, counted_log_probs(model, self.windows))

    def moments(self, names: Iterable[str], *, constant: bool = False) -> dict[str, torch.Tensor]:
        """E[x xᵀ] over all N tokens, (C, C) float64, of the inputs x of named linear layers of `model`.

        They are kept for the next caller, the first of them up to a gigabyte.

        Args:
            names: module names such as `model.layers.0.mlp.down_proj`.
            constant: a 1 is appended to every x, so that means are in the last row: (C + 1, C + 1).
        """
        names = list(names)
        sums: dict[str, torch.Tensor] = {}

        def add(name: str, x: torch.Tensor) -> None:
            x = torch.cat([x, torch.ones(len(x), 1)], -1).double() if constant else x.double()
            sums[name] = sums.get(name, torch.zeros(())) + x.T @ x

        missing = [name for name in names if (name, constant) not in self._moments]
        count = self.watch(missing, add) if missing else 1
        found = {name: total / count for name, total in sums.items()}
        found |= {name: self._moments[name, constant] for name in names if name not in found}
        for name in missing:
            if sum(moment.nbytes for moment in self._moments.values()) + found[name].nbytes <= _KEPT_BYTES:
                self._moments[name, constant] = found[name]
        return {name: found[name] for name in names}

    def watch(self, names: Iterable[str], see: Callable[[str, torch.Tensor], None], *, model: Any = None) -> int:
        """Run the windows and hand over the inputs of named modules, batch by batch, padding left out.

        Args:
            see: gets (name, (tokens, C) float32).
            model: another one than the calibration's, over the same text in the same order.

        Returns:
            N.
        """
        model = self.model if model is None else model
        state: dict[str, torch.Tensor] = {}

        def hook(name: str) -> Any:
            def call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = args[0] if args else kwargs["hidden_states"]
                see(name, x.detach().flatten(0, -2)[state["real"]].float())

            return call

        hooks = [model.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in names]
        count = 0
        try:
            vocab = model.get_input_embeddings().weight.shape[0]
            for group in batches(self.windows, batch_tokens=batch_tokens_for(vocab)):
                ids = padded_ids(group)
                real = torch.zeros(ids.shape, dtype=torch.bool)
                for row, window in enumerate(group):
                    real[row, : len(window.ids)] = True
                state["real"] = real.flatten()
                count += int(real.sum())
                with torch.no_grad():
                    model(ids, use_cache=False)
        finally:
            for handle in hooks:
                handle.remove()
        return count
