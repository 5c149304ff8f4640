"""What a median tells: one factor on a target's prompt kernels, its memory beyond the model, how fast it loads."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgegen.planner.cost import prefill_s, token_parts, token_s_of
from edgegen.planner.learning.cases import (
    Case,
    Change,
    Devices,
    change_of,
    keeps_kernel,
    prior_of,
    sigma_of,
    value_of,
)
from edgegen.records.profile import Profile
from edgegen.records.target import Target


def from_prompts(
    old: Profile, kernels: Profile, targets: Mapping[str, Target], target: str, cases: list[Case]
) -> dict[str, Change]:
    """One factor on all of a target's prompt kernels.

    Args:
        old: the profile of before.
        kernels: with what decode speed corrected, which prompt kernels follow where nothing timed them.
    """
    logs, evidence = [], []
    devices = Devices(kernels, targets)
    for case in cases:
        ttft_s, prompt, speed = case.seen.ttft_s, case.seen.prompt_tokens, case.seen.tokens_per_s
        if ttft_s is None or not prompt or not case.terms.prompt_weights:
            continue
        device = devices.of(case)
        token_s = 1 / speed if speed else token_s_of(token_parts(case.terms, device, prompt_tokens=1))
        together = max(1.0, min(case.release.settings.ubatch_tokens, prompt))
        dispatch_s = case.terms.layers * device.dispatch_s / together
        predicted_s = prefill_s(case.terms, device, together=1 << 62)
        needed_s = (ttft_s - token_s) / prompt - dispatch_s
        if needed_s > 0.02 * predicted_s:  # less: the prompt was not read, or something else takes the time
            logs.append(math.log(needed_s / predicted_s))
            evidence.append(case)
    if not evidence:
        return {}
    prior = min(prior_of(old.prefill_ns_per_weight.get(g)) for case in evidence for g in case.terms.prompt_weights)
    factor = math.exp(_drawn(logs, prior))
    seen = {grid for case in evidence for grid in case.terms.prompt_weights}
    changes = {}
    for grid in targets[target].grids:
        if keeps_kernel(targets[target], grid.name):
            key = f"prefill_ns_per_weight.{grid.name}"
            now = value_of(kernels, targets, key, target) * factor
            was = value_of(old, targets, key, target)
            changes[key] = change_of(was, now, evidence, carried=grid.name not in seen)
    return changes


def _drawn(logs: list[float], prior: float) -> float:
    """The median of logarithms, drawn to 0 as far as the prior outweighs it; its pull ends at one deviation."""
    median = float(np.median(logs))
    variance = (1.57 * sigma_of(1000) ** 2) / len(logs)  # of a median of normal numbers
    pull = variance / prior**2 * min(abs(median) / (1 + variance / prior**2), prior)
    return math.copysign(max(0.0, abs(median) - pull), median)


def from_memory(profile: Profile, target: str, cases: list[Case]) -> dict[str, Change]:
    evidence = [case for case in cases if case.seen.peak_rss_bytes is not None]
    if not evidence:
        return {}
    offset = float(np.median([(case.seen.peak_rss_bytes or 0.0) - case.terms.rss_bytes for case in evidence]))
    room = profile.device.ram_bytes.value
    # A process needs some memory: an offset never takes more than nine tenths of the smallest model's.
    offset = min(max(offset, -0.9 * min(case.terms.rss_bytes for case in evidence)), 0.9 * room)
    was = profile.rss_offset_bytes.get(target)
    return {f"rss_offset_bytes.{target}": change_of(was.value if was else None, float(round(offset)), evidence)}


def from_loading(target: str, cases: list[Case]) -> dict[str, Change]:
    evidence = [case for case in cases if case.seen.load_s is not None and case.terms.model_bytes > 0]
    if not evidence:
        return {}
    rate = float(np.median([case.terms.model_bytes / (case.seen.load_s or math.nan) for case in evidence]))
    return {f"load_bytes_per_s.{target}": change_of(None, rate, evidence)}
