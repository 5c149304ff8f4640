"""Target name → exporter. Formats are imported only when asked for, so that each needs only its own libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgegen.errors import UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import PackedTensor
from edgegen.records.plan import Settings


class Exporter(Protocol):
    """What a file format can say, how large it gets, and how it is written. One object a target."""

    def context_tokens(self, config: dict[str, Any]) -> int:
        """The longest context that the format expresses for a config.json.

        Raises:
            UnsupportedError: it cannot express this configuration.
        """
        ...

    def tensor_bytes(self, grid: str, rows: int, columns: int) -> int:
        """What a tensor's data takes in the model's files, padding included.

        Raises:
            ConfigError: a row does not fit the grid's block.
        """
        ...

    def overhead_bytes(
        self,
        config: dict[str, Any],
        tokenizer_folder: Path,
        tensors: Sequence[PackedTensor],
        settings: Settings,
        *,
        license_text: str = "",
    ) -> int:
        """What the model's files take beyond the packed data of these tensors (their grids do not count)."""
        ...

    def export(
        self,
        compressed_folder: Path,
        out: Path,
        settings: Settings,
        *,
        prove_texts: Sequence[str],
        strict: Path | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Artifact:
        """Write a compressed folder as an artifact folder.

        Args:
            out: the artifact's folder; an artifact that is already there is replaced.
            settings: how the runtime is to be started.
            prove_texts: held-out texts on which the artifact's tokenizer must agree with the original's.
            strict: a second folder that gets the same model for the runtime's strict-accuracy mode (no rounding of
                activations) under the same file name. It is only for verifying and does not travel.
            progress: called with what was written and the fraction that is done.

        Raises:
            ConfigError: the compressed folder is incomplete or damaged, or `out` holds something else.
            UnsupportedError: the format cannot express the model or its tokenizer, or a library is missing.
            DeviceError: no space on the disk, or not enough memory to convert.
        """
        ...


_MODULES = {"gguf": "edgegen.export.gguf", "onnx": "edgegen.export.onnx", "litert": "edgegen.export.litert"}

TARGETS = tuple(_MODULES)
"""Targets that can be written, in the order in which they are shown."""


def exporter_for(target: str) -> Exporter:
    """The exporter that writes artifacts of a target.

    Raises:
        UnsupportedError: this version cannot write that target, or a library for it is missing.
    """
    if target not in _MODULES:
        raise UnsupportedError(
            f"target {target!r} cannot be written in this version",
            hint="Targets that can be written: " + ", ".join(_MODULES) + ".",
        )
    exporter: Exporter = importlib.import_module(_MODULES[target]).exporter()
    return exporter
