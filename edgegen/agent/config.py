"""`agent.toml`: where the agent lives, whom it obeys, what it may use."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

import msgspec

from edgegen.agent.telemetry.settings import Telemetry, absolute, check_telemetry
from edgegen.common.codec import load_toml
from edgegen.common.urls import is_url
from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.deployment import Phase

_DEADLINES_S = {
    Phase.RESERVE: 900.0,
    Phase.FETCH: 6 * 3600.0,
    Phase.VERIFY: 1800.0,
    Phase.STAGE: 1800.0,
    Phase.SELF_TEST: 1800.0,
    Phase.SWITCH: 60.0,
    Phase.PROBATION: 3600.0,
    Phase.CONFIRM: 60.0,
    Phase.ROLL_BACK: 600.0,
}


class Limits(Record, frozen=True):
    """What an update may take of the device. `[limits]`."""

    disk_floor_bytes: int = 64 << 20
    """Always left free, so that the journal can be written."""
    fetch_bytes: int | None = None
    """Most bytes that one release may fetch over this link; unset: no limit. For metered links."""
    on_delta_fail: Literal["full", "fail"] = "full"
    """Whether parts that this device should have, but has damaged, are fetched or end the update."""
    deadlines_s: dict[str, float] = {}
    """Phase → longest time since it was entered or the agent started; others keep their defaults."""

    def deadline_s(self, phase: Phase) -> float:
        """Longest time in a phase."""
        return self.deadlines_s.get(phase.value, _DEADLINES_S.get(phase, 3600.0))


class Serve(Record, frozen=True):
    """The local HTTP API. `[serve]`."""

    host: str = "127.0.0.1"
    """Another address than this machine's own needs `token_file`."""
    port: int = 8080
    """0: any free one, written to `port` in the agent's folder."""
    token_file: str = ""
    """Whose lines are the tokens that clients may give; empty: none is asked for."""
    runtime: str = ""
    """Name of the runtime; empty: the first installed one that the release names."""
    threads: int | None = None
    """Unset: the release's number, as far as this device has cores."""
    max_waiting: int = 8
    """Requests that wait for the model; one more is answered with 429."""
    max_tokens: int = 512
    """Of an answer whose request names none."""


class Fleet(Record, frozen=True):
    """The server that orders releases. `[fleet]`."""

    url: str = ""
    """Its root; empty: no server, releases come by `install`."""
    enrol_token_file: str = ""
    """With the token that makes this device known to the server; read once."""
    poll_s: float | None = None
    """Unset: as the server says."""


class Repository(Record, frozen=True):
    """Where releases lie. `[repository]`."""

    url: str = ""
    """Root of the static files; empty: as the fleet server says."""
    root: str = ""
    """The trusted root metadata, a file that came with the device."""


class AgentConfig(Record, frozen=True):
    """All of it."""

    schema: int = 1
    home: str = "/var/lib/edgegen"
    device: str = ""
    """Name of this device; empty: its host name."""
    profile: str = ""
    """Name of the profile that this device is one of; what it measures then corrects that profile's coefficients
    (`edgegen learn`). Empty: the one that its release was planned for."""
    serve: Serve = Serve()
    fleet: Fleet = Fleet()
    repository: Repository = Repository()
    limits: Limits = Limits()
    telemetry: Telemetry = Telemetry()

    @property
    def device_name(self) -> str:
        """Name of this device."""
        return self.device or platform.node().partition(".")[0] or "device"


def load_config(path: Path) -> AgentConfig:
    """Read and check a configuration; relative paths in it are relative to its folder.

    Raises:
        ConfigError: no such file, an unknown key, a value out of range, or an open API without tokens.
    """
    config = load_toml(path, AgentConfig)
    unknown = set(config.limits.deadlines_s) - {phase.value for phase in _DEADLINES_S}
    rules = {
        f"limits.deadlines_s: unknown phases {sorted(unknown)}": not unknown,
        "limits.deadlines_s: must be above 0": all(value > 0 for value in config.limits.deadlines_s.values()),
        "limits.disk_floor_bytes: must be 0 or more": config.limits.disk_floor_bytes >= 0,
        "serve.port: must be 0 to 65535": 0 <= config.serve.port <= 65535,
        "serve.max_waiting: must be 0 or more": config.serve.max_waiting >= 0,
        "serve.max_tokens: must be 1 or more": config.serve.max_tokens >= 1,
        "serve.threads: must be 1 or more": config.serve.threads is None or config.serve.threads >= 1,
        "fleet.url: must begin with http:// or https://, or be left out": not config.fleet.url
        or is_url(config.fleet.url),
        "fleet.poll_s: must be above 0": config.fleet.poll_s is None or config.fleet.poll_s > 0,
    }
    for words, holds in rules.items():
        if not holds:
            raise ConfigError(f"{path}: {words}")
    if config.serve.host not in ("127.0.0.1", "::1", "localhost") and not config.serve.token_file:
        raise ConfigError(
            f"{path}: serve.host {config.serve.host!r} opens the API to others, and no token is asked for",
            hint="Set serve.token_file, or host to 127.0.0.1.",
        )
    found = _absolute(config, path.resolve().parent)
    try:
        check_telemetry(found.telemetry, fleet=bool(found.fleet.url))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error
    return found


def _absolute(config: AgentConfig, folder: Path) -> AgentConfig:
    def place(text: str) -> str:
        return str(folder / text) if text else ""

    replace = msgspec.structs.replace
    return replace(
        config,
        home=place(config.home),
        serve=replace(config.serve, token_file=place(config.serve.token_file)),
        fleet=replace(config.fleet, enrol_token_file=place(config.fleet.enrol_token_file)),
        repository=replace(config.repository, root=place(config.repository.root)),
        telemetry=absolute(config.telemetry, place),
    )
