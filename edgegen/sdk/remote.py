"""Another machine over SSH: put artifacts there and run the same measuring program with its base install.

The system's `ssh` does all that is about trust (keys, agents, known hosts, its own configuration); this module only
starts it. Two connections are made: one asks which artifacts are there already, one sends the others as a tar stream
with the request behind them, measures, and brings the record back. An artifact lies under a name made from its own
record, which goes last, so that one whose sending was cut off is sent again.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from edgegen.common.codec import decode_json, encode_json
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
from edgegen.records.bench import Bench
from edgegen.verify.bench import PROGRESS_MARK, RESULT_MARK, BenchRequest

_URL = re.compile(
    r"ssh://(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>[\w.][\w.-]*|\[[\da-fA-F:.]+\])(?::(?P<port>\d+))?(?P<path>/.*)?"
)
_REQUEST = "bench-request.json"
_FOLDER = ".cache/edgegen-bench"
"""In the home folder there, if the address names none."""


class Host(msgspec.Struct, frozen=True):
    """Where to measure."""

    name: str
    """`user@host`, or the host alone."""
    port: int | None
    path: str
    """Folder there for artifacts; relative to the home folder if it does not begin with `/`."""


def parse_host(url: str) -> Host:
    """Read `ssh://user@host:port/folder`; `/~/folder` lies in the home folder; without a folder it is our own.

    Raises:
        ConfigError: it is no such address.
    """
    found = _URL.fullmatch(url)
    if not found:
        raise ConfigError(
            f"--on: {url!r} is not like ssh://user@host:22/folder",
            hint="The user, the port and the folder may be left out.",
        )
    path = (found["path"] or "").removeprefix("/~/") or _FOLDER
    host = found["host"].strip("[]")
    return Host(
        name=f"{found['user']}@{host}" if found["user"] else host,
        port=int(found["port"]) if found["port"] else None,
        path=f"./{path}" if path.startswith("-") else path,
    )


def bench_there(
    request: BenchRequest,
    host: Host,
    *,
    python: str = "python3",
    ssh: str = "ssh",
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Run a request on another machine.

    Args:
        request: its cases name folders of this machine.
        python: the interpreter there that has edgegen.
        ssh: how to start SSH here, with further options if need be.

    Raises:
        NetworkError: the machine cannot be reached.
        UnsupportedError: edgegen or the interpreter is not there.
        DeviceError: it could not measure.
    """
    folders = {case.artifact: _name(Path(case.artifact)) for case in request.cases}
    enter = f"cd {shlex.quote(host.path)}"
    present = f"mkdir -p {shlex.quote(host.path)} && {enter} && {{ ls -d */artifact.json 2>/dev/null; true; }}"
    there = subprocess.run(
        _ssh(host, ssh, present),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    _require(there.returncode, there.stderr.splitlines(), host, "sh")
    missing = {folder: name for folder, name in folders.items() if f"{name}/artifact.json" not in there.stdout.split()}
    moved = msgspec.structs.replace(
        request,
        cases=tuple(msgspec.structs.replace(case, artifact=folders[case.artifact]) for case in request.cases),
    )
    command = f"{enter} && tar xf - && exec {shlex.quote(python)} -m edgegen.verify.bench {_REQUEST} -"
    process = subprocess.Popen(
        _ssh(host, ssh, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr, "all three are pipes"
    said: list[str] = []
    listener = threading.Thread(target=_listen, args=(process.stderr, said, progress), daemon=True)
    listener.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # then what it said on stderr tells why
            _send(process.stdin, missing, encode_json(moved))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        out = process.stdout.read().decode(errors="replace")
        process.wait()
    finally:
        process.kill()
    listener.join(timeout=5)
    _require(process.returncode, said, host, python)
    _, mark, result = out.partition(RESULT_MARK + "\n")
    if not mark:
        raise DeviceError(f"{host.name}: ended without a result", hint="Is another version of edgegen there?")
    found = decode_json(result.encode(), Bench, where=host.name)
    return msgspec.structs.replace(found, where=host.name)


def _name(folder: Path) -> str:
    return digest_bytes((folder / "artifact.json").read_bytes()).partition(":")[2][:16]


def _send(stream: IO[bytes], folders: dict[str, str], request: bytes) -> None:
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for folder, name in folders.items():
            paths = sorted(Path(folder).rglob("*"), key=lambda path: (path.name == "artifact.json", path))
            for path in paths:
                archive.add(path, f"{name}/{path.relative_to(folder)}", recursive=False)
        entry = tarfile.TarInfo(_REQUEST)
        entry.size = len(request)
        archive.addfile(entry, io.BytesIO(request))


def _listen(stream: IO[bytes], said: list[str], progress: Callable[[int, int], None] | None) -> None:
    """Read stderr to its end: progress is passed on, the rest is kept."""
    for raw in stream:
        line = raw.decode(errors="replace").strip()
        if line.startswith(PROGRESS_MARK):
            done, total = line.removeprefix(PROGRESS_MARK).split()
            if progress:
                progress(int(done), int(total))
        elif line:
            said.append(line)


def _ssh(host: Host, ssh: str, command: str) -> list[str]:
    started = shlex.split(ssh)
    if not started:
        raise ConfigError("--ssh names no program", hint="Leave it out for ssh.")
    # Nobody can be asked for a password where there is no terminal.
    batch = [] if sys.stdin and sys.stdin.isatty() else ["-o", "BatchMode=yes"]
    port = ["-p", str(host.port)] if host.port else []
    return [*started, "-T", *batch, *port, "--", host.name, f"exec sh -c {shlex.quote(command)}"]


def _require(code: int, said: Sequence[str], host: Host, python: str) -> None:
    """Turn SSH's and the program's exit codes into our errors."""
    if code == 0:
        return
    last = said[-1][:300] if said else f"exit code {code}"
    if code == 255:
        raise NetworkError(f"{host.name}: {last}", hint=f"Does this work: ssh {host.name} true")
    install = f"Install it there with: pip install 'edgegen[gguf]'; name its interpreter with --python, not {python}."
    if code == 127:
        raise UnsupportedError(f"{host.name}: {last}", hint=install)
    if any("No module named" in line and "edgegen" in line for line in said):
        raise UnsupportedError(f"{host.name}: edgegen is not installed for {python}", hint=install)
    raise DeviceError(f"{host.name}: {last}")
