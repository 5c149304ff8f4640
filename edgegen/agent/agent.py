"""The agent: the real parts put together, and its loop."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import edgegen
from edgegen.agent.blobs import fetcher_for
from edgegen.agent.clock import SystemClock
from edgegen.agent.config import AgentConfig
from edgegen.agent.controller import Controller, OverError, Work
from edgegen.agent.disk import Disk, make_folders, replace_file
from edgegen.agent.home import Home, read_manifest
from edgegen.agent.journal import BEFORE_SWITCH, TERMINAL, Action, Journal
from edgegen.agent.orders import LocalOrder, LocalOutcome, settle, waiting_orders
from edgegen.agent.runtimes import installed_runtimes, usable_runtimes
from edgegen.agent.selftest import SelfTest
from edgegen.agent.supervise import Supervisor
from edgegen.agent.telemetry.desk import Desk
from edgegen.agent.update import Updater
from edgegen.bundle.sources import FolderSource, HttpSource
from edgegen.bundle.trust import Trust
from edgegen.common.codec import read_bytes
from edgegen.common.host import board_model, ram_bytes
from edgegen.errors import ConfigError, DeviceError, EdgegenError, NetworkError, TrustError
from edgegen.records.deployment import Installed, Phase, Reason

_LOCAL = "local-"
_LOOK_S = 0.5
_ASK_AGAIN_S = 10.0
"""Longest time between looks for a withdrawal while an action runs."""
_OFFLINE_S = 60.0
"""Until the server is asked again that could not be reached."""


@contextlib.contextmanager
def locked(home: Path) -> Iterator[bool]:
    """Whether this process is the only agent of a folder, for as long as the block runs.

    Raises:
        DeviceError: the folder cannot be made or written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        opened = (home / "agent.lock").open("w")
    except OSError as error:
        raise DeviceError(
            f"{home}: {error.strerror}", hint="It is `home` in agent.toml, a folder that the agent can write."
        ) from error
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


class Agent:
    """Everything of one device. Close it."""

    def __init__(self, config: AgentConfig) -> None:
        """Recover from whatever happened, and serve.

        Raises:
            ConfigError, DeviceError: the folder or the address cannot be used.
        """
        self.config = config
        self._clock, self._disk = SystemClock(), Disk()
        self.home = Home(Path(config.home), self._disk)
        for name in ("orders", "outcomes"):
            make_folders(self._disk, self.home.folder / name)
        self.journal = Journal(self.home.state, self._disk)
        self._controller: Controller | None = None
        if config.fleet.url:
            self._controller = Controller(config, self.home.folder, self._disk, say=tell)
        self.desk = Desk(config, self.home, self._controller, tell, self.journal.state.action)
        self.serving = Supervisor(self.home, config.serve, say=tell, desk=self.desk)
        replace_file(self._disk, self.home.folder / "port", f"{self.serving.port}\n".encode())
        self._stop = threading.Event()
        self._asked_s = 0.0
        last = self.journal.state.action
        self._told = last.key if last is not None and last.phase in TERMINAL else ""
        self._report_s = 0.0
        """When the server may be told of an end again that it did not hear of."""
        self._searched = False
        """Whether the release that does not come up was looked through for damage."""
        self.updater = Updater(
            self.home,
            self.journal,
            trust=self._trust_of,
            fetcher=lambda action: fetcher_for(self._place(action.repository)),
            tester=SelfTest(runtime=config.serve.runtime, threads=config.serve.threads),
            serving=self.serving,
            clock=self._clock,
            runtimes=functools.partial(usable_runtimes, config.serve.runtime),
            limits=config.limits,
            ram_bytes=ram_bytes(),
            report=self._report,
            canceled=self._canceled,
        )
        notes = self.journal.state.notes
        serves = self.updater.recover()
        for note in self.journal.state.notes[len(notes) :]:
            tell(note)
        if serves:
            try:
                self.serving.start(serves)
            except DeviceError as error:  # damaged on the disk; another release may still come
                tell(str(error))

    def run(self) -> None:
        """Serve and obey until `stop`."""
        self.desk.start(self.serving)
        next_poll = 0.0
        while not self._stop.is_set():
            try:
                self.work()
                if self._controller is not None and self._clock.monotonic() >= next_poll:
                    next_poll = self._clock.monotonic() + self._poll()
            except EdgegenError as error:
                tell(f"{error}; trying again")
                self._stop.wait(5)
            self._stop.wait(_LOOK_S)

    def stop(self) -> None:
        """Let `run` end; an update that is under way goes on with the next start."""
        self._stop.set()

    def close(self) -> None:
        """Stop serving."""
        self._disk.remove(self.home.folder / "port")
        self.serving.close()
        self.desk.close()

    def work(self) -> None:
        """Carry the running action to its end, then the orders of this device."""
        self._finish()
        self._mend()
        for name, order in waiting_orders(self.home.folder):
            if self._stop.is_set():
                return
            settle(self.home.folder, name, self._obey(name, order))

    def _finish(self) -> None:
        try:
            action = self.updater.run()
        except EdgegenError as error:
            tell(f"{error}; trying again")
            self._stop.wait(5)
            return
        if action is None:
            return
        if not self.serving.digest and self.home.current():
            self.serving.start(self.home.current())
        if action.key != self._told:
            self._told = action.key
            why = f" ({action.reason}: {action.detail})" if action.reason is not Reason.NONE else ""
            tell(f"{action.target}: {action.phase}{why}; serves {self.home.current() or 'nothing'}")
        if self._clock.monotonic() >= self._report_s:
            self._report(action)

    def _mend(self) -> None:
        """Serve the release before where the current one does not come up because the disk has damaged it."""
        if not self.serving.failing:
            self._searched = False
        elif not self._searched:
            self._searched = True
            found = self.updater.fall_back(thorough=True)
            if found:
                tell(found)
                self.serving.start(self.home.current())

    def _obey(self, name: str, order: LocalOrder) -> LocalOutcome:
        started = time.monotonic()
        try:
            if order.roll_back:
                return self._go_back(started)
            place = self._place(order.repository)
            proven = self._trust(place, allow_older=bool(order.repository)).manifest(order.target)
            self.updater.order(name, target=order.target, digest=proven.digest, repository=order.repository)
        except EdgegenError as error:
            return LocalOutcome(exit_code=error.exit_code, message=str(error), hint=error.hint)
        self._finish()
        action = self.journal.state.action
        if action is None or action.id != name or action.phase not in TERMINAL:
            return LocalOutcome(exit_code=DeviceError.exit_code, message="the update did not come to its end")
        return LocalOutcome(installed=_installed(action, time.monotonic() - started), exit_code=exit_code(action))

    def _go_back(self, started: float) -> LocalOutcome:
        """Serve the release before the current one, at once: it was confirmed here."""
        old, new = self.home.current(), self.home.previous()
        if not new:
            raise ConfigError("there is no release to go back to", hint="Install one.")
        self.home.point("current", new)
        self.home.point("previous", old)
        self.serving.start(new)
        self.desk.happened("warning", "rolled-back-by-hand", f"from {old}", new)
        seconds = time.monotonic() - started
        return LocalOutcome(installed=Installed(digest=new, phase=Phase.CONFIRMED, seconds=seconds))

    def _trust_of(self, action: Action) -> Trust:
        return self._trust(self._place(action.repository), allow_older=action.id.startswith(_LOCAL))

    def _trust(self, place: str, *, allow_older: bool) -> Trust:
        if not self.config.repository.root:
            raise ConfigError(
                "no trusted root: nothing can be proven", hint="Set repository.root to the repository's root.json."
            )
        trust = Trust(
            self.home.trust,
            read_bytes(Path(self.config.repository.root)),
            HttpSource(place) if place.startswith(("http://", "https://")) else FolderSource(Path(place)),
            now=self._clock.now,
            is_set=self._clock.is_set,
            allow_older=allow_older,
            write=lambda path, data: replace_file(self._disk, path, data),
        )
        trust.refresh()
        return trust

    def _place(self, named: str) -> str:
        place = named or self.config.repository.url or (self._controller.repository if self._controller else "")
        if not place:
            raise ConfigError("no repository is known", hint="Set repository.url, or name one with --repository.")
        return place

    def _poll(self) -> float:
        """Ask the server once; seconds until it should be asked again."""
        assert self._controller is not None
        try:
            self._controller.enrol(self.attributes())
            work = self._controller.poll(running=self.home.current())
            if work.canaries:
                self.desk.ask_canaries()
            if work.wants_attributes:
                self._controller.describe(self.attributes())
            self._take(work)
            return work.poll_s
        except (NetworkError, TrustError, ConfigError) as error:
            tell(f"{error}. {error.hint}" if error.hint else str(error))
            return self.config.fleet.poll_s or _OFFLINE_S

    def _take(self, work: Work) -> None:
        assert self._controller is not None
        running = self.journal.state.action
        if running is not None and _renumbered(work, running):
            self.journal.act(withdrawn=True)
            self._finish()
        if work.cancel:
            over = running is None or running.id != work.cancel or running.phase in TERMINAL
            if not over and running is not None and running.phase in BEFORE_SWITCH:
                self.journal.act(withdrawn=True)
                over = True
            self._controller.answer_cancel(work.cancel, dropped=over)
        if work.order is None:
            return
        order = work.order
        action = self.updater.order(order.action, target=order.target, digest=order.digest, repository=order.repository)
        if action is None:  # it is over, but the server did not hear
            phase = self.journal.state.ended(order.action, order.digest)
            assert phase is not None
            action = Action(id=order.action, target=order.target, digest=order.digest, phase=phase)
            self._controller.report(action)
        else:
            self._finish()
            self._controller.describe(self.attributes())

    def _report(self, action: Action) -> None:
        """Tell the server of a phase; it is told of the end until it hears."""
        self.desk.phase(action)
        if self._controller is None or action.id.startswith(_LOCAL):
            return
        if action.withdrawn or action.reported == action.phase:
            return
        try:
            self._controller.report(action)
        except OverError:
            # The server has closed it: the deadline has passed, another order came, the device was moved.
            if action.phase in (*BEFORE_SWITCH, Phase.SWITCH):
                self.journal.act(withdrawn=True)
                return
        except (NetworkError, TrustError) as error:
            tell(str(error))
            self._report_s = self._clock.monotonic() + min(_ASK_AGAIN_S, self.config.fleet.poll_s or _ASK_AGAIN_S)
            return
        if action.phase in TERMINAL:
            self.journal.act(reported=action.phase.value)

    def _canceled(self, action: Action) -> bool:
        """Whether the server has withdrawn an action; it is asked now and then."""
        if self._stop.is_set():
            raise SystemExit(0)  # the journal goes on where it is
        settled = action.phase in (Phase.SWITCH, Phase.PROBATION)
        if settled or self._controller is None or action.id.startswith(_LOCAL):
            return False
        if self._clock.monotonic() - self._asked_s < min(_ASK_AGAIN_S, self.config.fleet.poll_s or _ASK_AGAIN_S):
            return False
        self._asked_s = self._clock.monotonic()
        try:
            work = self._controller.poll(running=self.home.current())
        except (NetworkError, TrustError):
            return False
        if work.cancel != action.id and not _renumbered(work, action):
            return False
        # Before the answer: what the server was told is dropped must not go on after a stop.
        self.journal.act(withdrawn=True)
        if work.cancel == action.id:
            with contextlib.suppress(NetworkError, TrustError):  # it asks again
                self._controller.answer_cancel(action.id, dropped=True)
        return True

    def attributes(self) -> dict[str, str]:
        """What this device says of itself."""
        current = self.home.current()
        manifest = read_manifest(self.home.release(current)) if current else None
        found = {
            "profile": self.config.profile,
            "arch": platform.machine(),
            "kind": board_model(),
            "runtimes": ",".join(installed_runtimes()),
            "agent": edgegen.__version__,
            "running": current,
            "previous": self.home.previous(),
            "epoch": str(self.journal.state.epoch),
            "ram_bytes": str(ram_bytes()),
            "free_bytes": str(self._disk.free_bytes(self.home.folder)),
            "model": f"{manifest.name}-{manifest.version}" if manifest else "",
        }
        return {key: value for key, value in found.items() if value}


def _renumbered(work: Work, action: Action) -> bool:
    """Whether the server uses an action's number for another release: its database was made anew."""
    return work.order is not None and work.order.action == action.id and work.order.digest != action.digest


def _installed(action: Action, seconds: float) -> Installed:
    return Installed(
        digest=action.digest,
        phase=action.phase,
        reason=action.reason,
        detail=action.detail,
        bytes_fetched=action.bytes_fetched,
        bytes_reused=action.bytes_reused,
        seconds=seconds,
    )


def exit_code(action: Action) -> int:
    """Of a command that carried out this action."""
    if action.phase is Phase.CONFIRMED:
        return 0
    if action.reason in (Reason.TRUST, Reason.DOWNGRADE, Reason.CLOCK):
        return TrustError.exit_code
    if action.reason in (Reason.NETWORK, Reason.NOT_FOUND, Reason.METERED):
        return NetworkError.exit_code
    return DeviceError.exit_code


def tell(text: str) -> None:
    """A line for the log."""
    print(f"edgegen-agent: {text}", file=sys.stderr, flush=True)
