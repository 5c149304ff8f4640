"""The terminal's summary: the same rows as plain lines and as rich renderables."""

from __future__ import annotations

import io

from rich.console import Console

from edgegen.receipt import summary_lines, summary_table
from tests.receipt.sample_records import bare_report, sample_plan, sample_report
from tests.receipt.test_receipt_html import ACTING, hostile_records


def test_lines_hold_limit_prediction_measurement_and_verdict() -> None:
    plan = sample_plan()
    lines = summary_lines(sample_report(plan), plan)
    assert lines[0].startswith("✓ PASS  example/tiny-stories-8m on Raspberry Pi 5, 8 GB (gguf)")
    speed = next(line for line in lines if line.startswith("Decode speed"))
    for part in ("≥ 60.0 tok/s", "168 tok/s", "613 tok/s", "✓ pass (predicted)"):
        assert part in speed
    assert any("Top-1 agreement 91.3 %" in line for line in lines)
    limits = next(line for line in lines if line.startswith("Limits: "))
    for part in ("16.1 % of this machine's 17.9 GB/s", "30.0 % of what its kernels", "4.63 bits a weight is 4.71 dB"):
        assert part in limits
    assert any(line.startswith("! Generic calibration text") for line in lines)


def test_what_is_missing_is_said() -> None:
    lines = summary_lines(bare_report(), None)
    assert lines[0].startswith("✗ FAIL  model on pi-5-8gb")
    assert "Quality against the original: not measured." in lines
    assert not any(line.startswith("Limits") for line in lines)
    assert "not measured" in next(line for line in lines if line.startswith("Peak memory"))


def test_hostile_text_does_not_reach_the_terminal() -> None:
    report, plan = hostile_records()
    lines = summary_lines(report, plan)
    assert not any(ACTING.search(line) or "\n" in line for line in lines)


def test_rich_shows_the_same_words_and_parses_no_markup() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    stream = io.StringIO()
    Console(file=stream, width=200).print(summary_table(report, plan))
    for line in summary_lines(report, plan):
        for word in line.split():
            assert word in stream.getvalue()
    hostile, hostile_plan = hostile_records()
    stream = io.StringIO()
    Console(file=stream, width=4000).print(summary_table(hostile, hostile_plan))
    assert not ACTING.search(stream.getvalue().replace("\n", ""))
