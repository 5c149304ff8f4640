"""How far predictions are from measurements, with the numbers of before and with those of now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from edgegen.planner.cost import Device, prefill_s, token_parts, token_s_of
from edgegen.planner.learning.cases import Case, Devices
from edgegen.records.learning import Errors, Point
from edgegen.records.profile import Profile
from edgegen.records.target import Target

_DISAGREE = 1.5
"""Fastest device over slowest, at the same work, from which it is said."""


def parts_of(case: Case, device: Device) -> dict[str, float]:
    return token_parts(case.terms, device, prompt_tokens=1)


def speed_errors(
    old: Profile, new: Profile, targets: Mapping[str, Target], cases: list[Case]
) -> tuple[Errors, tuple[Point, ...]]:
    points = []
    made = [Devices(one, targets) for one in (old, new)]
    for case in cases:
        before, after = (1 / token_s_of(parts_of(case, one.of(case))) for one in made)
        measured = case.seen.tokens_per_s or math.nan
        points.append(
            Point(case.seen.device, case.release.label, case.seen.speed_answers, measured, float(before), float(after))
        )
    found = errors_of((point.measured, point.before, point.after) for point in points)
    return found or Errors(0, 0.0, 0.0), tuple(points)


def first_token_of(
    old: Profile, new: Profile, targets: Mapping[str, Target], case: Case
) -> tuple[float, float, float] | None:
    if case.seen.ttft_s is None or not case.seen.prompt_tokens:
        return None
    prompt = case.seen.prompt_tokens
    together = max(1, int(min(case.release.settings.ubatch_tokens, prompt)))

    def first_s(profile: Profile) -> float:
        device = Devices(profile, targets).of(case)
        return prompt * prefill_s(case.terms, device, together=together) + token_s_of(parts_of(case, device))

    return case.seen.ttft_s, first_s(old), first_s(new)


def memory_of(old: Profile, new: Profile, case: Case) -> tuple[float, float, float] | None:
    if case.seen.peak_rss_bytes is None:
        return None
    before, after = (
        case.terms.rss_bytes + (offset.value if (offset := one.rss_offset_bytes.get(case.release.target)) else 0.0)
        for one in (old, new)
    )
    return case.seen.peak_rss_bytes, before, after


def loading_of(old: Profile, new: Profile, case: Case) -> tuple[float, float, float] | None:
    rates = [one.load_bytes_per_s.get(case.release.target) for one in (old, new)]
    if case.seen.load_s is None or rates[0] is None or rates[1] is None:
        return None
    return case.seen.load_s, case.terms.model_bytes / rates[0].value, case.terms.model_bytes / rates[1].value


def errors_of(found: Iterable[tuple[float, float, float] | None]) -> Errors | None:
    """Of (measured, predicted before, predicted after)."""
    triples = [item for item in found if item is not None]
    if not triples:
        return None
    measured, before, after = np.array(triples).T
    return Errors(
        n=len(triples),
        before=float(np.median(np.abs(before / measured - 1))),
        after=float(np.median(np.abs(after / measured - 1))),
    )


def contradictions(points: tuple[Point, ...]) -> list[str]:
    """Devices of one profile that are not alike."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for point in points:
        ratios[point.device].append(point.measured / point.after)
    level = {device: float(np.median(values)) for device, values in ratios.items()}
    if len(level) < 2:
        return []
    slow, fast = min(level, key=lambda d: level[d]), max(level, key=lambda d: level[d])
    if level[fast] < _DISAGREE * level[slow]:
        return []
    return [
        f"Devices disagree: at the same work {fast} is {level[fast] / level[slow]:.1f} times as fast as {slow}. "
        "The coefficients are those of most; give devices of another kind a profile of their own."
    ]
