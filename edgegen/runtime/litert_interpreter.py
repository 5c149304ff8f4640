"""LiteRT files on the plain interpreter, for processors and packages without `CompiledModel`.

The same graphs and the same XNNPACK kernels, but weights are packed once for every signature, and the caches are copied
in and out at each call: slower the longer the context is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits
from edgegen.runtime.chunks import ChunkedSession, opening, reason
from edgegen.runtime.litert import library_version
from edgegen.runtime.quiet import native_stderr


class LiteRtInterpreter:
    """The `litert` target's second runtime."""

    name = "litert-interpreter"

    def version(self) -> str:
        """ai-edge-litert's version.

        Raises:
            UnsupportedError: it is not installed.
        """
        return library_version()

    def open(self, model: Path, settings: Settings) -> InterpreterSession:
        """Load a LiteRT file for the CPU.

        Raises:
            UnsupportedError: ai-edge-litert is not installed.
            ConfigError: no such file, or settings that the file does not take.
            DeviceError: LiteRT refuses the file; the message carries its own reason.
        """
        return InterpreterSession(model, settings)


class InterpreterSession(ChunkedSession):
    """One loaded model with one sequence."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._interpreter: Any = None
        self._runners: dict[str, Any] = {}
        library_version()
        from ai_edge_litert.interpreter import Interpreter

        with opening(model, settings):
            self._interpreter = Interpreter(str(model), num_threads=settings.threads)
            signatures = self._interpreter.get_signature_list()
            runner = self._runner("decode") if "decode" in signatures else None
        shapes = {name: tuple(d["shape"]) for name, d in runner.get_input_details().items()} if runner else {}
        caches = {name: shape for name, shape in shapes.items() if name[:2] in ("k_", "v_")}
        vocab = int(runner.get_output_details()["logits"]["shape"][-1]) if runner else 0
        self._describe(model, settings, signatures, min((s[2] for s in caches.values()), default=0), vocab)
        self._caches = {name: np.zeros(shape, np.float32) for name, shape in caches.items()}

    def _compute(self, signature: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits | None:
        try:
            outputs = self._runner(signature)(tokens=tokens, input_pos=positions, **self._caches)
        except Exception as error:
            raise DeviceError(f"LiteRT could not compute: {reason(error, '')}") from error
        self._caches = {name: outputs[name] for name in self._caches}
        logits: Logits | None = outputs.get("logits")
        return None if logits is None else logits.reshape(tokens.size, self.vocab_size)

    def _runner(self, signature: str) -> Any:
        """The signature's function; its memory is allocated when it is first asked for."""
        if signature not in self._runners:
            with native_stderr():
                self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]

    def _close(self) -> None:
        self._runners = {}
        self._caches = {}
        self._interpreter = None
