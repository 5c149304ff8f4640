"""The registry: what lies in some folders, and what each was made from.

Every step leaves its record beside its result, with digests of what went into it. The registry reads them; there is no
other store that could say something else, and a folder that is moved or copied takes its history along.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgegen.bundle.light import read_manifest
from edgegen.common.codec import digest_record, load_json
from edgegen.errors import ConfigError, EdgegenError
from edgegen.records.artifact import Artifact
from edgegen.records.bundle import Bundle
from edgegen.records.dataset import DATASET_FILE, Dataset
from edgegen.records.evaluation import EVALUATION_FILE, Evaluation
from edgegen.records.plan import Plan
from edgegen.records.registry import Entry
from edgegen.records.report import Report
from edgegen.records.training import TRAINING_FILE, Training

_DEPTH = 6
_SKIPPED = (".git", ".venv", "node_modules", "__pycache__")
_UNFINISHED = (".partial", ".training", ".old", ".tmp")


def list_models(*folders: str | Path) -> tuple[Entry, ...]:
    """Everything that lies in some folders, and below them, oldest first.

    Args:
        folders: where to look; none: the current folder.

    Raises:
        ConfigError: a folder that is not there.
    """
    found: dict[tuple[str, str], Entry] = {}
    for folder in folders or (".",):
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder")
        for place in _walk(root):
            for entry in _entries(place):
                found.setdefault((entry.kind, entry.digest), entry)
    return tuple(sorted(found.values(), key=lambda entry: (entry.created, entry.kind, entry.name)))


def find_entry(entries: Sequence[Entry], wish: str) -> Entry:
    """The entry with an id that begins so, or at a path.

    Raises:
        ConfigError: none, or several.
    """
    path = Path(wish).expanduser()
    if path.exists():
        # A compressed output holds a plan and an artifact: the latter is what one means.
        here = [e for e in entries if Path(e.path).resolve() == path.resolve()]
        here += [e for e in entries if Path(e.path).resolve() == (path / "artifact").resolve()]
        if here:
            return here[-1]
    hits = [e for e in entries if wish and e.id.startswith(wish.lower())]
    hits = hits or [e for e in entries if wish and e.lineage.startswith(wish.lower())]
    if len(hits) != 1:
        known = ", ".join(f"{e.id} ({e.kind} {e.name})" for e in (hits or entries)[:6])
        raise ConfigError(f"{len(hits)} entries are called {wish!r}", hint=f"There are {known}." if known else "")
    return hits[0]


def ancestry(entries: Sequence[Entry], entry: Entry) -> list[tuple[int, Entry | str]]:
    """What an entry is made from, as (depth, entry or the name of what does not lie here), itself first."""
    of_digest = {e.also: e for e in entries if e.also} | {e.digest: e for e in entries}
    found: list[tuple[int, Entry | str]] = []

    def climb(one: Entry, depth: int, seen: frozenset[str]) -> None:
        found.append((depth, one))
        for digest, name in zip(one.parents, one.parent_names, strict=True):
            parent = of_digest.get(digest)
            if parent is None:
                found.append((depth + 1, name))
            elif digest not in seen:
                climb(parent, depth + 1, seen | {digest})

    climb(entry, 0, frozenset([entry.digest]))
    return found


def descendants(entries: Sequence[Entry], entry: Entry) -> list[Entry]:
    """What was made from an entry, directly."""
    return [e for e in entries if e.kind != "evaluation" and entry.digest in e.parents]


def evaluations(entries: Sequence[Entry], entry: Entry) -> list[Entry]:
    """The evaluations in which an entry was judged, oldest first; not those that it is the teacher or the data of."""
    known = {entry.digest, entry.also} - {""}
    return [e for e in entries if e.kind == "evaluation" and e.parents[0] in known]


def _walk(root: Path) -> Iterator[Path]:
    depth = len(root.parts)
    for place, folders, _ in os.walk(root):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED and not name.startswith(".") and not name.endswith(_UNFINISHED)
        )
        if len(here.parts) - depth >= _DEPTH:
            folders[:] = []
        yield here


def _entries(place: Path) -> Iterator[Entry]:
    for name, read in _READERS.items():
        if (place / name).is_file():
            try:
                yield read(place)
            except EdgegenError:
                continue  # another program's file of that name, or another version's


def _data(place: Path) -> Entry:
    record = load_json(place / DATASET_FILE, Dataset)
    return _entry(
        "data",
        record.name,
        place,
        record.digest,
        parents=[(s.digest, f"source {s.name}") for s in record.sources] + [(d, "data set") for d in record.parents],
        metrics={split.name: float(split.rows) for split in record.splits},
        created=record.created,
        by=record.by,
        lineage=record.lineage,
    )


def _model(place: Path) -> Entry:
    record = load_json(place / TRAINING_FILE, Training)
    parents = [(record.base_digest, f"model {record.base}"), (record.data_digest, f"data {record.data}")]
    if record.teacher_digest and record.teacher_digest != record.base_digest:
        parents.append((record.teacher_digest, f"teacher {record.teacher}"))
    metrics = {"parameters": float(record.parameters)}
    if record.heldout_after is not None:
        metrics["heldout_loss"] = record.heldout_after
    return _entry(
        "model",
        place.name,
        place,
        record.model_digest or record.identity,
        parents=parents,
        metrics=metrics,
        created=record.created,
        by=record.by,
        lineage=record.lineage,
        note=record.method,
    )


def _plan(place: Path) -> Entry:
    record = load_json(place / "plan.json", Plan)
    prediction = record.prediction
    return _entry(
        "plan",
        f"{record.profile.name} {record.target}",
        place,
        digest_record(record),
        parents=[
            (record.model.digest, f"model {record.model.source}"),
            (record.data.digest, f"data {record.data.source}"),
        ],
        metrics={"bytes": float(prediction.bytes), "kl": prediction.kl, "tokens_per_s": prediction.decode_tokens_per_s},
        lineage=record.lineage.removeprefix("sha256:"),
    )


def _artifact(place: Path) -> Entry:
    record = load_json(place / "artifact.json", Artifact)
    plan = load_json(place.parent / "plan.json", Plan)
    metrics = {"bytes": float(record.model_bytes)}
    report = place.parent / "report.json"
    note = "not verified"
    if report.is_file():
        said = load_json(report, Report)
        note = "passed" if said.passed else "failed its verification"
        metrics |= {check.name: check.measured for check in said.checks if check.measured is not None}
    return _entry(
        "artifact",
        f"{record.target} for {plan.profile.name}",
        place,
        next(file.digest for file in record.files if file.path == record.model),
        parents=[(digest_record(plan), f"plan for {plan.profile.name}")],
        metrics=metrics,
        lineage=record.lineage.removeprefix("sha256:"),
        note=note,
        also=digest_record({file.path: file.digest for file in record.files}),
    )


def _evaluation(place: Path) -> Entry:
    record = load_json(place / EVALUATION_FILE, Evaluation)
    parents = [(record.model.digest, f"{record.model.kind} {record.model.source}")]
    if record.teacher is not None:
        parents.append((record.teacher.digest, f"{record.teacher.kind} {record.teacher.source}"))
    if record.data_digest:
        parents.append((record.data_digest, f"data {record.data}"))
    missed = [gate.name for gate in record.gates if not gate.passed]
    verdict = f"misses {', '.join(missed)}" if missed else "passed" if record.gates else "no gates"
    return _entry(
        "evaluation",
        f"of {Path(record.model.source).name}",
        place,
        digest_record(record),
        parents=parents,
        metrics={metric.name: metric.model.value for metric in record.metrics if metric.model is not None},
        created=record.created,
        by=record.by,
        note=f"{verdict}, {record.rows} rows",
    )


def _release(place: Path) -> Entry:
    about = load_json(place / "bundle.json", Bundle)
    manifest = read_manifest(place)[0]
    model = next((file.digest for file in manifest.files if file.path == manifest.entry), "")
    made = manifest.provenance
    parents = [(model, "artifact")] if model else []
    parents += [(manifest.base, "base release")] if manifest.base else []
    parents += [(made.parent, "release before")] if made and made.parent else []
    return _entry(
        "release",
        f"{about.name}@{about.version}",
        place,
        about.digest,
        parents=parents,
        metrics={"install_bytes": float(manifest.install_bytes), "epoch": float(manifest.epoch)},
        created=manifest.created,
        lineage=made.lineage.removeprefix("sha256:") if made else "",
        note=("signed" if about.signed else "not signed") + (f", prompt {made.prompt}" if made and made.prompt else ""),
    )


_READERS: dict[str, Callable[[Path], Entry]] = {
    DATASET_FILE: _data,
    TRAINING_FILE: _model,
    "plan.json": _plan,
    "artifact.json": _artifact,
    EVALUATION_FILE: _evaluation,
    "bundle.json": _release,
}


def _entry(
    kind: str,
    name: str,
    place: Path,
    digest: str,
    *,
    parents: Sequence[tuple[str, str]],
    metrics: dict[str, float],
    created: str = "",
    by: str = "",
    lineage: str = "",
    note: str = "",
    also: str = "",
) -> Entry:
    return Entry(
        id=digest.removeprefix("sha256:")[:12],
        kind=kind,
        name=name,
        path=str(place),
        digest=digest,
        parents=tuple(digest for digest, _ in parents),
        parent_names=tuple(name for _, name in parents),
        metrics=metrics,
        created=created or _time_of(place),
        by=by,
        lineage=lineage,
        note=note,
        also=also,
    )


def _time_of(place: Path) -> str:
    stamp = max((path.stat().st_mtime for path in place.glob("*.json")), default=0.0)
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).isoformat(timespec="seconds")
