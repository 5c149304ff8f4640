"""Encode texts with an artifact. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.records.embedding import Embedding, Similarity
from edgegen.runtime.checks import settings_here
from edgegen.runtime.registry import encoder_runtime_for
from edgegen.runtime.text import Text


class Embedder:
    """An opened encoder. A context manager.

    Attributes:
        artifact: its record.
    """

    def __init__(self, folder: Path, *, runtime: str = "", threads: int | None = None) -> None:
        """Open an artifact.

        Args:
            folder: with artifact.json.
            runtime: one that runs encoders of the artifact's target; empty: the first that is installed.
            threads: None: the artifact's own number, as far as this machine has cores.

        Raises:
            ConfigError: no artifact there, a broken one, or one that continues text.
            UnsupportedError: the runtime is not installed.
            DeviceError: the runtime refuses the model.
        """
        self._text = Text(folder)
        self.artifact = self._text.artifact
        if self.artifact.task != "encoder":
            raise ConfigError(f"{folder}: continues text, it is no encoder", hint="Ask it with: edgegen run.")
        settings = settings_here(self.artifact.settings, threads)
        found = encoder_runtime_for(self.artifact.target, runtime)
        self.runtime = found.name
        self._session = found.open(folder / self.artifact.model, settings)

    def vector(self, text: str) -> NDArray[np.float32]:
        """The (D,) vector of a text; what is beyond the encoder's length is cut off.

        Raises:
            DeviceError: the runtime could not compute.
        """
        return self._session.embed(self._text.sentence(text))

    def embed(self, text: str, others: Sequence[str] = ()) -> Embedding:
        """A text's vector with how close other texts are.

        Raises:
            DeviceError: the runtime could not compute.
        """
        ids = self._text.sentence(text)
        started = time.perf_counter()
        vector = self._session.embed(ids)
        ms = 1000 * (time.perf_counter() - started)
        near = [Similarity(text=other, cosine=_cosine(vector, self.vector(other))) for other in others]
        return Embedding(
            text=text,
            tokens=len(ids),
            was_cut=len(self._text.tokenizer.encode(text).ids) > len(ids),
            vector=tuple(float(value) for value in vector),
            norm=float(np.linalg.norm(vector)),
            ms=ms,
            runtime=self.runtime,
            similar=tuple(sorted(near, key=lambda found: -found.cosine)),
        )

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        self._session.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0
