"""Blot out personal data, with the recognisers of Microsoft's Presidio and rules of the user's own.

Only recognisers that are patterns with check digits are used, which need no model and no network. Names of people and
places need one: they are looked for if a spaCy model is installed and the recipe asks for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.prepare.stage import Stage, with_text
from edgegen.records.base import Record
from edgegen.records.dataset import Row
from edgegen.records.recipe import Redact

_OF_ENTITY = {
    "PHONE_NUMBER": "PhoneRecognizer",
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "US_SSN": "UsSsnRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
    "UK_NHS": "NhsRecognizer",
    "US_PASSPORT": "UsPassportRecognizer",
    "US_BANK_NUMBER": "UsBankRecognizer",
    "MEDICAL_LICENSE": "MedicalLicenseRecognizer",
}
_EMAIL = r"\b[A-Za-z0-9._%+\-]+@[A-Za-z0-9\-]+(\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,24}\b"
"""Presidio's own recogniser looks for the list of top-level domains on the network."""


class Rule(Record, frozen=True):
    """One of the user's own."""

    name: str
    pattern: str
    words: tuple[str, ...] = ()
    """That stand near it; without them it counts half."""
    score: float = 0.8


class Rules(Record, frozen=True):
    """The rules' file."""

    rule: tuple[Rule, ...] = ()


class Redactor:
    """Finds and blots out."""

    def __init__(self, wanted: Redact) -> None:
        """
        Raises:
            ConfigError: an unknown entity, a rule that is no pattern.
            UnsupportedError: names are wanted, and there is no model for them.
        """
        from presidio_analyzer import Pattern, PatternRecognizer, predefined_recognizers

        self._least = wanted.min_score
        self._recognisers: list[tuple[str, Any]] = []
        for entity in wanted.entities:
            if entity == "EMAIL_ADDRESS":
                found: Any = PatternRecognizer(entity, patterns=[Pattern("email", _EMAIL, 1.0)])
            elif entity in _OF_ENTITY:
                found = getattr(predefined_recognizers, _OF_ENTITY[entity])()
            else:
                raise ConfigError(
                    f"redact.entities: {entity!r} is unknown",
                    hint="Known: " + ", ".join(["EMAIL_ADDRESS", *_OF_ENTITY]) + ".",
                )
            self._recognisers.append((entity, found))
        if wanted.rules:
            for rule in load_toml(Path(wanted.rules), Rules).rule:
                try:
                    re.compile(rule.pattern)
                except re.error as error:
                    raise ConfigError(f"{wanted.rules}: rule {rule.name!r}: {error}") from error
                pattern = Pattern(rule.name, rule.pattern, rule.score)
                self._recognisers.append(
                    (rule.name, PatternRecognizer(rule.name, patterns=[pattern], context=list(rule.words) or None))
                )
        self._people = _name_finder() if wanted.people else None

    def blot(self, text: str) -> tuple[str, Counter[str]]:
        """A text with tags such as `[EMAIL_ADDRESS]` in place of what was found, and how often each was."""
        found = [
            (result.start, result.end, entity, result.score)
            for entity, recogniser in self._recognisers
            for result in recogniser.analyze(text, [entity], None) or []
            if result.score >= self._least
        ]
        if self._people is not None:
            found += [(entity.start_char, entity.end_char, entity.label_, 0.85) for entity in self._people(text).ents
                      if entity.label_ in ("PERSON", "GPE", "LOC")]  # fmt: skip
        counts: Counter[str] = Counter()
        last = len(text) + 1
        # From the end, longer and surer ones first, so that places stay right and nothing is blotted twice.
        for start, end, entity, _ in sorted(found, key=lambda hit: (-hit[1], hit[0], -hit[3])):
            if end <= last:
                text = f"{text[:start]}[{entity}]{text[end:]}"
                counts[entity] += 1
                last = start
        return text, counts


def redact_rows(rows: Sequence[Row], wanted: Redact) -> tuple[Stage, dict[str, int]]:
    """Blot out what is personal; also how often each kind was found."""
    redactor = Redactor(wanted)
    total: Counter[str] = Counter()
    changed = 0

    def blot(text: str) -> str:
        blotted, counts = redactor.blot(text)
        total.update(counts)
        return blotted

    kept = []
    for row in rows:
        clean = with_text(row, blot)
        if clean is not row:
            changed += 1
            clean = msgspec.structs.replace(clean, touched=(*row.touched, "redact"))
        kept.append(clean)
    note = "" if wanted.people else "names of people and places are not looked for (redact.people)"
    return Stage(kept, changed=changed, note=note), dict(total)


def _name_finder() -> Any:
    import spacy

    for name in ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm"):
        if spacy.util.is_package(name):
            return spacy.load(name)
    raise UnsupportedError(
        "finding names needs a spaCy model, and none is installed", hint="python -m spacy download en_core_web_sm"
    )
