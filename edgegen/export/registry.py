"""Target name → exporter. Formats are imported only when asked for, so that each needs only its own
libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edgegen.errors import UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings


class Exporter(Protocol):
    """Write a compressed folder as an artifact folder."""

    def __call__(
        self,
        compressed_folder: Path,
        out: Path,
        settings: Settings,
        *,
        prove_texts: Sequence[str],
        progress: Callable[[str, float], None] | None = None,
    ) -> Artifact: ...


def _gguf(
    compressed_folder: Path,
    out: Path,
    settings: Settings,
    *,
    prove_texts: Sequence[str],
    progress: Callable[[str, float], None] | None = None,
) -> Artifact:
    try:
        import gguf  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "writing GGUF needs the gguf package", hint="Install it with: pip install 'edgegen[gguf]'"
        ) from error
    from edgegen.export.gguf import export_gguf

    return export_gguf(compressed_folder, out, settings, prove_texts=prove_texts, progress=progress)


EXPORTERS: dict[str, Exporter] = {"gguf": _gguf}


def exporter_for(target: str) -> Exporter:
    """The exporter that writes artifacts of a target.

    Raises:
        UnsupportedError: this version cannot write that target.
    """
    if target not in EXPORTERS:
        raise UnsupportedError(
            f"target {target!r} cannot be written in this version",
            hint="Targets that can be written: " + ", ".join(sorted(EXPORTERS)) + ".",
        )
    return EXPORTERS[target]
