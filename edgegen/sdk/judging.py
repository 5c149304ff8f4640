"""Judge a model, or an artifact on its runtime: `edgegen.evaluate(model, against=teacher, data=…)`."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgegen.common.codec import save_json
from edgegen.common.files import building, require_place, write_bytes
from edgegen.common.host import user_name
from edgegen.errors import ConfigError
from edgegen.evaluate.fairness import fairness, read_fairness
from edgegen.evaluate.gates import judge, load_gates
from edgegen.evaluate.picture import PICTURE, draw_evaluation
from edgegen.evaluate.quality import Wanted, quality
from edgegen.evaluate.safety import safety
from edgegen.evaluate.scorer import ArtifactScorer, CheckpointScorer, Scorer
from edgegen.modeling.load import find_model, open_tokenizer, read_config
from edgegen.prepare.built import example_of, is_built, open_dataset, read_rows
from edgegen.prepare.split import prepare_data
from edgegen.records.data import Example
from edgegen.records.evaluation import EVALUATION_FILE, SUITES, Answered, Evaluation, Gates, Metric
from edgegen.sdk.artifacts import RECORD, find_artifact
from edgegen.sdk.output import BAKEOFF_FILE
from edgegen.sdk.subject import stop_ids

Told = Callable[[int, int, str], None]
ANSWERS_FILE = "answers.jsonl"


def open_scorer(source: str, *, target: str = "", runtime: str = "") -> Scorer:
    """A checkpoint in torch, or what `edgegen compress` wrote in its own runtime.

    Args:
        target: which one of a bake-off; empty: the recommended one.
        runtime: of an artifact; empty: the first that is installed.

    Raises:
        ConfigError, UnsupportedError, NetworkError, DeviceError: whatever is wrong with it.
    """
    folder = Path(source).expanduser()
    if any((folder / name).is_file() for name in (RECORD, BAKEOFF_FILE, "plan.json")):
        return ArtifactScorer(find_artifact(folder, target), source=source, runtime=runtime)
    if runtime or target:
        raise ConfigError(f"{source}: a checkpoint, which runs in torch only", hint="Leave out --runtime and --target.")
    ref = find_model(source)
    ends = stop_ids(Path(ref.path), read_config(ref), open_tokenizer(Path(ref.path)))
    return CheckpointScorer(source, eos_ids=ends)


def judged_rows(source: str, *, limit: int | None = None) -> tuple[tuple[Example, ...], str, str]:
    """Rows to judge on, their digest, and which they are: a built data set's test split, else its validation split;
    of other sources the quarter that is held out.

    Raises:
        ConfigError: no such rows, or `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    if not is_built(source):
        split = prepare_data(source)
        return split.heldout[:limit], split.ref.digest, "the held-out quarter"
    for name in ("test", "validation"):
        rows = read_rows(source, name)
        if rows:
            unique = {row.id: row for row in rows}.values()
            return tuple(map(example_of, unique))[:limit], open_dataset(source).digest, f"its split {name}"
    raise ConfigError(f"{source}: has neither a test nor a validation split", hint="Build it again with one.")


def evaluate(
    model: str,
    *,
    data: str | None = None,
    against: str | None = None,
    suites: Sequence[str] = ("quality",),
    out: str | Path | None = None,
    limit: int | None = None,
    wanted: Wanted = Wanted(),
    fairness_files: Sequence[str] = (),
    toxicity_model: str = "",
    unsafe: str = "",
    tasks: Sequence[str] = (),
    task_folder: str = "",
    shots: int | None = None,
    gates: Gates | str | None = None,
    target: str = "",
    runtime: str = "",
    named: str = "",
    told: Told | None = None,
) -> Evaluation:
    """Judge a checkpoint or an artifact, alone or against another.

    Args:
        data: rows for the suites `quality` and `safety`; see `judged_rows`.
        against: the model that it was made from, a checkpoint or an artifact: each metric gets a paired difference.
        suites: quality, fairness (needs `fairness_files`), safety, tasks (named by `tasks`).
        out: folder for evaluation.json, the answers and the picture; None: nothing is written.
        limit: most rows, pairs or questions of each kind.
        fairness_files: CrowS-Pairs, BBQ, StereoSet or WinoBias, as their authors give them.
        toxicity_model: a text classifier for transformers; empty: a short word list, and a note that says so.
        unsafe: a file of requests that should be refused.
        tasks: of lm-eval.
        task_folder: further task files of lm-eval.
        shots: examples before each question of a task; None: as the task says.
        gates: limits, or a TOML file of them; what its `[evaluate]` names is measured, too, where no argument says.
        target, runtime: of `model`, if it is an artifact.
        named: what the record calls the model; empty: as `model`.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`. A missed gate is a value:
            `passed`.
    """
    limits = load_gates(gates) if isinstance(gates, str) else gates
    if limits is not None:
        said = limits.evaluate
        limit = said.limit if limit is None else limit
        fairness_files, unsafe = fairness_files or said.fairness, unsafe or said.unsafe
        toxicity_model, tasks = toxicity_model or said.toxicity_model, tasks or said.tasks
    chosen = dict.fromkeys((*suites, *(["tasks"] if tasks else []), *(["fairness"] if fairness_files else [])))
    _check(list(chosen), data, fairness_files, tasks, limit, wanted, shots)
    if out is not None:
        require_place(Path(out).expanduser(), mark=EVALUATION_FILE, what="evaluation")
    pairs = read_fairness(fairness_files, limit=limit) if fairness_files else None
    rows: tuple[Example, ...] = ()
    digest, notes = "", list[str]()
    if data is not None:
        rows, digest, which = judged_rows(data, limit=limit)
        notes.append(f"{len(rows)} rows of {data}: {which}")
    metrics: list[Metric] = []
    answered: list[Answered] = []
    with contextlib.ExitStack() as stack:
        student = open_scorer(model, target=target, runtime=runtime)
        stack.callback(student.close)
        teacher = open_scorer(against) if against else None
        if teacher:
            stack.callback(teacher.close)
        if "quality" in chosen:
            found, answered, more = quality(student, teacher, rows, wanted, told=told)
            metrics += found
            notes += more
        if pairs is not None and "fairness" in chosen:
            found, more = fairness(student, teacher, pairs, told=told)
            metrics += found
            notes += more
        if "safety" in chosen:
            refused = _prompts(unsafe, limit) if unsafe else ()
            found, more = safety(student, teacher, rows, refused, wanted, classifier=toxicity_model, told=told)
            metrics += found
            notes += more
        if "tasks" in chosen:
            from edgegen.evaluate.harness import run_tasks

            found, more = run_tasks(
                student, teacher, tasks, folder=task_folder, shots=shots, limit=limit, seed=wanted.seed, told=told
            )
            metrics += found
            notes += more
        evaluation = Evaluation(
            schema=1,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=msgspec.structs.replace(student.judged, source=named) if named else student.judged,
            teacher=teacher.judged if teacher else None,
            data=data or "",
            data_digest=digest,
            rows=len(rows),
            suites=tuple(chosen),
            metrics=tuple(metrics),
            seed=wanted.seed,
            settings={name: str(value) for name, value in msgspec.to_builtins(wanted).items()},
            notes=tuple(notes),
            by=user_name(),
        )
    if limits is not None:
        evaluation = judge(evaluation, limits)
    if out is not None:
        save_evaluation(evaluation, answered, Path(out).expanduser())
    return evaluation


def save_evaluation(evaluation: Evaluation, answered: Sequence[Answered], out: Path) -> None:
    """Write the record, the answers and the picture.

    Raises:
        ConfigError: a folder that holds something else.
        DeviceError: the disk.
    """
    with building(out, mark=EVALUATION_FILE, what="evaluation") as folder:
        save_json(folder / EVALUATION_FILE, evaluation)
        if answered:
            write_bytes(folder / ANSWERS_FILE, b"".join(msgspec.json.encode(line) + b"\n" for line in answered))
        draw_evaluation(evaluation, folder / PICTURE)


def _check(
    suites: list[str],
    data: str | None,
    files: Sequence[str],
    tasks: Sequence[str],
    limit: int | None,
    wanted: Wanted,
    shots: int | None,
) -> None:
    for name in suites:
        if name not in SUITES:
            raise ConfigError(f"--suite {name!r} is unknown", hint="Known: " + ", ".join(SUITES) + ".")
    if not suites:
        raise ConfigError("--suite names none", hint="Known: " + ", ".join(SUITES) + ".")
    if data is None and ("quality" in suites or "safety" in suites):
        raise ConfigError("rows to judge on are needed", hint="Name them with --data.")
    if "fairness" in suites and not files:
        raise ConfigError(
            "the suite fairness needs your copy of CrowS-Pairs, BBQ, StereoSet or WinoBias",
            hint="Name each file with --fairness FILE.",
        )
    if "tasks" in suites and not tasks:
        raise ConfigError("the suite tasks needs names of tasks", hint="Name them with --tasks, like arc_easy.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    for name, value, least in (
        ("--max-tokens", wanted.max_tokens, 1),
        ("--samples", wanted.samples, 1),
        ("--temperature", wanted.temperature, 0),
        ("--seed", wanted.seed, 0),
    ):
        if not least <= value < math.inf:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    if shots is not None and shots < 0:
        raise ConfigError(f"--shots must be 0 or more, not {shots}")


def _prompts(source: str, limit: int | None) -> tuple[Example, ...]:
    from edgegen.prepare.sources import read_examples

    return tuple(read_examples(source))[:limit]
