"""Set emulation up: fetch the emulator, the device's system and the runtimes' packages. Resumable.

Each part lies in its place whole or not at all, and a part that is there is not fetched again, so that after an
interruption, or after another runtime was installed here, the same command fetches only what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from edgegen.common.codec import save_json
from edgegen.common.files import disk_errors, remove_tree, require_free_bytes
from edgegen.emulate import llama
from edgegen.emulate.archive import Archive, host_architecture, unpack, unpack_program, version_of
from edgegen.emulate.place import EMULATOR, PYTHON, SUITE, emulation_folder, package_folder, read_setup, tree_bytes
from edgegen.emulate.wheels import BASE, download_bytes, fetch_package, unpacked_bytes, wanted_packages
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.base import Record
from edgegen.records.emulation import Emulation

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all)."""

_SYSTEM = ("base-files", "python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
_EMPTY = ("boot", "dev", "home", "proc", "root", "run", "sys", "tmp")
"""Folders of the device's system that are empty in its packages; there this machine's are to be seen."""


class Part(Record, frozen=True):
    """Something to fetch; sizes are about right."""

    name: str
    words: str
    download_bytes: int
    disk_bytes: int


class Intent(Record, frozen=True):
    """What setting up would do."""

    folder: str
    missing: tuple[Part, ...]
    packages: dict[str, str]
    notes: tuple[str, ...]

    @property
    def download_bytes(self) -> int:
        return sum(part.download_bytes for part in self.missing)

    @property
    def disk_bytes(self) -> int:
        return sum(part.disk_bytes for part in self.missing)


def intent(*, with_llama: bool = False) -> Intent:
    """What is missing and how large it is; fetches nothing.

    Args:
        with_llama: whether llama.cpp is to be built for aarch64 too.

    Raises:
        UnsupportedError: this machine cannot hold an emulation, or lacks what building llama.cpp needs.
    """
    host_architecture()
    folder = emulation_folder()
    packages, notes = wanted_packages()
    if with_llama:
        packages.update(llama.packages())
    else:
        packages.update(_built_before(folder))
    parts = []
    if not (folder / EMULATOR).exists():
        parts.append(Part(name="emulator", words="the emulator", download_bytes=81_000_000, disk_bytes=17_000_000))
    if not (folder / "root").exists():
        words = f"the device's system (Debian {SUITE}, Python {PYTHON})"
        parts.append(Part(name="system", words=words, download_bytes=28_000_000, disk_bytes=85_000_000))
    for name, version in sorted(packages.items(), key=lambda item: item[0] == llama.NAME):
        if not package_folder(folder, name, version).exists():
            down, disk = (
                (llama.DOWNLOAD_BYTES, llama.DISK_BYTES)
                if name == llama.NAME
                else (download_bytes(name), unpacked_bytes(name))
            )
            parts.append(Part(name=name, words=f"{name} {version}", download_bytes=down, disk_bytes=disk))
    return Intent(folder=str(folder), missing=tuple(parts), packages=packages, notes=tuple(notes))


def set_up(wanted: Intent, *, progress: Progress | None = None) -> Emulation:
    """Fetch what is missing and write down what is there.

    Args:
        wanted: from `intent`.
        progress: told before each part.

    Returns:
        What is set up; its notes say what could not be.

    Raises:
        UnsupportedError: apt-get, dpkg-deb, pip or Debian's keyring is missing here, or edgegen's own needs have no
            aarch64 package.
        NetworkError: Debian's mirror or the package index does not answer; run again to go on.
        ConfigError: another set-up is running, or the folder is not writable.
        DeviceError: the disk is full or a program fails.
    """
    tell = progress or (lambda *event: None)
    folder = emulation_folder()
    notes = list(wanted.notes)
    packages = dict(wanted.packages)
    with disk_errors(folder):
        require_free_bytes(folder, wanted.download_bytes + wanted.disk_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            downloads = folder / "downloads"
            done = 0
            for part in wanted.missing:
                tell(part.words, done, wanted.download_bytes)
                if part.name == "emulator":
                    _emulator(downloads / "emulator", folder)
                elif part.name == "system":
                    _system(downloads / "system", folder)
                elif part.name == llama.NAME:  # the last: what is there before counts even if the build fails
                    _write_down(folder, {name: packages[name] for name in packages if name != llama.NAME}, notes)
                    llama.build(packages[llama.NAME], downloads, folder, tell=partial(_tell_same, tell, done, wanted))
                else:
                    try:
                        fetch_package(part.name, packages[part.name], downloads, folder)
                    except UnsupportedError as error:
                        if part.name in BASE:
                            raise
                        notes.append(str(error))
                        del packages[part.name]
                done += part.download_bytes
            tell("done", wanted.download_bytes, wanted.download_bytes)
            remove_tree(downloads)
            return _write_down(folder, packages, notes)


def _tell_same(tell: Progress, done: int, wanted: Intent, words: str) -> None:
    tell(words, done, wanted.download_bytes)


def _emulator(downloads: Path, folder: Path) -> None:
    archive = Archive(downloads, host_architecture())
    archive.update()
    (package,) = archive.fetch(["qemu-user"], with_dependencies=False)
    unpack_program(package, f"usr/bin/{EMULATOR}", downloads / EMULATOR)
    (folder / f"{EMULATOR}.version").write_text(version_of(package) + "\n")
    (downloads / EMULATOR).replace(folder / EMULATOR)
    remove_tree(downloads)


def _system(downloads: Path, folder: Path) -> None:
    archive = Archive(downloads, "arm64")
    archive.update()
    root = downloads / "root"
    remove_tree(root)
    root.mkdir()
    for package in archive.fetch(_SYSTEM, with_dependencies=True):
        unpack(package, root)
    if not (root / "usr" / "bin" / f"python{PYTHON}").exists():
        raise DeviceError(f"Debian {SUITE} has another Python than {PYTHON}", hint="Use a newer edgegen.")
    for name in _EMPTY:
        # Only ever an empty folder: what is not empty, or a link to this machine's own folder, stays.
        with contextlib.suppress(OSError):
            (root / name).rmdir()
    root.replace(folder / "root")
    remove_tree(downloads)


def _write_down(folder: Path, packages: dict[str, str], notes: list[str]) -> Emulation:
    record = Emulation(
        schema=1,
        emulator=(folder / f"{EMULATOR}.version").read_text().strip(),
        system=f"Debian {SUITE}",
        python=PYTHON,
        processors=_processors(folder / EMULATOR),
        packages=packages,
        bytes=0,
        notes=tuple(notes),
    )
    kept = {f"{name}-{version}" for name, version in packages.items()}
    for old in (folder / "packages").iterdir():
        if old.name not in kept:
            remove_tree(old)
    for left in folder.glob("run-*"):  # of a run that was killed
        remove_tree(left)
    record = msgspec.structs.replace(record, bytes=tree_bytes(folder))
    save_json(folder / "setup.json", record)
    return record


def _processors(emulator: Path) -> tuple[str, ...]:
    """The cores that the emulator knows.

    Raises:
        DeviceError: it does not start here.
    """
    done = subprocess.run([str(emulator), "-cpu", "help"], capture_output=True, text=True, check=False)
    names = tuple(line.strip() for line in done.stdout.splitlines() if line.startswith(" "))
    if not names:
        raise DeviceError(f"{emulator}: does not start here: {done.stderr.strip()[:200] or 'no message'}")
    return names


def _built_before(folder: Path) -> dict[str, str]:
    """llama.cpp's packages, where they were built before: a set-up without them keeps them."""
    before = read_setup(folder)
    if before is None or llama.NAME not in before.packages:
        return {}
    return {name: before.packages[name] for name in llama.ALL if name in before.packages}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("another edgegen is setting emulation up", hint="Wait for it to end.") from error
        yield
