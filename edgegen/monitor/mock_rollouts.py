"""Releases on their way through the simulated fleet, and what happened to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.operations import Begin, WhichRollout
from edgegen.monitor.simulated import GROUPS, MODEL, RELEASES, VERSIONS, Simulated, chance, pick
from edgegen.records.base import Record
from edgegen.records.deployment import ActionState, ActionView, Phase, Rollout, RolloutState, Thresholds, Wave
from edgegen.records.monitor import AskEvents, EventRow

_WAVES = (0.05, 0.25, 1.0)
_WAVE_S = 600.0
"""From one wave to the next."""
_STEP_S = 240.0
"""That a device takes, at most."""
_EVENT_S = 7.0
"""Between two events of the fleet."""
_KEPT_S = 7 * 86400.0

_HAPPENINGS: tuple[tuple[str, str, str], ...] = (
    ("info", "polled", "nothing to do"),
    ("info", "canary-passed", "6 of 6 golden prompts"),
    ("warning", "throttled", "SoC at 81 °C, clock 1.0 GHz"),
    ("warning", "spool-full", "12 reports of lane text dropped: quota"),
    ("warning", "clock-skew", "device is 2 h behind"),
    ("error", "generation-failed", "llama_decode returned 1"),
    ("error", "crashed", "serve ended with \x1b[1mSIGSEGV\x1b[0m, started again"),
    ("info", "feedback", "thumbs down: [red]not what I asked[/red]"),
)


class MockRollouts:
    """Three rollouts: one finished, one that stopped itself, one that runs."""

    def __init__(self, devices: Sequence[Simulated], seed: int, now_s: float) -> None:
        self._devices = devices
        self._seed = seed
        self.began_s = now_s - 900.0
        """When the one that runs began."""
        self._rollouts = [
            _new(1, 1, GROUPS[0], now_s - 5 * 86400.0),
            _new(2, 1, GROUPS[1], now_s - 4 * 86400.0),
            _new(3, 2, GROUPS[2], now_s - 2 * 3600.0),
            _new(4, 2, GROUPS[0], self.began_s),
        ]
        self._stopped: dict[int, tuple[RolloutState, float, str]] = {
            3: (RolloutState.PAUSED, now_s - 3600.0, "8.3% of 24 devices failed, more than 5.0%: too-slow")
        }
        self._acts: list[tuple[float, str, Rollout]] = []

    def release_of(self, device: Simulated, at_s: float) -> int:
        """Index of what a device runs at a time."""
        group, found = GROUPS[device.group], 0
        for rollout in self._rollouts:
            if rollout.group == group and self._outcome(rollout, device, at_s)[0] is ActionState.CONFIRMED:
                found = RELEASES.index(rollout.digest)
        return found

    def phase_of(self, device: Simulated, at_s: float) -> str:
        """Phase of the update that runs on a device, empty where none does."""
        for rollout in reversed(self._rollouts):
            if rollout.group == GROUPS[device.group]:
                state, phase, _ = self._outcome(rollout, device, at_s)
                return str(phase) if state is ActionState.RUNNING else ""
        return ""

    def running(self, at_s: float) -> str:
        """The newest rollout that runs, in words."""
        for rollout in reversed(self.all(at_s)):
            if rollout.state is RolloutState.RUNNING:
                states = _summed(rollout)
                done = states.get(ActionState.CONFIRMED, 0)
                whole = sum(states.values())
                return f"{rollout.name}@{rollout.version} → {rollout.group} {done}/{whole} confirmed"
        return ""

    def all(self, at_s: float) -> tuple[Rollout, ...]:
        """Newest first."""
        return tuple(self._seen(rollout, at_s) for rollout in reversed(self._rollouts) if rollout.created_s <= at_s)

    def actions(self, rollout: int, at_s: float) -> tuple[ActionView, ...]:
        found = self._named(rollout)
        views = []
        for place, device in enumerate(self._members(found)):
            state, phase, reason = self._outcome(found, device, at_s)
            wave = _wave_of(place, len(self._members(found)))
            views.append(
                ActionView(
                    id=rollout * 100_000 + device.number,
                    rollout=rollout,
                    device=device.name,
                    wave=wave + 1,
                    state=state,
                    phase=str(phase),
                    reason=reason,
                    digest=found.digest,
                    from_digest=RELEASES[max(0, RELEASES.index(found.digest) - 1)],
                    offered_s=None if state is ActionState.WAITING else found.created_s + wave * _WAVE_S,
                )
            )
        return tuple(views)

    def act(self, name: str, asked: Record, at_s: float) -> Any:
        if isinstance(asked, Begin):
            if asked.group not in GROUPS:
                raise ConfigError(f"there is no device in the group {asked.group[:40]!r}")
            release = next((i for i, d in enumerate(RELEASES) if d.startswith(asked.release)), None)
            if release is None:
                raise ConfigError(f"there is no release {asked.release[:40]!r}")
            rollout = _new(len(self._rollouts) + 1, release, asked.group, at_s)
            self._rollouts.append(rollout)
            self._acts.append((at_s, "begin", rollout))
            return self._seen(rollout, at_s)
        assert isinstance(asked, WhichRollout), "all others name a rollout"
        rollout = self._named(asked.rollout)
        state = self._seen(rollout, at_s).state
        if state not in (RolloutState.RUNNING, RolloutState.PAUSED) and name != "rollback":
            raise ConfigError(f"rollout {rollout.id} is {state}", hint="Only one that runs can be stopped.")
        if name == "resume":
            self._stopped.pop(rollout.id, None)
        else:
            into = RolloutState.PAUSED if name == "pause" else RolloutState.ABORTED
            self._stopped[rollout.id] = (into, at_s, f"{name} by an operator")
        self._acts.append((at_s, name, rollout))
        return (self._seen(rollout, at_s),) if name == "rollback" else self._seen(rollout, at_s)

    def events(self, ask: AskEvents, at_s: float) -> tuple[EventRow, ...]:
        """What happened: acts, and every few seconds something on a device."""
        origin = self.began_s - _KEPT_S
        last = int((at_s - origin) // _EVENT_S)
        rows: list[EventRow] = []
        number = last
        while number > max(ask.after, last - 40_000) and len(rows) < ask.limit:
            row = self._event(number, origin)
            number -= 1
            if (ask.device and row.device != ask.device) or (ask.group and row.group != ask.group):
                continue
            if not ask.level or row.level == ask.level:
                rows.append(row)
        return tuple(reversed(rows))

    def _event(self, number: int, origin: float) -> EventRow:
        begin = origin + number * _EVENT_S
        for at_s, what, rollout in self._acts:
            if begin <= at_s < begin + _EVENT_S:
                words = f"{rollout.name}@{rollout.version} (rollout {rollout.id})"
                return EventRow(number, at_s, "warning", what, "", rollout.group, f"operator:you {words}")
        device = self._devices[pick(len(self._devices), self._seed, number, 21)]
        weight = chance(self._seed, number, 22)
        kind = 0 if weight < 0.45 else 1 if weight < 0.75 else 2 + pick(6, self._seed, number, 23)
        level, what, detail = _HAPPENINGS[kind]
        at_s = begin + chance(self._seed, number, 24)
        return EventRow(number, at_s, level, what, device.name, GROUPS[device.group], detail)

    def _named(self, rollout: int) -> Rollout:
        for known in self._rollouts:
            if known.id == rollout:
                return known
        raise ConfigError(f"there is no rollout {rollout}")

    def _members(self, rollout: Rollout) -> list[Simulated]:
        first = GROUPS.index(rollout.group)
        return list(self._devices[first :: len(GROUPS)])

    def _seen(self, rollout: Rollout, at_s: float) -> Rollout:
        stopped = self._stopped.get(rollout.id)
        members = self._members(rollout)
        counts: list[Counter[str]] = [Counter() for _ in _WAVES]
        for place, device in enumerate(members):
            counts[_wave_of(place, len(members))][self._outcome(rollout, device, at_s)[0]] += 1
        begun = [rollout.created_s + _WAVE_S * number for number in range(len(_WAVES))]
        limit = stopped[1] if stopped else at_s
        waves = tuple(
            Wave(
                number=number + 1,
                fraction=fraction,
                devices=sum(counts[number].values()),
                states={str(state): count for state, count in sorted(counts[number].items())},
                begun_s=begun[number] if begun[number] <= limit else None,
                succeeded_s=begun[number] + _WAVE_S if begun[number] + _WAVE_S <= limit else None,
            )
            for number, fraction in enumerate(_WAVES)
        )
        ended = begun[-1] + _WAVE_S
        state, reason = (stopped[0], stopped[2]) if stopped else (RolloutState.RUNNING, "")
        if not stopped and at_s > ended:
            state = RolloutState.FINISHED
        if any(other.group == rollout.group and other.id > rollout.id for other in self._rollouts):
            state = RolloutState.SUPERSEDED if state is RolloutState.RUNNING else state
        finished = ended if state is RolloutState.FINISHED else None
        return msgspec.structs.replace(rollout, state=state, reason=reason, waves=waves, finished_s=finished)

    def _outcome(self, rollout: Rollout, device: Simulated, at_s: float) -> tuple[ActionState, Phase, str]:
        """Where a device is in a rollout at a time."""
        stopped = self._stopped.get(rollout.id)
        wave = _wave_of(device.number // len(GROUPS), max(1, len(self._devices) // len(GROUPS)))
        begun = rollout.created_s + wave * _WAVE_S
        if begun > (min(stopped[1], at_s) if stopped else at_s):
            return ActionState.WAITING, Phase.IDLE, ""
        if device.number % 173 == 60 or device.was_never_seen:
            return ActionState.DEFERRED, Phase.IDLE, ""
        share = (at_s - begun) / (_STEP_S * (0.3 + 0.7 * chance(self._seed, device.number, rollout.id, 31)))
        fails = device.is_bad and rollout.id > 2
        if share >= 1:
            if fails:
                return ActionState.FAILED, Phase.ROLLED_BACK, ("too-slow", "golden")[device.number % 2]
            return ActionState.CONFIRMED, Phase.CONFIRMED, ""
        if stopped and stopped[0] is RolloutState.ABORTED and at_s >= stopped[1]:
            return ActionState.CANCELED, Phase.FAILED, "canceled"
        if share < 0.1:
            return ActionState.OFFERED, Phase.IDLE, ""
        phases = (Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.SELF_TEST, Phase.PROBATION)
        return ActionState.RUNNING, phases[min(4, int(share * 5))], ""


def _new(number: int, release: int, group: str, created_s: float) -> Rollout:
    return Rollout(
        id=number,
        name=MODEL,
        version=VERSIONS[release],
        digest=RELEASES[release],
        group=group,
        state=RolloutState.RUNNING,
        reason="",
        kind="update",
        thresholds=Thresholds(abort_fraction=0.05),
        waves=(),
        created_s=created_s,
        created_by="operator:anna",
    )


def _wave_of(place: int, members: int) -> int:
    share = (place + 1) / max(1, members)
    return next((number for number, fraction in enumerate(_WAVES) if share <= fraction), len(_WAVES) - 1)


def _summed(rollout: Rollout) -> Counter[str]:
    whole: Counter[str] = Counter()
    for wave in rollout.waves:
        whole.update(wave.states)
    return whole
