"""`edgegen-agent` as a device runs it, on this machine: its configuration, its start, a question to its API.

What the other examples share; on a real device a systemd unit starts the agent (`edgegen device setup ssh://...`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AGENT = (sys.executable, "-m", "edgegen.agent.main")
"""The program that the installation calls `edgegen-agent`."""
_PATIENCE_S = 60.0


def write_config(folder: Path, root: Path, *, device: str, fleet: str = "", token: str = "") -> Path:
    """An `agent.toml` for a device with a free port, which trusts a repository's `root.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["schema = 1", 'home = "home"', f'device = "{device}"', "[serve]", "port = 0"]
    lines += ["[repository]", f"root = {json.dumps(str(root.resolve()))}"]
    if fleet:
        (folder / "enrol").write_text(f"{token}\n")
        lines += ["[fleet]", f'url = "{fleet}"', 'enrol_token_file = "enrol"', "poll_s = 0.5"]
    path = folder / "agent.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def install(config: Path, bundle: Path) -> dict[str, Any]:
    """Take a release from a bundle's folder, from its fetch to the end of its probation; how it ended."""
    target = json.loads((bundle / "bundle.json").read_bytes())["target"]
    done = subprocess.run(
        [*AGENT, "--config", str(config), "install", "--json", "--repository", str(bundle), "--target", target],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {"phase": "failed"}


@contextmanager
def running(config: Path) -> Iterator[str]:
    """Run the agent; gives the URL of its API, which answers as soon as a release is installed."""
    port = config.parent / "home" / "port"
    process = subprocess.Popen([*AGENT, "--config", str(config)], stderr=(config.parent / "log").open("a"))
    try:
        until = time.monotonic() + _PATIENCE_S
        while not (port.is_file() and port.read_text().strip()):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the agent does not start; see {config.parent / 'log'}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text().strip()}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, path: str, **body: Any) -> dict[str, Any]:
    """A request to the API; with a body it is sent as JSON, as any client of OpenAI's would."""
    request = urllib.request.Request(f"{url}{path}", headers={"Content-Type": "application/json"})
    if body:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
        return dict(json.loads(answer.read()))
