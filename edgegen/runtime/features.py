"""An answer's text in numbers that need no model: the same on the machine that packs a release and on every device.

A release's reference profile holds histograms of these numbers and the device reports them per answer, so what they
mean is part of the format: it must not change without another name. Everything here is linear in the text's length, of
which at most `MOST_CHARACTERS` are looked at.

Words are runs of letters and digits, lower-cased; in scripts that put no spaces between words each character is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from edgegen.records.telemetry import Features

MOST_CHARACTERS = 32_768
"""Of a text that are looked at; its length is counted in full."""
REFUSAL_CHARACTERS = 48
"""A refusal begins within these."""
REFUSALS = (
    r"i(?:'m| am) (?:really |very |so |truly )?sorry,? (?:but|i|however)",
    r"(?:i(?:'m| am) )?sorry,? (?:but )?i (?:can(?:'t|not| not)|am not|won't|do not|don't)",
    r"i (?:can(?:'t|not| not)|won't|will not) (?:help|assist|provide|create|generate|answer|do (?:that|this)|comply|"
    r"fulfil|fulfill|discuss|give|write|share|support|engage|continue|offer|respond|participate)",
    r"i(?:'m| am) (?:unable|not able|not allowed|not permitted|not comfortable|not programmed|not designed)",
    r"i(?:'m| am) afraid i (?:can|must)",
    r"i (?:apologi[sz]e|must (?:decline|refuse)|have to (?:decline|refuse)|decline to|refuse to)",
    r"(?:as|i(?:'m| am)) (?:just |only )?an? (?:ai|artificial intelligence|language model|large language model)",
    r"unfortunately,? i (?:can(?:'t|not| not)|am)",
)
"""How refusals begin: regular expressions over the lower-cased text. English only."""
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|begin_of_text|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|channel|>", "<|message|>", "<\uff5cUser\uff5c>"),
    *("<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
"""What chat templates put around turns. An answer that holds one was packed with a wrong template."""

_CYCLE_CHARACTERS = 4096
_LEAST_CYCLE = 12
"""Characters that a cycle must repeat to count: `1,000` is none."""
# Han, Kana, Thai, Lao, Khmer, Burmese: written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]|[^\W_]+")
_APOSTROPHES = str.maketrans("\u2019\u02bc\u2018`", "''''")


def features(
    text: str, *, wants_json: bool = False, markers: Sequence[str] = (), refusals: Sequence[str] = REFUSALS
) -> Features:
    """What an answer looks like.

    Args:
        text: the answer, special tokens left out.
        wants_json: the request asked for JSON.
        markers: texts of the model's own chat template that no answer may hold, beside `MARKERS`.
        refusals: regular expressions of how refusals begin, lower-cased.
    """
    looked = text[:MOST_CHARACTERS]
    words = _WORD.findall(looked.lower())
    pairs = list(pairwise(words))
    counts = Counter(looked)
    visible = {character: count for character, count in counts.items() if not character.isspace()}
    letters = {character: count for character, count in visible.items() if _is_letter(character)}
    shown = sum(visible.values())
    return Features(
        characters=len(text),
        empty=not text.strip(),
        repetition=max(_repeated_words(words), _repeated_end(text)),
        distinct2=len(set(pairs)) / len(pairs) if pairs else None,
        non_letter_fraction=1 - sum(letters.values()) / shown if shown else None,
        script=_script(letters),
        refusal=_is_refusal(looked, tuple(refusals)),
        leaked=any(marker in text for marker in (*MARKERS, *markers) if marker.strip()),
        json_valid=_is_json(text) if wants_json else None,
    )


def distinct_fraction(tokens: Sequence[int]) -> float | None:
    """Distinct tokens of an answer over its tokens; None without tokens."""
    return len(set(tokens)) / len(tokens) if len(tokens) else None


def _repeated_words(words: Sequence[str]) -> float:
    """Share of the 4-grams of words that were there before."""
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _repeated_end(text: str) -> float:
    """Share of the text's end that its last cycle repeats: `…ab ab ab ab` repeats `ab ` three times.

    The border array of the reversed text (Knuth, Morris, Pratt 1977): of its first k characters, the longest border
    has k minus the smallest period, which is what the cycle repeats when the period stands at least twice.
    """
    turned = text[-_CYCLE_CHARACTERS:].rstrip()[::-1]
    borders, most = [0] * (len(turned) + 1), 0
    for k in range(2, len(turned) + 1):
        border = borders[k - 1]
        while border and turned[border] != turned[k - 1]:
            border = borders[border]
        borders[k] = border + (turned[border] == turned[k - 1])
        if 2 * borders[k] >= k:
            most = max(most, borders[k])
    return most / len(turned) if most >= _LEAST_CYCLE else 0.0


def _is_letter(character: str) -> bool:
    """A letter, or a mark that belongs to one, such as a vowel sign of Devanagari."""
    return character.isalpha() or unicodedata.category(character).startswith("M")


def _script(letters: dict[str, int]) -> str:
    """The script of most letters by their Unicode names, which begin with it; empty without letters."""
    scripts: Counter[str] = Counter()
    for character, count in letters.items():
        words = unicodedata.name(character, "").lower().split()
        while words and words[0] in ("fullwidth", "halfwidth", "combining", "modifier"):
            words.pop(0)
        if words and character.isalpha():
            scripts["han" if words[0] == "cjk" else words[0]] += count
    # Of equals the first by name, so that every machine says the same.
    return min(scripts, key=lambda script: (-scripts[script], script), default="")


def _is_refusal(text: str, refusals: tuple[str, ...]) -> bool:
    head = " ".join(text[: 4 * REFUSAL_CHARACTERS].lower().translate(_APOSTROPHES).split()).lstrip("\"'*_#>- ")
    if not refusals:
        return False
    # At the start of the text or of a sentence: "She said I cannot help" is a story.
    found = re.search(rf"(?:^|[.!?:] )(?:{'|'.join(refusals)})\b", head)
    return found is not None and found.start() < REFUSAL_CHARACTERS


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True
