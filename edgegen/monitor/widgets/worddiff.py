"""Two texts word by word: what went, what came, what stayed."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from edgegen.monitor.ink import Piece
from edgegen.monitor.plain import fold, plain

_MOST_WORDS = 1500
"""Of each text; comparing takes quadratic time in the worst case."""

Part = tuple[str, str]
"""`same`, `gone` or `new`, and words with the space after them."""


def word_diff(old: str, new: str) -> list[Part]:
    """The parts in the order in which they stand; without the new ones they are the old text, and the other way round.

    Texts of more than 1,500 words are compared up to there.
    """
    before, after = _words(old), _words(new)
    parts: list[Part] = []
    matcher = SequenceMatcher(None, [w.strip() for w in before], [w.strip() for w in after], autojunk=False)
    for what, i, j, k, m in matcher.get_opcodes():
        if what == "equal":
            parts.append(("same", "".join(after[k:m])))
            continue
        if i < j:
            parts.append(("gone", "".join(before[i:j])))
        if k < m:
            parts.append(("new", "".join(after[k:m])))
    return parts


def diff_lines(old: str, new: str, width: int, most_lines: int = 200) -> tuple[list[list[Piece]], list[list[Piece]]]:
    """Both texts folded to `width`: what went is `[-so-]`, what came `{+so+}`, so that it shows without colours."""
    parts = word_diff(old, new)
    return (
        _marked([(kind, text) for kind, text in parts if kind != "new"], width, most_lines),
        _marked([(kind, text) for kind, text in parts if kind != "gone"], width, most_lines),
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)[:_MOST_WORDS]


_SIGNS = {"gone": ("[-", "-]"), "new": ("{+", "+}"), "same": ("", "")}


def _marked(parts: list[Part], width: int, most_lines: int) -> list[list[Piece]]:
    """Lines of pieces; a part that is broken over lines keeps its role on each."""
    lines: list[list[Piece]] = [[]]
    used = 0
    for kind, text in parts:
        before, after = _SIGNS[kind]
        words = (before + text.strip() + after).split(" ") if kind != "same" else text.split(" ")
        for number, raw in enumerate(words):
            for piece_number, word in enumerate(fold(raw, max(1, width - 1))):
                cells = _cells(word)
                if piece_number or (used and used + cells + (1 if number or kind != "same" else 0) > width):
                    lines.append([])
                    used = 0
                elif used and not _ends_with_space(lines[-1]):
                    lines[-1].append((" ", ""))
                    used += 1
                if word:
                    lines[-1].append((word, "" if kind == "same" else kind))
                    used += cells
        if len(lines) > most_lines:
            return [*lines[: most_lines - 1], [("…", "dim")]]
    return lines


def _ends_with_space(line: list[Piece]) -> bool:
    return bool(line) and line[-1][0].endswith(" ")


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(plain(text))
