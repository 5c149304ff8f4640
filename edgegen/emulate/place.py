"""Where the emulator and the device's system lie.

emulate/
  qemu-aarch64           the emulator, one static program
  root/                  the device's system: C library, Python and what they need; no shell, no service
  packages/NAME-VERSION/ one aarch64 package each, so that adding or renewing one touches no other
  downloads/             only while setting up
  setup.json             what of this is whole; without it nothing counts as set up
"""

from __future__ import annotations

import os
from pathlib import Path

from edgegen.common.codec import load_json
from edgegen.records.emulation import Emulation

SUITE = "trixie"
"""Debian's release. Its emulator (QEMU 10) is the first with which the runtimes' processor detection works: under
Debian bookworm's 7.2 onnxruntime and LiteRT crash when they are imported."""

PYTHON = "3.13"
"""That release's Python."""

EMULATOR = "qemu-aarch64"


RUNTIME_PACKAGES = {
    "llama.cpp": "llama-cpp-python",
    "onnxruntime-genai": "onnxruntime-genai",
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "litert-interpreter": "ai-edge-litert",
}
"""Runtime → the package that holds it."""


def emulation_folder() -> Path:
    """`emulate` in `$EDGEGEN_CACHE`, else in edgegen's folder of the user's cache. It need not exist."""
    cache = os.environ.get("EDGEGEN_CACHE")
    if cache:
        return Path(cache).expanduser().absolute() / "emulate"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgegen" / "emulate"


def read_setup(folder: Path | None = None) -> Emulation | None:
    """What is set up, None if nothing is.

    Raises:
        ConfigError: the record is damaged.
    """
    path = (folder or emulation_folder()) / "setup.json"
    return load_json(path, Emulation) if path.exists() else None


def package_folder(folder: Path, name: str, version: str) -> Path:
    """Where one package lies or will lie."""
    return folder / "packages" / f"{name}-{version}"


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed and linked files count once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            found = (Path(place) / name).lstat()
            seen[(found.st_dev, found.st_ino)] = found.st_size
    return sum(seen.values())
