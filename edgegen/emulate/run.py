"""Run one module of a Python program under an emulated core.

What the program sees: the device's system for every path that exists in it, this machine's files for all others, an
environment of its own, edgegen's source, and the packages that were set up. Symbolic links lead out of the device's
system to this machine's files, so edgegen's own folder is shown through one and nothing beside it is: this machine's
packages, which are for another processor, must not be found.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import edgegen
from edgegen.common.files import disk_errors
from edgegen.emulate.place import EMULATOR, PYTHON, emulation_folder, package_folder, read_setup
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.base import Record
from edgegen.records.emulation import Emulation

_NEAREST = {
    "cortex-a34": "cortex-a35",
    "cortex-a73": "cortex-a72",
    "cortex-a75": "cortex-a76",
    "cortex-a77": "cortex-a76",
    "cortex-a78": "cortex-a76",
    "cortex-a78ae": "cortex-a76",
    "cortex-a510": "cortex-a710",
    "cortex-a520": "cortex-a710",
    "cortex-a715": "cortex-a710",
    "cortex-a720": "cortex-a710",
    "cortex-x1": "cortex-a76",
    "cortex-x2": "cortex-a710",
    "cortex-x3": "cortex-a710",
    "cortex-x4": "cortex-a710",
}
"""Cores that the emulator does not know → one with the same instructions as far as the runtimes' kernels ask for them
(ARMv8.0; 8.2 with dot product; 9.0 with int8 matrices)."""

_WITHOUT_DUMPS = 'ulimit -c 0; exec "$@"'
"""A crash is a result here: no dump of hundreds of megabytes is wanted of it."""

_MISSING = "Run: edgegen emulate setup"


class Finished(Record, frozen=True):
    """How an emulated program ended."""

    code: int
    """Exit code; 0 where a signal ended it."""
    signal: int
    """The signal that ended it, 0 for none. Both are 0 on success."""
    timed_out: bool
    stderr: str
    seconds: float

    @property
    def reason(self) -> str:
        """How it ended, in a few words; empty on success."""
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s"
        if self.signal:
            return f"{signal.strsignal(self.signal) or 'signal'}, signal {self.signal}"
        return f"exit code {self.code}" if self.code else ""


def emulated_core(cpu_model: str, setup: Emulation) -> str:
    """The core that the emulator takes for a processor: the same, or the nearest that it knows.

    Raises:
        UnsupportedError: it knows neither.
    """
    for name in (cpu_model, _NEAREST.get(cpu_model, "")):
        if name in setup.processors:
            return name
    raise UnsupportedError(
        f"the emulator knows no {cpu_model or 'unnamed core'}", hint="It knows: " + ", ".join(setup.processors) + "."
    )


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    core: str,
    without: Sequence[str] = (),
    timeout_s: float = 1800.0,
) -> Finished:
    """Run `python -m module arguments` under a core.

    Args:
        module: one of edgegen's, or of a package that is set up.
        core: as `emulated_core` gives it.
        without: files to leave out of the packages, relative to the folder that holds a package.
        timeout_s: wall time after which it is stopped.

    Returns:
        How it ended, whatever that was.

    Raises:
        UnsupportedError: emulation is not set up.
        ConfigError: a file to leave out is not there.
        DeviceError: the disk cannot take the changed package.
    """
    folder = emulation_folder()
    setup = read_setup(folder)
    if setup is None:
        raise UnsupportedError("emulation is not set up", hint=_MISSING)
    root = folder / "root"
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix="run-") as scratch:
        shown = Path(scratch) / "edgegen"
        shown.symlink_to(Path(edgegen.__file__).resolve().parent)
        paths = [scratch, *_package_paths(folder, setup, without, Path(scratch) / "changed")]
        command = [
            str(folder / EMULATOR),
            *("-cpu", core, "-L", str(root)),
            *("-E", f"LD_LIBRARY_PATH={os.pathsep.join(_libraries(folder, setup, core))}"),
            str(root / "usr" / "bin" / f"python{PYTHON}"),
            *("-m", module, *arguments),
        ]
        return _finish(command, _environment(paths, folder), timeout_s)


def _package_paths(folder: Path, setup: Emulation, without: Sequence[str], changed: Path) -> list[str]:
    """Folders of all packages. One that loses a file is copied by hard links, which costs no space."""
    wanted = set(without)
    paths = []
    for name, version in setup.packages.items():
        path = package_folder(folder, name, version)
        gone = {file for file in wanted if (path / file).exists()}
        if gone:
            leave = {path / file for file in gone}

            def skip(place: str, names: list[str], leave: set[Path] = leave) -> set[str]:
                return {entry for entry in names if Path(place) / entry in leave}

            path = Path(shutil.copytree(path, changed / path.name, copy_function=_link, symlinks=True, ignore=skip))
        wanted -= gone
        paths.append(str(path))
    if wanted:
        raise ConfigError(f"no package that is set up holds {', '.join(sorted(wanted))}")
    return paths


def _libraries(folder: Path, setup: Emulation, core: str) -> list[str]:
    """Folders of libraries that a package has for one core alone."""
    places = (package_folder(folder, name, version) / "cores" / core for name, version in setup.packages.items())
    return [str(place) for place in places if place.exists()]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copy2(source, target)


def _environment(paths: Sequence[str], folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONNOUSERSITE": "1",
        # Compiled once and kept; and never written beside this machine's own edgegen.
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _finish(command: list[str], environment: dict[str, str], timeout_s: float) -> Finished:
    started = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", _WITHOUT_DUMPS, "sh", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    timed_out = False
    with process:
        try:
            _, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            _, stderr = process.communicate()
        except BaseException:
            process.kill()
            raise
    return Finished(
        code=max(0, process.returncode),
        signal=max(0, -process.returncode),
        timed_out=timed_out,
        stderr=stderr,
        seconds=time.monotonic() - started,
    )
