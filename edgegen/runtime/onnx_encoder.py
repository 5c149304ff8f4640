"""Sentence encoders on plain ONNX Runtime.

A text runs alone, at its own length: nothing is padded, so a short text costs what it needs. Decisions about threads,
logs and telemetry are those of `onnx`.

D numbers of a vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.base import EncoderSession
from edgegen.runtime.checks import check_context
from edgegen.runtime.onnx import CONTEXT_KEY, OnnxRuntime, open_graph, reason

OUTPUT = "embedding"
VOCABULARY_KEY = "edgegen.vocab_size"
"""Key of the model's metadata that holds the rows of its token table."""


class OnnxEncoderRuntime:
    """The `onnx` target's runtime for encoders."""

    name = "onnxruntime"

    def version(self) -> str:
        """ONNX Runtime's version.

        Raises:
            UnsupportedError: it is not installed.
        """
        return OnnxRuntime().version()

    def open(self, model: Path, settings: Settings) -> OnnxEncoderSession:
        """Load a graph for the CPU; its weights lie beside it.

        Raises:
            UnsupportedError: ONNX Runtime is not installed.
            ConfigError: no such file, or settings that do not fit the model.
            DeviceError: ONNX Runtime refuses the file; the message carries its own reason.
        """
        return OnnxEncoderSession(model, settings)


class OnnxEncoderSession(EncoderSession):
    """One loaded graph."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._session: Any = open_graph(model, settings)
        facts = self._session.get_modelmeta().custom_metadata_map
        outputs = self._session.get_outputs()
        if [output.name for output in outputs] != [OUTPUT] or VOCABULARY_KEY not in facts:
            raise DeviceError(f"{model}: not an encoder's graph that edgegen wrote: its output is no {OUTPUT!r}")
        check_context(model, settings.context_tokens, int(facts[CONTEXT_KEY]))
        self.vocab_size = int(facts[VOCABULARY_KEY])
        self.context_tokens = settings.context_tokens
        self.dimension = int(outputs[0].shape[-1])

    def _embed(self, ids: list[int]) -> NDArray[np.float32]:
        given = np.array([ids], dtype=np.int64)
        try:
            found = self._session.run([OUTPUT], {"input_ids": given, "attention_mask": np.ones_like(given)})
        except Exception as error:  # the library raises bare exceptions of its own
            raise DeviceError(f"ONNX Runtime could not compute: {reason(error)}") from error
        vector: NDArray[np.float32] = found[0][0]
        return vector

    def _close(self) -> None:
        self._session = None
