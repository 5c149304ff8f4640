"""A data set as lines of text."""

from __future__ import annotations

from edgegen.prepare.build import Built
from edgegen.records.dataset import Row


def built_lines(built: Built) -> list[str]:
    """What was kept, what went, what stands out."""
    dataset = built.dataset
    lines = [f"{dataset.name} {dataset.version}: " + ", ".join(f"{s.rows:,} {s.name}" for s in dataset.splits)]
    for step in dataset.steps:
        gone = ", ".join(f"{count:,} {why}" for why, count in step.dropped.items())
        what = f"  {step.name:14} {step.rows_in:>9,} → {step.rows_out:<9,}"
        lines.append(
            what + (f" changed {step.changed:,}" if step.changed else "") + (f"  dropped {gone}" if gone else "")
        )
        if step.note:
            lines.append(f"  {'':14} {step.note}")
    if built.redacted:
        lines.append("redacted   " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(built.redacted.items())))
    if built.labels is not None:
        labels = built.labels
        lines.append(f"labels     {labels.labelled:,} given, {labels.tied:,} tied, {labels.unlabelled:,} without")
        lines += [
            f"  {f.name:14} covers {f.coverage:.0%}, conflicts {f.conflicts:.0%}"
            + (f", right on {f.accuracy:.0%} of {f.judged} that people labelled" if f.accuracy is not None else "")
            for f in labels.functions
        ]
        lines += [
            f"  {a.one} and {a.other}: κ {a.kappa:.2f} on {a.rows} rows"
            for a in labels.agreements
            if a.kappa is not None
        ]
    for group in built.bias.groups:
        if group.flags:
            lines.append(f"! {group.category}: {group.group} ({group.rows:,} rows) is {', '.join(group.flags)}")
    for topic in built.bias.topics:
        if topic.flag:
            lines.append(f"! topic {topic.name!r} ({topic.rows:,} rows) is {topic.flag}")
    if built.bias.suggestion:
        lines.append(f"  {built.bias.suggestion}")
    return lines


def row_lines(row: Row) -> list[str]:
    """One row with its history."""
    text = row.text or "\n".join(f"{role}: {content}" for role, content in row.messages)
    lines = [f"id        {row.id}", f"source    {row.source}", f"changed   {', '.join(row.touched) or 'nothing'}"]
    lines += [
        f"label     {key} = {label.value} by {label.by} ({label.confidence:.0%})" for key, label in row.labels.items()
    ]
    if row.made_by:
        lines.append(f"made by   {row.made_by}, shown {', '.join(row.parents) or 'nothing'}")
    if row.weight != 1.0:
        lines.append(f"weight    {row.weight:g}")
    return [*lines, "", text]
