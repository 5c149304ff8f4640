"""Rows that say the same, and rows that an evaluation set says too.

Near duplicates are found by MinHash with locality-sensitive hashing (Broder 1997), from `datasketch`, and confirmed by
the exact Jaccard similarity of their word 3-grams. Of a cluster the first row stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from edgegen.common.words import jaccard, shingles, words_of
from edgegen.prepare.stage import Stage, text_of
from edgegen.records.dataset import Row

_PERMUTATIONS = 128


def drop_duplicates(rows: Sequence[Row], near: float | None) -> Stage:
    """Drop rows that were there before, word for word or nearly.

    Args:
        near: Jaccard similarity from which two rows are the same; None: only equal texts are.
    """
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    kept: list[Row] = []
    for row in rows:
        text = text_of(row)
        if text in seen:
            dropped["equal"] += 1
            continue
        seen.add(text)
        kept.append(row)
    if near is not None:
        kept, count = _without_near(kept, near)
        if count:
            dropped["nearly equal"] = count
    return Stage(kept, dropped=dict(dropped))


def _without_near(rows: Sequence[Row], near: float) -> tuple[list[Row], int]:
    from datasketch import MinHash, MinHashLSH

    # Candidates are confirmed below, so a pair too many costs little and one missed stays in the data.
    index = MinHashLSH(threshold=max(0.05, near - 0.1), num_perm=_PERMUTATIONS, weights=(0.02, 0.98))
    kept: list[Row] = []
    known: dict[str, frozenset[str]] = {}
    for number, row in enumerate(rows):
        found = shingles(text_of(row))
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([entry.encode() for entry in sorted(found)])
        if any(jaccard(found, known[other]) >= near for other in index.query(sketch)):
            continue
        name = str(number)
        index.insert(name, sketch)
        known[name] = found
        kept.append(row)
    return kept, len(rows) - len(kept)


def drop_contaminated(rows: Sequence[Row], evaluation: Iterable[str], words: int) -> Stage:
    """Drop rows that share a run of `words` words with an evaluation text, or hold a whole shorter one."""
    runs: set[str] = set()
    short: set[str] = set()
    for text in evaluation:
        if len(words_of(text)) >= words:
            runs |= shingles(text, words)
        elif words_of(text):
            short.add(" ".join(words_of(text)))
    kept = []
    for row in rows:
        text = text_of(row)
        if shingles(text, words) & runs or " ".join(words_of(text)) in short:
            continue
        kept.append(row)
    gone = len(rows) - len(kept)
    return Stage(kept, dropped={"in an evaluation set": gone} if gone else {})
