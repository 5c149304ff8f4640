"""The state machine of one update: reserve, fetch, verify, stage, self-test, switch, probation, confirm or roll back.

Each phase may be entered again after a stop at any point in it, and the journal names the next phase only when the work
of this one is durable. From that follows what a device may count on:

- `current` names a whole, verified release at every moment: a release is renamed into `releases/` only after its bytes
  were hashed and flushed, and the link is replaced by a rename;
- the release that served before stays on the disk until the new one is confirmed, and a release that was not
  confirmed is left again: the number of its starts is written down *before* each start, so a model that takes the
  whole device down counts as well;
- success is reported after probation and not before.

What is the release's fault (wrong answers, too slow, too large, crashes) bans its digest here. What is the network's,
the disk's or an operator's doing does not.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

import edgegen
from edgegen.agent.clock import Clock
from edgegen.agent.config import Limits
from edgegen.agent.disk import make_folders, remove_tree, replace_file, sync_tree
from edgegen.agent.fetch import Assembly, BudgetError, Fetcher, GoneError, Transfer, bytes_to_fetch
from edgegen.agent.fetch import Limits as LinkLimits
from edgegen.agent.home import MANIFEST, Home, damaged_files, has_size, read_manifest
from edgegen.agent.journal import BEFORE_SWITCH, TERMINAL, Action, Journal, action_key
from edgegen.agent.sources import index_places
from edgegen.bundle.accept import Facts, choose_runtime, compose, require_epoch
from edgegen.bundle.trust import Proven
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError, DeviceError, EdgegenError, Fault, NetworkError, TrustError, UnsupportedError
from edgegen.records.bundle import BundleFile, Manifest
from edgegen.records.deployment import Phase, Reason

_SLACK_S = 60.0
"""What a probation may take beyond its own length and the time to load."""

_RESTARTS = 28
"""Times that the agent may find the same phase unfinished without progress before it gives the action up."""

_NOTED_BYTES = 4 << 20
"""Fetched bytes after which their number is written down: so much may be forgotten of a metered link's budget."""

_REPAIRS = 2
"""Times that files which turned out damaged after they were written are put together again."""

_STOPS = (SystemExit, KeyboardInterrupt)
"""Somebody asked the agent to stop; the journal goes on where it is."""

_CLOCK_S = 180.0
"""How long a clock that cannot be trusted is waited for: after a start a time server may still set it."""

_REASONS = {Fault.DOWNGRADE: Reason.DOWNGRADE, Fault.CLOCK: Reason.CLOCK}
"""Of refusals; all others are `TRUST`."""

_WORSE = frozenset(
    {
        Reason.LOAD_FAILED,
        Reason.GOLDEN,
        Reason.TOO_SLOW,
        Reason.TOO_MUCH_MEMORY,
        Reason.CRASHED,
        Reason.ERRORS,
    }
)
"""Reasons that lie in the release itself."""


class TrustSource(Protocol):
    """Where proven manifests come from."""

    def manifest(self, target: str, *, digest: str = "") -> Proven:
        """A release's manifest, judged by the repository's newest metadata.

        Raises:
            TrustError: a signature, threshold, version, expiry or digest is not what it should be.
            NetworkError: the repository cannot be reached or does not answer as it should.
        """
        ...


class Verdict(NamedTuple):
    """What a test of a release came to."""

    reason: Reason
    """`NONE`: it is fit."""
    detail: str = ""


class Tester(Protocol):
    """Tries a release on the device's own runtime, in a process of its own."""

    def test(self, folder: Path, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        """Load it, answer the golden prompts, measure.

        Args:
            between: called now and then; what it raises ends the test.
        """
        ...


class Serving(Protocol):
    """The process that serves the active release."""

    def start(self, digest: str) -> None:
        """Serve `releases/<digest>` from now on instead of what is served; nothing happens if it is served already."""
        ...

    def stop(self) -> None:
        """Serve nothing."""
        ...

    def watch(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        """Look at what is served until probation is over.

        Args:
            between: called now and then; what it raises ends the watch.
        """
        ...


class CanceledError(EdgegenError):
    """The action was withdrawn by whoever ordered it."""


class PhaseTimeoutError(EdgegenError):
    """A phase took longer than it may."""


class _RefusedError(EdgegenError):
    """The release is not for this device."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Updater:
    """Carries one action from its order to its end."""

    def __init__(
        self,
        home: Home,
        journal: Journal,
        *,
        trust: Callable[[Action], TrustSource],
        fetcher: Callable[[Action], Fetcher],
        tester: Tester,
        serving: Serving,
        clock: Clock,
        runtimes: Callable[[], dict[str, str]],
        ram_bytes: int,
        limits: Limits = Limits(),
        report: Callable[[Action], None] = lambda _: None,
        canceled: Callable[[Action], bool] = lambda _: False,
        dice: random.Random | None = None,
    ) -> None:
        """Put the parts together; nothing is done yet.

        Args:
            trust, fetcher: for the repository that an action names.
            runtimes: installed runtimes, name → version.
            ram_bytes: that this device has.
            report: called at each change of phase; must not raise. It may mark the action as withdrawn.
            canceled: asked between pieces of work; past the switch its answer does not count. It raises `SystemExit`
                where somebody asks the agent to stop: then nothing counts against the release.
        """
        self.home, self.journal, self._disk = home, journal, home.disk
        self._trust, self._fetcher = trust, fetcher
        self._tester, self._serving, self._clock = tester, serving, clock
        self._runtimes, self._limits, self._ram_bytes = runtimes, limits, ram_bytes
        self._report, self._canceled, self._dice = report, canceled, dice
        self._deadline = 0.0
        self._longer = ""
        """What a phase's end by its deadline is told with."""
        self._phases: dict[Phase, Callable[[Action], Phase]] = {
            Phase.RESERVE: self._reserve,
            Phase.FETCH: self._fetch,
            Phase.VERIFY: self._verify,
            Phase.STAGE: self._stage,
            Phase.SELF_TEST: self._self_test,
            Phase.SWITCH: self._switch,
            Phase.PROBATION: self._probation,
            Phase.CONFIRM: self._confirm,
        }

    def order(self, action_id: str, *, target: str, digest: str, repository: str = "") -> Action | None:
        """Begin an action; None if this one is over already.

        Raises:
            ConfigError: another action is running.
        """
        state = self.journal.state
        if state.action is not None and state.action.key == action_key(action_id, digest):
            if state.action.phase not in TERMINAL or not state.action.withdrawn:
                return state.action
        elif state.ended(action_id, digest) is not None:
            return None
        if state.action is not None and state.action.phase not in TERMINAL:
            raise ConfigError(f"action {state.action.id} is still running", hint="Wait for its end or cancel it.")
        action = Action(
            id=action_id,
            target=target,
            digest=digest,
            repository=repository,
            phase=Phase.RESERVE,
            old=self.home.current(),
            older=self.home.previous(),
        )
        others = {key: phase for key, phase in state.finished.items() if key != action.key}
        self.journal.save(msgspec.structs.replace(state, action=action, finished=others))
        self._report(action)
        return self.journal.state.action

    def recover(self) -> str:
        """After a start of the agent: make `current` right and say what serves.

        Returns:
            Digest of the release to serve until `run` says otherwise; empty: none, or `run` will start it itself,
            since the start of a release that is not confirmed is counted first.
        """
        action = self.journal.state.action
        if action is not None and action.phase not in TERMINAL:
            action = self.journal.act(restarts=action.restarts + 1)
            if action.restarts > _RESTARTS:
                self._give_up(action, Reason.INTERNAL, f"found unfinished {action.restarts} times in {action.phase}")
        action = self.journal.state.action
        if action is not None and action.phase in (Phase.SWITCH, Phase.PROBATION, Phase.ROLL_BACK):
            if not self.home.current() and self.home.previous():
                self.home.point("current", self.home.previous())
            return ""
        self.fall_back(thorough=False)
        return self.home.current()

    def fall_back(self, *, thorough: bool) -> str:
        """Let the release before serve where the current one is damaged: only a failing disk brings this about.

        The damaged one stays until other releases come, so that a repair finds what is left of it.

        Args:
            thorough: whether each byte of the current release is read, and not only its manifest and sizes.

        Returns:
            What was found, in words; empty: no damage, or no release.
        """
        current, previous = self.home.current(), self.home.previous()
        damaged = self._damage(current, thorough=thorough) if current else ["current"] if previous else []
        if not damaged:
            return ""
        found = f"{current or 'the release that served'}: damaged on the disk ({', '.join(damaged[:3])})"
        if not previous or previous == current or self._damage(previous, thorough=True):
            return f"{found}, and no other whole release is here; order it again"
        found = f"{found}; {previous} serves again"
        self.home.point("current", previous)
        self.home.point("previous", "")
        state = self.journal.state
        self.journal.save(msgspec.structs.replace(state, notes=(*state.notes, found)))
        if state.action is not None and state.action.phase not in TERMINAL:
            self.journal.act(old=previous, older="")
        return found

    def _damage(self, digest: str, *, thorough: bool) -> list[str]:
        """Files of an installed release that are not as its manifest says, the manifest itself included."""
        folder = self.home.release(digest)
        manifest = read_manifest(folder)
        if manifest is None or not _is_stored(folder, digest):
            return [MANIFEST]
        try:
            files = self._composed(manifest)
        except (UnsupportedError, TrustError):  # its base is damaged as well; the files themselves are here
            files = manifest.files
        if thorough:
            return damaged_files(folder, files)
        return [file.path for file in files if not has_size(folder / file.path, file.bytes)]

    def run(self) -> Action | None:
        """Carry the running action to its end; None if there is none. Errors become its reason."""
        action = self.journal.state.action
        while action is not None and action.phase not in TERMINAL:
            action = self._step(action)
        if action is not None and action.key not in self.journal.state.finished:
            end = Phase.IDLE if action.withdrawn else action.phase
            finished = self.journal.state.finished | {action.key: end.value}
            self.journal.save(msgspec.structs.replace(self.journal.state, finished=finished))
            self.home.collect(keep=[])
        return action

    def _step(self, action: Action) -> Action:
        """One phase. Going back must not fail, so there errors are raised to the caller, who calls `run` again."""
        phase, self._longer = action.phase, ""
        self._deadline = self._clock.monotonic() + self._limits.deadline_s(phase)
        if phase is Phase.ROLL_BACK:
            return self._enter(self._roll_back(action))
        try:
            if phase in BEFORE_SWITCH:
                self._tick()
            following = self._phases[phase](action)
        except _STOPS:
            running = self.journal.state.action
            assert running is not None
            self.journal.act(restarts=max(0, running.restarts - 1))
            raise
        except _RefusedError as error:
            return self._give_up(action, error.reason, str(error))
        except CanceledError as error:
            return self._give_up(action, Reason.CANCELED, str(error))
        except PhaseTimeoutError as error:
            return self._give_up(action, Reason.TIMEOUT, str(error))
        except GoneError as error:
            return self._give_up(action, Reason.NOT_FOUND, str(error))
        except BudgetError as error:
            return self._give_up(action, Reason.METERED, str(error))
        except NetworkError as error:
            return self._give_up(action, Reason.NETWORK, str(error))
        except TrustError as error:
            return self._give_up(action, _REASONS.get(error.fault, Reason.TRUST), str(error))
        except DeviceError as error:
            cause = error.__cause__
            full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            return self._give_up(action, Reason.NO_SPACE if full else Reason.DISK, str(error))
        except (EdgegenError, OSError) as error:
            return self._give_up(action, Reason.INTERNAL, f"{type(error).__name__}: {error}")
        return self._enter(following)

    def _enter(self, phase: Phase, **changes: object) -> Action:
        before = self.journal.state.action
        assert before is not None
        if phase in (Phase.SELF_TEST, Phase.PROBATION) and before.phase != phase:
            changes["attempt"] = 0
        self._report(self.journal.act(phase=phase, restarts=0, **changes))
        action = self.journal.state.action  # which the report may have marked as withdrawn
        assert action is not None
        return action

    def _give_up(self, action: Action, reason: Reason, detail: str) -> Action:
        """End an action that cannot succeed: roll back if the link may have moved, else fail."""
        moved = action.phase in (Phase.SWITCH, Phase.PROBATION, Phase.CONFIRM, Phase.ROLL_BACK)
        if reason in _WORSE:
            state = self.journal.state
            banned = (*(digest for digest in state.banned if digest != action.digest), action.digest)
            self.journal.save(msgspec.structs.replace(state, banned=banned))
        return self._enter(Phase.ROLL_BACK if moved else Phase.FAILED, reason=reason, detail=detail.splitlines()[0])

    def _tick(self) -> None:
        """Between pieces of work: is there still time, and does anyone still want this?"""
        action = self.journal.state.action
        assert action is not None
        if self._clock.monotonic() > self._deadline:
            raise PhaseTimeoutError(
                f"{action.phase} took longer than {self._limits.deadline_s(action.phase):g} s{self._longer}"
            )
        wanted = not action.withdrawn and not self._canceled(action)
        if not wanted and action.phase in BEFORE_SWITCH:
            raise CanceledError("canceled by the server")

    def _manifest(self, action: Action) -> Manifest:
        """The proven manifest, as `RESERVE` stored it."""
        for folder in (self.home.release(action.digest), self.home.arriving(action.digest)):
            if _is_stored(folder, action.digest):
                manifest = read_manifest(folder)
                if manifest is not None:
                    return manifest
        raise DeviceError(
            f"{self.home.arriving(action.digest) / MANIFEST}: the stored manifest is damaged", hint="Check the disk."
        )

    def _reserve(self, action: Action) -> Phase:
        if action.digest in self.journal.state.banned:
            raise _RefusedError(Reason.BANNED, "this release was worse here before and was rolled back")
        proven = self._prove(action)
        manifest = proven.manifest
        if digest_bytes(proven.data) != action.digest:
            raise TrustError("the repository's manifest is not the one that was ordered", fault=Fault.DIGEST)
        self._accept(manifest)
        folder = self.home.release(action.digest)
        arriving = self.home.arriving(action.digest)
        if action.digest == self.home.current() and not self._damage(action.digest, thorough=True):
            return Phase.CONFIRMED
        if folder.is_dir():
            if not _is_stored(folder, action.digest):
                make_folders(self._disk, arriving)
                replace_file(self._disk, arriving / MANIFEST, proven.data)
            return Phase.VERIFY
        self.home.collect(keep=[action.digest, manifest.base])
        places = index_places(self.home.installed())
        fetch, disk = bytes_to_fetch(arriving, manifest, places)
        free = self._disk.free_bytes(self.home.folder) - self._limits.disk_floor_bytes
        if disk * 1.05 > free:
            raise _RefusedError(Reason.NO_SPACE, f"{disk:,} bytes are needed on the disk and {max(0, free):,} are free")
        left = self._link_bytes(action)
        if left is not None and fetch > left:
            raise BudgetError(f"{fetch:,} bytes are to be fetched and this link may still carry {left:,}")
        make_folders(self._disk, arriving)
        replace_file(self._disk, arriving / MANIFEST, proven.data)
        return Phase.FETCH

    def _prove(self, action: Action) -> Proven:
        """The manifest from the repository; a network that is down is waited for, and a clock for some time."""
        fails, begun = 0, self._clock.monotonic()
        while True:
            self._tick()
            try:
                source = self._trust(action)
                return source.manifest(action.target, digest=action.digest)
            except NetworkError as error:
                if not error.retryable:
                    raise
            except TrustError as error:
                if error.fault is not Fault.CLOCK or self._clock.monotonic() - begun > _CLOCK_S:
                    raise
            fails += 1
            self._clock.sleep(min(60.0, 0.5 * 2.0 ** min(fails, 10)))

    def _accept(self, manifest: Manifest) -> None:
        """Refuse what is not for this device.

        Raises:
            _RefusedError, TrustError: with the reason.
        """
        facts = Facts(
            arch=platform.machine(),
            ram_bytes=self._ram_bytes,
            runtimes=self._runtimes(),
            agent=edgegen.__version__,
            epoch=self.journal.state.epoch,
        )
        require_epoch(manifest, facts)
        if manifest.base and read_manifest(self.home.release(manifest.base)) is None:
            raise _RefusedError(Reason.BASE_MISSING, f"its base {manifest.base} is not installed here")
        try:
            choose_runtime(manifest, facts)
            self._composed(manifest)
        except UnsupportedError as error:
            raise _RefusedError(Reason.INCOMPATIBLE, str(error)) from error

    def _composed(self, manifest: Manifest) -> tuple[BundleFile, ...]:
        """All files of the release's folder, the base's included."""
        return compose(manifest, read_manifest(self.home.release(manifest.base)) if manifest.base else None)

    def _link_bytes(self, action: Action) -> int | None:
        """What the link may still carry for an action; None: no limit."""
        limit = self._limits.fetch_bytes
        return None if limit is None else max(0, limit - action.bytes_fetched)

    def _fetch(self, action: Action) -> Phase:
        manifest = self._manifest(action)
        staged, folder = self.home.release(action.digest), self.home.arriving(action.digest)
        wanted = manifest
        if staged.is_dir():  # a repair
            wanted = msgspec.structs.replace(manifest, files=_damaged(staged, self._composed(manifest)))
        elif manifest.base:
            self._borrow(manifest, folder)
        make_folders(self._disk, folder)

        def note(moved: Transfer) -> None:
            spent = action.bytes_fetched + moved.bytes_fetched
            self.journal.act(bytes_fetched=spent, bytes_reused=moved.bytes_reused)

        def between(moved: Transfer) -> None:
            running = self.journal.state.action
            assert running is not None
            if moved.bytes_finished and running.restarts:
                self.journal.act(restarts=0)  # slow, but it goes on
            if action.bytes_fetched + moved.bytes_fetched - running.bytes_fetched >= _NOTED_BYTES:
                note(moved)
            self._tick()

        others = ((path, known) for path, known in self.home.installed() if path != folder)
        with contextlib.closing(self._fetcher(action)) as fetcher:
            assembly = Assembly(
                folder,
                wanted,
                index_places(others),
                disk=self._disk,
                fetcher=fetcher,
                clock=self._clock,
                limits=LinkLimits(self._link_bytes(action), self._limits.on_delta_fail == "full"),
                between=between,
                dice=self._dice,
            )
            try:
                moved = assembly.run()
            except (EdgegenError, *_STOPS):
                note(assembly.transfer())
                raise
        # Before the journal goes on: what is verified next comes from the system's cache, whatever the disk holds.
        sync_tree(self._disk, folder)
        self._disk.sync_folder(self.home.incoming)
        note(moved)
        return Phase.VERIFY

    def _borrow(self, manifest: Manifest, folder: Path) -> None:
        """Give the base's files a second name in a release that refers to it; copied where there are no hard links."""
        base = self.home.release(manifest.base)
        own = {file.path for file in manifest.files}
        for file in self._composed(manifest):
            source, path = base / file.path, folder / file.path
            if file.path in own or path.exists():
                continue
            make_folders(self._disk, path.parent)
            try:
                self._disk.link(source, path)
            except OSError:
                self._disk.write(path, source.read_bytes())

    def _verify(self, action: Action) -> Phase:
        manifest = self._manifest(action)
        staged, arriving = self.home.release(action.digest), self.home.arriving(action.digest)
        files, repairs = self._composed(manifest), _REPAIRS
        if staged.is_dir():
            # A copy that was whole once; what went bad in it is put together beside it.
            files, repairs = _damaged(staged, files), _REPAIRS + 1
            if not files and _is_stored(staged, action.digest):
                return Phase.SELF_TEST
        damaged = damaged_files(arriving, files)
        if not damaged:
            return Phase.STAGE
        if action.attempt >= repairs:
            raise DeviceError(f"{', '.join(damaged[:3])}: not what was written", hint="Check the disk.")
        self.journal.act(attempt=action.attempt + 1)
        return Phase.FETCH

    def _stage(self, action: Action) -> Phase:
        staged, arriving = self.home.release(action.digest), self.home.arriving(action.digest)
        if not staged.is_dir():
            self._disk.rename(arriving, staged)
        else:
            self._repair(action, staged, arriving)
        self._disk.sync_folder(self.home.releases)
        self._disk.sync_folder(self.home.incoming)
        return Phase.SELF_TEST

    def _repair(self, action: Action, staged: Path, arriving: Path) -> None:
        """Put whole files in the place of a release's damaged ones, one by one: each is the old or the new one."""
        files = self._composed(self._manifest(action))
        for file in files:
            if (arriving / file.path).is_file() and not damaged_files(arriving, [file]):
                make_folders(self._disk, (staged / file.path).parent)
                self._disk.rename(arriving / file.path, staged / file.path)
                self._disk.sync_folder((staged / file.path).parent)
        if not _is_stored(staged, action.digest) and _is_stored(arriving, action.digest):
            self._disk.rename(arriving / MANIFEST, staged / MANIFEST)
            self._disk.sync_folder(staged)
        remove_tree(self._disk, arriving)

    def _self_test(self, action: Action) -> Phase:
        manifest = self._manifest(action)
        if action.attempt > manifest.health.max_restarts:
            raise _RefusedError(Reason.CRASHED, f"the device stopped {action.attempt} times while testing it")
        allowed_s = self._limits.deadline_s(Phase.SELF_TEST)
        if manifest.health.load_timeout_s > allowed_s:
            # The device's own limit counts; that a load was cut off by it says nothing of the release.
            self._longer = (
                f", this device's limit (limits.deadlines_s.self-test); the release may take "
                f"{manifest.health.load_timeout_s:g} s to load"
            )
        with self._counted(action):
            _require(self._tester.test(self.home.release(action.digest), manifest, self._tick))
        return Phase.SWITCH

    def _switch(self, action: Action) -> Phase:
        if action.withdrawn and self.home.current() != action.digest:
            raise CanceledError("canceled by the server")
        if action.old and action.old != action.digest:
            self.home.point("previous", action.old)
        self.home.point("current", action.digest)
        return Phase.PROBATION

    def _probation(self, action: Action) -> Phase:
        manifest = self._manifest(action)
        if action.attempt > manifest.health.max_restarts:
            raise _RefusedError(Reason.CRASHED, f"not confirmed after {action.attempt} starts")
        needed_s = manifest.health.load_timeout_s + manifest.health.probation_s + _SLACK_S
        self._deadline = max(self._deadline, self._clock.monotonic() + needed_s)
        with self._counted(action):
            if action.old == action.digest:
                self._serving.stop()  # it was repaired, and what runs may hold its damaged files open
            self._serving.start(action.digest)
            _require(self._serving.watch(manifest, self._tick))
        return Phase.CONFIRM

    @contextlib.contextmanager
    def _counted(self, action: Action) -> Iterator[None]:
        """A start of the release's model, written down before it; taken back where somebody stops the agent."""
        self.journal.act(attempt=action.attempt + 1)
        try:
            yield
        except _STOPS:
            self.journal.act(attempt=action.attempt)
            raise

    def _confirm(self, action: Action) -> Phase:
        manifest = self._manifest(action)
        state = self.journal.state
        self.journal.save(
            msgspec.structs.replace(state, epoch=max(state.epoch, manifest.epoch), confirmed=action.digest)
        )
        return Phase.CONFIRMED

    def _roll_back(self, action: Action) -> Phase:
        if self.home.current() != action.old:
            self._serving.stop()
        self.home.point("current", action.old)
        self.home.point("previous", action.older if action.older != action.old else "")
        if action.old:
            try:
                self._serving.start(action.old)
            except DeviceError as error:  # damaged since: nothing serves, but another release may come
                self.journal.act(detail=f"{action.detail}; and then: {error}")
        return Phase.ROLLED_BACK


def _is_stored(folder: Path, digest: str) -> bool:
    """Whether a folder has the manifest with this digest."""
    try:
        return digest_bytes((folder / MANIFEST).read_bytes()) == digest
    except OSError:
        return False


def _damaged(folder: Path, files: tuple[BundleFile, ...]) -> tuple[BundleFile, ...]:
    """Those files that a folder does not have as they should be."""
    names = set(damaged_files(folder, files))
    return tuple(file for file in files if file.path in names)


def _require(verdict: Verdict) -> None:
    if verdict.reason is not Reason.NONE:
        raise _RefusedError(verdict.reason, verdict.detail)
