"""What every runtime adapter offers.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgegen.records.base import Record
from edgegen.records.plan import Settings


class Timing(Record, frozen=True):
    """One timed generation, seconds of wall time."""

    prefill_s: float
    """Until the prompt's last logits were there; the time to first token without sampling."""
    decode_s: float
    """For `decoded_tokens` tokens after the first."""
    prompt_tokens: int
    decoded_tokens: int


class Session(Protocol):
    """An opened model. Not thread-safe."""

    vocab_size: int
    context_tokens: int

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence: (T, V) float32. The cache is cleared first.

        Raises:
            ConfigError: more tokens than the context holds, or an id outside the vocabulary.
        """
        ...

    def generate(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = ()) -> Iterator[int]:
        """Greedy continuation, one id at a time, without the stop token. Ties go to the lower id."""
        ...

    def time_generation(self, ids: Sequence[int], *, decode_tokens: int) -> Timing:
        """Generate exactly `decode_tokens` greedily and say how long each part took."""
        ...

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        ...


class Runtime(Protocol):
    """A way to run artifacts of one target."""

    name: str

    def version(self) -> str:
        """The runtime library's own version.

        Raises:
            UnsupportedError: it is not installed; the hint names the extra.
        """
        ...

    def open(self, model: Path, settings: Settings) -> Session:
        """Load a model file.

        Raises:
            UnsupportedError: the runtime is not installed.
            DeviceError: the runtime refuses the file; the message carries its own reason.
        """
        ...
