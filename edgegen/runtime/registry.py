"""Target name → runtime. Adapters are imported only when asked for, so a device needs only its own."""

from __future__ import annotations

from collections.abc import Callable

from edgegen.errors import UnsupportedError
from edgegen.runtime.base import Runtime


def _llamacpp() -> Runtime:
    from edgegen.runtime.llamacpp import LlamaCpp

    return LlamaCpp()


RUNTIMES: dict[str, Callable[[], Runtime]] = {"gguf": _llamacpp}


def runtime_for(target: str) -> Runtime:
    """The adapter that runs artifacts of a target.

    Raises:
        UnsupportedError: no adapter for this target.
    """
    if target not in RUNTIMES:
        raise UnsupportedError(
            f"no runtime for target {target!r} in this version",
            hint="Targets that can be run: " + ", ".join(sorted(RUNTIMES)) + ".",
        )
    return RUNTIMES[target]()
