"""Pictures of the monitor for the README: examples/pictures/*.svg, from a simulated fleet on a clock that stands.

python tools/monitor_pictures.py            write them
python tools/monitor_pictures.py --check    exit code 1 if one would be another

The same program gives the same bytes: the fleet is seeded, times are UTC, nothing is asked of a network. The web fonts
that Rich names in its pictures are left out, so that a viewer needs none either.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TZ"] = "UTC"
os.environ.update(COLORTERM="truecolor", TERM="xterm-256color", TEXTUAL_ANIMATIONS="none")
os.environ.pop("NO_COLOR", None)

from edgegen.monitor.mock import MockSource  # noqa: E402
from edgegen.monitor.monitor_app import MonitorApp  # noqa: E402 - after the environment it reads

FOLDER = ROOT / "examples" / "pictures"
SIZE = (112, 30)
DEVICES = 500
_NOW_S = 1_780_000_000.0

PICTURES: dict[str, tuple[str, ...]] = {
    "monitor-fleet": (),
    "monitor-compare": ("colon", *"dev", "space", *"hub", "minus", *"00004", "enter", "a"),
}
"""Name → keys that lead there."""


async def draw(name: str) -> str:
    """A picture as SVG."""
    now = [_NOW_S]
    source = MockSource(DEVICES, 1, clock=lambda: now[0])
    app = MonitorApp(source, clock=lambda: now[0], inline=True, ticks=False, keymap={})
    async with app.run_test(size=SIZE) as pilot:

        async def settle() -> None:
            for _ in range(3):
                now[0] += 2.0
                app.tick()
                await pilot.pause()

        await settle()
        for key in PICTURES[name]:
            await pilot.press(key)
            await pilot.pause()
        await settle()
        now[0] += 10.0  # what was said is over
        await settle()
        svg = app.export_screenshot(title="edgegen monitor", simplify=True)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> int:
    """Exit code 1 where a checked picture is another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    time.tzset()
    other = []
    for name in PICTURES:
        path, svg = FOLDER / f"{name}.svg", asyncio.run(draw(name)) + "\n"
        if options.check:
            if not path.is_file() or path.read_text() != svg:
                other.append(path.name)
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(svg)
            print(f"{path.relative_to(ROOT)}  {len(svg) / 1000:.0f} kB")
    if other:
        print("not what the monitor draws now: " + ", ".join(other), file=sys.stderr)
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
