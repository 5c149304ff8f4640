"""Teach a model: `edgegen.finetune(model, data=…)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import check_model, empty_model, find_model, open_tokenizer, read_config
from edgegen.modeling.summary import summarize
from edgegen.prepare.built import example_of, is_built, open_dataset, read_rows
from edgegen.prepare.split import prepare_data
from edgegen.records.model import ModelRef, ModelSummary
from edgegen.records.task import SyntheticReport, Task
from edgegen.records.training import Training
from edgegen.sdk.subject import stop_ids
from edgegen.training.batches import encode, steps_for
from edgegen.training.options import Options
from edgegen.tune.adapters import Adapter, require_method
from edgegen.tune.distill import Distilling, Pupil, require_distilling
from edgegen.tune.distill import distill as run_distill
from edgegen.tune.fewshot import teach_few
from edgegen.tune.finetune import Data
from edgegen.tune.finetune import finetune as run_finetune
from edgegen.tune.student import parse_student

Told = Callable[[int, int, str], None]
"""(steps done, steps, words)."""


class Learner:
    """A model that is to be trained, found and checked; no weights are loaded.

    Attributes:
        ref: the checkpoint.
        tokenizer: its own.
        summary: its sizes.
        config: transformers' object of its configuration.
        eos_ids: where answers end.
    """

    def __init__(self, model: str) -> None:
        """
        Raises:
            ConfigError, UnsupportedError, NetworkError: whatever is wrong with it.
        """
        self.ref: ModelRef = find_model(model)
        folder = Path(self.ref.path)
        said = read_config(self.ref)
        checkpoint, empty = Checkpoint(folder), empty_model(self.ref)
        self.tokenizer = open_tokenizer(folder)
        self.notes = check_model(self.ref, empty, checkpoint, self.tokenizer)
        self.summary: ModelSummary = summarize(empty, checkpoint)
        self.config = empty.config
        self.eos_ids = stop_ids(folder, said, self.tokenizer)
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
    epochs: float = 3.0,
    steps: int | None = None,
    batch: int = 16,
    rate: float | None = None,
    max_tokens: int | None = None,
    told: Told | None = None,
    **options: Any,
) -> Training:
    """Fine-tune a model on examples and write it to `out`; the same call goes on where a killed one was.

    Args:
        model: a checkpoint's folder or a hub id.
        data: a built data set's folder, or whatever `compress` reads.
        method: lora, rslora, dora, qlora (on a CUDA GPU), full or prompt-tuning.
        epochs: how often each example is shown, unless `steps` says how many batches there are.
        batch: examples a step, all processes together.
        rate: highest learning rate; None: 2e-4 for adapters, 5e-5 for all weights, 1e-2 for soft prompts.
        max_tokens: longest sequence; None: the model's context, at most 512.
        told: hears about progress.
        options: further `edgegen.training.options.Options`.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    require_method(method)
    place = Path(out).expanduser()
    learner, found = Learner(model), learning_data(data)
    made = make_options(
        learner,
        found,
        epochs=epochs,
        steps=steps,
        batch=batch,
        rate=rate if rate is not None else {"full": 5e-5, "prompt-tuning": 1e-2}.get(method, 2e-4),
        max_tokens=max_tokens,
        options=options,
    )
    return run_finetune(
        learner.ref,
        learner.tokenizer,
        found,
        parameters=learner.summary.parameters,
        method=method,
        adapter=adapter,
        options=made,
        out=place,
        progress=told,
    )


def make_options(
    learner: Learner,
    data: Data,
    *,
    epochs: float,
    steps: int | None,
    batch: int,
    rate: float,
    max_tokens: int | None,
    options: dict[str, Any],
) -> Options:
    """Options of a run, with the steps that the epochs take.

    Raises:
        ConfigError: a number out of range, or data smaller than a batch.
    """
    context = learner.summary.context_tokens
    length = min(max_tokens or 512, context)
    for name, value in (("--batch", batch), ("--epochs", epochs), ("--rate", rate), ("--max-tokens", length)):
        if not value > 0:
            raise ConfigError(f"{name} must be above 0, not {value}")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps must be at least 1, not {steps}")
    packed = bool(options.get("packed", False))
    if steps is None:
        items = encode(learner.tokenizer, data.train, max_tokens=length)
        steps = steps_for(items, rows=batch, epochs=epochs, packed_tokens=length if packed else 0)
    return Options(steps=steps, batch=batch, rate=rate, max_tokens=length, **options)


def distill(
    teacher: str,
    *,
    student: str,
    data: str,
    out: str | Path = "student",
    how: Distilling = Distilling(),
    sequence_level: bool = False,
    epochs: float = 3.0,
    steps: int | None = None,
    batch: int = 16,
    rate: float | None = None,
    max_tokens: int | None = None,
    told: Told | None = None,
    **options: Any,
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
        rate: highest learning rate; None: 1e-3 for a derived student, 1e-4 for a checkpoint.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    require_distilling(how)
    place = Path(out).expanduser()
    master, found = Learner(teacher), learning_data(data)
    shape = parse_student(student, master.config)
    learner = master if shape is not None else Learner(student)
    made = make_options(
        learner,
        found,
        epochs=epochs,
        steps=steps,
        batch=batch,
        rate=rate if rate is not None else 1e-3 if shape is not None else 1e-4,
        max_tokens=max_tokens,
        options=options,
    )
    return run_distill(
        master.ref,
        master.tokenizer,
        Pupil(
            ref=None if shape is not None else learner.ref,
            shape=shape,
            tokenizer=learner.tokenizer,
            parameters=learner.summary.parameters,
        ),
        found,
        teacher_parameters=master.summary.parameters,
        how=how,
        options=made,
        out=place,
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
    epochs: float = 10.0,
    steps: int | None = None,
    batch: int = 16,
    rate: float | None = None,
    max_tokens: int | None = None,
    told: Told | None = None,
    **options: Any,
) -> tuple[Training, SyntheticReport]:
    """Teach a student with a few real examples and what a teacher makes of them, and write it to `out`.

    Args:
        student: as `distill`.
        data: whose first `few` training rows are the seeds; its validation rows choose the best weights, and are
            learnt shortly at the end.
        task: how the teacher is asked, as a record or a TOML file.

    Returns:
        The run, and what became of the synthetic examples.

    Raises:
        VerificationError: nothing that the teacher wrote stood up.
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    if few < 2:
        raise ConfigError(f"--few-shot must be at least 2, not {few}")
    wanted = load_toml(Path(task).expanduser(), Task) if isinstance(task, str) else task
    place = Path(out).expanduser()
    master, found = Learner(teacher), learning_data(data)
    shape = parse_student(student, master.config)
    learner = master if shape is not None else Learner(student)
    if steps is None:
        examples = min(few, len(found.train)) + wanted.synthetic
        steps = max(1, round(epochs * examples / batch))
    made = make_options(
        learner,
        found,
        epochs=epochs,
        steps=steps,
        batch=batch,
        rate=rate if rate is not None else 1e-3 if shape is not None else 2e-4,
        max_tokens=max_tokens,
        options=options,
    )
    return teach_few(
        master.ref,
        master.tokenizer,
        Pupil(
            ref=None if shape is not None else learner.ref,
            shape=shape,
            tokenizer=learner.tokenizer,
            parameters=learner.summary.parameters,
        ),
        found,
        wanted,
        teacher_parameters=master.summary.parameters,
        few=few,
        options=made,
        out=place,
        progress=told,
    )
