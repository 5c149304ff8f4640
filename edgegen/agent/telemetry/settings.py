"""`[telemetry]` of agent.toml: what this device measures, keeps and sends."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.telemetry import Lane, Privacy

_DAY_S = 86400.0
_RETENTION_DAYS = {Lane.DEPLOY: 90.0, Lane.ERRORS: 90.0, Lane.NUMBERS: 30.0, Lane.TEXT: 7.0, Lane.DEBUG: 1.0}
_LEAST_QUOTA = 1 << 20
PLAUSIBLE_S = 1735689600.0
"""2025-01-01: a clock that shows less was never set."""


class Mqtt(Record, frozen=True):
    """The broker, for `transport = "mqtt"`. `[telemetry.mqtt]`."""

    host: str = ""
    port: int | None = None
    """Unset: 8883 with TLS, 1883 without."""
    tls: bool = True
    ca_file: str = ""
    """Certificates to trust; empty: the system's."""
    certificate_file: str = ""
    key_file: str = ""
    username: str = ""
    password_file: str = ""
    keepalive_s: int = 60
    ack_s: float = 60.0
    """Longest wait for the server's word that a batch is committed."""


class Telemetry(Record, frozen=True):
    """All of it."""

    enabled: bool | None = None
    """Unset: if there is a fleet. Without one the reports stay on the device."""
    privacy: Privacy = Privacy.NUMBERS
    full_until: datetime.date | None = None
    """Last day of `p3`, by UTC; needed with it."""
    after_full: Privacy = Privacy.NUMBERS
    """Level after that day."""
    sample_fraction: float = 0.05
    """Of answers whose text is kept, from `p2` on. Failed ones are always kept."""
    redact_rules: str = ""
    """TOML file of further rules (see `redaction`)."""
    hook: str = ""
    """`module:function` that is given a text before the rules and gives what may be kept of it."""
    refusals_file: str = ""
    """Beginnings of refusals, a regular expression over lower-cased text a line; empty: English ones."""
    embedding: bool = False
    """Whether vectors of hashed text are reported, from `p1` on."""
    likelihood_fraction: float = 0.02
    """Most of the decoding time that measuring likelihood may cost; what is above skips tokens. 0: not measured."""
    quota_bytes: int | None = None
    """Of the spool's files; unset: 64 MB or a hundredth of the disk, whichever is less."""
    retention_days: dict[str, float] = {}
    """Lane (`deploy errors numbers text debug`) → days that a report waits at most; others keep their defaults."""
    health_s: float = 300.0
    """Between reports of the device's health."""
    canary_hours: float = 24.0
    """Between runs of the golden prompts; 0: never."""
    hash_days: float = 7.0
    """Between readings of the release's files; 0: never."""
    send_s: float = 10.0
    """Between looks for something to send."""
    transport: Literal["http", "mqtt"] = "http"
    mqtt: Mqtt = Mqtt()

    def is_on(self, *, fleet: bool) -> bool:
        """Whether anything is recorded."""
        return fleet if self.enabled is None else self.enabled

    def level(self, now_s: float) -> Privacy:
        """What may leave the device at a time.

        Full text needs a clock that was set: one that stands in 1970 would never come to the last day.
        """
        if self.privacy is not Privacy.FULL:
            return self.privacy
        assert self.full_until is not None
        end = datetime.datetime.combine(self.full_until, datetime.time(), datetime.UTC).timestamp() + _DAY_S
        return Privacy.FULL if PLAUSIBLE_S <= now_s < end else self.after_full

    def retention_s(self) -> dict[int, float]:
        """Lane → seconds that its reports wait at most."""
        return {
            int(lane): self.retention_days.get(lane.name.lower(), days) * _DAY_S
            for lane, days in _RETENTION_DAYS.items()
        }

    def quota(self, disk_bytes: int) -> int:
        """Bytes that the spool's files may take of a disk of this size."""
        if self.quota_bytes is not None:
            return self.quota_bytes
        return max(_LEAST_QUOTA, min(64 * 1000 * 1000, disk_bytes // 100))


def check_telemetry(config: Telemetry, *, fleet: bool) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: names the key.
    """
    from edgegen.agent.telemetry.redaction import load_rules

    lanes = {lane.name.lower() for lane in Lane}
    rules = {
        "privacy: p3 (full text) needs full_until, its last day": config.privacy is not Privacy.FULL
        or config.full_until is not None,
        "after_full: must be below p3": config.after_full is not Privacy.FULL,
        "sample_fraction: must be 0 to 1": 0 <= config.sample_fraction <= 1,
        "likelihood_fraction: must be 0 to 1": 0 <= config.likelihood_fraction <= 1,
        "hook: must be module:function": not config.hook or re.fullmatch(r"[\w.]+:\w+", config.hook) is not None,
        f"quota_bytes: must be {_LEAST_QUOTA} or more": config.quota_bytes is None
        or config.quota_bytes >= _LEAST_QUOTA,
        f"retention_days: known are {', '.join(sorted(lanes))}": set(config.retention_days) <= lanes,
        "retention_days: must be above 0": all(days > 0 for days in config.retention_days.values()),
        "health_s: must be 1 or more": config.health_s >= 1,
        "send_s: must be above 0": config.send_s > 0,
        "canary_hours: must be 0 or more": config.canary_hours >= 0,
        "hash_days: must be 0 or more": config.hash_days >= 0,
        "mqtt.ack_s: must be above 0": config.mqtt.ack_s > 0,
        "mqtt.keepalive_s: must be 5 or more": config.mqtt.keepalive_s >= 5,
        "mqtt.port: must be 1 to 65535": config.mqtt.port is None or 1 <= config.mqtt.port <= 65535,
        "mqtt.host: needed for transport mqtt": config.transport != "mqtt" or bool(config.mqtt.host),
        "mqtt.username: a password is sent in the clear without tls": config.mqtt.tls
        or not config.mqtt.username
        or config.mqtt.host in ("127.0.0.1", "::1", "localhost"),
    }
    for words, holds in rules.items():
        if not holds:
            raise ConfigError(f"telemetry.{words}")
    load_rules(config.redact_rules)
    load_refusals(config.refusals_file)
    if config.transport == "mqtt" and config.is_on(fleet=fleet):
        from edgegen.agent.telemetry.mqtt import require_paho

        require_paho()


def load_refusals(path: str) -> tuple[str, ...] | None:
    """Regular expressions of how refusals begin; None: no file is named.

    Raises:
        ConfigError: it cannot be read, or a line is no regular expression.
    """
    if not path:
        return None
    try:
        lines = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for line in lines:
        try:
            re.compile(line)
        except re.error as error:
            raise ConfigError(f"{path}: {line!r} is no regular expression: {error}") from error
    return lines


def absolute(config: Telemetry, place: Callable[[str], str]) -> Telemetry:
    """The same with whole paths."""
    replace = msgspec.structs.replace
    mqtt = replace(
        config.mqtt,
        ca_file=place(config.mqtt.ca_file),
        certificate_file=place(config.mqtt.certificate_file),
        key_file=place(config.mqtt.key_file),
        password_file=place(config.mqtt.password_file),
    )
    return replace(
        config, redact_rules=place(config.redact_rules), refusals_file=place(config.refusals_file), mqtt=mqtt
    )
