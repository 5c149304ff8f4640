"""The boundary between strings of devices and the terminal: what goes through `plain` can only be text.

Answers of models, names, error messages and details come from machines that may be broken or hostile. Everything that
is drawn goes through here, once, where it becomes a piece of a line (`edgegen.monitor.ink`): control characters are
shown as their pictures (`␛` for ESC), so that no escape sequence arises; characters that reorder or hide text are
shown as `�` or left out; marks that stack on a letter are kept up to two. Nothing is ever parsed as markup.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from rich.cells import cell_len

MOST_CHARACTERS = 2000
"""Of one line; what is longer is cut."""
MOST_TEXT = 20_000
"""Of a text that is folded into lines."""
_MOST_MARKS = 2
_REPLACED = "\ufffd"
# Joiners, direction marks, soft hyphen, byte order mark, variation selectors and skin tones: invisible by themselves,
# and terminals disagree about the width of what they join.
_DROPPED = frozenset("\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff") | frozenset(
    chr(code)
    for first, last in ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF), (0x1F3FB, 0x1F3FF))
    for code in range(first, last + 1)
)
_MARKS = ("Mn", "Me", "Mc")


def plain(text: str, most: int = MOST_CHARACTERS) -> str:
    """One line of harmless text.

    Args:
        most: characters that are kept; a longer text ends with `…`.

    Returns:
        Text without control, format, private, unassigned or surrogate characters, that begins with no combining mark.
    """
    if len(text) > most:
        text = text[: max(0, most - 1)] + "…"
    if text.isascii() and text.isprintable():
        return text
    return _cleaned(text)


def fold(text: str, width: int, most_lines: int = 500) -> list[str]:
    """A text in lines of at most `width` cells, broken between words where that is possible.

    Returns:
        Plain lines; the last one is `…` where lines were left out.
    """
    width = max(1, width)
    cut = len(text) > MOST_TEXT
    lines: list[str] = []
    for paragraph in text[:MOST_TEXT].replace("\r\n", "\n").split("\n"):
        lines.extend(_folded(_cleaned(paragraph), width))
        if len(lines) > most_lines:
            break
    if cut or len(lines) > most_lines:
        return [*lines[: most_lines - 1], "…"]
    return lines


@lru_cache(maxsize=2048)
def _cleaned(text: str) -> str:
    kept = "".join(_shown(character) for character in text)
    out: list[str] = []
    room = 0
    for character in unicodedata.normalize("NFC", kept):
        if unicodedata.category(character) in _MARKS:
            if room:
                out.append(character)
                room -= 1
            continue
        room = 0 if character == " " else _MOST_MARKS
        out.append(character)
    return "".join(out)


def _shown(character: str) -> str:
    """A character, its picture, or nothing."""
    if character in _DROPPED:
        return ""
    category = unicodedata.category(character)
    if category == "Cc":
        code = ord(character)
        if character == "\t":
            return "  "
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else _REPLACED
    if category in ("Zl", "Zp"):
        return "\u240a"
    if category == "Zs":
        return " "
    return _REPLACED if category in ("Cf", "Cs", "Co", "Cn") else character


def _folded(line: str, width: int) -> list[str]:
    if cell_len(line) <= width:
        return [line]
    lines: list[str] = []
    current, used = "", 0
    for word in _words(line, width):
        cells = cell_len(word)
        if used + cells > width and current:
            lines.append(current.rstrip())
            word, current, used = word.lstrip(), "", 0
            cells = cell_len(word)
        current, used = current + word, used + cells
    return [*lines, current.rstrip()] if current.strip() else lines or [""]


def _words(line: str, width: int) -> list[str]:
    """Words with the space before them, none wider than a line."""
    words: list[str] = []
    for number, word in enumerate(line.split(" ")):
        piece = " " + word if number else word
        while cell_len(piece) > width:
            head, cells = 0, 0
            while head < len(piece) and cells + cell_len(piece[head]) <= width:
                cells += cell_len(piece[head])
                head += 1
            words.append(piece[: max(1, head)])
            piece = piece[max(1, head) :]
        words.append(piece)
    return words
