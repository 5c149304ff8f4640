"""The receipt in a real browser, from disk: silent console, no sideways scrolling at a phone's width.

Chromium's window cannot be as narrow as a phone, so the pages stand in frames of that width on one outer
page, which measures them. That page also writes to the console once: a proof that the console is heard.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgegen.receipt import write_receipt
from edgegen.records.report import Sample
from tests.receipt.sample_records import bare_report, sample_plan, sample_report
from tests.receipt.test_receipt_html import hostile_records

WIDTHS = (390, 360)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
    "--window-size=1200,1200",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--dump-dom",
)
OUTER = """<!doctype html><title>outer</title>%s<p id="found"></p><script>
function measure(frame) {
  const page = frame.contentDocument;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const root = page.documentElement;
  return [frame.title, frame.clientWidth, root.scrollWidth, root.scrollHeight, page.title];
}
window.onload = () => {
  console.log("console is heard");
  const frames = [...document.querySelectorAll("iframe")];
  document.getElementById("found").textContent = JSON.stringify(frames.map(measure));
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")
def test_pages_fit_a_phone_and_the_console_is_silent(tmp_path: Path) -> None:
    plan = sample_plan(48)
    report = sample_report(plan)
    endless = Sample(prompt="x" * 4000, original="y" * 4000, artifact="z " * 4000, expected="")
    long_names = replace(report, model="m" * 300, command="c" * 900, samples=(endless,), notes=("n" * 700,))
    write_receipt(tmp_path / "full.html", report, plan)
    write_receipt(tmp_path / "bare.html", bare_report(), None)
    write_receipt(tmp_path / "long.html", long_names, plan)
    write_receipt(tmp_path / "hostile.html", *hostile_records())
    names = ("full", "bare", "long", "hostile")
    frames = "".join(
        f'<iframe title="{name}" src="{name}.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for name in names
        for width in WIDTHS
    )
    (tmp_path / "outer.html").write_text(OUTER % frames)
    assert BROWSER is not None
    run = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}", (tmp_path / "outer.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = re.search(r'<p id="found">(.+?)</p>', run.stdout)
    assert found, run.stderr[-2000:]
    measured = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [(name, width) for name, width, *_ in measured] == [(name, width) for name in names for width in WIDTHS]
    for name, width, scroll_width, scroll_height, title in measured:
        assert scroll_width <= width, name
        assert scroll_height > 900, name
        assert title.startswith(("PASS: ", "FAIL: ")), name
    heard = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert len(heard) == 1 and "console is heard" in heard[0]
