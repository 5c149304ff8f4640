"""ONNX folders on plain ONNX Runtime, without onnxruntime-genai.

Decisions that govern what is measured:

- **One buffer a layer for keys and for values**, as long as the context and bound as input and output alike: the
  attention operator then writes new rows in place and nothing is copied between steps. All graphs that edgegen writes
  attend through that operator; others are refused.
- **The graph computes the logits of the last token**; scoring asks for those of every token through the graph's
  optional input `logits_from`. A prompt runs in chunks of the micro-batch, scoring too, which bounds the memory.
- **Nothing is sent or printed**: telemetry is off before the library is loaded, and errors come as exceptions.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits, Session
from edgegen.runtime.checks import check_context, check_settings, require_file

LOGITS_FROM = "logits_from"
CONTEXT_KEY = "edgegen.context_tokens"
"""Key of the model's metadata that holds the longest context that its positions reach."""

KV_TYPES = ("f32",)
"""The processor's cache has no other."""

FATAL = 4
"""ONNX Runtime's log level above errors, which are raised anyway."""


class OnnxRuntime:
    """The `onnx` target's runtime without onnxruntime-genai."""

    name = "onnxruntime"

    def version(self) -> str:
        """ONNX Runtime's version.

        Raises:
            UnsupportedError: it is not installed.
        """
        return str(library().__version__)

    def open(self, model: Path, settings: Settings) -> OnnxSession:
        """Load a graph for the CPU; its weights lie beside it.

        Raises:
            UnsupportedError: ONNX Runtime is not installed.
            ConfigError: no such file, or settings that do not fit the model.
            DeviceError: ONNX Runtime refuses the file; the message carries its own reason.
        """
        return OnnxSession(model, settings)


class OnnxSession(Session):
    """One loaded graph with one sequence."""

    def __init__(self, model: Path, settings: Settings) -> None:
        ort = library()
        self._session: Any = open_graph(model, settings)
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        optional = {entry.name for entry in self._session.get_overridable_initializers()}
        cached = [name for name in inputs if name.startswith("past_key_values.")]
        if not cached or LOGITS_FROM not in optional:
            raise DeviceError(f"{model}: not a graph that edgegen wrote: it has no cache or no input {LOGITS_FROM!r}")
        longest = int(self._session.get_modelmeta().custom_metadata_map.get(CONTEXT_KEY, settings.context_tokens))
        check_context(model, settings.context_tokens, longest)
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self.context_tokens = settings.context_tokens
        self._chunk = min(settings.ubatch_tokens, settings.context_tokens)
        self._binding: Any = self._session.io_binding()
        for name in cached:
            _, heads, _, size = inputs[name].shape
            shape = (1, heads, self.context_tokens, size)
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cpu")
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        self._takes_positions = "position_ids" in inputs
        self._ids = np.zeros((1, self._chunk), dtype=np.int64)
        self._mask = np.ones((1, self.context_tokens), dtype=np.int64)
        self._positions = np.arange(self.context_tokens, dtype=np.int64)
        self._from = np.array([-1], dtype=np.int64)
        self._bind(LOGITS_FROM, self._from, (1,))
        self._last: Logits = np.empty(self.vocab_size, dtype=np.float32)
        self._bind_last()

    def _prefill(self, ids: list[int]) -> Logits:
        self._compute_last(ids, 0)
        return self._last

    def _decode(self, token: int, position: int) -> Logits:
        self._compute_last([token], position)
        return self._last

    def _score(self, ids: list[int]) -> Logits:
        logits = np.empty((len(ids), self.vocab_size), dtype=np.float32)
        self._from[0] = 0
        try:
            for start in range(0, len(ids), self._chunk):
                chunk = ids[start : start + self._chunk]
                # More rows than the graph declares, so not into an array of ours: the runtime allocates them.
                self._binding.bind_output("logits", "cpu")
                self._compute(chunk, start)
                logits[start : start + len(chunk)] = self._binding.get_outputs()[-1].numpy()[0]
        finally:
            self._from[0] = -1
            self._bind_last()
        return logits

    def _close(self) -> None:
        self._binding = self._session = None

    def _compute_last(self, ids: list[int], position: int) -> None:
        for start in range(0, len(ids), self._chunk):
            self._compute(ids[start : start + self._chunk], position + start)

    def _compute(self, chunk: list[int], start: int) -> None:
        """Run at most one micro-batch at positions `start`, …"""
        count = len(chunk)
        self._ids[0, :count] = chunk
        self._bind("input_ids", self._ids, (1, count))
        self._bind("attention_mask", self._mask, (1, start + count))
        if self._takes_positions:
            self._bind("position_ids", self._positions[start:], (1, count))
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the library raises bare exceptions of its own
            raise DeviceError(f"ONNX Runtime could not compute: {reason(error)}") from error

    def _bind_last(self) -> None:
        """Let the logits of the last token go straight into their array."""
        self._binding.bind_output("logits", "cpu", 0, np.float32, (1, 1, self.vocab_size), self._last.ctypes.data)

    def _bind(self, name: str, values: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, np.int64, shape, values.ctypes.data)


@functools.cache
def library() -> Any:
    """The onnxruntime module, silent and without telemetry.

    Raises:
        UnsupportedError: it is not installed or does not load here.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"ONNX files need onnxruntime: {error}", hint="Install it with: pip install 'edgegen[onnx]'"
        ) from error
    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def open_graph(model: Path, settings: Settings) -> Any:
    """ONNX Runtime's session for a graph: on the processor, so many threads, no log.

    Raises:
        UnsupportedError: ONNX Runtime is not installed.
        ConfigError: no such file, or settings that no graph takes.
        DeviceError: ONNX Runtime refuses the file; the message carries its own reason.
    """
    ort = library()
    check_settings(settings, KV_TYPES)
    require_file(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises bare exceptions of its own
        raise DeviceError(f"{model}: ONNX Runtime refuses this file: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the library says, in one line: the innermost cause, without where in its source that stands."""
    text = " ".join(str(error).split()) or type(error).__name__
    innermost = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", text)[-1]
    return re.sub(r"\S+\.cc:\d+ \w+ ", "", innermost)[:400]
