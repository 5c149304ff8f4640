"""Bring a release to one device over ssh.

The bundle's folder has the shape of a repository. It is served on this machine's loopback, ssh lends the device a port
to it (`-R`), and the device's own agent installs from there: the same proof, segments, resume, slots, journal and
health checks as from a fleet's repository. Nothing is copied twice, and what the device has is not sent again; so rsync
would add nothing but a second copy on the device.
"""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path

import msgspec

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, DeviceError, NetworkError, TrustError
from edgegen.push.lend import lending
from edgegen.push.places import find_places
from edgegen.push.ssh import Remote
from edgegen.records.bundle import Bundle
from edgegen.records.deployment import Installed, Phase

_PORTS = (20_000, 60_000)
_TRIES = 5
_NO_PORT = "remote port forwarding failed"
_ERRORS = {6: TrustError, 8: NetworkError}


def push_bundle(bundle: Path, address: str, *, folder: str | None = None, timeout_s: float = 4 * 3600.0) -> Installed:
    """Install a bundle on a device, to the end of its probation.

    Args:
        bundle: a folder that `pack_bundle` wrote, with its signed metadata.
        address: `ssh://[user@]host[:port]`.
        folder: where the agent is on the device (see `places`).

    Returns:
        How it ended; a release that was rolled back is a value, not an error.

    Raises:
        ConfigError: not a bundle, or the device was not set up.
        TrustError: the device does not trust it.
        NetworkError: the device is not reached, or lends no port.
        DeviceError: the installation could not be done.
    """
    if not (bundle / "bundle.json").is_file():
        raise ConfigError(f"{bundle}: not a bundle", hint="Make one with `edgegen pack`.")
    about = load_json(bundle / "bundle.json", Bundle)
    if not about.signed:
        raise ConfigError(f"{bundle}: it is not signed", hint="Pack it with --keys.")
    remote = Remote(address)
    places = find_places(remote, folder)
    if remote.ask(f"test -x {shlex.quote(places.agent)} && test -f {shlex.quote(places.config)}").code:
        raise ConfigError(
            f"{address}: there is no agent in {places.folder}", hint=f"Set it up: edgegen device setup {address}"
        )
    with lending(bundle) as port:
        for _ in range(_TRIES):
            there = random.randint(*_PORTS)
            command = shlex.join(
                [
                    *(places.agent, "--config", places.config, "install", "--json"),
                    *("--repository", f"http://127.0.0.1:{there}", "--target", about.target),
                ]
            )
            options = ("-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{there}:127.0.0.1:{port}")
            try:
                answer = remote.ask(command, timeout_s=timeout_s, options=options)
            except NetworkError as error:
                if _NO_PORT not in str(error):
                    raise
                continue
            return _read(address, answer.code, answer.out, answer.err)
    raise NetworkError(
        f"{address}: it lends no port to the bundle", hint="Allow remote forwarding there (AllowTcpForwarding in sshd)."
    )


def _read(address: str, code: int, out: str, err: str) -> Installed:
    """The agent's last line, or its error as one of ours."""
    lines = out.strip().splitlines()
    try:
        found = msgspec.convert(json.loads(lines[-1]), Installed) if lines else None
    except (ValueError, msgspec.ValidationError):
        found = None
    if found is not None and (code == 0) == (found.phase == Phase.CONFIRMED):
        return found
    said = next((line for line in err.strip().splitlines() if line), f"the agent ended with exit code {code}")
    kind = _ERRORS.get(code, DeviceError)
    raise kind(f"{address}: {said.removeprefix('edgegen-agent: ')}")
