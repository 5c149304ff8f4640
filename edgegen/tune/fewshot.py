"""Teacher and student with a few real examples, in four steps.

1. A teacher. One that does not follow examples that it is shown first studies them as it will write them.
2. It writes synthetic examples from few-shot prompts, or to answers that it is given; on one machine or many.
3. They are scored and filtered, and a report says how many went and why (`synthesize`).
4. The student learns the real and the synthetic examples, then, shortly, the small validation split.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.common.codec import digest_record, load_json, save_json
from edgegen.common.files import filling, remove_tree
from edgegen.errors import ConfigError, VerificationError
from edgegen.modeling.load import open_model
from edgegen.records.data import Example
from edgegen.records.dataset import Row
from edgegen.records.model import ModelRef
from edgegen.records.task import SyntheticReport, Task
from edgegen.records.training import Training
from edgegen.training.batches import encode
from edgegen.training.loop import Progress, fit, make_accelerator
from edgegen.training.options import Options
from edgegen.tune.adapters import Adapter, with_trained_parts
from edgegen.tune.asking import pairs_of, require_task, shown, task_version
from edgegen.tune.finetune import Data, finished, result_of, training_of
from edgegen.tune.propose import Proposal
from edgegen.tune.pupil import Pupil
from edgegen.tune.save import publish
from edgegen.tune.shards import writers
from edgegen.tune.synthesize import report_of, synthesize

SYNTHETIC = "synthetic.jsonl"
_REPORT = "synthetic.json"
_ADAPTERS_FROM = 50_000_000
"""Parameters from which a teacher studies with adapters rather than with all of its weights."""


def make_synthetic(
    teacher: ModelRef,
    tokenizer: Any,
    data: Data,
    task: Task,
    folder: Path,
    *,
    parameters: int,
    few: int,
    seed: int,
    ray: str = "",
    progress: Progress | None = None,
) -> SyntheticReport:
    """Steps 1 to 3: synthetic examples of the first `few` training rows, written to `folder`, whole or not at all.

    The same call finds what is there already.

    Args:
        ray: address of a Ray cluster that writes and scores them; empty: this process does.

    Raises:
        ConfigError: too few examples, or a task that cannot be followed.
        UnsupportedError, NetworkError, DeviceError: the cluster, see `shards`.
        VerificationError: nothing that the teacher wrote stood up.
    """
    require_task(task)
    tell = progress or (lambda done, steps, words: None)
    seeds = pairs_of(data.train)[:few]
    if len(seeds) < 2:
        raise ConfigError(f"{len(seeds)} examples to start from; 2 are needed at least")
    identity = digest_record([teacher.digest, seeds, msgspec.to_builtins(task), seed])
    mark = folder / "identity.json"
    if mark.is_file() and load_json(mark, str) == identity:
        return load_json(folder / _REPORT, SyntheticReport)
    made: list[Proposal] = []
    if not task.synthetic:
        report = report_of([], task, teacher.source, len(seeds))
        return _write(folder, made, report, seeds, identity)
    model = open_model(teacher, parameters=parameters)
    if task.study_steps:
        model = _study(model, tokenizer, seeds, task, folder, identity, parameters, seed, tell)
    with writers(model, tokenizer, seeds, task, seed, address=ray) as ask:
        made, report = synthesize(
            ask,
            seeds,
            task,
            teacher=teacher.source,
            told=lambda done, of, words: tell(done, of, f"synthetic examples, {words}"),
        )
    if not made:
        gone = ", ".join(f"{count} {why}" for why, count in report.dropped.items())
        raise VerificationError(
            f"none of {report.asked} examples that the teacher wrote stood up: {gone}",
            hint="Relax [filters], set study_steps, or use a stronger teacher.",
        )
    return _write(folder, made, report, seeds, identity)


def _write(
    folder: Path,
    made: Sequence[Proposal],
    report: SyntheticReport,
    seeds: Sequence[tuple[str, str]],
    identity: str,
) -> SyntheticReport:
    with filling(folder) as place:
        rows = [_row(number, example, report, seeds) for number, example in enumerate(made)]
        (place / SYNTHETIC).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        save_json(place / _REPORT, report)
        save_json(place / "identity.json", identity)
    return report


def _study(
    model: Any,
    tokenizer: Any,
    seeds: Sequence[tuple[str, str]],
    task: Task,
    folder: Path,
    identity: str,
    parameters: int,
    seed: int,
    tell: Progress,
) -> Any:
    """The teacher after it has learnt the seeds as it will write them: several in ever new orders, or each alone."""
    dice = np.random.default_rng(seed)
    context = getattr(model.config, "max_position_embeddings", None) or 512
    orders = [dice.permutation(len(seeds))[: task.shots + 1] for _ in range(max(16, 4 * len(seeds)))]
    if not task.shots:
        orders = [np.array([number]) for number in range(len(seeds))]
    texts = [Example(text=shown(task, [seeds[i] for i in order])) for order in orders]
    options = Options(
        steps=task.study_steps,
        batch=8,
        rate=1e-3 if parameters < _ADAPTERS_FROM else 2e-4,
        max_tokens=min(1024, context),
        seed=seed,
        save_every=task.study_steps,
    )
    model = with_trained_parts(model, "full" if parameters < _ADAPTERS_FROM else "lora", Adapter())
    items = encode(tokenizer, texts, max_tokens=options.max_tokens)
    work = folder.with_name(folder.name + ".study")
    fit(
        model,
        items,
        [],
        options,
        work,
        identity=identity,
        progress=lambda done, of, words: tell(done, of, f"the teacher studies, {words}"),
    )
    remove_tree(work)
    return model.eval().requires_grad_(False)


def _row(number: int, made: Proposal, report: SyntheticReport, seeds: Sequence[tuple[str, str]]) -> Row:
    return Row(
        id=digest_record([made.prompt, made.answer]).removeprefix("sha256:")[:16],
        messages=(("user", made.prompt), ("assistant", made.answer)),
        completion=True,
        source=f"{SYNTHETIC}#{number + 1}",
        made_by=f"{report.teacher}, task {report.task} {report.version}",
        parents=tuple(digest_record(list(seeds[i])).removeprefix("sha256:")[:16] for i in made.shown),
    )


def read_synthetic(folder: Path, weight: float) -> tuple[Example, ...]:
    """What was kept, as examples to learn from."""
    lines = (folder / SYNTHETIC).read_bytes().splitlines()
    rows = [msgspec.json.decode(line, type=Row) for line in lines]
    return tuple(Example(messages=row.messages, completion=True, weight=weight) for row in rows)


def teach_few(
    teacher: ModelRef,
    teacher_tokenizer: Any,
    pupil: Pupil,
    data: Data,
    task: Task,
    *,
    teacher_parameters: int,
    few: int,
    options: Options,
    out: Path,
    ray: str = "",
    progress: Progress | None = None,
) -> tuple[Training, SyntheticReport]:
    """All four steps; the student is written to `out`, with the synthetic examples among its files.

    Raises:
        ConfigError, VerificationError, UnsupportedError, NetworkError, DeviceError: as `make_synthetic`; training that
            diverged.
    """
    identity = digest_record([teacher.digest, pupil.identity, data.digest, task_version(task), few, result_of(options)])
    if (done := finished(out, identity)) is not None:
        return done, load_json(out / _REPORT, SyntheticReport)
    synthetic = out.with_name(out.name + ".synthetic")
    report = make_synthetic(
        teacher,
        teacher_tokenizer,
        data,
        task,
        synthetic,
        parameters=teacher_parameters,
        few=few,
        seed=options.seed,
        ray=ray,
        progress=progress,
    )
    real = tuple(example for example in data.train if example.completion)[:few]
    made = read_synthetic(synthetic, task.synthetic_weight)
    student = pupil.open(
        lambda: open_model(teacher, parameters=teacher_parameters),
        encode(teacher_tokenizer, real, max_tokens=options.max_tokens),
    )
    items = encode(pupil.tokenizer, [*real, *made], max_tokens=options.max_tokens)
    heldout = encode(pupil.tokenizer, data.validation, max_tokens=options.max_tokens) if data.validation else []
    accelerator = make_accelerator(options)
    work, last_work = out.with_name(out.name + ".training"), out.with_name(out.name + ".last")
    fitted = fit(student, items, heldout, options, work, identity=identity, progress=progress, accelerator=accelerator)
    notes = [f"{report.kept} synthetic examples beside {len(real)} real ones", *report.notes]
    if task.last_steps and heldout:
        last = msgspec.structs.replace(
            options,
            steps=task.last_steps,
            batch=min(options.batch, len(heldout)),
            rate=options.rate / 5,
            warmup=0.0,
            packed=False,
        )
        fit(student, heldout, [], last, last_work, identity=identity, accelerator=make_accelerator(last))
        notes.append(f"the last {task.last_steps} steps were on the validation split, which is no judge any more")
    training = training_of(
        fitted,
        student,
        parameters=sum(p.numel() for p in student.parameters()),
        method="few-shot",
        ref=pupil.origin(teacher),
        data=data,
        options=options,
        settings={"task": task.name, "task_version": report.version, "few": str(few), "prompt": task.prompt},
        identity=identity,
        notes=tuple(notes),
        teacher=teacher,
    )

    def write(folder: Path) -> None:
        pupil.save(student, teacher, folder)
        for name in (SYNTHETIC, _REPORT):
            shutil.copyfile(synthetic / name, folder / name)

    training = publish(out, training, write, accelerator=accelerator, work=(work, last_work, synthetic))
    return training, report
