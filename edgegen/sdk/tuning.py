"""Teach a model: `edgegen.finetune(model, data=…)`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.prepare.built import example_of, is_built, open_dataset, read_rows
from edgegen.prepare.split import prepare_data
from edgegen.records.task import SyntheticReport, Task
from edgegen.records.training import Training
from edgegen.sdk.prompting import read_task
from edgegen.sdk.subject import CheckedModel
from edgegen.training.batches import encode, steps_for
from edgegen.training.options import Options, require_options
from edgegen.tune.adapters import Adapter, require_adapter, require_method, require_room
from edgegen.tune.distill import Distilling, require_distilling
from edgegen.tune.distill import distill as run_distill
from edgegen.tune.fewshot import teach_few
from edgegen.tune.finetune import Data
from edgegen.tune.finetune import finetune as run_finetune
from edgegen.tune.pupil import Pupil
from edgegen.tune.student import parse_student

Told = Callable[[int, int, str], None]
"""(steps done, steps, words)."""
_EPOCHS, _BATCH, _LONGEST = 3.0, 16, 512


class Course(TypedDict, total=False):
    """Keyword arguments of `finetune`, `distill` and `distill_few`: how long and how fast is learnt."""

    epochs: float
    """How often each example is shown, unless `steps` says how many batches there are."""
    steps: int | None
    batch: int
    """Examples a step, all processes together."""
    micro_batch: int
    """Of them in memory at once; 0: all."""
    rate: float | None
    """Highest learning rate; None: one that suits what is trained."""
    max_tokens: int | None
    """Longest sequence; None: the model's context, at most 512."""
    packed: bool
    """Short examples share a sequence, unseen by each other."""
    evaluate_every: int
    """Steps between looks at the held-out loss; 0: ten looks."""
    patience: int
    """Looks without a better one before it stops; 0: it does not stop early."""
    seed: int
    max_seconds: float
    """Stop after this time with the best so far; 0: no limit."""


class Learner(CheckedModel):
    """A model that is to be trained, or that teaches."""

    def __init__(self, model: str) -> None:
        """
        Raises:
            ConfigError, UnsupportedError, NetworkError: whatever is wrong with it.
        """
        super().__init__(model)
        if self.summary.task != "causal":
            raise UnsupportedError(
                f"{model}: a {self.summary.task} cannot be trained yet", hint="Models that continue text can."
            )


def learning_data(source: str) -> Data:
    """Examples to learn from and to judge on: a built data set's splits, or a file's rows, a quarter held out.

    Raises:
        ConfigError: it cannot be read, or has too few rows.
    """
    if is_built(source):
        dataset = open_dataset(source)
        train, validation = (tuple(map(example_of, read_rows(source, name))) for name in ("train", "validation"))
        if not train:
            raise ConfigError(f"{source}: its split `train` has no rows", hint="Build it again with more data.")
        return Data(source, dataset.digest, train, validation, lineage=dataset.lineage)
    split = prepare_data(source)
    return Data(source, split.ref.digest, split.calibration, split.heldout)


def finetune(
    model: str,
    *,
    data: str,
    out: str | Path = "teacher",
    method: str = "lora",
    adapter: Adapter = Adapter(),
    told: Told | None = None,
    **course: Unpack[Course],
) -> Training:
    """Fine-tune a model on examples and write it to `out`; the same call goes on where a killed one was.

    Args:
        model: a checkpoint's folder or a hub id.
        data: a built data set's folder, or whatever `compress` reads.
        method: lora, rslora, dora, qlora (on a CUDA GPU), full or prompt-tuning.
        told: hears about progress.
        course: see `Course`; three epochs, and a rate of 2e-4 for adapters, 5e-5 for all weights and 1e-2 for soft
            prompts, unless it says otherwise.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    require_method(method)
    require_adapter(adapter)
    learner, found = Learner(model), learning_data(data)
    width, context_tokens = learner.summary.hidden_size, learner.summary.context_tokens
    require_room(method, adapter, width=width, context_tokens=context_tokens)
    rate = {"full": 5e-5, "prompt-tuning": 1e-2}.get(method, 2e-4)
    return run_finetune(
        learner.ref,
        learner.tokenizer,
        found,
        parameters=learner.summary.parameters,
        method=method,
        adapter=adapter,
        options=make_options(learner, found, course, rate=rate),
        out=Path(out).expanduser(),
        progress=told,
    )


def distill(
    teacher: str,
    *,
    student: str,
    data: str,
    out: str | Path = "student",
    how: Distilling = Distilling(),
    sequence_level: bool = False,
    told: Told | None = None,
    **course: Unpack[Course],
) -> Training:
    """Teach a smaller model what a larger one would say, and write it to `out`.

    Args:
        teacher: a checkpoint's folder or a hub id.
        student: a checkpoint, a share of the teacher's parameters like `0.25x`, or sizes like `layers=4,hidden=128`:
            then it is derived from the teacher and starts from its weights.
        data: as `finetune`.
        how: loss, temperature, labels, cache, on-policy.
        sequence_level: learn the teacher's answers instead of its distributions; the only way where vocabularies
            differ.
        course: see `Course`; three epochs, and a rate of 1e-3 for a derived student, 1e-4 for a checkpoint, unless it
            says otherwise.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    require_distilling(how)
    master, found = Learner(teacher), learning_data(data)
    learner, pupil = _pupil(student, master)
    return run_distill(
        master.ref,
        master.tokenizer,
        pupil,
        found,
        teacher_parameters=master.summary.parameters,
        how=how,
        options=make_options(learner, found, course, rate=1e-4 if pupil.ref else 1e-3),
        out=Path(out).expanduser(),
        eos_ids=master.eos_ids,
        context_tokens=min(master.summary.context_tokens, learner.summary.context_tokens),
        sequence_level=sequence_level,
        progress=told,
    )


def distill_few(
    teacher: str,
    *,
    student: str,
    data: str,
    task: Task | str,
    few: int = 32,
    out: str | Path = "student",
    ray: str = "",
    told: Told | None = None,
    **course: Unpack[Course],
) -> tuple[Training, SyntheticReport]:
    """Teach a student with a few real examples and what a teacher makes of them, and write it to `out`.

    Args:
        student: as `distill`.
        data: whose first `few` training rows are the seeds; its validation rows choose the best weights, and are
            learnt shortly at the end.
        ray: address of a Ray cluster on whose machines the teacher writes and scores, `auto`, or `local` for all
            processors of this one; empty: this process. The examples are the same.
        task: how the teacher is asked, as a record or a TOML file; see `prompting.read_task`.
        course: as `distill`; its epochs are of the real and the wanted synthetic examples together.

    Returns:
        The run, and what became of the synthetic examples.

    Raises:
        VerificationError: nothing that the teacher wrote stood up.
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    if few < 2:
        raise ConfigError(f"--few-shot must be at least 2, not {few}")
    wanted = read_task(task) if isinstance(task, str) else task
    master, found = Learner(teacher), learning_data(data)
    learner, pupil = _pupil(student, master)
    examples = min(few, len(found.train)) + wanted.synthetic
    return teach_few(
        master.ref,
        master.tokenizer,
        pupil,
        found,
        wanted,
        teacher_parameters=master.summary.parameters,
        few=few,
        options=make_options(learner, found, course, rate=1e-4 if pupil.ref else 1e-3, examples=examples),
        out=Path(out).expanduser(),
        ray=ray,
        progress=told,
    )


def _pupil(student: str, master: Learner) -> tuple[Learner, Pupil]:
    """Who learns, and the model that its tokenizer and its context are of."""
    shape = parse_student(student, master.empty.config)
    learner = master if shape is not None else Learner(student)
    ref = None if shape is not None else learner.ref
    return learner, Pupil(ref, shape, learner.tokenizer, learner.summary.parameters)


def make_options(learner: Learner, data: Data, course: Course, *, rate: float, examples: int | None = None) -> Options:
    """Options of a run, with the steps that the epochs take.

    Args:
        rate: where the course names none.
        examples: of an epoch, where they are not just the data's training rows.

    Raises:
        ConfigError: a number out of range, or data without a token to learn from.
    """
    wanted, epochs = require_course(course, rate=rate, context_tokens=learner.summary.context_tokens)
    if course.get("steps") is not None:
        return wanted
    if examples is not None:
        return msgspec.structs.replace(wanted, steps=max(1, round(epochs * examples / wanted.batch)))
    items = encode(learner.tokenizer, data.train, max_tokens=wanted.max_tokens)
    packed_tokens = wanted.max_tokens if wanted.packed else 0
    steps = steps_for(items, rows=wanted.batch, epochs=epochs, packed_tokens=packed_tokens)
    return msgspec.structs.replace(wanted, steps=steps)


def require_course(course: Course, *, rate: float = 1e-4, context_tokens: int = _LONGEST) -> tuple[Options, float]:
    """A course as options, with one step where it names none, and its epochs.

    Args:
        rate: where the course names none.
        context_tokens: that the model has.

    Raises:
        ConfigError: a number out of range.
    """
    said: dict[str, Any] = dict(course)
    epochs, steps = said.pop("epochs", _EPOCHS), said.pop("steps", None)
    chosen, longest = said.pop("rate", None), said.pop("max_tokens", None)
    options = Options(
        steps=1 if steps is None else steps,
        batch=said.pop("batch", _BATCH),
        rate=rate if chosen is None else chosen,
        max_tokens=min(_LONGEST if longest is None else longest, context_tokens),
        **said,
    )
    require_options(options)
    if not (math.isfinite(epochs) and epochs > 0):
        raise ConfigError(f"--epochs must be a number above 0, not {epochs:g}")
    return options, epochs
