"""The receipt: a report as one page that anyone can open, and as a few lines for a terminal.

`render_receipt` is pure (records in, HTML out) and the page asks nothing of a network: a receipt travels
beside its artifact and must read the same in ten years. Every number on it carries the path of the JSON
value it rounds, so a person or a test can hold it against `report.json` and `plan.json`.
"""

from __future__ import annotations

from edgegen.receipt.comparison import comparison_lines, write_comparison
from edgegen.receipt.html import render_receipt, write_receipt
from edgegen.receipt.text import summary_lines, summary_table

__all__ = [
    "comparison_lines",
    "render_receipt",
    "summary_lines",
    "summary_table",
    "write_comparison",
    "write_receipt",
]
