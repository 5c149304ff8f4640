"""How a data set is built. `data.toml`; the command's options override it."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record


class Source(Record, frozen=True):
    """Rows to read. `[[source]]`"""

    path: str
    """A file, a folder, or a hub id."""
    license: str = ""
    note: str = ""


class Clean(Record, frozen=True):
    """What a row must be. `[clean]`"""

    min_characters: int = 2
    max_characters: int = 100_000
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes; empty: any."""
    min_confidence: float = 0.5
    """Of a language that is not allowed, for a row to go; short rows are rarely certain."""


class Duplicates(Record, frozen=True):
    """`[duplicates]`"""

    near: float | None = 0.85
    """Jaccard similarity of word 3-grams from which rows are the same; unset: only equal ones are."""


class Redact(Record, frozen=True):
    """Personal data. `[redact]`"""

    enabled: bool = True
    rules: str = ""
    """A TOML file with more `[[rule]]`s: name, pattern, and words that stand near it."""
    entities: tuple[str, ...] = (
        "EMAIL_ADDRESS",
        "PHONE_NUMBER",
        "CREDIT_CARD",
        "IBAN_CODE",
        "IP_ADDRESS",
        "US_SSN",
        "CRYPTO",
        "MAC_ADDRESS",
    )
    min_score: float = 0.4
    people: bool = False
    """Names of people and places too; needs a spaCy model, `en_core_web_sm` or larger."""


class LabelRule(Record, frozen=True):
    """A labelling function that is a pattern. `[[label.rules]]`"""

    name: str
    label: str
    pattern: str


class Labels(Record, frozen=True):
    """`[label]`"""

    key: str = "label"
    """Under which the winning label is kept."""
    rules: tuple[LabelRule, ...] = ()
    functions: tuple[str, ...] = ()
    """`file.py:name` or `module:name`, each called with a row's text: a label or None."""


class SplitSizes(Record, frozen=True):
    """`[split]`"""

    validation: float = 0.1
    test: float = 0.1


class Decontaminate(Record, frozen=True):
    """`[decontaminate]`"""

    against: tuple[str, ...] = ()
    """Evaluation sets; what they hold may not be learnt."""
    words: int = 8
    """A row that shares so many words in a row with them goes."""


class Balance(Record, frozen=True):
    """`[balance]`"""

    by: Literal["none", "label", "topic", "group"] = "none"
    how: Literal["weight", "resample"] = "weight"
    limit: float = 5.0
    """Most that a row is weighted up, or repeated."""


class Bias(Record, frozen=True):
    """`[bias]`"""

    groups: str = ""
    """A TOML file: category → group → terms; empty: edgegen's own English list."""
    topics: int = 8


class Recipe(Record, frozen=True):
    """All of it."""

    schema: int = 1
    name: str = "data"
    source: tuple[Source, ...] = ()
    max_rows: int = 1_000_000
    clean: Clean = Clean()
    duplicates: Duplicates = Duplicates()
    redact: Redact = Redact()
    label: Labels = Labels()
    decontaminate: Decontaminate = Decontaminate()
    split: SplitSizes = SplitSizes()
    bias: Bias = Bias()
    balance: Balance = Balance()
