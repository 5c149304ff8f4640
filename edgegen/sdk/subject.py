"""A model and a data set, before any device: opened only as far as needed, measured once for all targets.

Checking a model and reading its tensors' names is quick; loading its weights is not, so that waits until a stage has
to run. A finished output is therefore recognised in a second or two.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.hessians import save_hessians
from edgegen.modeling.load import (
    check_model,
    empty_model,
    find_model,
    memory_needed,
    open_model,
    open_tokenizer,
    read_config,
)
from edgegen.modeling.statistics import Statistics
from edgegen.modeling.summary import summarize
from edgegen.modeling.tasks import Task, task_of
from edgegen.modeling.trimming import VocabularyOption, keep_all, measure_options
from edgegen.prepare.split import Split, prepare_data
from edgegen.records.model import ModelRef, ModelSummary
from edgegen.records.target import Target

CALIBRATION_TOKENS = 8192
SCORED_TOKENS = 4096
HESSIAN_TOKENS = 16384
"""For compensated rounding, which learns more from its text than importance does and needs no backward pass."""


class CheckedModel:
    """A checkpoint that was found and checked; no weights are loaded.

    Attributes:
        ref: the checkpoint.
        config: its config.json.
        checkpoint: its stored tensors.
        empty: its architecture without weights.
        tokenizer: its own.
        summary: its sizes.
        eos_ids: where answers end.
        notes: what is odd but harmless.
    """

    def __init__(self, model: str, targets: Sequence[Target] = ()) -> None:
        """
        Args:
            targets: runtimes that it is meant for; at least one has to know its family; empty: none is asked.

        Raises:
            ConfigError, UnsupportedError, NetworkError: whatever is wrong with it.
        """
        self.ref: ModelRef = find_model(model)
        folder = Path(self.ref.path)
        self.config: dict[str, Any] = read_config(self.ref)
        if targets:
            require_family(self.ref, self.config, targets)
        self.checkpoint = Checkpoint(folder)
        self.empty = empty_model(self.ref)
        self.tokenizer = open_tokenizer(folder)
        self.notes = check_model(self.ref, self.empty, self.checkpoint, self.tokenizer)
        self.summary: ModelSummary = summarize(self.empty, self.checkpoint)
        self.eos_ids = stop_ids(folder, self.config, self.tokenizer)

    @functools.cached_property
    def model(self) -> Any:
        """The model with its weights.

        Raises:
            ConfigError: a tensor holds NaN or infinity.
            DeviceError: too little memory.
        """
        for _ in self.checkpoint.check_finite():
            pass
        return open_model(self.ref, parameters=self.summary.parameters)


class Subject(CheckedModel):
    """What is compressed, and the text that it is judged on.

    Attributes:
        task: what it is for, and how it is judged.
        split: the data, calibration and held-out rows.
    """

    def __init__(
        self, model: str, data: str | None, targets: Sequence[Target], *, memory_bytes: int | None = None
    ) -> None:
        """Find and check model and data; no weights are loaded.

        Args:
            targets: runtimes that it is meant for; at least one has to know its family.
            memory_bytes: what its weights may take here; None: what is free.

        Raises:
            ConfigError, UnsupportedError, NetworkError: whatever is wrong with them.
        """
        super().__init__(model, targets)
        self.task: Task = task_of(self.summary)
        self.split: Split = prepare_data(data)
        self._memory_bytes = memory_bytes

    @functools.cached_property
    def is_streamed(self) -> bool:
        """Whether it is larger than the memory that it may take, and read block by block."""
        allowed = psutil.virtual_memory().available if self._memory_bytes is None else self._memory_bytes
        return self.summary.task == "causal" and memory_needed(self.summary.parameters) > allowed

    @property
    def window_tokens(self) -> int:
        """Longest window that is cut from the data."""
        return self.task.window_tokens(self.summary)

    @functools.cached_property
    def calibration_tokens(self) -> int:
        """Predictions that `statistics` rest on."""
        return sum(window.tokens for window in self._calibration)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Importance of inputs and Fisher samples, from one pass over the calibration rows."""
        return self.statistics_of(self)

    def statistics_of(self, base: CheckedModel) -> Statistics:
        """The same of a model that was derived from this one."""
        return self.task.statistics(base.model, base.summary, self._calibration)

    def save_hessians(self, base: CheckedModel, folder: Path) -> tuple[str, ...]:
        """Gather what goes into each layer on the calibration rows, for compensated rounding.

        Args:
            base: this model, or one that was derived from it.

        Returns:
            Notes on what is left out.
        """
        return save_hessians(base.model, base.summary, self._windows(HESSIAN_TOKENS), folder)

    @functools.cache  # noqa: B019 - a subject lives as long as its command
    def vocabularies(self, vocab: str, keep: tuple[str, ...] = ()) -> tuple[list[VocabularyOption], list[str]]:
        """The whole vocabulary, and trimmed ones where the user's data says what is needed; with notes.

        Args:
            vocab: `auto`, `keep`, or a number of tokens.
            keep: tokens, or text whose tokens, stay whatever the data says.

        Raises:
            ConfigError: another word.
            UnsupportedError: a number was given and this tokenizer cannot be trimmed.
        """
        rows = self.summary.vocab_size
        if self.summary.task == "encoder":
            if vocab not in ("auto", "keep"):
                raise UnsupportedError("an encoder's vocabulary stays whole", hint="Leave out --vocab.")
            return [keep_all(rows, "an encoder's vocabulary stays whole")], []
        if vocab == "keep":
            return [keep_all(rows, "--vocab keep")], []
        if vocab == "auto" and self.split.ref.generic:
            return [keep_all(rows, "without --data the domain is unknown, so all tokens stay")], []
        try:
            options = measure_options(
                self.model,
                Path(self.ref.path),
                self.tokenizer,
                self.split.calibration,
                None if vocab == "auto" else [vocab_number(vocab)],
                max_tokens=SCORED_TOKENS // 2,
                window_tokens=self.window_tokens,
                keep=keep,
            )
        except UnsupportedError as error:
            if vocab != "auto":
                raise
            return [keep_all(rows, str(error))], [f"The vocabulary stays whole: {error}"]
        return ([keep_all(rows, "all tokens stay")] if vocab == "auto" else []) + options, []

    @functools.cached_property
    def _calibration(self) -> list[Any]:
        return self._windows(CALIBRATION_TOKENS)

    def _windows(self, tokens: int) -> list[Any]:
        return self.task.windows(
            self.tokenizer, self.split.calibration, max_tokens=tokens, window_tokens=self.window_tokens
        )


def require_family(ref: ModelRef, config: dict[str, Any], targets: Sequence[Target]) -> None:
    """Refuse a model whose family none of the targets' exporters knows.

    Raises:
        UnsupportedError: as said.
    """
    family = config["model_type"]
    if not any(family in known_families(target) for target in targets):
        raise UnsupportedError(
            f"{ref.source}: family {family!r} cannot be written for {', '.join(t.name for t in targets)}",
            hint="Known: " + ", ".join(dict.fromkeys(name for t in targets for name in known_families(t))) + ".",
        )


def known_families(target: Target) -> tuple[str, ...]:
    """What a target's exporter writes: models that continue text, and encoders."""
    return (*target.families, *target.encoder_families)


def vocab_number(vocab: str) -> int:
    """The number in `--vocab`.

    Raises:
        ConfigError: none.
    """
    if not (vocab.isascii() and vocab.isdigit()) or int(vocab) < 1:
        raise ConfigError(
            f"--vocab: {vocab!r} is neither auto, keep nor a number of tokens", hint="Write it like auto or 8000."
        )
    return int(vocab)


def stop_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> tuple[int, ...]:
    """Where answers end: the generation settings' ids, else the configuration's, else the tokenizer's."""
    generation = folder / "generation_config.json"
    found: Any = None
    if generation.exists():
        try:
            found = json.loads(generation.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{generation}: not a JSON object", hint="Mend it or remove it.") from error
    if found is None:
        found = config.get("eos_token_id")
    if found is None:
        found = tokenizer.eos_token_id
    values = found if isinstance(found, list) else [found]
    return tuple(int(value) for value in values if value is not None)
