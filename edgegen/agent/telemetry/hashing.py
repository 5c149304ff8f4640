"""Vectors of hashed text: what the texts of a window have in common, from which no text can be read.

Runs of three bytes of the lower-cased text are counted in 256 bins by a multiplicative hash (Knuth, TAOCP 6.4; the
trick of Weinberger et al. 2009), and the counts are scaled to length 1. Of a window only mean and variance are
reported, and only if it has enough texts. The hash is the same on every device, or they could not be compared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegen.records.telemetry import Embedding

BINS = 256
LEAST_TEXTS = 16
"""Of a window; fewer could be guessed."""
MOST_TEXTS = 64
"""A window is reported when it has so many."""
_BYTES = 8192
"""Of a text that are looked at."""


def hashed(text: str) -> NDArray[np.float64]:
    """(256,) unit vector of a text; zeros for one of fewer than three bytes."""
    data = np.frombuffer(text[:_BYTES].lower().encode(errors="replace")[:_BYTES], dtype=np.uint8).astype(np.uint32)
    if len(data) < 3:
        return np.zeros(BINS)
    codes = (data[:-2] << 16) | (data[1:-1] << 8) | data[2:]
    bins = (codes * np.uint32(2654435761)) >> np.uint32(24)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    return counts / np.sqrt(counts @ counts)


class Window:
    """Texts of one kind since the last report."""

    def __init__(self, release: str, what: str) -> None:
        """Begin.

        Args:
            release: digest of its manifest.
            what: `prompts` or `answers`.
        """
        self._release, self._what = release, what
        self._n, self._sum, self._squares = 0, np.zeros(BINS), np.zeros(BINS)

    def add(self, text: str) -> Embedding | None:
        """One more text; the window's report when it is full."""
        vector = hashed(text)
        self._n += 1
        self._sum += vector
        self._squares += vector * vector
        return self.take() if self._n >= MOST_TEXTS else None

    def take(self) -> Embedding | None:
        """The report of what there is, and begin anew; None with too few texts, which are kept."""
        if self._n < LEAST_TEXTS:
            return None
        mean = self._sum / self._n
        variance = np.maximum(0.0, self._squares / self._n - mean * mean)
        found = Embedding(
            release=self._release,
            what=self._what,
            n=self._n,
            mean=tuple(round(float(value), 5) for value in mean),
            variance=tuple(round(float(value), 7) for value in variance),
        )
        self._n, self._sum, self._squares = 0, np.zeros(BINS), np.zeros(BINS)
        return found
