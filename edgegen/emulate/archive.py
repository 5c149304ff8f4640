"""Debian's packages for any architecture, fetched by `apt-get` and unpacked by `dpkg-deb`, nothing installed.

apt-get works in a folder of its own, with its own list of sources, an empty record of what is installed and the
machine's own settings for the rest (proxies, certificates), so it needs no administrator and changes nothing on the
machine. Signatures are checked with Debian's keyring as always. The mirror is the machine's own where that is one of
Debian's.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from edgegen.emulate.place import SUITE
from edgegen.errors import DeviceError, NetworkError, UnsupportedError

_PUBLIC_MIRROR = "http://deb.debian.org/debian"
_KEYRINGS = ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNREACHABLE = re.compile(
    r"Could not (resolve|connect)|Unable to connect|Temporary failure|[Tt]imed out|Connection (failed|refused|reset)"
    r"|Network is unreachable|Failed to fetch|Error reading from server"
)


def host_architecture() -> str:
    """This machine's architecture by Debian's name.

    Raises:
        UnsupportedError: Debian's emulator is not built for it, or this is not Linux.
    """
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _ARCHITECTURES:
        raise UnsupportedError(
            f"emulation needs Linux on {' or '.join(_ARCHITECTURES)}, this is {platform.system()} on {machine}",
            hint="Set it up in a Linux machine or container, or verify on the device itself.",
        )
    return _ARCHITECTURES[machine]


def require_tools(*names: str) -> None:
    """Check that programs are there.

    Raises:
        UnsupportedError: one is not.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise UnsupportedError(
            f"setting up emulation needs {' and '.join(missing)}, which this machine has not",
            hint="Use a Debian or Ubuntu machine or container; they come with it.",
        )


def mirror(etc: Path = Path("/etc/apt")) -> str:
    """The machine's own mirror of Debian, else Debian's public name."""
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found = re.findall(r"^deb\s+(?:\[[^\]]*\]\s*)?(\S+)", text, re.MULTILINE)
        for line in re.findall(r"^URIs:(.*(?:\n[ \t].*)*)", text, re.MULTILINE):
            found += line.split()
        for address in found:
            if address.rstrip("/").endswith("/debian") and re.match(r"https?://|file:|mirror\+", address):
                return str(address.rstrip("/"))
    return _PUBLIC_MIRROR


def keyring(folder: Path = Path("/usr/share/keyrings")) -> Path:
    """Debian's keys.

    Raises:
        UnsupportedError: the machine has none.
    """
    for name in _KEYRINGS:
        if (folder / name).exists():
            return folder / name
    raise UnsupportedError(
        "setting up emulation needs Debian's keyring to check its packages",
        hint="Install it with: apt-get install debian-archive-keyring",
    )


class Archive:
    """Packages of one architecture of Debian's release. Its folder can be removed at any time."""

    def __init__(self, folder: Path, architecture: str) -> None:
        """Prepare the folder; nothing is fetched.

        Raises:
            UnsupportedError: no apt-get, no dpkg-deb or no keyring here.
        """
        require_tools("apt-get", "dpkg-deb")
        self._folder = folder
        for name in ("lists/partial", "archives/partial", "state"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sources, status = folder / "sources.list", folder / "status"
        sources.write_text(f"deb [signed-by={keyring()}] {mirror()} {SUITE} main\n")
        status.touch()
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": status,
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::Log": folder / "state",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Update::Error-Mode": "any",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the list of packages, about 10 MB.

        Raises:
            NetworkError: the mirror does not answer.
            DeviceError: apt-get fails for another reason; the message carries it.
        """
        self._apt("update")

    def fetch(self, names: Sequence[str], *, with_dependencies: bool) -> list[Path]:
        """Fetch packages; what is already there is not fetched again, what is there in part is continued.

        Raises:
            NetworkError: the mirror does not answer.
            DeviceError: apt-get fails for another reason; the message carries it.
        """
        kept = self._folder / "archives"
        if with_dependencies:
            self._apt("install", "--download-only", "--yes", *names)
            return sorted(kept.glob("*.deb"))
        self._apt("download", *names)
        return sorted(path for name in names for path in kept.glob(f"{name}_*.deb"))

    def _apt(self, *arguments: str) -> None:
        done = subprocess.run(
            ["apt-get", "--quiet", "--quiet", *self._options, *arguments],
            cwd=self._folder / "archives",
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return
        said = (done.stderr + "\n" + done.stdout).splitlines()
        lines = [line for line in said if re.match(r"E:|W:|Err", line)] or said[-1:]
        reason = re.sub(r"^[EW]:\s*", "", lines[0] if lines else "no message").strip()[:300]
        if any(_UNREACHABLE.search(line) for line in lines):
            raise NetworkError(
                f"Debian's packages could not be fetched: {reason}",
                hint="Check the connection and run the same command again; it goes on where it was.",
            )
        raise DeviceError(f"apt-get {arguments[0]} failed: {reason}")


def version_of(package: Path) -> str:
    """The version in a package's file.

    Raises:
        DeviceError: the file is no package.
    """
    return _dpkg("--field", str(package), "Version").strip()


def unpack(package: Path, folder: Path) -> None:
    """All files of a package, laid below a folder.

    Raises:
        DeviceError: the package is damaged or the disk is full.
    """
    _dpkg("--extract", str(package), str(folder))


def unpack_program(package: Path, member: str, target: Path) -> None:
    """One executable file of a package.

    Raises:
        DeviceError: the package is damaged or holds no such file.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as files:
                for entry in files:
                    if entry.name.removeprefix("./") == member and entry.isfile():
                        source = files.extractfile(entry)
                        assert source is not None
                        with target.open("wb") as stream:
                            shutil.copyfileobj(source, stream)
                        target.chmod(0o755)
                        return
        except tarfile.TarError as error:
            raise DeviceError(f"{package}: not a package: {error}") from error
        finally:
            process.kill()
    raise DeviceError(f"{package}: holds no {member}")


def _dpkg(*arguments: str) -> str:
    done = subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise DeviceError(f"dpkg-deb {arguments[0]} failed: {lines[-1][:300]}")
    return done.stdout
