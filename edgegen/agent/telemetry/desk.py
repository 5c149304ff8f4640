"""Reports of the agent's own process: what happens to releases, how the device is, and the way to the server.

Two threads beside the writer: one sends, one asks how the device is and lets the golden prompts be asked. Neither is
started for a command that ends at once, such as an install without a running agent: what that records is sent later.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil

import edgegen
from edgegen.agent.config import AgentConfig
from edgegen.agent.controller import Controller
from edgegen.agent.home import Home
from edgegen.agent.journal import TERMINAL, Action
from edgegen.agent.serve import Reporting
from edgegen.agent.telemetry.canary import Canaries, Model
from edgegen.agent.telemetry.http import http_post
from edgegen.agent.telemetry.redaction import safe_words
from edgegen.agent.telemetry.sender import Post, Sender
from edgegen.agent.telemetry.sensors import Sensors
from edgegen.agent.telemetry.spool import SPOOL, Depth, Spool, stamp
from edgegen.agent.telemetry.writer import Writer
from edgegen.errors import EdgegenError
from edgegen.records.deployment import Phase, Reason
from edgegen.records.telemetry import Happening, Health, Lane

_LOOK_S = 5.0
"""Between looks for what is due."""
_AGAIN_S = 60.0
"""Until something that went wrong is tried again."""


class Serving(Model, Protocol):
    """What serves, and what it says of itself."""

    def health(self) -> dict[str, Any] | None:
        """None: nothing."""
        ...


def spool_of(config: AgentConfig) -> Spool:
    """This device's spool.

    Raises:
        DeviceError: it cannot be opened.
    """
    home = Path(config.home)
    return Spool(home / SPOOL, quota_bytes=quota_bytes(config), retention_s=config.telemetry.retention_s())


def quota_bytes(config: AgentConfig) -> int:
    """What the spool may take of this device's disk."""
    return config.telemetry.quota(shutil.disk_usage(config.home).total)


class Desk:
    """Close it."""

    def __init__(
        self,
        config: AgentConfig,
        home: Home,
        controller: Controller | None,
        tell: Callable[[str], None],
        action: Action | None = None,
    ):
        """Open the spool as soon as something is recorded.

        Args:
            controller: the way to the fleet's server; None: none.
            tell: a line for the log.
            action: of the journal when the agent starts; if it is over, that was said then.
        """
        self._config, self._home, self._controller, self._tell = config, home, controller, tell
        self.is_on = config.telemetry.is_on(fleet=bool(config.fleet.url))
        self._writer: Writer | None = None
        if self.is_on:
            self._writer = Writer(lambda: spool_of(config), tell=tell)
        self._last = _said(action) if action is not None and action.phase in TERMINAL else ("", "")
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._canaries_now = threading.Event()

    def ask_canaries(self) -> None:
        """Answer the golden prompts again as soon as the model has nothing else to do."""
        self._canaries_now.set()

    def for_serving(self) -> Reporting | None:
        """What the serving process needs to report its answers; None: it does not."""
        if not self.is_on:
            return None
        return Reporting(self._config.telemetry, str(self._home.folder / SPOOL), quota_bytes(self._config))

    def start(self, serving: Serving) -> None:
        """Begin to send and to watch.

        Raises:
            UnsupportedError, ConfigError: the way to the server cannot be prepared.
        """
        if not self.is_on:
            return
        self.happened("info", "started", f"agent {edgegen.__version__}", self._home.current())
        level = self._config.telemetry.level(stamp().at_s)
        if level.value > "p0":
            until = self._config.telemetry.full_until
            words = f"{level.value} until {until}, then {self._config.telemetry.after_full.value}"
            self.happened("info", "privacy", words if level.value == "p3" else level.value, self._home.current())
        watch = threading.Thread(target=self._watch, args=(serving,), name="watch", daemon=True)
        self._threads.append(watch)
        post = self._way()
        if post is not None:
            self._threads.append(threading.Thread(target=self._send, args=(post,), name="sender", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and write what was recorded."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)  # one that waits for the server ends with the process
        if self._writer is not None:
            self._writer.close()

    def happened(self, level: str, what: str, detail: str = "", release: str = "") -> None:
        """Something that a person may want to read."""
        if self._writer is not None:
            item = Happening(level=level, what=what, detail=detail, release=release)
            self._writer.record(Lane.ERRORS if level == "error" else Lane.DEPLOY, item)

    def phase(self, action: Action) -> None:
        """An update came to a phase; the same one again is not said again."""
        if _said(action) == self._last:
            return
        self._last = _said(action)
        level = "warning" if action.phase in (Phase.ROLL_BACK, Phase.ROLLED_BACK, Phase.FAILED) else "info"
        why = "" if action.reason is Reason.NONE else f" {action.reason}: {action.detail}"
        self.happened(level, action.phase.value, f"{action.target}{why}", action.digest)

    def crashed(self, release: str, words: str) -> None:
        """The serving process ended by itself."""
        level = self._config.telemetry.level(stamp().at_s)
        self.happened("error", "crashed", safe_words(None, words if level.value >= "p2" else _brief(words)), release)

    def _way(self) -> Post | None:
        if self._config.telemetry.transport == "mqtt":
            from edgegen.agent.telemetry.mqtt import MqttPost

            return MqttPost(self._config.telemetry.mqtt, self._config.device_name)
        return None if self._controller is None else http_post(self._controller)

    def _send(self, post: Post) -> None:
        def work() -> None:
            with spool_of(self._config) as spool:
                sender = Sender(spool, post, idle_s=self._config.telemetry.send_s, tell=self._tell)
                while not self._stop.wait(sender.step()):
                    pass

        self._keep_on(work, "reports are not sent")
        close = getattr(post, "close", None)
        if close is not None:
            close()

    def _watch(self, serving: Serving) -> None:
        config, sensors, writer = self._config.telemetry, Sensors(), self._writer
        assert writer is not None

        def work() -> None:
            next_s = 0.0
            with spool_of(self._config) as spool:
                canaries = Canaries(
                    self._home,
                    serving,
                    spool,
                    writer.record,
                    hours=config.canary_hours,
                    hash_days=config.hash_days,
                    now=stamp,
                )
                while not self._stop.wait(min(_LOOK_S, config.health_s)):
                    if stamp().mono_s >= next_s:
                        next_s = stamp().mono_s + config.health_s
                        writer.record(Lane.NUMBERS, self._health(serving, sensors, spool.depth()))
                    if self._canaries_now.is_set():
                        self._canaries_now.clear()
                        canaries.begin()
                    canaries.step()

        self._keep_on(work, "the device is not watched")

    def _keep_on(self, work: Callable[[], None], without: str) -> None:
        """Work until told to stop; what goes wrong is said, and tried again later."""
        while not self._stop.is_set():
            try:
                work()
            except Exception as error:  # a thread that ends would end in silence
                name = "" if isinstance(error, EdgegenError) else f"{type(error).__name__}: "
                self._tell(f"{without}: {name}{error}")
                self._stop.wait(_AGAIN_S)

    def _health(self, serving: Serving, sensors: Sensors, depth: Depth) -> Health:
        seen, heat, now = serving.health() or {}, sensors.read(), stamp()
        free_bytes: int | None = None
        try:
            free_bytes = shutil.disk_usage(self._home.folder).free
        except OSError:
            free_bytes = None
        return Health(
            release=serving.digest,
            uptime_s=now.mono_s,
            load_s=seen.get("load_s"),
            rss_bytes=seen.get("rss_bytes"),
            peak_rss_bytes=seen.get("peak_rss_bytes"),
            temperature_c=heat.temperature_c,
            throttled=heat.throttled,
            free_bytes=free_bytes,
            free_ram_bytes=int(psutil.virtual_memory().available),
            spool_reports=sum(lane.reports for lane in depth.lanes),
            spool_bytes=depth.file_bytes,
            privacy=self._config.telemetry.level(now.at_s),
        )


def _said(action: Action) -> tuple[str, str]:
    return f"{action.id} {action.digest}", action.phase.value


def _brief(words: str) -> str:
    """Exit code and the error's name; what comes after it may quote a text."""
    code, _, rest = words.partition(": ")
    name = rest.partition(":")[0]
    return f"{code}: {name}" if name and " " not in name else code
