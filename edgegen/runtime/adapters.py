"""Which runtimes put a LoRA file over a model's weights when they open it.

A LoRA file adds the product of two narrow matrices to some of a model's matrices: other answers for kilobytes. The
names stand here and not in the adapters of the runtimes, so that the agent can refuse a release without loading one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgegen.errors import UnsupportedError
from edgegen.records.plan import Settings

if TYPE_CHECKING:
    from edgegen.runtime.base import AdaptableRuntime, Runtime, Session

TAKE_ADAPTERS = frozenset({"llama.cpp"})
"""Runtimes whose `open` takes an `adapter`."""


def open_model(runtime: Runtime, model: Path, settings: Settings, adapter: Path | None) -> Session:
    """Load a model file, with a LoRA file over its weights if one is given.

    Raises:
        UnsupportedError: the runtime takes no adapters, or as its `open`.
        ConfigError, DeviceError: as the runtime's `open`; also for the adapter's file.
    """
    if adapter is None:
        return runtime.open(model, settings)
    if runtime.name not in TAKE_ADAPTERS:
        raise UnsupportedError(
            f"{runtime.name} takes no adapters at run time", hint="These do: " + ", ".join(sorted(TAKE_ADAPTERS)) + "."
        )
    return cast("AdaptableRuntime", runtime).open(model, settings, adapter)
