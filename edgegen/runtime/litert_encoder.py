"""Sentence encoders as LiteRT files, on `CompiledModel` and on the plain interpreter.

A file has a signature for each of a few lengths; a text runs in the shortest that holds it, filled up with tokens that
the mask hides. Decisions about kept weights, threads and logs are those of `litert`.

T tokens of a signature, D numbers of a vector.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime import litert
from edgegen.runtime.base import EncoderSession
from edgegen.runtime.checks import check_context
from edgegen.runtime.chunks import opening, reason
from edgegen.runtime.flatmodel import description
from edgegen.runtime.quiet import native_stderr, quiet_exit

OUTPUT = "embedding"
_HEAD = "embed_"
Inputs = dict[str, NDArray[np.int32]]


class LiteRtEncoderRuntime:
    """The `litert` target's runtime for encoders."""

    name = "litert"

    def version(self) -> str:
        """As `litert.LiteRt.version`."""
        return litert.LiteRt().version()

    def open(self, model: Path, settings: Settings) -> CompiledEncoder:
        """Load a LiteRT file for the CPU.

        Raises:
            UnsupportedError: as `version`.
            ConfigError: no such file, or settings that the file does not take.
            DeviceError: LiteRT refuses the file; the message carries its own reason.
        """
        self.version()
        return CompiledEncoder(model, settings)


class LiteRtInterpreterEncoderRuntime:
    """The same on the plain interpreter."""

    name = "litert-interpreter"

    def version(self) -> str:
        """ai-edge-litert's version.

        Raises:
            UnsupportedError: it is not installed.
        """
        return litert.library_version()

    def open(self, model: Path, settings: Settings) -> InterpreterEncoder:
        """Load a LiteRT file for the CPU; errors as `LiteRtEncoderRuntime.open`."""
        self.version()
        return InterpreterEncoder(model, settings)


class FixedLengthEncoder(EncoderSession):
    """What both share: choosing a length and filling a text up to it."""

    def _describe(self, model: Path, settings: Settings, signatures: Iterable[str], dimension: int) -> None:
        """Say what the file holds.

        Raises:
            DeviceError: not an encoder that edgegen wrote.
            ConfigError: longer texts than the file takes.
        """
        found = [name.removeprefix(_HEAD) for name in signatures if name.startswith(_HEAD)]
        self._lengths = sorted(int(length) for length in found if length.isdigit())
        try:
            facts = json.loads(description(model))
            self.vocab_size, self._first = int(facts["vocab_size"]), int(facts["first_position"])
        except (ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"{model}: not an encoder that edgegen wrote", hint="Export it again.") from error
        check_context(model, settings.context_tokens, self._lengths[-1])
        self.context_tokens, self.dimension = settings.context_tokens, dimension

    @abc.abstractmethod
    def _run(self, signature: str, inputs: Inputs) -> NDArray[np.float32]:
        """(D,) vector."""

    def _embed(self, ids: list[int]) -> NDArray[np.float32]:
        length = next(length for length in self._lengths if length >= len(ids))
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(ids)] = ids
        places = np.arange(length, dtype=np.int32)
        inputs = {
            "tokens": tokens,
            "mask": (places < len(ids)).astype(np.int32),
            "positions": places + np.int32(self._first),
            "segments": np.zeros(length, np.int32),
        }
        try:
            return self._run(f"{_HEAD}{length}", inputs)
        except Exception as error:  # LiteRT raises bare exceptions
            raise DeviceError(f"LiteRT could not compute: {reason(error, '')}") from error


class CompiledEncoder(FixedLengthEncoder):
    """One file on `CompiledModel`."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._model: Any = None
        self._buffers: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        with opening(model, settings):
            self._model = litert.compiled_model(model, settings.threads)
            signatures = self._model.get_signature_list()
            first = next((name for name in signatures if name.startswith(_HEAD)), "")
            shape = self._model.get_output_tensor_details(first)[OUTPUT]["shape"] if first else (0,)
        quiet_exit()
        self._describe(model, settings, signatures, int(shape[-1]))

    def _run(self, signature: str, inputs: Inputs) -> NDArray[np.float32]:
        if signature not in self._buffers:
            with native_stderr():
                given = {name: self._model.create_input_buffer_by_name(signature, name) for name in inputs}
                made = {OUTPUT: self._model.create_output_buffer_by_name(signature, OUTPUT)}
            self._buffers[signature] = (given, made)
        given, made = self._buffers[signature]
        for name, values in inputs.items():
            given[name].write(values)
        self._model.run_by_name(signature, given, made)
        vector: NDArray[np.float32] = made[OUTPUT].read(self.dimension, np.float32)
        return vector.reshape(-1).copy()

    def _close(self) -> None:
        with native_stderr():
            self._buffers = {}
            if self._model is not None:
                self._model.close()
            self._model = None


class InterpreterEncoder(FixedLengthEncoder):
    """One file on the plain interpreter."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._interpreter: Any = None
        self._runners: dict[str, Any] = {}
        from ai_edge_litert.interpreter import Interpreter

        with opening(model, settings):
            self._interpreter = Interpreter(str(model), num_threads=settings.threads)
            signatures = self._interpreter.get_signature_list()
            first = next((name for name in signatures if name.startswith(_HEAD)), "")
            shape = self._runner(first).get_output_details()[OUTPUT]["shape"] if first else (0,)
        self._describe(model, settings, signatures, int(shape[-1]))

    def _run(self, signature: str, inputs: Inputs) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._runner(signature)(**inputs)[OUTPUT]
        return vector.reshape(-1).copy()

    def _runner(self, signature: str) -> Any:
        """The signature's function; its memory is allocated when it is first asked for."""
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]

    def _close(self) -> None:
        self._runners = {}
        self._interpreter = None
