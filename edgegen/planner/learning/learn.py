"""What devices measured → corrected coefficients of their profile.

- **Decode speed** fits factors on bandwidth, on the kernels (one for a target, and one for each grid where releases mix
  grids differently), on dispatch and on attention, all at once (`speed`, `fit`). One release tells a common factor of
  whichever side of the roofline is the longer; several of other sizes and grids tell them apart. What is not told
  stays.
- **Time to first token** gives one factor on a target's prompt kernels, **resident memory** an offset, **loading** a
  rate: medians over observations (`medians`).

A factor that all kernels of a target share is carried over to grids that no release has, and the number's note says so:
a clock or a memory bus that is not what was assumed slows all of them, and planning with some grids corrected and
others not would choose by that difference. Everything else that was not measured stays as it was.

How far a number is expected to be off before anything is known depends on its source: one that was measured on such a
device hardly, one from a data sheet or assumed much. Measurements of one device are not of the next: each observation
counts with what devices of a kind differ by, however many answers it has.

Learning starts from the profile as it was before anything was learned, so doing it again gives the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from edgegen.catalog.learned import number_at, unlearned, with_numbers
from edgegen.errors import ConfigError
from edgegen.planner.learning.accuracy import (
    contradictions,
    errors_of,
    first_token_of,
    loading_of,
    memory_of,
    speed_errors,
)
from edgegen.planner.learning.cases import BANDWIDTH, Change, span_of, targets_of, usable_cases, value_of
from edgegen.planner.learning.medians import from_loading, from_memory, from_prompts
from edgegen.planner.learning.speed import from_speed
from edgegen.records.learning import Coefficient, Learning, Observations
from edgegen.records.profile import Before, Learned, Profile
from edgegen.records.target import Target


def learn(
    profile: Profile,
    targets: Mapping[str, Target],
    found: Observations,
    *,
    min_reports: int = 20,
    now_s: float | None = None,
) -> Learning:
    """Correct a profile by what devices of its kind measured.

    Args:
        profile: as it is; what was learned before is taken back first.
        targets: name → target, at least the profile's own.
        found: of any devices; those that are of another profile are left out.
        min_reports: fewest answers to learn from.
        now_s: instead of the clock; for the notes.

    Raises:
        ConfigError: too few usable answers; the message says what is wrong with the others.
        UnsupportedError: a target that the profile's processor has no kernel costs for.
    """
    old = unlearned(profile)
    cases, left_out, throttled = usable_cases(old, targets, found)
    reports = sum(case.seen.answers for case in cases)
    if reports < max(1, min_reports):
        raise ConfigError(_too_few(old, reports, min_reports, left_out, throttled), hint=_HINT)
    day = time.strftime("%Y-%m-%d", time.gmtime(found.at_s if now_s is None else now_s))
    notes: list[str] = []
    changes: dict[str, Change] = {}
    speeds = [case for case in cases if case.seen.tokens_per_s is not None]
    if speeds:
        changes |= from_speed(old, targets, speeds, notes)
    kernels = with_numbers(old, {key: change.number(day) for key, change in changes.items()})
    for target in targets_of(cases):
        own = [case for case in cases if case.release.target == target]
        changes |= from_prompts(old, kernels, targets, target, own)
        changes |= from_memory(old, target, own)
        changes |= from_loading(target, own)
    new = with_numbers(old, {key: change.number(day) for key, change in changes.items()})
    speed, points = speed_errors(old, new, targets, speeds)
    notes += contradictions(points)
    if not speeds:
        notes.append("No answer told its decode speed, so nothing was learned about it.")
    days = [time.strftime("%Y-%m-%d", time.gmtime(at)) for at in span_of(cases)]
    learned = Learned(
        reports=reports,
        devices=len({case.seen.device for case in cases}),
        releases=len({case.release.digest for case in cases}),
        since=days[0],
        until=days[1],
        speed_error_before=speed.before,
        speed_error=speed.after,
        before=tuple(Before(key, number_at(old, key)) for key in changes),
    )
    return Learning(
        profile=msgspec.structs.replace(new, learned=learned) if changes else old,
        coefficients=_coefficients(old, targets, changes, day, targets_of(cases)),
        reports=reports,
        devices=learned.devices,
        releases=learned.releases,
        throttled=throttled,
        left_out=left_out,
        speed=speed,
        first_token=errors_of(first_token_of(old, new, targets, case) for case in cases),
        memory=errors_of(memory_of(old, new, case) for case in cases),
        load=errors_of(loading_of(old, new, case) for case in cases),
        points=points,
        notes=tuple(notes),
    )


_HINT = "Wait for more, look at a longer time with --days, or lower --min-reports."


def _too_few(profile: Profile, reports: int, least: int, left_out: dict[str, int], throttled: int) -> str:
    others = [f"{count:,} {why}" for why, count in left_out.items()]
    others += [f"{throttled:,} throttled"] if throttled else []
    besides = f"; left out: {', '.join(others)}" if others else ""
    return f"{profile.name}: {reports:,} usable reports, and {least:,} are the fewest to learn from{besides}"


_TITLES = {
    "kernel_ns_per_weight": ("kernel", "ns/weight"),
    "prefill_ns_per_weight": ("prompt kernel", "ns/weight"),
    "overhead_s_per_layer_token": ("dispatch", "s/block"),
    "attention_s_per_cached_number": ("attention", "s/number"),
    "rss_offset_bytes": ("memory beyond the model", "bytes"),
    "load_bytes_per_s": ("loading", "bytes/s"),
}


def _coefficients(
    old: Profile, targets: Mapping[str, Target], changes: dict[str, Change], day: str, met: list[str]
) -> tuple[Coefficient, ...]:
    """All that changed, and what stays with the reason."""
    keys = [BANDWIDTH, *(key for key in changes if key != BANDWIDTH)]
    for target in met:
        for table in ("overhead_s_per_layer_token", "attention_s_per_cached_number"):
            key = f"{table}.{target}"
            if key not in changes and value_of(old, targets, key, target) > 0:
                keys.append(key)
        kernels = [f"kernel_ns_per_weight.{grid.name}" for grid in targets[target].grids]
        if not any(key in changes for key in kernels):
            keys += [key for key in kernels if number_at(old, key) is not None]
    result = []
    for key in keys:
        table, _, entry = key.partition(".")
        title, unit = ("read bandwidth", "bytes/s") if key == BANDWIDTH else _TITLES[table]
        change = changes.get(key)
        was = number_at(old, key)
        result.append(
            Coefficient(
                key=key,
                title=title if key == BANDWIDTH else f"{title} {entry}",
                unit=unit,
                was=was,
                was_value=change.was if change else was.value if was else None,
                now=change.number(day) if change else None,
                basis="stays" if change is None else "carried over" if change.carried else "measured",
                reports=change.reports if change else 0,
                devices=change.devices if change else 0,
                why="" if change else "no release that was measured tells it apart from the others",
            )
        )
    return tuple(result)
