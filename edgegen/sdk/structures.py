"""The search over structures: what else than rounding makes the model smaller, within a time budget.

Each technique proposes changes; each is carried out and its KL measured. What a change is worth depends on the budgets:
fewer weights leave more bits for each. So a changed model is *planned* as the original is, with the original's prices
for its tensors and its own KL as the floor, and what planning optimises is its estimate.

Rankings flip after healing, so the best of each technique are healed and halved by what they are estimated at then; not
those that would be worse than no change even with the KL that healing leaves at best. The best one is combined with
other techniques while time is left. The finalists are measured and planned like the original
(see `stages.make_plan`), and the best measured plan is taken: never one worse than without a change.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import save_json
from edgegen.common.files import remove_tree
from edgegen.common.units import format_seconds
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.load import config_object
from edgegen.modeling.source import padded_summary
from edgegen.modeling.structure import changed_layers, save_derived
from edgegen.modeling.summary import summarize
from edgegen.modeling.text import make_windows
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, expected_kl, prediction_of, solve
from edgegen.records.model import ModelSummary
from edgegen.records.structure import Change, Search, Structure, Tried, kept_layers
from edgegen.sdk.carrying import carried_problem
from edgegen.sdk.job import STRUCTURES, Job
from edgegen.sdk.subject import CALIBRATION_TOKENS
from edgegen.sdk.texts import items_of, scored_windows, study_windows
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.halving import halve
from edgegen.techniques.healing import HealingOptions, heal, zeros_of
from edgegen.techniques.registry import technique_named, techniques
from edgegen.techniques.technique import Technique

Progress = Callable[[int, int], None]

_HEALED_SHARE = 0.3
"""Of a change's KL that healing leaves at best, to choose what is worth healing."""
_HEALING_SHARE, _COMBINING_SHARE = 0.5, 0.3
"""Of the time budget: for healing the single changes, for combining the best of them."""
_LEAST_TOKENS = 2000
"""Fewer are no healing."""
_PASSES = 5
"""Passes over the text that learning from it takes, counted in the original's forward ones."""
_FINALISTS = 2
_HOPELESS = 1.25
"""A structure whose estimate is this many times the original's is not measured."""


class Candidate(msgspec.Struct):
    """A changed model in memory."""

    name: str
    changes: tuple[Change, ...]
    model: Any
    kl: float
    """As it was made, and as healing leaves it."""
    made_kl: float
    parameters: int
    healed_tokens: int = 0


class StructureSearch:
    """Looks for structures that beat the original's own."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        problem: Problem,
        *,
        grids: tuple[str, ...] | None,
        seconds: float,
        progress: Progress | None,
    ) -> None:
        """
        Args:
            folder: the workspace's.
            problem: of the original, from its measured sensitivities.
            grids: that the user allows; None: what the target plans with.
            seconds: time budget.
        """
        self._job = job
        self._folder = folder / STRUCTURES
        self._healing = folder / "healing"
        self._problem = problem
        self._grids = grids
        self._seconds = seconds
        self._started = time.monotonic()
        self._progress = progress
        subject = job.subject
        self._scored = scored_windows(subject, subject.tokenizer)
        self._reference = counted_log_probs(subject.model, self._scored)
        study, aside = study_windows(subject, subject.tokenizer)
        self._items, self._judged = items_of(study), items_of(aside)
        self._own = self.estimate_of(solve(problem), problem)

    def run(self, names: Sequence[str] | None) -> Search:
        """Look as far as the time goes; writes derived checkpoints and `structures.json`.

        Args:
            names: techniques; None: all of them.

        Raises:
            ConfigError: an unknown technique.
        """
        asked = techniques() if names is None else tuple(technique_named(name) for name in names)
        config = config_object(self._job.subject.config)
        obstacles = {t.NAME: why for t in asked if (why := t.obstacle(config, self._job.target))}
        usable = [t for t in asked if t.NAME not in obstacles]
        calibration = self._calibration(self._job.subject.model, self._job.subject.summary)
        tried, late = self._propose(usable, calibration, ())
        healed = self._heal_best(tried)
        if healed and self._left() > 0.15 * self._seconds:
            healed += self._combine(usable, healed[0])
        finalists = self._finalists(healed)
        self._folder.mkdir(parents=True, exist_ok=True)
        for candidate in finalists:
            self._save(candidate)
        remove_tree(self._healing)
        known = {candidate.name: candidate for candidate in [*tried, *healed]}
        search = Search(
            schema=1,
            seconds=self._seconds,
            tried=tuple(self._record(c, c in finalists) for c in known.values()),
            obstacles=obstacles,
            titles={t.NAME: t.TITLE for t in asked},
            late=late,
            more=self._more(tried, healed),
            unspent_s=self._left(),
        )
        save_json(self._folder.with_suffix(".json"), search)
        return search

    def estimate_of(self, solution: Solution | None, problem: Problem) -> float | None:
        """What planning optimises, of a solution: KL, bytes, or seconds a token."""
        if solution is None:
            return None
        kl = expected_kl(problem, solution)
        if problem.prefer == "quality":
            return kl + solution.case.choice.kl
        if problem.prefer == "size":
            return float(solution.bytes)
        return 1 / prediction_of(problem, solution, kl).decode_tokens_per_s

    def _estimate(self, candidate: Candidate, share: float = 1.0) -> float:
        """Of a changed model, with a share of its KL; infinity where no plan keeps the budgets."""
        problem = carried_problem(
            self._job,
            self._problem,
            self._summary(candidate.model),
            candidate.changes,
            candidate.kl * share,
            self._grids,
        )
        found = self.estimate_of(solve(problem), problem)
        return math.inf if found is None else found

    def _summary(self, model: Any) -> ModelSummary:
        return padded_summary(summarize(model, self._job.subject.checkpoint))

    def _kl(self, model: Any) -> float:
        return mean_kl(self._reference, counted_log_probs(model, self._scored))

    def _calibration(self, model: Any, summary: ModelSummary) -> Calibration:
        subject = self._job.subject
        windows = make_windows(
            subject.tokenizer,
            subject.split.calibration,
            max_tokens=CALIBRATION_TOKENS,
            window_tokens=subject.window_tokens,
        )
        own = model is subject.model
        return Calibration(
            model,
            summary,
            windows,
            lambda: subject.statistics if own else subject.task.statistics(model, summary, windows),
            original=subject.model,
        )

    def _propose(
        self, usable: Sequence[Technique], calibration: Calibration, before: tuple[Change, ...]
    ) -> tuple[list[Candidate], tuple[str, ...]]:
        """Proposals carried out and measured, the mildest of every technique first, as far as half of the time that is
        left goes; and the techniques that it did not reach."""
        deadline = time.monotonic() + 0.5 * self._left()
        proposed = [[(t, change) for change in t.propose(calibration, self._job.target)] for t in usable]
        turns = [each for turn in itertools.zip_longest(*proposed) for each in turn if each is not None]
        found: list[Candidate] = []
        for number, (technique, change) in enumerate(turns):
            if time.monotonic() > deadline:
                seen = {t.NAME for t, _ in turns[:number]}
                return found, tuple(dict.fromkeys(t.NAME for t, _ in turns[number:] if t.NAME not in seen))
            model = copy.deepcopy(calibration.model)
            technique.apply(model, change, calibration)
            kl = self._kl(model)
            if math.isfinite(kl):
                changes = (*before, change)
                name = "+".join(c.technique for c in changes) + f"-{sum(change.technique in c.name for c in found)}"
                size = sum(p.numel() for p in model.parameters())
                found.append(Candidate(name, changes, model, kl, kl, size))
                found = self._thinned(found)
            self._tell(number + 1, len(turns))
        return found, ()

    def _thinned(self, found: list[Candidate]) -> list[Candidate]:
        """Models of what is not among the best of its technique need not stay in memory."""
        for technique in {c.changes[-1].technique for c in found}:
            own = [c for c in found if c.changes[-1].technique == technique and c.model is not None]
            for candidate in sorted(own, key=lambda c: self._estimate(c, _HEALED_SHARE))[2:]:
                candidate.model = None
        return found

    def _heal_best(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """The most promising ones, healed and halved: the best first."""
        hopes = {c.name: self._estimate(c, _HEALED_SHARE) for c in tried if c.model is not None}
        limit = math.inf if self._own is None else self._own
        promising = sorted((c for c in tried if hopes.get(c.name, math.inf) < limit), key=lambda c: hopes[c.name])
        first = list({c.changes[-1].technique: c for c in reversed(promising)}.values())  # the best of each technique
        rest = [c for c in promising if c not in first]
        number = 2 if self._seconds < 300 else 4 if self._seconds < 3600 else 6
        chosen = sorted([*first, *rest][:number], key=promising.index)
        if not chosen:
            return []
        self._halve(chosen, _HEALING_SHARE * self._seconds)
        return sorted(chosen, key=self._estimate)

    def _combine(self, usable: Sequence[Technique], best: Candidate) -> list[Candidate]:
        """The best one with each other technique on top, healed."""
        others = [t for t in usable if t.NAME not in {c.technique for c in best.changes}]
        calibration = self._calibration(best.model, self._summary(best.model))
        tried = [c for c in self._propose(others, calibration, best.changes)[0] if c.model is not None]
        chosen = sorted(tried, key=lambda c: self._estimate(c, _HEALED_SHARE))[:2]
        self._halve(chosen, _COMBINING_SHARE * self._seconds)
        return chosen

    def _halve(self, chosen: Sequence[Candidate], seconds: float) -> None:
        """Heal candidates round by round, the better half longer."""
        seconds = min(seconds, self._left())
        tokens = int(seconds * self._tokens_per_s)
        if not chosen or not self._items or tokens < _LEAST_TOKENS * len(chosen):
            return
        named = {candidate.name: candidate for candidate in chosen}
        halve(
            list(named),
            lambda name, number, budget: self._heal(named[name], number, budget),
            lambda name: self._estimate(named[name]),
            tokens,
        )

    @functools.cached_property
    def _tokens_per_s(self) -> float:
        """Counted predictions that healing gets through in a second: forward and back, and the original forward."""
        started = time.perf_counter()
        counted_log_probs(self._job.subject.model, self._scored)
        return sum(w.tokens for w in self._scored) / (time.perf_counter() - started) / _PASSES

    def _heal(self, candidate: Candidate, number: int, tokens: int) -> None:
        """Train a candidate on with some predictions."""
        original = self._job.subject.model
        kept = kept_layers(self._job.subject.summary.layers, candidate.changes)
        healed = heal(
            candidate.model,
            original,
            kept,
            changed_layers(candidate.model, original, kept),
            self._items,
            self._judged,
            self._healing / candidate.name / str(number),
            HealingOptions(
                tokens=tokens,
                seconds=2 * tokens / self._tokens_per_s,
                blockwise=candidate.healed_tokens == 0,
            ),
            masks=zeros_of(candidate.model),
        )
        candidate.healed_tokens += healed.tokens if healed.kept else 0
        candidate.kl = self._kl(candidate.model)

    def _finalists(self, healed: Sequence[Candidate]) -> list[Candidate]:
        limit = math.inf if self._own is None else _HOPELESS * self._own
        ranked = sorted(healed, key=self._estimate)
        return [c for c in ranked if self._estimate(c) < limit][:_FINALISTS]

    def _save(self, candidate: Candidate) -> None:
        subject = self._job.subject
        structure = Structure(
            schema=1, base=subject.ref.digest, changes=candidate.changes, healed_tokens=candidate.healed_tokens
        )
        save_derived(candidate.model, Path(subject.ref.path), structure, self._folder / candidate.name / "checkpoint")

    def _record(self, candidate: Candidate, finalist: bool) -> Tried:
        healed = candidate.healed_tokens > 0
        estimate = self._estimate(candidate) if candidate.model is not None else math.inf
        return Tried(
            name=candidate.name,
            changes=candidate.changes,
            parameters=candidate.parameters,
            kl=candidate.made_kl,
            estimate=estimate if math.isfinite(estimate) else None,
            healed_kl=candidate.kl if healed else None,
            healed_tokens=candidate.healed_tokens,
            finalist=finalist,
        )

    def _more(self, tried: Sequence[Candidate], healed: Sequence[Candidate]) -> str:
        if not tried:
            return ""
        falling = [c for c in healed if c.healed_tokens and c.kl < c.made_kl]
        words = (
            f"{len(tried)} changed structures were looked at and {len(falling)} of them healed within "
            f"{format_seconds(self._seconds)}"
        )
        if not falling:
            hopes = "More time looks at more of them, and heals." if healed else "None can be expected to be better."
            return f"{words}. {hopes}"
        best = min(falling, key=lambda c: c.kl / c.made_kl)
        return (
            f"{words}; healing took the KL of {best.name} from {best.made_kl:.3g} to {best.kl:.3g} with "
            f"{best.healed_tokens:,} tokens. More time heals more of them, for longer."
        )

    def _left(self) -> float:
        return max(0.0, self._seconds - (time.monotonic() - self._started))

    def _tell(self, done: int, total: int) -> None:
        if self._progress:
            self._progress(done, total)
