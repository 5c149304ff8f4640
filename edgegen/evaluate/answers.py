"""How good one answer is, and how varied many are. Texts in, numbers out.

Token F1 compares bags of words as SQuAD does (Rajpurkar et al. 2016), without its English articles rule. distinct-n is
the share of different n-grams (Li et al. 2016); self-BLEU the BLEU of each text against the others (Zhu et al. 2018),
by sacrebleu; the compression ratio is bytes over bytes after DEFLATE (Shaib et al. 2024), higher where texts repeat.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgegen.errors import UnsupportedError

_OPENING = re.compile(r"\{|\[\s*\{")
_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.S)
_TOOL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)


def normalized(text: str) -> str:
    """Without case, with single spaces, without space around."""
    return " ".join(text.casefold().split())


def exact_match(answer: str, expected: str) -> float:
    """1 where both say the same, but for case and spaces; JSON by its value."""
    if (right := parsed_json(expected)) is not None:
        found = parsed_json(answer)
        return float(found is not None and found == right)
    return float(normalized(answer) == normalized(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of words; 1 where both have none."""
    mine, right = Counter(_words(answer)), Counter(_words(expected))
    if not mine and not right:
        return 1.0
    same = sum((mine & right).values())
    return 2 * same / (sum(mine.values()) + sum(right.values()))


def parsed_json(text: str) -> Any:
    """The object or list that a text is, also in a fence; None if it is none."""
    found = _FENCE.match(text)
    body = (found[1] if found else text).strip()
    if not body.startswith(("{", "[")):
        return None
    try:
        return json.loads(body)
    except ValueError:
        return None


def json_inside(text: str) -> list[Any] | None:
    """The objects and lists of objects in a text, in order, words around them left out; None: one is broken."""
    if (whole := parsed_json(text)) is not None:
        return [whole]
    found: list[Any] = []
    at, decoder = 0, json.JSONDecoder()
    while match := _OPENING.search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
        except ValueError:
            return None
        found.append(value)
    return found


def function_calls(text: str) -> list[tuple[str, Any]] | None:
    """The calls that an answer makes as (name, arguments); None: it makes none.

    Known: `{"name", "arguments" | "parameters"}`, also inside `function`, `function_call` or a list `tool_calls`, a
    list of them, `<tool_call>…</tool_call>`, and any of them after or between words. Arguments may be a string of JSON.
    """
    tagged = _TOOL.findall(text)
    if tagged:
        found = [_call(parsed_json(piece)) for piece in tagged]
    else:
        inside = json_inside(text)
        tree: Any = inside[0] if inside is not None and len(inside) == 1 else inside
        if isinstance(tree, Mapping) and isinstance(tree.get("tool_calls"), list):
            tree = tree["tool_calls"]
        found = [_call(entry) for entry in tree] if isinstance(tree, list) else [_call(tree)]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def function_match(answer: str, expected: str) -> float | None:
    """1 where the calls are the right ones, by name and arguments as values; None: the right answer makes no call."""
    right = function_calls(expected)
    return None if right is None else float(function_calls(answer) == right)


def function_name_match(answer: str, expected: str) -> float | None:
    """1 where the names are right, whatever the arguments."""
    right, mine = function_calls(expected), function_calls(answer)
    return None if right is None else float(mine is not None and [n for n, _ in mine] == [n for n, _ in right])


def json_valid(answer: str, expected: str) -> float | None:
    """1 where an answer that should be or hold JSON does; None: it need not."""
    return None if not json_inside(expected) else float(bool(json_inside(answer)))


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of words among all of them; 0 where there is none."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = _words(text)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts over their bytes when compressed; 1 where there are none."""
    data = "\n".join(texts).encode(errors="replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 1.0


def repetition(text: str, n: int = 4) -> float | None:
    """Share of a text's n-grams of words that stood in it before (Welleck et al. 2020); None: it is too short."""
    words = _words(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str], *, most: int = 50) -> list[float | None]:
    """BLEU in [0, 1] of each text against at most `most` others; None for empty ones and where there are no others.

    Raises:
        UnsupportedError: sacrebleu is not installed.
    """
    bleu = _sacrebleu()
    kept = [text for text in texts if text.strip()]
    found: list[float | None] = []
    for place, text in enumerate(texts):
        others = [other for at, other in enumerate(texts) if at != place and other.strip()][:most]
        usable = bool(text.strip()) and len(kept) > 1
        found.append(bleu.sentence_bleu(text, others, smooth_method="exp").score / 100 if usable else None)
    return found


def chrf(answer: str, reference: str) -> float:
    """chrF2 in [0, 1] (Popović 2015), by sacrebleu; 1 where both are empty.

    Raises:
        UnsupportedError: sacrebleu is not installed.
    """
    if not answer.strip() or not reference.strip():
        return float(answer.strip() == reference.strip())
    return float(_sacrebleu().sentence_chrf(answer, [reference]).score) / 100


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise UnsupportedError(
            "likeness of texts needs sacrebleu", hint="Install it with: pip install 'edgegen[evaluate]'"
        ) from error
    return sacrebleu


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _call(tree: Any) -> tuple[str, Any] | None:
    if not isinstance(tree, Mapping):
        return None
    for key in ("function", "function_call"):
        if isinstance(tree.get(key), Mapping):
            tree = tree[key]
    name = tree.get("name", tree.get("function"))
    if not isinstance(name, str):
        return None
    arguments = tree.get("arguments", tree.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return name, arguments
