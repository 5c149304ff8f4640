"""Build a data set: read, clean, de-duplicate, redact, label, keep evaluation sets out, balance, split, describe.

The same sources and recipe give the same rows, splits and digest anywhere. A split is chosen by a row's content, so
that adding rows moves none; nothing of a split is in another, not even nearly, because duplicates go first.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.common.codec import digest_record, save_json
from edgegen.common.files import building, digest_bytes, require_place
from edgegen.common.host import user_name
from edgegen.errors import ConfigError
from edgegen.prepare.bias import BiasReport, Membership, balance_weights, check_bias
from edgegen.prepare.card import draw_bias, write_card
from edgegen.prepare.clean import clean_rows
from edgegen.prepare.duplicates import drop_contaminated, drop_duplicates
from edgegen.prepare.label import LabelReport, label_rows
from edgegen.prepare.redact import redact_rows
from edgegen.prepare.sources import Numbered, read_examples, read_numbered
from edgegen.prepare.split import content_of
from edgegen.prepare.stage import Stage, text_of
from edgegen.records.base import Record
from edgegen.records.dataset import DATASET_FILE, SPLITS, Dataset, Label, Row, SourceRef, SplitRef, StepDone
from edgegen.records.recipe import Balance, Recipe, SplitSizes

Told = Callable[[str, int, int], None]
"""(step, done, steps)."""

_LABEL_COLUMNS = ("label", "intent", "category", "topic")
_PERSON_COLUMNS = ("annotator", "labeled_by", "labelled_by", "rater")
_LEAST_ROWS = 8
_STEPS = ("read", "clean", "duplicates", "redact", "label", "decontaminate", "bias", "balance", "split")


class Built(Record, frozen=True):
    """`report.json`: what building found."""

    dataset: Dataset
    redacted: dict[str, int]
    labels: LabelReport | None
    bias: BiasReport


def build_dataset(recipe: Recipe, out: Path, *, told: Told | None = None) -> Built:
    """Build and write to `out`, whole or not at all.

    Raises:
        ConfigError: a source that cannot be read, settings out of range, or too few rows left.
        NetworkError: a hub that cannot be reached.
        DeviceError: the disk is full.
    """
    _require(recipe)
    require_place(out, mark=DATASET_FILE, what="data set")
    tell = told or (lambda step, done, steps: None)
    done: list[StepDone] = []

    def record(name: str, before: int, stage: Stage, settings: Any = None) -> Sequence[Row]:
        done.append(
            StepDone(
                name=name,
                rows_in=before,
                rows_out=len(stage.rows),
                changed=stage.changed,
                settings=_plain(settings),
                dropped=stage.dropped,
                note=stage.note,
            )
        )
        tell(name, len(done), len(_STEPS))
        return stage.rows

    rows, sources, read = _read(recipe)
    current = record("read", len(rows), read)
    current = record("clean", len(current), clean_rows(current, recipe.clean), recipe.clean)
    current = record("duplicates", len(current), drop_duplicates(current, recipe.duplicates.near), recipe.duplicates)
    redacted: dict[str, int] = {}
    if recipe.redact.enabled:
        stage, redacted = redact_rows(current, recipe.redact)
        current = record("redact", len(current), stage, recipe.redact)
    labels = None
    if recipe.label.rules or recipe.label.functions:
        stage, labels = label_rows(current, recipe.label)
        current = record("label", len(current), stage, recipe.label)
    if recipe.decontaminate.against:
        texts = [content_of(e) for source in recipe.decontaminate.against for e in read_examples(source)]
        stage = drop_contaminated(current, texts, recipe.decontaminate.words)
        current = record("decontaminate", len(current), stage, recipe.decontaminate)
    if len(current) < _LEAST_ROWS:
        gone = ", ".join(f"{n} {why}" for step in done for why, n in step.dropped.items())
        raise ConfigError(
            f"{len(current)} rows are left of {len(rows)} ({gone or 'nothing was dropped'}); {_LEAST_ROWS} are needed",
            hint="Give more rows, or relax what the recipe drops.",
        )
    bias, belongs = check_bias(current, recipe.bias, recipe.label.key)
    tell("bias", len(done), len(_STEPS))
    parts = split_rows(current, recipe.split)
    if recipe.balance.by != "none":
        where = {row.id: number for number, row in enumerate(current)}
        stage = balance_rows(parts["train"], recipe.balance, belongs, where)
        parts["train"] = list(record("balance", len(parts["train"]), stage, recipe.balance))
    with building(out, mark=DATASET_FILE, what="data set") as folder:
        splits = tuple(_write_split(folder, name, parts[name]) for name in SPLITS if parts[name])
        digest = digest_record([(part.name, part.digest) for part in splits])
        dataset = Dataset(
            schema=1,
            name=recipe.name,
            version=digest.removeprefix("sha256:")[:12],
            digest=digest,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            kind=_kind(current),
            sources=sources,
            steps=tuple(done),
            splits=splits,
            decontaminated=recipe.decontaminate.against,
            synthetic_rows=sum(bool(row.made_by) for row in current),
            weighted=any(row.weight != 1.0 for row in parts["train"]),
            lineage=digest.removeprefix("sha256:")[:16],
            by=user_name(),
        )
        built = Built(dataset=dataset, redacted=redacted, labels=labels, bias=bias)
        save_json(folder / DATASET_FILE, dataset)
        save_json(folder / "report.json", built)
        draw_bias(bias, folder / "bias.png")
        write_card(folder / "card.md", dataset, redacted, labels, bias, parts["train"])
    return built


def _require(recipe: Recipe) -> None:
    if not recipe.source:
        raise ConfigError("no source to build from", hint="Name files, folders or hub ids.")
    sizes = recipe.split
    if not (sizes.validation >= 0 and sizes.test >= 0 and sizes.validation + sizes.test < 0.9):
        raise ConfigError("split: validation and test must be 0 or more, and together below 0.9")
    if recipe.max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, not {recipe.max_rows}")
    clean = recipe.clean
    if clean.min_characters < 0 or clean.max_characters < max(1, clean.min_characters):
        raise ConfigError(
            f"clean: no row has at least {clean.min_characters} and at most {clean.max_characters} characters"
        )
    near = recipe.duplicates.near
    if near is not None and not 0.2 <= near <= 1:
        raise ConfigError(f"duplicates.near: {near} does not lie between 0.2 and 1")
    if not 1 <= recipe.balance.limit < math.inf:
        raise ConfigError(f"balance.limit: {recipe.balance.limit} is no number of at least 1")
    if recipe.decontaminate.words < 3:
        raise ConfigError("decontaminate.words must be at least 3: shorter runs are everywhere")


def _read(recipe: Recipe) -> tuple[list[Row], tuple[SourceRef, ...], Stage]:
    rows: list[Row] = []
    sources = []
    for source in recipe.source:
        found = [row_of(entry) for entry in read_numbered(source.path, max_rows=recipe.max_rows - len(rows))]
        sources.append(
            SourceRef(
                name=Path(source.path).name or source.path,
                digest=digest_record([row.id for row in found]),
                rows=len(found),
                license=source.license,
                note=source.note,
            )
        )
        rows += found
    full = len(rows) >= recipe.max_rows
    return rows, tuple(sources), Stage(rows, note=f"stopped at max_rows = {recipe.max_rows:,}" if full else "")


def row_of(entry: Numbered) -> Row:
    """A row as it was read, with the label that its columns say."""
    example, columns = entry.example, entry.columns
    person = next((str(columns[c]) for c in _PERSON_COLUMNS if columns.get(c)), entry.source)
    said = [columns[name] for name in _LABEL_COLUMNS if isinstance(columns.get(name), str | int)]
    labels = {"label": Label(value=str(said[0]), by=person)} if said and str(said[0]).strip() else {}
    content = content_of(example)
    return Row(
        id=hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16],
        text=example.text,
        messages=example.messages,
        completion=example.completion,
        labels=labels,
        source=f"{entry.source}#{entry.number}",
        made_by=str(columns.get("made_by") or ""),
    )


def split_rows(rows: Sequence[Row], sizes: SplitSizes) -> dict[str, list[Row]]:
    """Split → rows, by the digest of what they say now; each wanted split has at least one row."""

    def place(row: Row) -> float:
        return int.from_bytes(hashlib.sha256(text_of(row).encode(errors="surrogatepass")).digest()[:8]) / 2**64

    ordered = sorted(rows, key=place)
    found: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in ordered:
        at = place(row)
        name = "test" if at < sizes.test else "validation" if at < sizes.test + sizes.validation else "train"
        found[name].append(row)
    for name, size in (("test", sizes.test), ("validation", sizes.validation)):
        if size > 0 and not found[name] and len(found["train"]) > 1:
            found[name].append(found["train"].pop(0))
    return found


def balance_rows(rows: Sequence[Row], how: Balance, belongs: Membership, where: dict[str, int]) -> Stage:
    """Weigh rows, or repeat and leave out some, so that classes count alike.

    Args:
        where: id → its place in `belongs`.
    """
    places = [where[row.id] for row in rows]
    mine = Membership([belongs.groups[p] for p in places], [belongs.topics[p] for p in places])
    weights = balance_weights(mine, how)
    if how.how == "weight":
        kept = [
            msgspec.structs.replace(row, weight=round(weight, 4), touched=(*row.touched, "balance"))
            for row, weight in zip(rows, weights, strict=True)
        ]
        return Stage(kept, changed=len(kept))
    dice = np.random.default_rng(0)
    kept = []
    for row, weight in zip(rows, weights, strict=True):
        times = int(weight) + int(dice.random() < weight - int(weight))
        kept += [msgspec.structs.replace(row, touched=(*row.touched, "balance"))] * times
    gone = sum(1 for w in weights if w < 1) and len({r.id for r in rows}) - len({r.id for r in kept})
    return Stage(kept, changed=len(kept), dropped={"over-represented": gone} if gone else {})


def _write_split(folder: Path, name: str, rows: Sequence[Row]) -> SplitRef:
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (folder / f"{name}.jsonl").write_bytes(data)
    return SplitRef(name=name, file=f"{name}.jsonl", rows=len(rows), digest=digest_bytes(data))


def _kind(rows: Sequence[Row]) -> str:
    if all(row.completion for row in rows):
        return "completion"
    return "chat" if any(row.messages for row in rows) else "text"


def _plain(settings: Any) -> dict[str, str]:
    return {} if settings is None else {key: str(value) for key, value in msgspec.to_builtins(settings).items()}
