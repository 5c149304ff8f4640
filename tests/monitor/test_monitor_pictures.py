"""The README's pictures are what the monitor draws: compared by their texts, which no library's version moves.

The program runs as a person runs it, in a process of its own: it sets the time zone.
"""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def words(svg: str) -> list[str]:
    """The lines of text in a picture, by their height."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg, re.DOTALL):
        lines.setdefault(float(y), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    return ["".join(text for _, text in sorted(parts)).rstrip() for _, parts in sorted(lines.items())]


@pytest.mark.slow
def test_the_pictures_are_what_is_drawn(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tools'); import monitor_pictures as m, pathlib;"
        f"m.FOLDER = pathlib.Path({str(tmp_path)!r}); m.ROOT = m.FOLDER; sys.argv = ['x']; sys.exit(m.main())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    drawn = sorted(tmp_path.glob("*.svg"))
    kept = sorted((ROOT / "examples" / "pictures").glob("*.svg"))
    assert [path.name for path in drawn] == [path.name for path in kept]
    for new, old in zip(drawn, kept, strict=True):
        lines = words(new.read_text())
        assert len(lines) > 20 and lines == words(old.read_text()), "run tools/monitor_pictures.py"
        assert "url(http" not in new.read_text(), "needs no network"
