"""A real sshd on loopback, and a `ssh` that reaches only it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder with its keys; skips and says why where there is no sshd."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not os.access(program, os.X_OK):
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed (Debian: openssh-client)")
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin yes\n"
    )
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    server = subprocess.Popen(
        [program, "-D", "-e", "-f", folder / "config"], stderr=(folder / "log").open("w"), stdin=subprocess.DEVNULL
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    if server.poll() is not None:
        pytest.skip(f"sshd does not start here: {(folder / 'log').read_text().strip()[-200:]}")
    yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder
    server.terminate()
    server.wait(20)


def ssh_command(folder: Path, key: str = "user", known: str = "known") -> str:
    """A value for EDGEGEN_SSH."""
    options = f"-o UserKnownHostsFile={folder / known} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    return f"ssh -F none -i {folder / key} {options}"


@pytest.fixture
def device(sshd: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of this machine as a device."""
    address, folder = sshd
    monkeypatch.setenv("EDGEGEN_SSH", ssh_command(folder))
    return address
