"""Which runtimes are installed here."""

from __future__ import annotations

import importlib.metadata

from edgegen.records.bundle import Manifest
from edgegen.runtime.adapters import TAKE_ADAPTERS

_PACKAGES = {
    "llama.cpp": "llama-cpp-python",
    "onnxruntime": "onnxruntime",
    "onnxruntime-genai": "onnxruntime-genai",
    "litert": "ai-edge-litert",
    "litert-interpreter": "ai-edge-litert",
}
"""Runtime → the package that brings it. They are looked up, not imported: the agent itself stays small."""


def installed_runtimes() -> dict[str, str]:
    """Name → version of each runtime that is installed here."""
    found = {}
    for name, package in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def usable_runtimes(wanted: str) -> dict[str, str]:
    """The installed runtimes that releases may be opened with: only the wanted one if one is configured."""
    return {name: version for name, version in installed_runtimes().items() if wanted in ("", name)}


def chosen_runtime(manifest: Manifest, wanted: str) -> str:
    """The runtime that opens a release: the wanted one, or the first installed one that it names; empty: any."""
    if wanted:
        return wanted
    installed = installed_runtimes()
    named = [name for name in manifest.compat.runtimes if not manifest.adapter or name in TAKE_ADAPTERS]
    return next((name for name in named if name in installed), "")
