"""A data set in words and in a picture, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgegen.prepare.bias import BiasReport
from edgegen.prepare.label import LabelReport
from edgegen.prepare.stage import text_of
from edgegen.records.dataset import Dataset, Row


def write_card(
    path: Path,
    dataset: Dataset,
    redacted: dict[str, int],
    labels: LabelReport | None,
    bias: BiasReport,
    train: Sequence[Row],
) -> None:
    """The data card, in Markdown."""
    total = sum(split.rows for split in dataset.splits)
    lines = [
        f"# {dataset.name} {dataset.version}",
        "",
        f"{total:,} rows of {dataset.kind}: " + ", ".join(f"{s.rows:,} {s.name}" for s in dataset.splits) + ".",
        f"Built {dataset.created[:10]}; digest `{dataset.digest}`.",
        "",
        "## Where it comes from",
        "",
        "| source | rows | licence | note |",
        "|---|---|---|---|",
        *(f"| {s.name} | {s.rows:,} | {s.license or 'not stated'} | {s.note} |" for s in dataset.sources),
        "",
        "Each row names its source and number (`source`), what changed it (`touched`) and who labelled it (`labels`).",
        "",
        "## What was done",
        "",
        "| step | rows in | rows out | changed | dropped |",
        "|---|---|---|---|---|",
    ]
    for step in dataset.steps:
        gone = ", ".join(f"{count:,} {why}" for why, count in step.dropped.items())
        lines.append(f"| {step.name} | {step.rows_in:,} | {step.rows_out:,} | {step.changed:,} | {gone} |")
    lines += ["", *(f"- {step.name}: {step.note}" for step in dataset.steps if step.note)]
    if redacted:
        lines += ["", "## Personal data", "", ", ".join(f"{n:,} {kind}" for kind, n in sorted(redacted.items())) + "."]
    if labels is not None:
        lines += [
            "",
            "## Labels",
            "",
            f"{labels.labelled:,} rows have one, {labels.tied:,} were tied, {labels.unlabelled:,} have none.",
            "",
            "| function | coverage | overlaps | conflicts | accuracy |",
            "|---|---|---|---|---|",
        ]
        for f in labels.functions:
            accuracy = "–" if f.accuracy is None else f"{f.accuracy:.0%} of {f.judged}"
            lines.append(f"| {f.name} | {f.coverage:.0%} | {f.overlaps:.0%} | {f.conflicts:.0%} | {accuracy} |")
    lines += ["", "## Who and what it speaks of", "", "![groups and topics](bias.png)", ""]
    for group in bias.groups:
        if group.flags:
            lines.append(f"- {group.category}: {group.group} ({group.rows:,} rows) is {', '.join(group.flags)}")
    for topic in bias.topics:
        if topic.flag:
            lines.append(f"- topic {topic.name!r} ({topic.rows:,} rows) is {topic.flag}")
    lines.append(f"- to even it out: {bias.suggestion}" if bias.suggestion else "- nothing stands out")
    lines += ["", "Terms and sentiment are counted in English; they show where to look, not what is meant."]
    lengths = sorted(len(text_of(row)) for row in train)
    if lengths:
        lines += [
            "",
            f"Rows of train have {lengths[0]:,} to {lengths[-1]:,} characters, "
            f"half of them below {lengths[len(lengths) // 2]:,}.",
        ]
    path.write_text("\n".join(lines) + "\n")


def draw_bias(bias: BiasReport, path: Path) -> None:
    """Rows of each group and topic as bars; what stands out is hatched and named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [group for group in bias.groups if group.rows]
    topics = bias.topics[:12]
    figure = Figure(figsize=(11, max(3.0, 0.34 * max(len(groups), len(topics)) + 1.2)))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = [f"{g.category}: {g.group}" + (" !" if g.flags else "") for g in groups]
    bars = left.barh(names, [g.rows for g in groups], color="#4878a8")
    for bar, group in zip(bars, groups, strict=True):
        if group.flags:
            bar.set_hatch("//")
        if group.sentiment is not None:
            left.annotate(
                f" {group.sentiment:+.2f}",
                (bar.get_width(), bar.get_y() + bar.get_height() / 2),
                va="center",
                fontsize=8,
            )
    left.set_title("rows that name a group (mean sentiment)", fontsize=10)
    bars = right.barh(
        [t.name[:28] + (" !" if t.flag else "") for t in topics], [t.rows for t in topics], color="#8a9a5b"
    )
    for bar, topic in zip(bars, topics, strict=True):
        if topic.flag:
            bar.set_hatch("//")
    right.set_title(f"rows of a topic (by {bias.topics_by})", fontsize=10)
    for axis in (left, right):
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
