"""What the screens of a compression show, as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgegen.common.units import format_bytes
from edgegen.monitor.child import Progress, Stage
from edgegen.monitor.columns import Column
from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.shown import number, seconds
from edgegen.monitor.widgets.braille import scatter
from edgegen.monitor.widgets.spark import bar
from edgegen.records.plan import FrontPoint, Plan, TensorChoice
from edgegen.sdk.stage_words import stage_words

_GLYPH = {
    "waiting": ("·", "dim"),
    "started": ("▶", "accent"),
    "running": ("▶", "accent"),
    "finished": ("✓", "ok"),
    "skipped": ("»", "dim"),
}
_AXIS = 10


def _short(tensor: str) -> str:
    """A tensor's name without what all have."""
    return tensor.removeprefix("model.").removesuffix(".weight")


PLAN_COLUMNS: tuple[Column[TensorChoice], ...] = (
    Column("tensor", "TENSOR", 26, 1, lambda r, n: (_short(r.name), "bold"), lambda r: r.name),
    Column("role", "ROLE", 10, 6, lambda r, n: (r.role, "dim"), lambda r: r.role),
    Column("layer", "LAYER", 5, 5, lambda r, n: (str(r.layer) if r.layer >= 0 else "", ""), lambda r: r.layer, True),
    Column(
        "shape", "SHAPE", 13, 4, lambda r, n: (f"{r.rows}×{r.columns}", "dim"), lambda r: r.rows * r.columns, falls=True
    ),
    Column("grid", "GRID", 8, 1, lambda r, n: (r.grid, "accent"), lambda r: r.grid),
    Column("size", "SIZE", 8, 2, lambda r, n: (format_bytes(r.bytes), ""), lambda r: r.bytes, True, falls=True),
    Column("kl", "COST", 8, 3, lambda r, n: (f"{r.kl:.2g}", ""), lambda r: r.kl, True, falls=True),
    Column("why", "WHY", 10, 4, lambda r, n: (r.why, ""), None, grows=True),
)


def stage_lines(progress: Progress, width: int, now_s: float, *, ended: bool) -> list[Line]:
    """One line a stage: how far, how long, how long still."""
    room = 20 if width >= 90 else 10
    return [[], *(_stage(stage, width, room, now_s, ended) for stage in list(progress.stages.values())), []]


def _stage(stage: Stage, width: int, room: int, now_s: float, ended: bool) -> Line:
    glyph, role = _GLYPH.get(stage.state, ("·", "dim"))
    if ended and stage.state in ("started", "running"):
        glyph, role = "✗", "bad"
    line: list[Piece] = [
        (f"  {glyph} ", role),
        (fit(stage_words(stage.name), min(42, max(20, width - room - 34))), "" if role != "dim" else "dim"),
    ]
    if stage.state == "skipped":
        return [*line, (" done before", "dim")]
    if stage.state == "waiting":
        return line
    share = 1.0 if stage.state == "finished" else stage.done / stage.total if stage.total else None
    line += [("▕", "dim"), (bar(share, room) if share is not None else " " * room, role), ("▏ ", "dim")]
    line.append((f"{seconds(stage.seconds(now_s)):>6}", "bold"))
    left = stage.left_s(now_s) if not ended else None
    if stage.state == "running" and stage.total:
        line.append((f"  {stage.done}/{stage.total}", "dim"))
    if left is not None:
        line.append((f"  about {seconds(left)} left", "dim"))
    return line


def prediction_lines(plan: Plan | None) -> list[Line]:
    """What the plan expects, beside its budgets."""
    if plan is None:
        return [[("  The plan appears here as soon as it is made.", "dim")]]
    found, base, limits = plan.prediction, plan.baseline, plan.budgets
    encoder = plan.summary.task == "encoder"
    quality = ("cosine", f"{1 - found.kl:.5f}") if encoder else ("KL", f"{found.kl:.4g} nats")
    rows = [
        (
            "size",
            format_bytes(found.bytes),
            format_bytes(base.bytes),
            limits.max_bytes and format_bytes(limits.max_bytes),
        ),
        (
            "memory",
            format_bytes(found.rss_bytes),
            format_bytes(base.rss_bytes),
            limits.max_rss_bytes and format_bytes(limits.max_rss_bytes),
        ),
        (
            "speed",
            f"{number(found.decode_tokens_per_s)} tok/s",
            f"{number(base.decode_tokens_per_s)} tok/s",
            limits.min_tokens_per_s and f"{limits.min_tokens_per_s:g} tok/s",
        ),
        (
            "first token",
            f"{number(found.ttft_ms)} ms",
            f"{number(base.ttft_ms)} ms",
            limits.max_ttft_ms and f"{limits.max_ttft_ms:g} ms",
        ),
        (*quality, "", limits.max_kl and (f"{1 - limits.max_kl:.5f}" if encoder else f"{limits.max_kl:g} nats")),
    ]
    lines: list[Line] = [
        [
            (f" {len(plan.tensors)} tensors", "bold"),
            (f", {found.bits_per_weight:.2f} bits a weight, {plan.vocabulary.size:,} tokens of vocabulary", ""),
            (f" (of {plan.vocabulary.original_size:,})", "dim"),
            (f"  held back by {plan.binding}" if plan.binding != "none" else "", "warn"),
        ]
    ]
    for name, value, whole, limit in rows:
        lines.append(
            [
                ("   " + fit(name, 12), "dim"),
                (fit(value, 14), "bold"),
                (fit(f"at 16 bits {whole}" if whole else "", 26), "dim"),
                (f"limit {limit}" if limit else "", ""),
            ]
        )
    return lines


def front_lines(plan: Plan | None, width: int, height: int) -> list[Line]:
    """Plans that no other beats, size against quality, with the chosen one."""
    if plan is None:
        return [[], [("  The trade-off appears here as soon as it is planned.", "dim")]]
    cost = "1 - cosine" if plan.summary.task == "encoder" else "KL, nats a token"
    chosen = FrontPoint(
        plan.prediction.bytes, plan.prediction.kl, plan.vocabulary.size, plan.prediction.bits_per_weight
    )
    points = [point for point in (*plan.front, chosen) if point.bytes > 0 and point.kl > 0]
    if not points:
        return [[], [("  This plan has no trade-off to show.", "dim")]]
    across, up = max(10, width - _AXIS - 3), max(4, height - 4)
    xs, ys = [point.bytes for point in points], [math.log10(point.kl) for point in points]
    bounds = (_wider(xs, -1), _wider(xs, 1), _wider(ys, -1), _wider(ys, 1))
    rows = scatter([(p.bytes, math.log10(p.kl)) for p in points], across, up, bounds)
    place = _cell(chosen, bounds, across, up) if chosen.kl > 0 and chosen.bytes > 0 else None
    lines: list[Line] = [
        [(f" {cost} (logarithmic)", "dim"), ("   ◆ chosen", "warn bold"), ("   ⠂ other plans", "accent")]
    ]
    for y, row in enumerate(rows):
        label = ""
        if y == 0:
            label = f"{10 ** bounds[3]:.2g}"
        elif y == up - 1:
            label = f"{10 ** bounds[2]:.2g}"
        line: list[Piece] = [(f"{label:>{_AXIS}}▕", "dim")]
        if place is not None and place[1] == y:
            line += [(row[: place[0]], "accent"), ("◆", "warn bold"), (row[place[0] + 1 :], "accent")]
        else:
            line.append((row, "accent"))
        lines.append(line)
    left, right = format_bytes(bounds[0]), format_bytes(bounds[1])
    lines.append([(" " * (_AXIS + 1) + left + right.rjust(max(0, across - len(left))), "dim")])
    kl = f"{chosen.kl:.3g}"
    lines.append(
        [
            (f" ◆ {format_bytes(chosen.bytes)}, {kl}", "warn bold"),
            (f"  {chosen.bits_per_weight:.2f} bits a weight; {len(plan.front)} plans on the front", "dim"),
        ]
    )
    return lines


def _wider(values: Sequence[float], side: int) -> float:
    """An end of the axis a little beyond the values."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return high + margin if side > 0 else low - margin


def _cell(point: FrontPoint, bounds: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int]:
    left, right, low, high = bounds
    x = (point.bytes - left) / (right - left)
    y = (math.log10(point.kl) - low) / (high - low)
    column = round(min(max(x, 0.0), 1.0) * (width * 2 - 1)) // 2
    row = (height * 4 - 1 - round(min(max(y, 0.0), 1.0) * (height * 4 - 1))) // 4
    return column, row
