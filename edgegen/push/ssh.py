"""The system's `ssh`, spoken to by subprocess.

Nothing is asked (`BatchMode`): a password or an unknown host key is an error that says what to do. `EDGEGEN_SSH` may
name another command with its options, as `GIT_SSH_COMMAND` does for git.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError

COMMAND_VARIABLE = "EDGEGEN_SSH"
_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
_SSH_FAILED = 255
"""What ssh itself exits with; everything else is the remote command's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a remote command wrote, and how it ended."""

    code: int
    out: str
    err: str


class Remote:
    """A machine that ssh reaches."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: `ssh://[user@]host[:port]`; the host may be a name from the user's ssh configuration.

        Raises:
            ConfigError: another form.
            UnsupportedError: there is no ssh.
        """
        try:
            parts = urlsplit(address)
        except ValueError:  # a bracket without its pair
            parts = urlsplit("")
        try:
            port = parts.port
        except ValueError:
            port = -1
        # A name that begins with a dash would be read as an option.
        fits = re.fullmatch(r"[A-Za-z0-9_.:-]+", parts.hostname or "") and not (parts.hostname or "").startswith("-")
        fits_user = parts.username is None or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", parts.username)
        if parts.scheme != "ssh" or not fits or not fits_user or parts.path.strip("/") or parts.password or port == -1:
            raise ConfigError(f"{address!r} is no ssh address", hint="Write it like ssh://pi@kitchen or ssh://host:22.")
        self.address = address
        self._command = shlex.split(os.environ.get(COMMAND_VARIABLE, "")) or ["ssh"]
        if shutil.which(self._command[0]) is None:
            raise UnsupportedError(f"{self._command[0]} is not installed", hint="Install OpenSSH's client.")
        self._place = ["-p", str(port)] if port else []
        self._host = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)

    def words(self, command: str, *options: str) -> list[str]:
        """The local command line that runs a remote command."""
        return [*self._command, *_OPTIONS, *self._place, *options, "--", self._host, command]

    def ask(self, command: str, *, data: bytes = b"", timeout_s: float = 120.0, options: Sequence[str] = ()) -> Answer:
        """Run a remote command.

        Args:
            data: its standard input.

        Raises:
            NetworkError: ssh does not get there, or it takes longer than `timeout_s`.
        """
        try:
            done = subprocess.run(
                self.words(command, *options), input=data, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"{self.address}: no end after {timeout_s:.0f} s") from error
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode == _SSH_FAILED:
            raise unreachable(self.address, err)
        return Answer(done.returncode, out, err)

    def run(self, command: str, *, data: bytes = b"", timeout_s: float = 120.0) -> str:
        """Run a remote command that has to succeed; what it wrote.

        Raises:
            NetworkError: ssh does not get there.
            DeviceError: the command failed.
        """
        answer = self.ask(command, data=data, timeout_s=timeout_s)
        if answer.code:
            line = (answer.err or answer.out).strip().splitlines()[-1:] or [f"exit code {answer.code}"]
            raise DeviceError(f"{self.address}: {line[0]}", hint=f"It ran: {command.splitlines()[0][:120]}")
        return answer.out

    def put(self, path: str, data: bytes, *, mode: int = 0o644) -> bool:
        """Write a file whole, if it is not there with these bytes and this mode.

        Returns:
            Whether it was written.
        """
        digest, place = hashlib.sha256(data).hexdigest(), shlex.quote(path)
        known = f'test "$(sha256sum < {place} 2>/dev/null)" = "{digest}  -" && test "$(stat -c %a {place})" = {mode:o}'
        if self.ask(known).code == 0:
            return False
        temporary = shlex.quote(f"{path}.new")
        self.run(
            f"umask 077 && mkdir -p {shlex.quote(path.rpartition('/')[0])} && cat > {temporary} "
            f"&& chmod {mode:o} {temporary} && mv {temporary} {place}",
            data=data,
        )
        return True


def unreachable(address: str, said: str) -> NetworkError:
    """ssh's words as one line."""
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    line = lines[-1] if lines else "ssh failed"
    hint = "Is it on, and does `ssh` reach it from here without asking anything?"
    if "Host key verification failed" in said:
        hint = "Connect once with ssh by hand and check the host's key."
    elif "Permission denied" in said:
        hint = "Put your public key on it (ssh-copy-id), or load it into your ssh agent."
    return NetworkError(f"{address}: {line}", hint=hint)
