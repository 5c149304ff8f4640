"""The aarch64 packages of the runtimes, in the versions that are installed here, fetched by pip.

pip is asked for ready-built packages of another platform only: nothing of them is run here. Its own configuration
(index, proxy, certificates) counts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edgegen.emulate.place import PYTHON, package_folder
from edgegen.errors import DeviceError, NetworkError, UnsupportedError

BASE = ("numpy", "msgspec", "tokenizers", "psutil", "jinja2", "markupsafe")
"""What edgegen's device side imports."""

RUNTIMES = {
    "onnx": ("onnxruntime", "onnxruntime-genai"),
    "litert": ("ai-edge-litert", "ml_dtypes"),
}
"""Extra → the packages that its runtimes import, without those that they only name."""

_DOWNLOAD_BYTES = {
    "numpy": 15_700_000,
    "tokenizers": 3_500_000,
    "onnxruntime": 23_200_000,
    "onnxruntime-genai": 10_900_000,
    "ai-edge-litert": 14_400_000,
}
_UNPACKED_RATIO = 3.2
"""Sizes of the releases of 2026, to be said before they are fetched; others are below 0.5 MB."""

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
_UNREACHABLE = re.compile(
    r"Retrying|ConnectionError|NewConnection|timed out|Max retries|Could not fetch URL|HTTP error 5"
)


def wanted_packages() -> tuple[dict[str, str], list[str]]:
    """What to fetch: distribution → the version that is installed here.

    Returns:
        (packages, a note for each runtime that is not installed here and so left out).
    """
    packages = {name: metadata.version(name) for name in BASE}
    notes = []
    for extra, names in RUNTIMES.items():
        versions = {name: _installed(name) for name in names}
        packages.update({name: version for name, version in versions.items() if version})
        if not versions[names[0]]:
            notes.append(f"{names[0]} is not installed here, so {extra} artifacts are not emulated")
    return packages, notes


def download_bytes(name: str) -> int:
    """About how much a package is to fetch."""
    return _DOWNLOAD_BYTES.get(name, 300_000)


def unpacked_bytes(name: str) -> int:
    """About how much it takes on the disk."""
    return round(download_bytes(name) * _UNPACKED_RATIO)


def fetch_package(name: str, version: str, downloads: Path, folder: Path) -> None:
    """Fetch one package and unpack it to its place; whole or not at all.

    Raises:
        UnsupportedError: pip is not there, or the index has no aarch64 package of this version.
        NetworkError: the index does not answer.
        DeviceError: the package is damaged.
    """
    target = package_folder(folder, name, version)
    if target.exists():
        return
    beside = downloads / f"{name}-{version}"
    shutil.rmtree(beside, ignore_errors=True)
    _pip(f"{name}=={version}", beside / "wheel", *_platform())
    wheels = list((beside / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise DeviceError(f"pip fetched no package of {name} {version}")
    try:
        with zipfile.ZipFile(wheels[0]) as files:
            files.extractall(beside / "unpacked")
    except (zipfile.BadZipFile, EOFError) as error:
        raise DeviceError(f"{wheels[0].name}: damaged: {error}", hint="Run the same command again.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    (beside / "unpacked").rename(target)
    shutil.rmtree(beside)


def fetch_source(name: str, version: str, downloads: Path) -> Path:
    """Fetch a package's source archive; one that is there is taken.

    Raises:
        UnsupportedError: pip is not there, or there is no source of this version.
        NetworkError: the index does not answer.
    """
    place = downloads / "source"
    found = list(place.glob(f"{name.replace('-', '_')}-{version}*.tar.gz"))
    if not found:
        _pip(f"{name}=={version}", place, "--no-binary=:all:")
        found = list(place.glob(f"*{version}*.tar.gz"))
    if not found:
        raise UnsupportedError(f"pip fetched no source of {name} {version}")
    return found[0]


def _platform() -> Iterator[str]:
    yield from ("--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON)
    for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none"):
        yield from ("--abi", abi)
    for name in _PLATFORMS:
        yield from ("--platform", f"{name}_aarch64")
    yield from ("--platform", "any")


def _pip(wanted: str, target: Path, *arguments: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--dest", str(target), *arguments, wanted],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    said = done.stderr + done.stdout
    if "No module named pip" in said:
        raise UnsupportedError(
            f"setting up emulation needs pip, which {sys.executable} has not",
            hint="Install it with: python -m ensurepip",
        )
    if _UNREACHABLE.search(said):
        raise NetworkError(
            f"{wanted} could not be fetched: the package index does not answer",
            hint="Check the connection and run the same command again; it goes on where it was.",
        )
    lines = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.strip().splitlines()[-1:]
    reason = lines[-1].removeprefix("ERROR:").strip()[:300] if lines else "no message"
    raise UnsupportedError(f"{wanted} for aarch64 could not be fetched: {reason}")


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
