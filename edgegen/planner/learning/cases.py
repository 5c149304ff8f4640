"""Which observations count for a profile, and what they and its numbers are worth before anything is fitted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from edgegen.catalog.learned import number_at
from edgegen.planner.cost import Device, device_of
from edgegen.records.learning import KnownRelease, Observation, Observations
from edgegen.records.plan import Settings, Terms
from edgegen.records.profile import Number, Profile
from edgegen.records.target import Target

_BETWEEN_DEVICES = 0.08
"""Standard deviation of ln(speed) from one device of a kind to the next."""
_BETWEEN_ANSWERS = 0.2
"""The same from one answer to the next on one device."""
PRIORS = {"measured": 0.25, "datasheet": 0.5, "assumed": 0.7, "learned": 0.5, "table": 0.5}
"""Source → standard deviation of ln(true / stated); `table`: from the target's table for the instruction set."""
_FASTEST_BUS = 4e12
"""Bytes a second that no processor's memory gives: a report of more is false."""
BANDWIDTH = "device.bandwidth_bytes_per_s"


class Case(msgspec.Struct, frozen=True):
    """An observation with what it is of."""

    seen: Observation
    release: KnownRelease
    terms: Terms
    threads: int


class Change(msgspec.Struct, frozen=True):
    """A coefficient's new value and what it rests on."""

    was: float | None
    now: float
    reports: int
    devices: int
    carried: bool = False
    why: str = ""

    def number(self, day: str) -> Number:
        note = f"from {self.reports:,} reports of {self.devices} device{'' if self.devices == 1 else 's'}, {day}"
        if self.why:
            note = f"{self.why}; {note}"
        if self.carried:
            note = f"carried over from this target's other grids; {note}"
        return Number(float(f"{self.now:.4g}"), "learned", note)


def usable_cases(
    profile: Profile, targets: Mapping[str, Target], found: Observations
) -> tuple[list[Case], dict[str, int], int]:
    """Observations to learn from; why answers are left out → how many; throttled answers."""
    releases = {release.digest: release for release in found.releases}
    left: Counter[str] = Counter()
    cases, throttled = [], 0
    for seen in found.rows:
        release = releases.get(seen.release)
        count = max(0, seen.answers)
        name = seen.profile or (release.profile if release else "")
        if release is None:
            left["of a release that the fleet does not know"] += count
        elif name and name != profile.name:
            left[f"of another profile, {_harmless(name)}"] += count
        elif not name:
            left["of a device and a release that name no profile"] += count
        elif release.terms is None:
            adapter = release.kind == "adapter"
            left["with an adapter" if adapter else "of a release that was packed without its plan's terms"] += count
        elif release.terms.task == "encoder":
            left["of an encoder"] += count
        elif release.target not in targets or release.target not in profile.targets:
            left["for a target that the profile does not run"] += count
        elif not _knows(release, release.terms, targets[release.target]):
            left["with grids or settings that this edgegen does not know"] += count
        elif count == 0:
            throttled += max(0, seen.throttled)
        else:
            throttled += max(0, seen.throttled)
            plausible = _plausible(seen, release.terms)
            if plausible is None:
                left["with numbers that cannot be"] += count
            else:
                threads = seen.threads if seen.threads and 0 < seen.threads <= 1024 else release.settings.threads
                cases.append(Case(plausible, release, release.terms, threads))
    return cases, dict(left), throttled


def _harmless(name: str) -> str:
    """What a device says, so that it can stand in a message."""
    return "".join(c if c.isprintable() else "�" for c in name[:64])


def _knows(release: KnownRelease, terms: Terms, target: Target) -> bool:
    return {*terms.weights, *terms.prompt_weights} <= set(target.grid_names) and (
        release.settings.kv_type in target.kv_bits and release.settings.threads > 0
    )


def _plausible(seen: Observation, terms: Terms) -> Observation | None:
    """The observation without numbers that no device measures; None where none is left."""

    def within(value: float | None, low: float, high: float) -> float | None:
        return value if value is not None and math.isfinite(value) and low <= value <= high else None

    fastest = min(1e6, _FASTEST_BUS / max(1.0, terms.read_bytes))
    prompt = within(seen.prompt_tokens, 1, 1e7)
    kept = msgspec.structs.replace(
        seen,
        tokens_per_s=within(seen.tokens_per_s, 1e-4, fastest) if seen.speed_answers > 0 else None,
        prompt_tokens=prompt,
        ttft_s=within(seen.ttft_s, 1e-6, 86400.0) if prompt and seen.first_answers > 0 else None,
        peak_rss_bytes=within(seen.peak_rss_bytes, 1e6, 1e14),
        load_s=within(seen.load_s, 1e-5, 86400.0) if seen.loads > 0 else None,
    )
    told = (kept.tokens_per_s, kept.ttft_s, kept.peak_rss_bytes, kept.load_s)
    return kept if any(value is not None for value in told) else None


def targets_of(cases: Iterable[Case]) -> list[str]:
    return list(dict.fromkeys(case.release.target for case in cases))


def span_of(cases: list[Case]) -> tuple[float, float]:
    return min(case.seen.since_s for case in cases), max(case.seen.until_s for case in cases)


class Devices:
    """A profile's coefficients for any case, each made once."""

    def __init__(self, profile: Profile, targets: Mapping[str, Target]) -> None:
        self._profile, self._targets = profile, targets
        self._made: dict[tuple[str, int, str], Device] = {}

    def of(self, case: Case) -> Device:
        settings = case.release.settings
        key = (case.release.target, case.threads, settings.kv_type)
        if key not in self._made:
            wanted = msgspec.structs.replace(settings, threads=case.threads)
            self._made[key] = device_of(self._profile, self._targets[case.release.target], wanted)
        return self._made[key]


def sigma_of(answers: int) -> float:
    """Of ln(a median over so many answers of one device)."""
    return math.hypot(_BETWEEN_DEVICES, _BETWEEN_ANSWERS / math.sqrt(max(1, answers)))


def prior_of(number: Number | None) -> float:
    return PRIORS[number.source if number else "table"]


def keeps_kernel(target: Target, grid: str) -> bool:
    """Whether a profile's number for a grid counts for this target (see `cost.device_of`)."""
    return target.name == "gguf" or target.grid(grid).activation != "float"


def value_of(profile: Profile, targets: Mapping[str, Target], key: str, target: str) -> float:
    """What counts now for a key, from the profile or the target's table, in the profile's unit."""
    number = number_at(profile, key)
    if number is not None:
        return number.value
    settings = _plain_settings(targets[target])
    device = device_of(profile, targets[target], settings)
    table, _, grid = key.partition(".")
    if table == "kernel_ns_per_weight":
        return device.seconds_per_weight[grid] * 1e9
    if table == "prefill_ns_per_weight":
        return device.prefill_seconds_per_weight[grid] * 1e9
    return device.dispatch_s if table == "overhead_s_per_layer_token" else device.seconds_per_cached_number


def _plain_settings(target: Target) -> Settings:
    return Settings(context_tokens=1, ubatch_tokens=1, threads=1, kv_type=next(iter(target.kv_bits)))


def change_of(was: float | None, now: float, evidence: list[Case], *, carried: bool = False, why: str = "") -> Change:
    return Change(
        was=was,
        now=now,
        reports=sum(case.seen.answers for case in evidence),
        devices=len({case.seen.device for case in evidence}),
        carried=carried,
        why=why,
    )
