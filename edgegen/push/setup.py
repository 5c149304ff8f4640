"""Make a machine a device: an environment with the agent and a runtime, its configuration, a systemd unit.

Each step looks first, so a second run changes nothing and says so; a run that was cut off goes on. The agent is
restarted if, and only if, something that it reads has changed. What the device's `agent.toml` says already stays, also
what somebody wrote by hand, unless an option says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgegen.common.codec import read_bytes
from edgegen.common.files import digest_bytes
from edgegen.common.urls import require_url
from edgegen.errors import ConfigError, DeviceError
from edgegen.push.places import Places, find_places
from edgegen.push.ssh import Remote

RUNTIMES = ("gguf", "onnx", "litert")
_INSTALL_S = 3600.0
_UNIT = """\
# Written by `edgegen device setup`; changes are overwritten.
[Unit]
Description=edgegen agent: serves this device's model and keeps it up to date
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={agent} --config {config}
Restart=always
RestartSec=5
# A model that takes all memory takes itself down, not the device.
OOMPolicy=continue
# Only the agent is told to stop; it ends its own processes, and a stop is not taken for a crash of the model.
KillMode=mixed
NoNewPrivileges=true
PrivateTmp=true
{hardening}
[Install]
WantedBy={target}
"""
_HARDENING = "ProtectSystem=strict\nReadWritePaths={home}\nProtectHome=true\n"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a device is to get."""

    runtime: str
    """`gguf`, `onnx` or `litert`: the extra of the wheel; empty: none."""
    wheel: Path | None = None
    """edgegen's wheel; None: the version of that name from the package index."""
    wheelhouse: Path | None = None
    """Folder of wheels to install from, with no index; None: the device's own pip settings."""
    root: Path | None = None
    """The repository's trusted root metadata."""
    fleet: str = ""
    """The fleet server's URL."""
    token: str = ""
    """An enrolment token."""
    repository: str = ""
    """The repository's URL, where there is no fleet server."""
    device: str = ""
    """The device's name; empty: its host name."""
    profile: str = ""
    """Name of the profile that it is one of; empty: the one that its release was planned for."""
    serve_port: int | None = None
    """Of the local API; None: as it is, 8080 at first."""
    service: bool = True
    """Whether a systemd unit is written and started."""


@dataclass(slots=True)
class Outcome:
    """What was done."""

    places: Places
    changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def set_up_device(
    address: str, wanted: Setup, *, folder: str | None = None, version: str, say: Callable[[str], None] = lambda x: None
) -> Outcome:
    """Set a device up, or bring it up to date.

    Args:
        address: `ssh://[user@]host[:port]`.
        folder: another place than the usual (see `places`).
        version: edgegen's, for an installation from an index.
        say: called with each step's words.

    Raises:
        ConfigError: an unknown runtime, no URL or port, or a file that is not there.
        NetworkError: the device is not reached.
        DeviceError: it has no Python 3.11 with venv, or a step failed.
    """
    _require(wanted)
    trusted = read_bytes(wanted.root) if wanted.root else None
    wheel = read_bytes(wanted.wheel) if wanted.wheel else None
    remote = Remote(address)
    outcome = Outcome(find_places(remote, folder))
    places = outcome.places

    def done(changed: bool, what: str) -> None:
        say(f"{'✓' if changed else '·'} {what}")
        if changed:
            outcome.changed.append(what)

    remote.run(f"umask 022 && mkdir -p {shlex.quote(places.folder)} {shlex.quote(places.home)}")
    done(_make_venv(remote, places), f"environment {places.venv}")
    done(_install(remote, places, wanted, wheel, version), f"edgegen {version} {wanted.runtime}".strip())
    if trusted is not None:
        done(remote.put(f"{places.folder}/trust/root.json", trusted), "trusted root")
    if wanted.token:
        done(remote.put(f"{places.folder}/trust/enrol", f"{wanted.token}\n".encode(), mode=0o600), "enrolment token")
    known = _known_settings(remote, places)
    home = str(PurePosixPath(places.folder) / str(known.get("home", places.home)))
    places = outcome.places = dataclasses.replace(places, home=home)
    done(_configure(remote, places, wanted, known), places.config)
    if wanted.service:
        _start(remote, outcome, done)
    return outcome


def _require(wanted: Setup) -> None:
    """
    Raises:
        ConfigError: a wish that no device could be given.
    """
    if wanted.runtime and wanted.runtime not in RUNTIMES:
        raise ConfigError(f"--runtime {wanted.runtime!r} is not known", hint="Known: " + ", ".join(RUNTIMES) + ".")
    for name, url in (("--fleet", wanted.fleet), ("--repository", wanted.repository)):
        if url:
            require_url(url, what=name)
    if wanted.serve_port is not None and not 0 <= wanted.serve_port <= 65535:
        raise ConfigError(f"--port {wanted.serve_port} is no port", hint="0 takes a free one; others go to 65535.")
    if wanted.wheelhouse is not None and not any(wanted.wheelhouse.glob("*.whl")):
        raise ConfigError(f"{wanted.wheelhouse}: no wheels in it")


def _make_venv(remote: Remote, places: Places) -> bool:
    python = f"{places.venv}/bin/python"
    if remote.ask(f"{shlex.quote(python)} -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))'").code == 0:
        return False
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        if remote.ask(f"{name} -c 'import venv, ensurepip, sys; sys.exit(sys.version_info < (3, 11))'").code == 0:
            remote.run(f"{name} -m venv --clear {shlex.quote(places.venv)}", timeout_s=_INSTALL_S)
            return True
    raise DeviceError(
        f"{remote.address}: it has no Python 3.11 or later with venv", hint="On Debian: apt install python3-venv."
    )


def _install(remote: Remote, places: Places, wanted: Setup, wheel: bytes | None, version: str) -> bool:
    """Install edgegen; what is installed is remembered by the wheel's digest and the extra."""
    stamp = f"{places.venv}/.edgegen"
    mark = json.dumps([digest_bytes(wheel) if wheel else version, wanted.runtime])
    if remote.ask(f"cat {shlex.quote(stamp)}").out.strip() == mark:
        return False
    extra = f"[{wanted.runtime}]" if wanted.runtime else ""
    options = ""
    if wanted.wheelhouse is not None:
        for path in sorted(wanted.wheelhouse.glob("*.whl")):
            remote.put(f"{places.folder}/wheels/{path.name}", path.read_bytes())
        options = f"--no-index --find-links {shlex.quote(places.folder + '/wheels')} "
    if wheel is not None and wanted.wheel is not None:
        there = f"{places.folder}/wheels/{wanted.wheel.name}"
        remote.put(there, wheel)
        what = f"{there}{extra}"
    else:
        what = f"edgegen{extra}=={version}"
    pip = f"{places.venv}/bin/python -m pip install --disable-pip-version-check -q {options}"
    remote.run(f"{pip}{shlex.quote(what)}", timeout_s=_INSTALL_S)
    if wheel is not None:  # the same version again: pip would keep what is there
        remote.run(f"{pip}--no-deps --force-reinstall {shlex.quote(what)}", timeout_s=_INSTALL_S)
    remote.put(stamp, f"{mark}\n".encode())
    return True


def _known_settings(remote: Remote, places: Places) -> dict[str, Any]:
    """What the device's `agent.toml` says; empty: there is none yet."""
    found = remote.ask(f"cat {shlex.quote(places.config)}")
    try:
        return tomllib.loads(found.out) if found.code == 0 else {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{remote.address}: {places.config}: not valid TOML: {error}", hint="Mend it there, or remove it."
        ) from error


def _configure(remote: Remote, places: Places, wanted: Setup, known: dict[str, Any]) -> bool:
    """Bring `agent.toml` up to date. One that says what it should already is left as it is, comments included."""
    settings = _settings(known, places, wanted)
    if settings == known:
        return False
    text = _toml(settings)
    if text is None:
        raise ConfigError(
            f"{remote.address}: {places.config}: holds values that the agent has no use for",
            hint="Mend it there, or remove it.",
        )
    return remote.put(places.config, text.encode())


def _settings(known: dict[str, Any], places: Places, wanted: Setup) -> dict[str, Any]:
    """The agent's settings: what is known of them with what is wanted over it."""
    trust = f"{places.folder}/trust"
    said = {
        "": {
            "schema": 1,
            "home": known.get("home", places.home),
            "device": wanted.device or None,
            "profile": wanted.profile or None,
        },
        "serve": {"port": wanted.serve_port},
        "fleet": {"url": wanted.fleet or None, "enrol_token_file": f"{trust}/enrol" if wanted.token else None},
        "repository": {"url": wanted.repository or None, "root": f"{trust}/root.json" if wanted.root else None},
    }
    settings = {"serve": {"port": 8080}} | known
    for table, options in said.items():
        chosen = {name: value for name, value in options.items() if value is not None}
        if not table:
            settings |= chosen
        elif chosen:
            before = settings.get(table)
            settings[table] = {**(before if isinstance(before, dict) else {}), **chosen}
    return settings


def _toml(settings: dict[str, Any]) -> str | None:
    """Settings as TOML, plain values before tables; None: with dates or tables in lists, which the agent has not."""
    lines = ["# Written by `edgegen device setup`, which keeps what is set here unless an option says otherwise."]

    def word(value: object) -> str:  # JSON's strings, numbers, booleans and lists are TOML's
        return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")

    def name(key: str) -> str:
        return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else word(key)

    def write(table: dict[str, Any], path: tuple[str, ...]) -> None:
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        if path and (plain or not table):
            lines.extend(("", f"[{'.'.join(map(name, path))}]"))
        lines.extend(f"{name(key)} = {word(value)}" for key, value in plain.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write(value, (*path, key))

    write(settings, ())
    text = "\n".join(lines) + "\n"
    try:
        return text if tomllib.loads(text) == settings else None
    except tomllib.TOMLDecodeError:
        return None


def _start(remote: Remote, outcome: Outcome, done: Callable[[bool, str], None]) -> None:
    """Write the unit, and start the agent or start it again."""
    places = outcome.places
    if remote.ask("test -d /run/systemd/system").code:
        words = f"{places.agent} --config {places.config}"
        outcome.notes.append(f"The device does not run systemd: have it start `{words}` itself.")
        return
    control = "systemctl" if places.root else "systemctl --user"
    unit = "/etc/systemd/system" if places.root else "$HOME/.config/systemd/user"
    unit = remote.run(f'printf %s "{unit}"') + "/edgegen-agent.service"
    text = _UNIT.format(
        agent=places.agent,
        config=places.config,
        hardening=_HARDENING.format(home=places.home) if places.root else "",
        target="multi-user.target" if places.root else "default.target",
    )
    done(remote.put(unit, text.encode()), unit)
    if not places.root and remote.ask('loginctl show-user "$(id -un)" -p Linger --value').out.strip() != "yes":
        outcome.notes.append("The agent stops when you log out: run `loginctl enable-linger` on the device.")
    running = remote.ask(f"{control} is-active --quiet edgegen-agent").code == 0
    if outcome.changed or not running:
        remote.run(f"{control} daemon-reload && {control} enable -q edgegen-agent && {control} restart edgegen-agent")
    done(bool(outcome.changed) or not running, "agent started")
