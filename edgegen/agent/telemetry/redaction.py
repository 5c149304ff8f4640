"""Blots out what must not touch the disk: patterns with check digits, the user's rules, the user's own function.

Better too much than too little: a version number that looks like an address goes too. Characters that nobody sees and
letters in other widths are made plain first, since they hide what a pattern looks for. The user's function sees the
text first and the rules have the last word. Whatever goes wrong here raises, and the caller keeps no text.

Every pattern is linear or nearly so in the text's length; texts are cut before they come here.

    [[rule]]
    name = "employee"          # the tag: [employee]
    pattern = 'EMP-\\d{5}'
    validator = "luhn"         # or "mod97"; left out: none
"""

from __future__ import annotations

import importlib
import ipaddress
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError, EdgegenError
from edgegen.records.base import Record

Hook = Callable[[str], str]

_ERROR_LOOKED, _ERROR_KEPT = 4000, 300
"""Characters of an error that are looked at, and kept."""
_UNSEEN = dict.fromkeys([0x00AD, 0x034F, 0x061C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
                         *range(0x2060, 0x2070), 0xFEFF, *range(0xFE00, 0xFE10), *range(0xE0000, 0xE0080)])  # fmt: skip
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
"""Length of an account's number → countries."""
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}
_HYPHENS = "\\-\u2010\u2011\u2012\u2013\u2212"


class RedactionError(Exception):
    """A text could not be made safe; it must not be kept. Says nothing of the text."""


class UserRule(Record, frozen=True):
    """One of the user's rules."""

    name: str
    pattern: str
    validator: Literal["", "luhn", "mod97"] = ""


class UserRules(Record, frozen=True):
    """The rules' file."""

    rule: tuple[UserRule, ...] = ()


class Rule(NamedTuple):
    """What is looked for."""

    name: str
    pattern: re.Pattern[str]
    measure: Callable[[str], int]
    """Of a match: how many of its characters go, 0: it is none."""


class Redactor:
    """Makes texts safe to keep."""

    def __init__(self, rules: tuple[Rule, ...] = (), hook: Hook | None = None) -> None:
        """Prepare.

        Args:
            rules: the user's own, applied before the built-in ones.
            hook: that sees a text before all rules.
        """
        self._rules, self._hook = (*rules, *BUILT_IN), hook

    def blot(self, text: str) -> tuple[str, int]:
        """The text with tags such as `[email]` for what was found, and how many places that are.

        Raises:
            RedactionError: something went wrong; the text must not be kept.
        """
        try:
            if self._hook is not None:
                text = self._hook(text)
                if not isinstance(text, str):
                    raise TypeError("the hook gives no text")
            text = unicodedata.normalize("NFKC", text.translate(_UNSEEN))
            places = 0
            for rule in self._rules:
                text, found = _apply(rule, text)
                places += found
        except Exception as error:
            raise RedactionError(type(error).__name__) from None  # the error may quote the text
        return text, places


def load_redactor(rules_file: str, hook: str) -> Redactor:
    """The redactor that a configuration asks for.

    Raises:
        ConfigError: the rules or the hook cannot be loaded.
    """
    return Redactor(load_rules(rules_file), load_hook(hook))


def load_rules(path: str) -> tuple[Rule, ...]:
    """The user's rules; none without a file.

    Raises:
        ConfigError: it cannot be read, a name is no tag, or a pattern no regular expression.
    """
    if not path:
        return ()
    found = []
    for rule in load_toml(Path(path), UserRules).rule:
        if not re.fullmatch(r"[a-z0-9_-]{1,32}", rule.name):
            raise ConfigError(f"{path}: rule {rule.name!r}: a name is of a-z, 0-9, _ and -")
        try:
            pattern = re.compile(rule.pattern)
        except re.error as error:
            raise ConfigError(f"{path}: rule {rule.name!r}: {error}") from error
        if pattern.match(""):
            raise ConfigError(f"{path}: rule {rule.name!r}: it matches nothing at all, so everywhere")
        found.append(Rule(rule.name, pattern, _USER_VALIDATORS[rule.validator]))
    return tuple(found)


def load_hook(name: str) -> Hook | None:
    """The user's function by `module:function`; None for an empty name.

    Raises:
        ConfigError: there is none.
    """
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module raises what it likes
        raise ConfigError(f"telemetry.hook: {name}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"telemetry.hook: {name}: not a function")
    return found  # type: ignore[no-any-return]


def safe_words(redactor: Redactor | None, error: EdgegenError | str) -> str:
    """An error in one line that holds nothing of a text, or only its name."""
    name = "" if isinstance(error, str) else type(error).__name__
    try:
        words = (redactor or Redactor()).blot(str(error)[:_ERROR_LOOKED].encode(errors="replace").decode())[0]
    except RedactionError:
        return name
    return f"{name}: {words}"[:_ERROR_KEPT] if name else words[:_ERROR_KEPT]


def luhn(digits: str) -> bool:
    """Whether the last digit of a card's number fits the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def mod97(text: str) -> bool:
    """Whether the check digits of an account's number fit (ISO 13616)."""
    plain = text.upper()
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[A-Z0-9]+", plain):
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _apply(rule: Rule, text: str) -> tuple[str, int]:
    """Put a rule's tag where it finds something; a match may end before its pattern does."""
    pieces, done, start, places = list[str](), 0, 0, 0
    while (found := rule.pattern.search(text, start)) is not None:
        size = rule.measure(found[0])
        if size <= 0:
            start = found.start() + 1  # what is looked for may begin inside
            continue
        pieces += [text[done : found.start()], f"[{rule.name}]"]
        done = start = found.start() + size
        places += 1
    return "".join([*pieces, text[done:]]), places


def _all(match: str) -> int:
    return len(match)


def _digits(match: str) -> str:
    return "".join(sign for sign in match if sign.isdigit())


def _card(match: str) -> int:
    """A card's number, longest first: digits may follow it."""
    ends = [place + 1 for place, sign in enumerate(match) if sign.isdigit()]
    for end in reversed(ends[12:19]):
        if luhn(_digits(match[:end])):
            return end
    return 0


def _iban(match: str) -> int:
    """An account's number, whose length its country says."""
    length = _IBAN_LENGTHS.get(match[:2].upper(), 0)
    kept = [place for place, sign in enumerate(match) if sign.isalnum()]
    if not length or len(kept) < length:
        return 0
    end = kept[length - 1] + 1
    return end if mod97("".join(sign for sign in match[:end] if sign.isalnum())) else 0


def _address(match: str) -> int:
    try:
        ipaddress.ip_address(match.partition("%")[0])
    except ValueError:
        return 0
    return len(match)


def _phone(match: str) -> int:
    count = len(_digits(match))
    international = match.startswith(("+", "00"))
    return len(match) if (7 if international else 9) <= count <= 17 else 0


def _secret(match: str) -> int:
    """A key: long, of mixed kinds, and without order."""
    kinds = sum(any(test(sign) for sign in match) for test in (str.islower, str.isupper, str.isdigit))
    if not any(sign.isdigit() for sign in match):
        return 0
    counts = Counter(match)
    entropy = -sum(count / len(match) * math.log2(count / len(match)) for count in counts.values())
    hexadecimal = len(match) >= 32 and re.fullmatch(r"[0-9a-fA-F-]+", match) is not None
    return len(match) if (kinds >= 3 and entropy >= 3.5) or (hexadecimal and entropy >= 2.5) else 0


def _user_luhn(match: str) -> int:
    digits = _digits(match)
    return len(match) if digits and luhn(digits) else 0


def _user_mod97(match: str) -> int:
    return len(match) if mod97("".join(sign for sign in match if sign.isalnum())) else 0


_USER_VALIDATORS = {"": _all, "luhn": _user_luhn, "mod97": _user_mod97}


def _rule(name: str, pattern: str, measure: Callable[[str], int] = _all, flags: int = re.IGNORECASE) -> Rule:
    return Rule(name, re.compile(pattern, flags), measure)


BUILT_IN = (
    _rule(
        "key",
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    ),
    _rule("key", r"(?<=://)[^\s/:@]{1,256}:[^\s/@]{1,256}(?=@)"),
    _rule("key", r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
    _rule(
        "key",
        r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)?[-_]?[\w-]{16,}|\bgh[opusr]_\w{20,}|\bgithub_pat_\w{20,}"
        r"|\bglpat-[\w-]{16,}|\bhf_\w{20,}|\bxox[a-z]-[\w-]{10,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
        r"|\bnpm_\w{30,}|\bpypi-[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bya29\.[\w-]{20,}",
        flags=0,
    ),
    _rule("key", r"(?<=\bbearer )\s*[\w.~+/=-]{8,}"),
    _rule(
        "key",
        r"\b(?:password|passwd|passphrase|pwd|secret|api[_ -]?key|access[_ -]?key|auth[_ -]?token|token)"
        r"[\"']?\s*(?:[:=]|\bis\b)\s*[\"']?[^\s\"',;]{4,}",
    ),
    _rule(
        "email",
        r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}\s?(?:@|\(at\)|\[at\]|\{at\}| at )\s?"
        r"(?:[\w-]{1,63}\s?(?:\.|\(dot\)|\[dot\]|\{dot\}| dot )\s?){1,8}[^\W\d_]{2,24}\b",
    ),
    _rule("iban", r"(?<![A-Z0-9])[A-Z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Z0-9]){11,40}", _iban),
    _rule("card", rf"(?<!\d)\d(?:[\s.{_HYPHENS}]?\d){{12,30}}", _card),
    _rule(
        "ip",
        r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,8}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{0,4})(?:%\w{1,16})?(?![\w:])",
        _address,
    ),
    _rule("ip", r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)", _address),
    _rule("mac", r"(?<![\w:-])[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}(?![\w:-])"),
    _rule("phone", rf"(?<![\w])(?:\+|00)?[ ]?\(?\d(?:[\s.()/{_HYPHENS}]{{0,2}}\d){{6,40}}(?!\d)", _phone),
    _rule("number", rf"(?<![\w.])\d(?:[ {_HYPHENS}]?\d){{8,}}|\d{{8,}}"),
    _rule("key", r"(?<![\w/+=-])[A-Za-z0-9_+/=-]{24,512}(?![\w/+=-])", _secret, 0),
)
"""In the order in which they are applied: what holds another comes first."""
