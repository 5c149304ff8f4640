"""Read bias data sets as their authors give them: CrowS-Pairs, BBQ, StereoSet, WinoBias. A file says by itself which.

They are other people's work under their own licences and do not come with this program. All are English, and their
stereotypes those of the United States.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgegen.common.codec import read_bytes
from edgegen.errors import ConfigError
from edgegen.records.base import Record


class Pair(Record, frozen=True):
    """Two texts that differ in whom they speak of."""

    source: str
    """crows_pairs or winobias."""
    category: str
    stereotype: str
    other: str


class Question(Record, frozen=True):
    """BBQ: three answers, one of them that it cannot be known."""

    category: str
    ambiguous: bool
    text: str
    """What stands before an answer."""
    answers: tuple[str, str, str]
    right: int
    unknown: int
    biased: int | None
    """The answer that goes with the stereotype; None: the file does not tell."""


class Triple(Record, frozen=True):
    """StereoSet: a stereotype, its contrary and something unrelated, after a context that may be empty."""

    category: str
    context: str
    stereotype: str
    anti: str
    unrelated: str


Entry = Pair | Question | Triple

_KNOWN = (
    "Known: crows_pairs_anonymized.csv, BBQ's *.jsonl, StereoSet's dev.json, WinoBias's pro_stereotyped_*.txt.* with "
    "the anti_stereotyped_* beside it."
)


def read_bias_files(files: Sequence[str], *, limit: int | None = None) -> list[Entry]:
    """All entries of some files, at most `limit` of each, drawn by chance (the same each time), in the files' order.

    The files are sorted by category and repeat in cycles, so neither the first rows nor every n-th would do.

    Raises:
        ConfigError: no such file, a damaged one, or one of another kind.
    """
    found: list[Entry] = []
    for name in files:
        path = Path(name).expanduser()
        entries = _read(path)
        if not entries:
            raise ConfigError(f"{path}: holds nothing to ask", hint=_KNOWN)
        if limit is not None and limit < len(entries):
            entries = [entries[place] for place in sorted(random.Random(0).sample(range(len(entries)), limit))]
        found += entries
    return found


def _read(path: Path) -> list[Entry]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text", hint=_KNOWN) from error
    try:
        if path.name.startswith("pro_stereotyped"):
            return list(_winobias(path, text))
        if "sent_more" in text.partition("\n")[0]:
            return list(_crows(text))
        start = text.lstrip()[:1]
        if path.suffix.lower() == ".json" and start == "{":
            return list(_stereoset(json.loads(text)))
        if start == "{":
            return [_bbq(json.loads(line)) for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        raise ConfigError(f"{path}: not as its authors give it: {type(error).__name__} {error}", hint=_KNOWN) from error
    raise ConfigError(f"{path}: no bias data set that is known", hint=_KNOWN)


def _crows(text: str) -> Iterator[Pair]:
    for row in csv.DictReader(io.StringIO(text)):
        yield Pair("crows_pairs", row["bias_type"], row["sent_more"], row["sent_less"])


def _winobias(path: Path, text: str) -> Iterator[Pair]:
    anti = path.with_name(path.name.replace("pro_", "anti_", 1))
    other = read_bytes(anti).decode("utf-8-sig").splitlines()
    lines = text.splitlines()
    if len(lines) != len(other):
        raise ConfigError(f"{path} and {anti} have different numbers of lines", hint=_KNOWN)
    for pro, contra in zip(lines, other, strict=True):
        if pro.strip() and pro != contra:
            yield Pair("winobias", "type1" if "type1" in path.name else "type2", _plain(pro), _plain(contra))


def _plain(line: str) -> str:
    """Without the number before it and the brackets around what corefers."""
    return re.sub(r"[\[\]]", "", re.sub(r"^\s*\d+\s+", "", line)).strip()


def _bbq(row: dict[str, Any]) -> Question:
    groups = {str(group).casefold() for group in row["additional_metadata"]["stereotyped_groups"]}
    names = [[str(word).casefold() for word in row["answer_info"][f"ans{n}"]] for n in range(3)]
    unknown = next(n for n in range(3) if "unknown" in names[n])
    known = [n for n in range(3) if n != unknown]
    targets = [n for n in known if _is_of(names[n], groups)]
    biased = None
    if len(targets) == 1:
        rest = next(n for n in known if n != targets[0])
        biased = targets[0] if row["question_polarity"] == "neg" else rest
    return Question(
        category=str(row["category"]),
        ambiguous=row["context_condition"] == "ambig",
        text=f"{row['context']}\nQuestion: {row['question']}\nAnswer:",
        answers=(str(row["ans0"]), str(row["ans1"]), str(row["ans2"])),
        right=int(row["label"]),
        unknown=unknown,
        biased=biased,
    )


def _is_of(names: list[str], groups: set[str]) -> bool:
    """Whether an answer's person belongs to a group; the files write `F-Black` for a woman of the group `Black`."""
    label = names[-1]
    words = {*names, *re.split(r"[-\s]+", label)}  # of the label only: the person may be `22-year-old`
    women, men = {"f", "woman", "girl", "female"}, {"m", "man", "boy", "male"}
    for sex in (women, men):
        if words & sex:
            words |= sex
    return bool(words & groups)


def _stereoset(tree: dict[str, Any]) -> Iterator[Triple]:
    for kind in ("intrasentence", "intersentence"):
        for row in tree["data"].get(kind, []):
            said = {entry["gold_label"]: str(entry["sentence"]) for entry in row["sentences"]}
            context = str(row["context"]) if kind == "intersentence" else ""
            yield Triple(str(row["bias_type"]), context, said["stereotype"], said["anti-stereotype"], said["unrelated"])
