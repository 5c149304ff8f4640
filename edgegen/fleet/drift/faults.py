"""Whose fault a change is: the device's, the data's or the release's. Pure.

A device asks its release the golden prompts again. The model is the same, the prompts are the same and answers are
greedy, so with an unchanged digest a golden answer that changes is a fault of the device: its memory, its flash, its
heat, its runtime. If the golden answers stand and the prompts of its users moved, the data drifted. If both stand and
answers moved wherever the release runs, it is the release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgegen.records.telemetry import Canary

TOLERANCE = 0.02
"""Nats a token that a golden answer's likelihood may move on one device: threads add up in another order."""
_MOST_DEVICES = 0.5
"""Share of the other devices whose golden answers changed at which it is no longer one device's fault."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about one device and one release."""

    canaries: Mapping[int, Sequence[Canary]]
    """Golden prompt → its runs on this device with this release, in order of time."""
    others_changed: int = 0
    """Other devices with the release whose golden answers changed."""
    others: int = 0
    """Other devices with the release that asked golden prompts at least twice."""
    inputs: tuple[str, ...] = ()
    """Metrics of prompts that drifted on this device."""
    outputs: tuple[str, ...] = ()
    """Metrics of answers that drifted on this device."""
    elsewhere: tuple[str, ...] | None = None
    """Metrics of answers that drifted on the other devices with the release; None: too few answers to tell."""


def whose_fault(evidence: Evidence) -> str:
    """`device: …`, `data: …` or `release: …` in words; empty: nothing changed, or it cannot be told."""
    broken = [prompt for prompt, runs in evidence.canaries.items() if any(run.intact is False for run in runs[-1:])]
    if broken:
        return "device: the release's files on it no longer have their digests; deploy it again and check its storage"
    changed = {prompt: words for prompt, runs in evidence.canaries.items() if (words := canary_change(runs))}
    if changed:
        if evidence.others and evidence.others_changed / evidence.others >= _MOST_DEVICES:
            return (
                f"release: golden answers changed on this device and on {evidence.others_changed} of {evidence.others} "
                "others with the same files; what they share, such as the runtime's version, changed"
            )
        prompt, words = next(iter(sorted(changed.items())))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return (
            f"device: golden prompt {prompt} {words}{more} though the release's digest did not change; "
            "suspect memory, storage, heat or the runtime"
        )
    asked = bool(evidence.canaries)
    if evidence.inputs:
        stands = "golden answers did not change" if asked else "golden prompts were not asked again"
        return f"data: prompts moved ({', '.join(evidence.inputs)}) while {stands}"
    if not evidence.outputs:
        return ""
    shared = set(evidence.outputs) & set(evidence.elsewhere or ())
    if shared:
        return (
            f"release: answers moved ({', '.join(sorted(shared))}) on this device and on the others with it, "
            "and prompts did not"
        )
    return ""


def canary_change(runs: Sequence[Canary]) -> str:
    """How a golden answer differs from its first run on this device, in words; empty: it does not, or ran once."""
    if len(runs) < 2:
        return ""
    first, last = runs[0], runs[-1]
    if last.agreed != first.agreed:
        return f"agrees for {last.agreed} of {last.expected} tokens, {first.agreed} at first"
    if first.ids and last.ids and first.ids != last.ids:
        return "is answered otherwise than at first"
    moved = last.log_prob_drop - first.log_prob_drop
    if abs(moved) > TOLERANCE:
        return f"is {abs(moved):.2f} nats a token {'less' if moved > 0 else 'more'} likely than at first"
    return ""
