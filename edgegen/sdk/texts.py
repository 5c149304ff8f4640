"""Which of a subject's calibration rows are for what, and how they read with a smaller vocabulary.

Statistics are gathered from the first rows and plans are scored on the last ones. What learns (healing, refining) or
searches takes rows that no plan is scored on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.text import Window, windows_of
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.sdk.subject import SCORED_TOKENS, Subject
from edgegen.training.batches import Item

Ids = NDArray[np.int64]

_LEAST_WINDOWS = 16
"""Fewer are too little to learn from."""
_MOST_ASIDE = 32


def scored_windows(subject: Subject, tokenizer: Any) -> list[Window]:
    """What plans are scored on: from the end, so that few rows are shared with the statistics even when there is little
    data."""
    columns = subject.summary.vocab_size
    tokens = int(np.clip(1_000_000_000 // (4 * columns), 1024, SCORED_TOKENS))
    return subject.task.windows(
        tokenizer,
        tuple(reversed(subject.split.calibration)),
        max_tokens=tokens,
        window_tokens=subject.window_tokens,
    )


def study_windows(subject: Subject, tokenizer: Any) -> tuple[list[Window], list[Window]]:
    """What no plan is scored on: windows to learn from, and some set aside to choose the best weights by; both empty
    where there are too few."""
    rows, tokens = list(subject.split.calibration), 0
    while rows and tokens < SCORED_TOKENS:
        tokens += sum(w.tokens for w in windows_of(tokenizer, rows.pop(), subject.window_tokens))
    windows = [w for row in rows for w in windows_of(tokenizer, row, subject.window_tokens)]
    if len(windows) < _LEAST_WINDOWS:
        return [], []
    aside = max(1, min(len(windows) // 8, _MOST_ASIDE))
    return windows[:-aside], windows[-aside:]


def items_of(windows: Sequence[Window]) -> list[Item]:
    """Windows as what training takes."""
    return [Item(ids=w.ids, counts=w.counts, index=number) for number, w in enumerate(windows)]


@contextlib.contextmanager
def tokenizer_of(subject: Subject, kept: Ids | None) -> Iterator[Any]:
    """The subject's tokenizer, or the one that knows (K,) kept tokens only."""
    if kept is None:
        yield subject.tokenizer
        return
    folder = Path(subject.ref.path)
    with tempfile.TemporaryDirectory() as scratch:
        Vocabulary(folder / "tokenizer.json").write_trimmed(folder, Path(scratch), kept)
        yield open_tokenizer(Path(scratch))


def in_original(windows: Sequence[Window], kept: Ids | None) -> list[Window]:
    """Windows of a smaller vocabulary with the original's ids."""
    if kept is None:
        return list(windows)
    return [Window(ids=kept[w.ids], counts=w.counts, bytes=w.bytes) for w in windows]
