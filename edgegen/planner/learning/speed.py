"""Decode speed → bandwidth, kernels, dispatch and attention, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from edgegen.catalog.learned import number_at
from edgegen.planner.cost import Device, token_parts
from edgegen.planner.learning.cases import (
    BANDWIDTH,
    PRIORS,
    Case,
    Change,
    Devices,
    change_of,
    keeps_kernel,
    prior_of,
    sigma_of,
    targets_of,
    value_of,
)
from edgegen.planner.learning.fit import Fit, Floats, Parts, fit
from edgegen.records.profile import Profile
from edgegen.records.target import Target

_OWN_GRID = 0.15
"""The same of one grid's kernels against the others' of its target."""
_MATTERS = 0.1
"""Share of a token's time from which an observation is evidence for a coefficient."""


class _Part(msgspec.Struct, frozen=True):
    """One column of the fit."""

    key: str
    side: int
    target: str
    grid: str = ""


def from_speed(
    profile: Profile, targets: Mapping[str, Target], cases: list[Case], notes: list[str]
) -> dict[str, Change]:
    columns = [_Part(BANDWIDTH, 0, "")]
    for name in targets_of(cases):
        grids = {grid for case in cases if case.release.target == name for grid in case.terms.weights}
        columns += [_Part(f"kernel_ns_per_weight.{grid}", 1, name, grid) for grid in sorted(grids)]
        columns.append(_Part(f"overhead_s_per_layer_token.{name}", 2, name))
        columns.append(_Part(f"attention_s_per_cached_number.{name}", 2, name))
    devices = Devices(profile, targets)
    seconds = np.array([[_part_s(devices.of(case), case, part) for part in columns] for case in cases])
    mixing, priors, names = _parameters(profile, targets, cases, columns, seconds)
    parts = Parts(
        seconds=seconds,
        sides=np.array([part.side for part in columns]),
        mixing=mixing,
        priors=priors,
        measured_s=np.array([1 / (case.seen.tokens_per_s or math.nan) for case in cases]),
        sigmas=np.array([sigma_of(case.seen.speed_answers) for case in cases]),
    )
    result = fit(parts)
    notes += [_rival_note(names[known], names[other]) for known, other in result.rivals]
    return _speed_changes(profile, targets, cases, columns, parts, result)


def _part_s(device: Device, case: Case, part: _Part) -> float:
    if part.target and part.target != case.release.target:
        return 0.0
    terms = case.terms
    if part.grid:
        return terms.weights.get(part.grid, 0) * device.seconds_per_weight[part.grid] / device.threads
    which = {0: "bandwidth"}.get(part.side) or ("dispatch" if part.key.startswith("overhead") else "attention")
    return token_parts(terms, device, prompt_tokens=1)[which]


def _parameters(
    profile: Profile, targets: Mapping[str, Target], cases: list[Case], columns: list[_Part], seconds: Floats
) -> tuple[Floats, Floats, list[str]]:
    """(J, K) which parameters scale a column, (K,) priors, (K,) names."""
    scales: list[Floats] = []
    priors: list[float] = []
    names: list[str] = []

    def add(name: str, prior: float, wanted: Callable[[int, _Part], bool]) -> None:
        row = np.array([float(wanted(j, part)) for j, part in enumerate(columns)])
        if (seconds @ row > 0).any():
            scales.append(row)
            priors.append(prior)
            names.append(name)

    add("the bandwidth", prior_of(profile.device.bandwidth_bytes_per_s), lambda j, part: part.side == 0)
    for target in targets_of(cases):
        known = [
            j
            for j, part in enumerate(columns)
            if part.side == 1 and part.target == target and keeps_kernel(targets[target], part.grid)
        ]
        given = [profile.kernel_ns_per_weight.get(columns[j].grid) for j in known]
        prior = min((prior_of(number) for number in given), default=PRIORS["table"])
        add(f"the kernels of {target}", prior, lambda j, part, known=known: j in known)  # type: ignore[misc]
        own = [i for i, case in enumerate(cases) if case.release.target == target]
        kernels = seconds[np.ix_(own, known)] if known else np.zeros((0, 0))
        mixes = kernels / np.maximum(kernels.sum(axis=1, keepdims=True), 1e-300) if kernels.size else kernels
        if mixes.size and np.ptp(mixes, axis=0).max() > 0.05:
            for position, j in enumerate(known):
                if mixes[:, position].max() > 0.05:
                    add(f"{columns[j].grid}'s kernel", _OWN_GRID, lambda i, part, j=j: i == j)  # type: ignore[misc]
        for table, word in (("overhead_s_per_layer_token", "dispatch"), ("attention_s_per_cached_number", "attention")):
            key = f"{table}.{target}"
            add(f"{word} of {target}", prior_of(number_at(profile, key)), lambda j, part, key=key: part.key == key)  # type: ignore[misc]
    return np.array(scales).T, np.array(priors), names


def _speed_changes(
    profile: Profile,
    targets: Mapping[str, Target],
    cases: list[Case],
    columns: list[_Part],
    parts: Parts,
    result: Fit,
) -> dict[str, Change]:
    shares = _time_shares(parts, result)
    factors = np.exp(parts.mixing @ result.theta)
    touched = np.flatnonzero(parts.mixing[:, result.identified].sum(axis=1) > 0).tolist()
    changes: dict[str, Change] = {}
    for j, part in enumerate(columns):
        evidence = [case for case, share in zip(cases, shares[:, j], strict=True) if share >= _MATTERS]
        if j not in touched or (not evidence and part.side != 1):
            continue
        was = value_of(profile, targets, part.key, part.target)
        now = was / factors[j] if part.key == BANDWIDTH else was * factors[j]
        own = evidence or [case for case in cases if case.release.target == part.target]
        changes[part.key] = change_of(was, float(now), own, carried=not evidence, why=_bound(parts, result, j))
    for target in targets_of(cases):
        changes |= _carried_over(profile, targets[target], cases, columns, parts, result, changes)
    return changes


def _carried_over(
    profile: Profile,
    target: Target,
    cases: list[Case],
    columns: list[_Part],
    parts: Parts,
    result: Fit,
    changes: dict[str, Change],
) -> dict[str, Change]:
    """The kernels' common factor for grids that no release has."""
    own = [j for j, part in enumerate(columns) if part.side == 1 and part.target == target.name]
    common = [k for k in np.flatnonzero(result.identified) if (parts.mixing[own, k] > 0).sum() > 1] if own else []
    if len(own) == 1:
        common = [k for k in np.flatnonzero(result.identified) if parts.mixing[own[0], k] > 0]
    if not common:
        return {}
    factor = math.exp(sum(float(result.theta[k]) for k in common))
    evidence = [case for case in cases if case.release.target == target.name]
    found = {}
    for grid in target.grids:
        key = f"kernel_ns_per_weight.{grid.name}"
        if key not in changes and keeps_kernel(target, grid.name):
            was = value_of(profile, {target.name: target}, key, target.name)
            found[key] = change_of(was, was * factor, evidence, carried=True)
    return found


def _time_shares(parts: Parts, result: Fit) -> Floats:
    """(N, J) share of each part in the fitted time; 0 of the side of the maximum that is the shorter one."""
    scaled = parts.seconds * np.exp(parts.mixing @ result.theta)
    reading, kernels = (scaled[:, parts.sides == side].sum(axis=1) for side in (0, 1))
    total = np.maximum(reading, kernels) + scaled[:, parts.sides == 2].sum(axis=1)
    shares: Floats = scaled / total[:, None]
    shares[:, parts.sides == 0] *= (reading >= 0.98 * kernels)[:, None]
    shares[:, parts.sides == 1] *= (kernels >= 0.98 * reading)[:, None]
    return shares


def _bound(parts: Parts, result: Fit, j: int) -> str:
    """`at least` for a bandwidth at which reading is nowhere longer than computing: faster would look the same."""
    if parts.sides[j] != 0:
        return ""
    scaled = parts.seconds * np.exp(parts.mixing @ result.theta)
    reading, kernels = (scaled[:, parts.sides == side].sum(axis=1) for side in (0, 1))
    return "at least" if (reading <= 1.02 * kernels).all() else ""


def _rival_note(known: str, other: str) -> str:
    return (
        f"{known[0].upper()}{known[1:]} explains the measurements, but {other} would as well: a release of another "
        "size or with other grids would tell."
    )
