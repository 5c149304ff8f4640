"""Tune rounded weights as a whole, on their grids, to say again what the original says.

Rounding with compensation keeps each layer's outputs by themselves. What is lost then is lost together, and is won back
together: codes, scales and vectors learn from the original's predictions (see `latents`), by gradient descent on their
KL divergence, as AutoRound (Cheng et al. 2023, arXiv:2309.05516) does block by block on outputs. The grids stay, so the
file keeps its bytes.

A rate at which the model gets worse is lowered, once that shows. The weights that are best on held-out text stay, those
from before if the whole is no better with the runtime's rounding of activations. A time budget becomes a number of
steps once, by timing some; the number is written down. So a run that was cut off and is called again with the same
folder does the same sums as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgegen.common.codec import digest_record, load_json, save_json
from edgegen.common.files import digest_file, disk_errors, filling, remove_tree
from edgegen.compress.latents import LatentModel, learns
from edgegen.modeling.source import TensorSource
from edgegen.records.base import Record
from edgegen.records.refinement import Refined, Refinement
from edgegen.training.batches import Item
from edgegen.training.loop import Fitted, fit, heldout_loss, make_accelerator
from edgegen.training.losses import in_parts
from edgegen.training.options import Options
from edgegen.training.teacher import LiveTeacher, divergence_loss
from edgegen.training.timing import rows_at_once, seconds_a_batch

Progress = Callable[[int, int], None]

_RECORD, _WEIGHTS = "refinement.json", "weights.safetensors"
_LOOKS = 16
_RATE, _MOST_RATE = 0.2, 0.15
_WORST = 1.25
"""How far the KL on held-out text may rise before the rate is taken for too high."""
_LOWER = 3.0
"""What the rate is divided by then."""
_OVERTIME = 2.0
"""Of the time budget, that a machine which has become slower may take: learning pays when the rate has fallen."""
_STEPS = "steps.json"


class RefineOptions(Record, frozen=True):
    """How weights are tuned, and for how long."""

    seconds: float
    """Time budget."""
    steps: int = 0
    """Most steps; 0: as many as the time allows."""
    rate: float = 0.0
    """Highest learning rate: of codes, in levels; 0: as `rate_for` says."""
    batch: int = 4
    """Sequences a step."""
    seed: int = 0


class _Attempt(Record, frozen=True):
    """What a folder's run is at."""

    identity: str
    steps: int
    """That are left for it."""
    number: int = 0
    """Attempts before it, whose rate was too high."""


def refine(
    model: Any,
    original: Any,
    source: TensorSource,
    grids: Mapping[str, str],
    items: Sequence[Item],
    heldout: Sequence[Item],
    judge: Callable[[], float],
    out: Path,
    options: RefineOptions,
    *,
    identity: str,
    kept: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> Refinement:
    """Tune what `source` rounds onto `grids`, write it to a folder and let the source use it from there.

    Args:
        model: whose weights are rounded; used, and as before afterwards.
        original: that it is to speak like; of the same vocabulary.
        grids: tensor name → grid, of all tensors.
        items: text to learn from.
        heldout: text to choose the best weights by, none of it in `items`.
        judge: KL of the whole to the original with what `source` rounds at that moment.
        out: folder to write; replaced if it exists. Beside it a folder of work in progress is kept until it is whole.
        identity: digest of everything that decides the result besides the options.
        kept: (K,) ids of the vocabulary that stays; None: all of it.
        progress: told (steps done, steps).

    Raises:
        ConfigError: training diverged.
        DeviceError: the disk is full.
    """
    began = time.perf_counter()
    source.use_tuned({}, None)
    before = after = judge()
    work = out.with_name(out.name + "-work")
    learnt = {name: grid for name, grid in grids.items() if learns(grid)}
    fitted = None
    if items and heldout and learnt:
        run = _Run(model, original, source, grids, items, heldout, work, options, identity, kept)
        fitted = run.fit(progress)
    with filling(out) as building:
        weights = building / _WEIGHTS
        if fitted:
            save_file(dict(run.latents.packed()), weights)
            source.use_tuned(learnt, weights)
            after = judge()
        better = after < before
        found = Refinement(
            steps=fitted.steps if fitted else 0,
            tokens=fitted.tokens if fitted else 0,
            seconds=max(time.perf_counter() - began, fitted.seconds if fitted else 0.0),
            tensors=len(learnt) if fitted else 0,
            kl_before=before,
            kl_after=after if better else before,
            kept=better,
            digest=digest_file(weights) if better else "",
        )
        if not better:
            weights.unlink(missing_ok=True)
        save_json(building / _RECORD, Refined(1, found, learnt if better else {}))
    use_refined(source, out)
    remove_tree(work)
    return found


def read_refinement(folder: Path) -> Refinement:
    """What `refine` found when it wrote a folder."""
    return load_json(folder / _RECORD, Refined).refinement


def use_refined(source: TensorSource, folder: Path) -> None:
    """Let a source use what `refine` wrote to a folder, from there."""
    source.use_tuned(load_json(folder / _RECORD, Refined).grids, folder / _WEIGHTS)


def rate_for(predictions: float, parameters: int) -> float:
    """The learning rate that so much text bears.

    Each step moves a code by about the rate, and what the gradients agree on has to outweigh what they do not: a model
    of many weights that sees little text may only let the surest of its codes go. The two numbers were found on models
    of 0.7 and 8 million weights with 0.01 to 0.5 predictions a weight.

    Args:
        predictions: that are learnt from, with repetitions.
        parameters: that learn.
    """
    return min(_MOST_RATE, _RATE * math.sqrt(predictions / parameters))


class _Narrowed(torch.nn.Module):
    """A model that knows some tokens only."""

    def __init__(self, model: Any, kept: NDArray[np.int64]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("columns", torch.from_numpy(kept))

    def forward(self, **inputs: Any) -> Any:
        """The model's outputs with the logits of the tokens it knows."""
        found = self.model(**inputs)
        found["logits"] = found.logits[..., self.columns]
        return found


class _Run:
    def __init__(
        self,
        model: Any,
        original: Any,
        source: TensorSource,
        grids: Mapping[str, str],
        items: Sequence[Item],
        heldout: Sequence[Item],
        folder: Path,
        options: RefineOptions,
        identity: str,
        kept: NDArray[np.int64] | None,
    ) -> None:
        self.latents = LatentModel(model, source, grids)
        self.student: Any = self.latents if kept is None else _Narrowed(self.latents, kept)
        self.items, self.heldout, self.folder, self.options = items, heldout, folder, options
        self.models = [model] if original is model else [model, original]
        self.identity = digest_record([identity, msgspec.to_builtins(options), dict(grids)])
        self.batch = min(options.batch, len(items))
        self.rows = rows_at_once((*items, *heldout), original.get_input_embeddings().weight.shape[0])
        teacher = LiveTeacher(original if kept is None else _Narrowed(original, kept), 1.0)
        self.loss = divergence_loss(teacher, kind="forward")

    def fit(self, progress: Progress | None) -> Fitted | None:
        """Learn as long as the time goes; None: it is too short for a step."""
        accelerator = make_accelerator(self._course(1))
        homes = [(m, next(m.parameters()).device) for m in self.models]
        try:
            for module in (*self.models, self.student):
                module.to(accelerator.device)
            attempt = self._attempt()
            start = [parameter.detach().clone() for parameter in self.latents.parameters()]
            while attempt.steps:
                with torch.no_grad():
                    for parameter, value in zip(self.latents.parameters(), start, strict=True):
                        parameter.copy_(value)
                fitted = fit(
                    self.student,
                    self.items,
                    self.heldout,
                    self._course(attempt.steps, lower=_LOWER**attempt.number),
                    self.folder / f"fit-{attempt.number}",
                    identity=self.identity,
                    loss=self.loss,
                    judge=in_parts(self.loss, self.rows),
                    progress=lambda done, total, words: progress(done, total) if progress else None,
                    accelerator=accelerator,
                )
                if fitted.stopped != "worse" or fitted.steps == attempt.steps:
                    return fitted
                attempt = _Attempt(self.identity, attempt.steps - fitted.steps, attempt.number + 1)
                save_json(self.folder / _STEPS, attempt)
            return None
        finally:
            for module, home in homes:
                module.to(home)
            self.student.to("cpu")

    def _course(self, steps: int, *, lower: float = 1.0) -> Options:
        predictions = steps * self.batch * float(np.mean([item.tokens for item in self.items]))
        parameters = sum(parameter.numel() for parameter in self.latents.parameters())
        return Options(
            steps=steps,
            batch=self.batch,
            micro_batch=min(self.rows, self.batch),
            rate=(self.options.rate or rate_for(predictions, parameters)) / lower,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            least_rate=0.0,
            seed=self.options.seed,
            evaluate_every=max(1, steps // _LOOKS),
            worst=_WORST,
            bf16=False,
            max_seconds=_OVERTIME * self.options.seconds,
        )

    def _attempt(self) -> _Attempt:
        """That was cut off, or the first."""
        path = self.folder / _STEPS
        found = load_json(path, _Attempt) if path.is_file() else None
        if found is None or found.identity != self.identity:
            remove_tree(self.folder)
            found = _Attempt(self.identity, self._steps())
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True)
                save_json(path, found)
        return found

    def _steps(self) -> int:
        """Steps that fit what is left of the time, with the looks at held-out text."""
        began = time.perf_counter()
        seconds = seconds_a_batch(
            self.student, self.items, self.loss, batch=self.batch, rows=self.rows, seed=self.options.seed
        )
        looked = time.perf_counter()
        heldout_loss(self.student, self.heldout, loss=in_parts(self.loss, self.rows))
        look = time.perf_counter() - looked
        spent = time.perf_counter() - began
        fitting = int((self.options.seconds - spent - (_LOOKS + 1) * look) / seconds)
        most = self.options.steps or fitting
        return max(0, min(fitting, most))
