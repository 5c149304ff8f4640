"""Measured speeds for people: lines for a terminal, one drawing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen.common.files import replacing
from edgegen.receipt.shown import percent, show, significant, visible
from edgegen.records.bench import Bench, BenchRow, Spread

_HEADS = ("artifact", "runtime", "threads", "size", "memory", "load", "start")


def bench_lines(found: Bench) -> list[str]:
    """The record as plain lines: one a row, ratios to the first artifact with as many threads, notes."""
    measured = [row for row in found.rows if not row.error]
    lengths = sorted({prompt.tokens for row in measured for prompt in row.prompts})
    heads = [*_HEADS, *(f"first token ({n})" for n in lengths), "prefill", "decode", "spread"]
    rows = [_cells(row, lengths) for row in measured]
    if len({row.name for row in measured}) > 1:
        heads.append("ratio")
        rows = [[*cells, _ratio(row, measured)] for row, cells in zip(measured, rows, strict=True)]
    where = f" on {found.where}" if found.where else ""
    machine = f"{found.machine.cpu}, {found.machine.cores} cores{where}"
    lines = [f"{machine}; prefill (longest prompt) and decode in tokens per second", ""]
    if rows:
        widths = [max(len(cells[column]) for cells in (heads, *rows)) for column in range(len(heads))]
        for cells in (heads, *rows):
            placed = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            lines.append("  ".join(placed).rstrip())
    lines += [f"✗ {row.name}, {_threads(row)}: {row.error}" for row in found.rows if row.error]
    lines += [f"! {note}" for note in found.notes]
    return [visible(line).replace("\n", " ").replace("\t", " ") for line in lines]


def _cells(row: BenchRow, lengths: list[int]) -> list[str]:
    prompts = {prompt.tokens: prompt for prompt in row.prompts}
    decode = row.decode_tokens_per_s
    return [
        row.name,
        row.runtime,
        str(row.threads),
        show(row.bytes, "bytes"),
        show(_median(row.peak_rss_bytes), "bytes"),
        show(_median(row.load_ms), "ms"),
        show(_median(row.start_ms), "ms"),
        *(show(prompts[n].ttft_ms.median, "ms") if n in prompts else "-" for n in lengths),
        significant(row.prompts[-1].tokens_per_s.median),
        show(_median(decode)),
        percent((decode.high - decode.low) / decode.median) if decode and decode.median else "-",
    ]


def _ratio(row: BenchRow, rows: list[BenchRow]) -> str:
    """Decoding speed over that of the first artifact with as many threads."""
    first = next(other for other in rows if other.threads == row.threads)
    mine, its = _median(row.decode_tokens_per_s), _median(first.decode_tokens_per_s)
    return f"{mine / its:.2f}×" if mine is not None and its else "-"


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def _threads(row: BenchRow) -> str:
    return f"{row.threads} thread{'' if row.threads == 1 else 's'}"


def write_drawing(path: Path, found: Bench) -> None:
    """Bars of decoding speed, time to the first token and memory, with their ranges, as SVG. Needs matplotlib.

    Nothing is written if nothing was measured. Equal records give equal bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in found.rows if not row.error]
    if not rows:
        return
    longest = max(prompt.tokens for row in rows for prompt in row.prompts)
    panels: list[tuple[str, float, Callable[[BenchRow], Spread | None]]] = [
        ("decode, tokens per second", 1, lambda row: row.decode_tokens_per_s),
        (f"first token after {longest:,}, ms", 1, lambda row: row.prompts[-1].ttft_ms),
        ("peak memory, MB", 1e6, lambda row: row.peak_rss_bytes),
    ]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgegen-bench", "font.size": 9.0}):
        figure = Figure(figsize=(9.6, 1.1 + 0.34 * len(rows)), layout="constrained")
        for axes, (title, unit, pick) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
            _bars(axes, rows, title, unit, pick)
        host = f" on {found.where}" if found.where else ""
        figure.suptitle(f"{found.machine.cpu}{host}: median and range over {max(row.repeats for row in rows)} runs")
        with replacing(path) as temporary:
            # What matplotlib writes by itself holds a date and its own address; None leaves each out.
            figure.savefig(temporary, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def _bars(axes: Any, rows: list[BenchRow], title: str, unit: float, pick: Callable[[BenchRow], Spread | None]) -> None:
    spreads = [pick(row) or Spread(median=0.0, low=0.0, high=0.0) for row in rows]
    names = list(dict.fromkeys(row.name for row in rows))
    places = list(range(len(rows)))[::-1]
    values = [spread.median / unit for spread in spreads]
    reach = [
        [(spread.median - spread.low) / unit for spread in spreads],
        [(spread.high - spread.median) / unit for spread in spreads],
    ]
    colours = [f"C{names.index(row.name) % 10}" for row in rows]
    axes.barh(
        places, values, xerr=reach, color=colours, alpha=0.55, height=0.7, error_kw={"elinewidth": 1, "capsize": 2}
    )
    for place, value in zip(places, values, strict=True):
        axes.text(0, place, f" {significant(value)}", va="center")
    axes.set_yticks(places, [f"{row.name}, {_threads(row)}" for row in rows])
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
