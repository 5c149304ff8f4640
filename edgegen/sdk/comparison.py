"""Compare the outputs of several targets and recommend one. Needs no torch, so that a device can compare too."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgegen.catalog import is_this_machine
from edgegen.common.codec import load_json, save_json
from edgegen.common.units import format_bytes
from edgegen.receipt import write_comparison
from edgegen.records.artifact import Artifact
from edgegen.records.bakeoff import BakeOff, Contender, SameWeights
from edgegen.records.model import Task
from edgegen.records.plan import Plan
from edgegen.records.profile import Profile
from edgegen.records.report import Report
from edgegen.sdk.output import BAKEOFF_FILE, Notify, typed_command, verify
from edgegen.verify.matrix import parity_matrix


def compared_targets(out: Path) -> tuple[str, ...]:
    """Targets of the bake-off in a folder that have an output; empty if the folder holds none."""
    if not (out / BAKEOFF_FILE).exists():
        return ()
    found = load_json(out / BAKEOFF_FILE, BakeOff)
    return tuple(c.target for c in found.contenders if (out / c.target / "plan.json").exists())


def verify_all(out: Path, *, emulate: bool = False, command: str = "", notify: Notify | None = None) -> BakeOff:
    """Verify every output of a bake-off again, on this machine, and compare them anew.

    Raises:
        ConfigError: no bake-off there.
    """
    before = load_json(out / BAKEOFF_FILE, BakeOff)
    made = compared_targets(out)
    tell = notify or (lambda *event: None)
    for target in made:
        verify(
            out / target,
            emulate=emulate,
            command=command,
            notify=lambda stage, *event, target=target: tell(f"{target}/{stage}", *event),
        )
    if not made:
        return before
    profile = load_json(out / made[0] / "plan.json", Plan).profile
    lost = {c.target: c for c in before.contenders if c.target not in made}
    return compare(
        out, before.model, profile, tuple(c.target for c in before.contenders), lost, same_weights=before.same_weights
    )


def compare(
    place: Path,
    model: str,
    profile: Profile,
    targets: Sequence[str],
    lost: Mapping[str, Contender],
    *,
    same_weights: SameWeights | None = None,
) -> BakeOff:
    """Compare finished outputs and recommend one; writes bakeoff.json and bakeoff.html.

    Args:
        place: with a folder for each target that was made.
        lost: those that were not, with the reason.
        same_weights: what all have in common, if weights were rounded once for all.
    """
    contenders = [lost[target] if target in lost else _contender(target, place / target) for target in targets]
    outputs = {c.target: place / c.target for c in contenders if c.bytes is not None}
    tasks = [load_json(folder / "artifact" / "artifact.json", Artifact).task for folder in outputs.values()]
    task: Task = tasks[0] if tasks else "causal"
    on_device = is_this_machine(profile)
    ranked = [c for c in contenders if c.passed]
    fastest = max(ranked, key=lambda c: _speed(c, on_device), default=None)
    smallest = min(ranked, key=lambda c: c.bytes or 0, default=None)
    best = min(ranked, key=lambda c: float("inf") if c.kl is None else c.kl, default=None)
    found = BakeOff(
        schema=1,
        model=model,
        profile=profile.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=typed_command(),
        contenders=tuple(contenders),
        pairs=parity_matrix(outputs),
        recommended=fastest.target if fastest else "",
        why=_why(fastest, smallest, best, profile, on_device, task),
        fastest=fastest.target if fastest else "",
        smallest=smallest.target if smallest else "",
        best_quality=best.target if best else "",
        task=task,
        same_weights=same_weights,
    )
    save_json(place / BAKEOFF_FILE, found)
    write_comparison(place / "bakeoff.html", found)
    return found


def _contender(target: str, folder: Path) -> Contender:
    report = load_json(folder / "report.json", Report)
    plan = load_json(folder / "plan.json", Plan)
    missed = [check.name for check in report.checks if not check.passed]
    speed = report.speed
    return Contender(
        target=target,
        passed=report.passed,
        failure=f"misses {', '.join(missed)}" if missed else "",
        exit_code=0 if report.passed else 5,
        runtime=report.runtime,
        bytes=report.artifact_bytes,
        kl=_distance(report),
        rss_bytes=report.memory.peak_rss_bytes if report.memory else None,
        predicted_tokens_per_s=plan.prediction.decode_tokens_per_s,
        measured_tokens_per_s=speed.decode_tokens_per_s if speed else None,
        load_ms=speed.load_ms if speed else None,
        ttft_ms=speed.ttft_ms if speed else None,
    )


def _distance(report: Report) -> float | None:
    """KL with a trimmed vocabulary's cost, or 1 - cosine similarity."""
    if report.vectors is not None:
        return 1 - report.vectors.cosine.value
    return report.quality.kl.value + report.quality.lost_mass_nats if report.quality else None


def _speed(contender: Contender, on_device: bool) -> float:
    value = contender.measured_tokens_per_s if on_device else contender.predicted_tokens_per_s
    return value or 0.0


def _why(
    fastest: Contender | None,
    smallest: Contender | None,
    best: Contender | None,
    profile: Profile,
    on_device: bool,
    task: Task,
) -> str:
    if fastest is None or smallest is None or best is None:
        return "None of the targets keeps every limit."
    basis = "measured on" if on_device else "predicted for"
    words = [
        f"{fastest.target} is the fastest that keeps every limit: {_speed(fastest, on_device):.3g} tok/s {basis} "
        f"{profile.title}"
    ]
    if smallest is fastest and best is fastest:
        return words[0] + "; it is also the smallest and the closest to the original."
    if smallest.bytes is not None:
        words.append(f"the smallest is {smallest.target} with {format_bytes(smallest.bytes)}")
    if best.kl is not None:
        distance = "1 - cosine" if task == "encoder" else "KL"
        words.append(f"the closest to the original {best.target} with {distance} {best.kl:.3g}")
    return "; ".join(words) + "."
