"""llama.cpp for aarch64: nobody publishes it ready-built, so it is cross-compiled from its own source package.

A device that installs llama-cpp-python compiles it for its own core. To run the same kernels, the library that holds
them is built three times, for the instruction sets that such compilations come down to; the emulator's core decides
which one is found first (`cores/CORE` in the package's folder).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from edgegen.common.files import remove_tree
from edgegen.emulate.place import package_folder
from edgegen.emulate.wheels import fetch_source
from edgegen.errors import DeviceError, UnsupportedError

NAME = "llama-cpp-python"
ALL = (NAME, "diskcache", "typing_extensions")
"""With what its Python part imports beside edgegen's own needs."""

DOWNLOAD_BYTES, DISK_BYTES = 77_000_000, 260_000_000
"""Of the source, which is removed once it is built; 15 MB stay."""

COMPILER = "aarch64-linux-gnu-g++"
_TOOLS = {COMPILER: "g++-aarch64-linux-gnu", "cmake": "cmake", "make": "make"}

_BASE = "armv8-a"
_VARIANTS = {
    "armv8.2-a+fp16+dotprod": ("cortex-a55", "cortex-a76", "neoverse-n1"),
    "armv8.6-a+fp16+dotprod+i8mm": ("cortex-a710", "neoverse-n2", "neoverse-v1", "max"),
}
"""Instruction set → cores that get its kernels; all others get those of ARMv8.0."""

_SETTINGS = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
    "CMAKE_CXX_COMPILER": COMPILER,
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "OFF",
    "GGML_OPENMP": "ON",
    **dict.fromkeys(
        ("LLAMA_CURL", "LLAMA_BUILD_COMMON", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES"), "OFF"
    ),
    "LLAMA_BUILD_SERVER": "OFF",
}


def packages() -> dict[str, str]:
    """What to build and fetch: distribution → the version that is installed here.

    Raises:
        UnsupportedError: llama-cpp-python is not installed here, or a program is missing; names what brings it.
    """
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise UnsupportedError(
            "building llama.cpp for aarch64 needs a cross compiler and cmake",
            hint=f"Install them as administrator: apt-get install {' '.join(missing)}",
        )
    try:
        return {name: metadata.version(name) for name in ALL}
    except metadata.PackageNotFoundError as error:
        raise UnsupportedError(
            f"{error.name} is not installed here, so there is no version of llama.cpp to build",
            hint="Install it with: pip install 'edgegen[gguf]'",
        ) from error


def build(version: str, downloads: Path, folder: Path, *, tell: Callable[[str], None]) -> None:
    """Fetch the source and build it into its place; whole or not at all. A few minutes of processor time.

    Raises:
        UnsupportedError: pip is not there, or there is no source of this version.
        NetworkError: the package index does not answer.
        DeviceError: the build fails; the message carries the compiler's last error.
    """
    archive = fetch_source(NAME, version, downloads)
    work = downloads / "llama"
    remove_tree(work)
    with tarfile.open(archive) as files:
        files.extractall(work, filter="data")
    (source,) = work.iterdir()
    made = work / "package"
    shutil.copytree(source / "llama_cpp", made / "llama_cpp")
    shutil.copytree(_facts(source, version, work), made / f"llama_cpp_python-{version}.dist-info")
    vendor, tree = source / "vendor" / "llama.cpp", work / "build"
    tell("building llama.cpp for ARMv8.0")
    _make(vendor, tree, _BASE, "llama")
    _keep(tree, made / "llama_cpp" / "lib", "*.so*")
    for instructions, cores in _VARIANTS.items():
        tell(f"building llama.cpp's kernels for {instructions}")
        _make(vendor, tree, instructions, "ggml-cpu")
        for core in cores:
            _keep(tree, made / "cores" / core, "libggml-cpu.so*")
    target = package_folder(folder, NAME, version)
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)
    remove_tree(work)


def _facts(source: Path, version: str, work: Path) -> Path:
    """The metadata that Python looks the version up in."""
    folder = work / "facts"
    folder.mkdir()
    shutil.copy2(source / "PKG-INFO", folder / "METADATA")
    return folder


def _make(vendor: Path, tree: Path, instructions: str, target: str) -> None:
    settings = {**_SETTINGS, "GGML_CPU_ARM_ARCH": instructions}
    _run("cmake", "-S", str(vendor), "-B", str(tree), *(f"-D{key}={value}" for key, value in settings.items()))
    _run("cmake", "--build", str(tree), "--target", target, "--parallel", str(min(4, os.cpu_count() or 1)))


def _keep(tree: Path, folder: Path, pattern: str) -> None:
    """Copy built libraries under the names that the loader looks for, without their links."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (tree / "bin").glob(pattern):
        if path.suffix == ".so" or path.name.endswith(".so.0"):
            shutil.copy2(path, folder / path.name)  # follows the link


def _run(*command: str) -> None:
    done = subprocess.run(
        ["nice", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    if done.returncode:
        said = (done.stderr + done.stdout).splitlines()
        lines = [line for line in said if "error" in line.lower()] or said[-1:] or ["no message"]
        raise DeviceError(f"building llama.cpp for aarch64 failed: {lines[0].strip()[:300]}")
