"""What the contract tests need to know of each target: how its artifacts are made here and started."""

from pathlib import Path
from typing import Any

import pytest

from edgegen.catalog import load_target
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export import exporter_for
from edgegen.export.registry import Exporter
from edgegen.records.plan import Settings
from tests.tiny_models import make_tiny, pack_uniform, sample_texts

MARKS: dict[str, Any] = {"litert": pytest.mark.slow}
"""Converting for LiteRT takes a process of its own and most of a minute."""

GRID = "f16"
"""Every target has it, and no activations are rounded with it, so that the same tokens give the same numbers."""


def exporter_or_skip(target: str) -> Exporter:
    """A target's exporter; skipped where the registry says that it cannot be written here."""
    try:
        return exporter_for(target)
    except (UnsupportedError, ModuleNotFoundError) as error:
        pytest.skip(str(error))


def context_settings(target: str) -> Settings:
    """A context of 96 tokens with the target's own cache."""
    try:
        kv_type = next(iter(load_target(target).kv_bits))
    except ConfigError as error:
        pytest.skip(str(error))
    return Settings(context_tokens=96, ubatch_tokens=16, threads=1, kv_type=kv_type)


def export_tiny_llama(target: str, folder: Path) -> Path:
    """Write a random tied Llama of two blocks for a target; the file that its runtime opens."""
    exporter = exporter_or_skip(target)
    compressed = pack_uniform(make_tiny("llama", folder / "hf", tied=True), folder / "c", GRID)
    artifact = exporter.export(compressed, folder / "a", context_settings(target), prove_texts=sample_texts(5))
    return folder / "a" / artifact.model
