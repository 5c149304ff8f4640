"""Target → the runtimes that run its artifacts, the preferred one first; those for encoders stand apart.

Adapters are imported only when asked for, so a device needs only its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edgegen.errors import UnsupportedError
from edgegen.runtime.base import EncoderRuntime, Runtime

_Found = TypeVar("_Found", Runtime, EncoderRuntime)


def _llamacpp() -> Runtime:
    from edgegen.runtime.llamacpp import LlamaCpp

    return LlamaCpp()


def _genai() -> Runtime:
    from edgegen.runtime.genai import OnnxGenai

    return OnnxGenai()


def _onnxruntime() -> Runtime:
    from edgegen.runtime.onnx import OnnxRuntime

    return OnnxRuntime()


def _litert() -> Runtime:
    from edgegen.runtime.litert import LiteRt

    return LiteRt()


def _litert_interpreter() -> Runtime:
    from edgegen.runtime.litert_interpreter import LiteRtInterpreter

    return LiteRtInterpreter()


def _llamacpp_encoder() -> EncoderRuntime:
    from edgegen.runtime.llamacpp_encoder import LlamaEncoderRuntime

    return LlamaEncoderRuntime()


def _onnx_encoder() -> EncoderRuntime:
    from edgegen.runtime.onnx_encoder import OnnxEncoderRuntime

    return OnnxEncoderRuntime()


def _litert_encoder() -> EncoderRuntime:
    from edgegen.runtime.litert_encoder import LiteRtEncoderRuntime

    return LiteRtEncoderRuntime()


def _litert_interpreter_encoder() -> EncoderRuntime:
    from edgegen.runtime.litert_encoder import LiteRtInterpreterEncoderRuntime

    return LiteRtInterpreterEncoderRuntime()


RUNTIMES: dict[str, dict[str, Callable[[], Runtime]]] = {
    "gguf": {"llama.cpp": _llamacpp},
    "onnx": {"onnxruntime-genai": _genai, "onnxruntime": _onnxruntime},
    "litert": {"litert": _litert, "litert-interpreter": _litert_interpreter},
}
ENCODER_RUNTIMES: dict[str, dict[str, Callable[[], EncoderRuntime]]] = {
    "gguf": {"llama.cpp": _llamacpp_encoder},
    "onnx": {"onnxruntime": _onnx_encoder},
    "litert": {"litert": _litert_encoder, "litert-interpreter": _litert_interpreter_encoder},
}


def runtime_for(target: str, name: str = "") -> Runtime:
    """The adapter that runs artifacts of a target.

    Args:
        name: a runtime of that target; empty: the first that is installed.

    Raises:
        UnsupportedError: no adapter for this target or of this name, or none is installed.
    """
    return _first_installed(RUNTIMES, target, name, "artifacts")


def encoder_runtime_for(target: str, name: str = "") -> EncoderRuntime:
    """The adapter that runs encoders of a target; arguments and errors as `runtime_for`."""
    return _first_installed(ENCODER_RUNTIMES, target, name, "encoders")


def _first_installed(runtimes: dict[str, dict[str, Callable[[], _Found]]], target: str, name: str, what: str) -> _Found:
    if target not in runtimes:
        raise UnsupportedError(
            f"no runtime for {'' if what == 'artifacts' else what + ' of '}target {target!r} in this version",
            hint="Targets that can be run: " + ", ".join(sorted(runtimes)) + ".",
        )
    known = runtimes[target]
    if name:
        if name not in known:
            raise UnsupportedError(f"{name!r} does not run {target} {what}", hint="These do: " + ", ".join(known) + ".")
        return known[name]()
    first: UnsupportedError | None = None
    for make in known.values():
        runtime = make()
        try:
            runtime.version()
        except UnsupportedError as error:
            first = first or error
            continue
        return runtime
    assert first is not None, "every target has a runtime"
    raise first
