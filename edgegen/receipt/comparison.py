"""A bake-off for people: lines for a terminal, one page that opens offline."""

from __future__ import annotations

from pathlib import Path

from edgegen.common.files import write_text
from edgegen.receipt.html import environment
from edgegen.receipt.shown import show, visible
from edgegen.records.bakeoff import BakeOff, Contender, ParityPair
from edgegen.records.model import Task

_HEADS: dict[Task, tuple[str, ...]] = {
    "causal": ("target", "verdict", "size", "KL", "memory", "tok/s there", "tok/s here", "load", "first token"),
    "encoder": ("target", "verdict", "size", "1 - cosine", "memory", "tok/s there", "tok/s here", "load", "one text"),
}
_PARITY_HEADS: dict[Task, tuple[str, ...]] = {
    "causal": ("compared", "mode", "KL", "top-1", "greedy tokens equal"),
    "encoder": ("compared", "mode", "1 - cosine"),
}


def comparison_lines(found: BakeOff) -> list[str]:
    """The comparison as plain lines: contenders, parity, recommendation."""
    lines = _table(_HEADS[found.task], [_cells(contender) for contender in found.contenders])
    lines += [f"✗ {c.target}: {c.failure}" for c in found.contenders if c.failure]
    if found.pairs:
        lines += ["", *_table(_PARITY_HEADS[found.task], [_parity_cells(pair, found.task) for pair in found.pairs])]
    if found.same_weights:
        lines += ["", f"same weights  {_same_words(found)}"]
    lines += ["", f"recommended  {found.recommended or 'none'}: {found.why}"]
    return [visible(line).replace("\n", " ").replace("\t", " ") for line in lines]


def write_comparison(path: Path, found: BakeOff) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        DeviceError, ConfigError: the disk cannot take it.
    """
    page = (
        environment()
        .get_template("bakeoff.html.j2")
        .render(
            found=found,
            heads=_HEADS[found.task],
            rows=[(contender, _cells(contender)) for contender in found.contenders],
            parity_heads=_PARITY_HEADS[found.task],
            same=_same_words(found) if found.same_weights else "",
            parity=[_parity_cells(pair, found.task) for pair in found.pairs],
        )
    )
    write_text(path, page)


def _same_words(found: BakeOff) -> str:
    same = found.same_weights
    assert same is not None, "only asked for where there are some"
    words = f"{same.tensors} tensors are equal in {', '.join(same.targets)} ({same.digest[:19]}…)"
    difference = found.logit_difference
    return words if difference is None else f"{words}; in strict mode logits differ by at most {show(difference)}"


def _cells(contender: Contender) -> tuple[str, ...]:
    return (
        contender.target,
        "✓ pass" if contender.passed else "✗ FAIL",
        show(contender.bytes, "bytes", missing="-"),
        show(contender.kl, missing="-"),
        show(contender.rss_bytes, "bytes", missing="-"),
        show(contender.predicted_tokens_per_s, missing="-"),
        show(contender.measured_tokens_per_s, missing="-"),
        show(contender.load_ms, "ms", missing="-"),
        show(contender.ttft_ms, "ms", missing="-"),
    )


def _parity_cells(pair: ParityPair, task: Task) -> tuple[str, ...]:
    names = f"{pair.first} / {pair.second}"
    if task == "encoder":
        return names, pair.mode, pair.missing or show(pair.kl)
    if pair.missing:
        return names, pair.mode, "-", "-", pair.missing
    greedy = "-" if pair.greedy_prefix is None else f"{pair.greedy_prefix} of {pair.greedy_tokens}"
    return names, pair.mode, show(pair.kl), show(pair.top1_fraction, "fraction"), greedy


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]
