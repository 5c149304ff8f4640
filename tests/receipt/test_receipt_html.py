"""The receipt's claims: its numbers are the records' numbers, nothing is invented, nothing hostile acts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edgegen.common.codec import encode_json
from edgegen.receipt import plots, render_receipt, write_receipt
from edgegen.receipt.shown import percent, show, show_date, significant, visible
from edgegen.records.plan import Plan
from edgegen.records.report import Interval, Report, Sample
from tests.receipt.pages import formula_value, numeric_leaves, read_page, shown_number, value_at
from tests.receipt.sample_records import bare_report, sample_plan, sample_report

HOSTILE = (
    "<script>document.title='owned'</script>",
    '<img src=x onerror="document.title=1">',
    "</td></tr></table></div>",
    '" onmouseover="x" data-x="',
    "\x1b[31mred\x1b]0;title\x07",
    "a\u202edcb",
    "nul\x00byte",
    "{{ 7 * 7 }}{% for x in y %}",
    "\ud800lone",
    "cr\rover",
    "tag\U000e0041\ufeff\u2028\x9b",
)
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0041]")


def trees(report: Report, plan: Plan | None) -> dict[str, Any]:
    """`report.json` with `plan.json` under `plan`: what the page's paths point into."""
    tree: dict[str, Any] = json.loads(encode_json(report))
    tree["plan"] = json.loads(encode_json(plan)) if plan else None
    return tree


def hostile_records() -> tuple[Report, Plan]:
    """Every text that comes from outside replaced by hostile text."""
    text = " ".join(HOSTILE)
    plan = sample_plan()
    choice = replace(plan.tensors[3], name=text, grid=text, why=text, role=text)
    plan = replace(
        plan,
        model=replace(plan.model, source=text, revision=text),
        tensors=(*plan.tensors[:3], choice, *plan.tensors[4:]),
        vocabulary=replace(plan.vocabulary, why=text),
        profile=replace(plan.profile, title=text),
        calibration={text: 1.5},
        notes=(text,),
    )
    report = sample_report(sample_plan())
    report = replace(
        report,
        model=text,
        command=text,
        created=text,
        checks=(
            *(replace(check, detail=text, unit=text) for check in report.checks),
            replace(report.checks[0], name=text, detail=text),
        ),
        samples=tuple(Sample(prompt=each, original=each, artifact=each, expected=each) for each in HOSTILE),
        versions={text: text},
        digests={text: text},
        machine=replace(report.machine, cpu=text, system=text),
        notes=(text + "!",),
    )
    return report, plan


@pytest.mark.parametrize("layers", [1, 8, 48])
def test_every_marked_number_is_the_records_number(layers: int) -> None:
    plan = sample_plan(layers)
    report = sample_report(plan)
    tree = trees(report, plan)
    page = read_page(render_receipt(report, plan))
    assert len(page.numbers) > 100
    for number in page.numbers:
        expected = value_at(tree, number.path) if number.path else formula_value(tree, number.derived)
        if expected is None:
            assert number.value == "" and not re.search(r"\d", number.text), number
        elif number.path:
            assert float(number.value) == expected, number
        else:
            assert math.isclose(float(number.value), expected, rel_tol=1e-12), number


def test_what_a_reader_sees_is_that_number_rounded() -> None:
    plan = sample_plan()
    page = read_page(render_receipt(sample_report(plan), plan))
    for number in page.numbers:
        if number.value:
            assert shown_number(number.text) == pytest.approx(float(number.value), rel=0.006, abs=1e-12), number


def test_every_number_of_the_report_is_on_the_page() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    paths = {number.path for number in read_page(render_receipt(report, plan)).numbers}
    missing = set(numeric_leaves(trees(report, None))) - paths
    assert missing == {"schema"}


def test_every_tensor_is_on_the_page_with_its_price_and_reason() -> None:
    plan = sample_plan()
    page = read_page(render_receipt(sample_report(plan), plan))
    paths = {number.path for number in page.numbers}
    for index, choice in enumerate(plan.tensors):
        assert {f"plan.tensors.{index}.bytes", f"plan.tensors.{index}.kl"} <= paths
        assert choice.name in page.text and choice.why in page.text
        assert choice.smaller is None or f"plan.tensors.{index}.smaller.kl" in paths


def test_grid_table_adds_up() -> None:
    plan = sample_plan()
    html = render_receipt(sample_report(plan), plan)
    for grid in {choice.grid for choice in plan.tensors}:
        row = re.search(rf'<tr data-grid="{grid}">.*?</tr>', html)
        assert row
        cells = re.findall(r'<td class="r">(.*?)</td>', row[0])
        chosen = [choice for choice in plan.tensors if choice.grid == grid]
        assert cells[1] == str(len(chosen))
        assert cells[2] == show(sum(choice.bytes for choice in chosen), "bytes")


def test_missing_values_are_said_in_words() -> None:
    page = read_page(render_receipt(bare_report(), None))
    empty = [number for number in page.numbers if not number.value]
    assert {number.text for number in empty} == {"not measured", "not predicted", "no limit"}
    assert page.text.count("not measured") > 5
    assert not page.unbalanced


@pytest.mark.parametrize("part", ["parity", "quality", "speed", "memory", "task"])
def test_each_optional_part_may_be_missing(part: str) -> None:
    plan = sample_plan()
    report = replace(sample_report(plan), **{part: None})
    page = read_page(render_receipt(report, plan))
    assert "not measured" in page.text
    assert not page.unbalanced
    for number in page.numbers:
        if number.path.split(".")[0] == part:
            assert number.value == "" and number.text == "not measured"


def test_values_that_are_not_finite_are_not_numbers() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    assert report.quality is not None
    nan = math.nan
    quality = replace(report.quality, kl=Interval(value=nan, low=nan, high=math.inf), kl_p99=math.inf)
    checks = tuple(replace(check, measured=nan, predicted=nan) for check in report.checks)
    html = render_receipt(replace(report, quality=quality, checks=checks, passed=False), plan)
    shown = {number.path: number for number in read_page(html).numbers}
    for path in ("quality.kl.value", "quality.kl_p99", "checks.6.measured"):
        assert shown[path].value == "" and shown[path].text == "not finite"


def test_extreme_fronts_still_draw() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    one = replace(plan.front[0], kl=0.0)
    for front in ((), (one,), (one, one), plan.front * 9):
        changed = replace(plan, front=front, budgets=replace(plan.budgets, max_bytes=None, max_kl=None))
        page = read_page(render_receipt(replace(report, artifact_bytes=0), changed))
        assert not page.unbalanced
        assert sum(tag == "svg" for tag, _ in page.tags) == (2 if front else 0)


def test_a_long_front_is_thinned_and_keeps_the_chosen_plan() -> None:
    plan = sample_plan()
    steps = [replace(plan.front[0], bytes=10_000_000 + step, kl=0.001 / (step + 1)) for step in range(300)]
    html = render_receipt(sample_report(plan), replace(plan, front=(*plan.front, *steps)))
    assert html.count("◆ chosen") == 1
    assert len(set(re.findall(r'"plan\.front\.(\d+)\.bytes"', html))) <= 13


def test_verdict_is_in_words_and_counts_predictions() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    text = read_page(render_receipt(report, plan)).text
    assert "✓ PASS" in text and "11 checks, all passed." in text
    assert "2 judged by the plan's prediction" in text
    failed = tuple(replace(check, passed=check.name != "max_kl") for check in report.checks)
    text = read_page(render_receipt(replace(report, passed=False, checks=failed), plan)).text
    assert "✗ FAIL" in text and "1 of 11 checks failed: KL to the original." in text


def test_notes_of_both_records_are_shown_once() -> None:
    plan = sample_plan()
    report = sample_report(plan)
    text = read_page(render_receipt(report, plan)).text
    for note in {*report.notes, *plan.notes}:
        assert text.count(note) == 1


def test_hostile_text_is_shown_and_does_nothing() -> None:
    report, plan = hostile_records()
    html = render_receipt(report, plan)
    page = read_page(html)
    honest = read_page(render_receipt(sample_report(), sample_plan()))
    assert not ACTING.search(html)
    assert not page.unbalanced
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in honest.tags}
    names = {name for _, values in page.tags for name in values}
    assert names == {name for _, values in honest.tags for name in values}
    assert "script" not in {tag for tag, _ in page.tags}
    for shown in (
        "<script>",
        "</td></tr>",
        r"\x1b[31mred",
        r"\u202edcb",
        r"nul\x00byte",
        "{{ 7 * 7 }}",
        r"\ud800",
    ):
        assert shown in page.text
    html.encode()


def test_page_is_complete_in_itself() -> None:
    plan = sample_plan()
    html = render_receipt(sample_report(plan), plan)
    for tag, values in read_page(html).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (values.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in values)
    assert "@import" not in html
    assert not re.search(r"https?://", html)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "default-src 'none'" in html


def test_ids_are_unique() -> None:
    plan = sample_plan()
    ids = [values["id"] for _, values in read_page(render_receipt(sample_report(plan), plan)).tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_accessible_structure() -> None:
    plan = sample_plan()
    tags = read_page(render_receipt(sample_report(plan), plan)).tags
    assert ("html", {"lang": "en"}) in tags
    assert sum(tag == "h1" for tag, _ in tags) == 1
    assert all(values.get("scope") in {"row", "col"} for tag, values in tags if tag == "th")
    assert all(values.get("aria-label") for tag, values in tags if tag == "svg" or values.get("role") == "img")
    known = {values.get("id") for _, values in tags}
    assert all(values["aria-labelledby"] in known for _, values in tags if "aria-labelledby" in values)


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    plan = sample_plan()
    first = render_receipt(sample_report(plan), plan)
    write_receipt(tmp_path / "out" / "report.html", sample_report(), sample_plan())
    assert (tmp_path / "out" / "report.html").read_text() == first


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    plan = sample_plan()
    html = render_receipt(sample_report(plan), plan)
    assert "matplotlib is not installed" in html and "<svg" not in html


def test_plot_draws_without_pyplot_and_says_what_it_shows() -> None:
    plan = sample_plan()
    svg = plots.front_svg(sample_report(plan), plan, narrow=False)
    assert "pyplot" not in str([name for name in sys.modules if name == "matplotlib.pyplot"])
    assert "<text" in svg and "chosen, predicted" in svg and "KL budget" in svg
    assert "var(--accent)" in svg and "#04" not in svg


def test_importing_the_receipt_imports_nothing_heavy() -> None:
    code = "import sys, edgegen.receipt; print({'matplotlib', 'rich', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.034171, "0.0342"),
        (8.21e-05, "8.21e-05"),
        (612.7, "613"),
        (2210.4, "2,210"),
        (-0.0123, "-0.0123"),
    ],
)
def test_three_significant_figures(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.91342, "91.3 %"),
        (0.99996, "99.996 %"),
        (0.00087, "0.0870 %"),
        (2.5, "250.0 %"),
    ],
)
def test_percent_never_rounds_almost_to_all(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_none_is_never_zero() -> None:
    assert show(None, "bytes") == "not measured"
    assert show(math.nan) == "not finite"


def test_visible_keeps_what_is_text() -> None:
    text = "naïve 日本 👩‍👧 خبز\nline\tend"
    assert visible(text) == text


def test_dates() -> None:
    assert show_date("2026-03-01T14:05:09Z") == "2026-03-01 14:05 UTC"
    assert show_date("yesterday\x1b") == r"yesterday\x1b"
