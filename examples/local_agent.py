"""A fleet on this machine: its server, and `edgegen-agent` as a device runs it.

What the other examples share; on a real device a systemd unit starts the agent (`edgegen device setup ssh://...`).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import edgegen
from edgegen.fleet.operate import open_fleet
from edgegen.fleet.operations import Admit, WhichRollout
from edgegen.records.deployment import Rollout, RolloutState, Thresholds

AGENT = (sys.executable, "-m", "edgegen.agent.main")
"""The program that the installation calls `edgegen-agent`."""
_PATIENCE_S = 90.0


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """`edgegen fleet serve` on a free port; its URL."""
    command = [sys.executable, "-m", "edgegen", "fleet", "serve", str(site), "--port", "0", "--poll", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process.stderr.readline().rpartition(" at ")[2].strip()
    finally:
        process.terminate()
        process.wait(30)


def enrolled(folder: Path, site: Path, url: str, root: Path, *, device: str, group: str) -> Path:
    """The configuration of a device that will join a group."""
    token = open_fleet(str(site)).do("enrolment-token", Admit(group=group))
    return write_config(folder, root, device=device, fleet=url, token=token)


def rolled_out(site: Path, bundle: Path, group: str) -> Rollout:
    """Bring a bundle to a group, and wait for how it ends."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(edgegen.ConfigError):  # no device has joined the group yet
            begun = edgegen.deploy_bundle(
                str(bundle), str(site), group=group, waves=(1.0,), thresholds=Thresholds(min_executed=1)
            )
            break
        if time.monotonic() > until:
            raise SystemExit(f"no device joins {group}")
        time.sleep(0.2)
    while begun.state == RolloutState.RUNNING and time.monotonic() < until:
        time.sleep(0.2)
        begun = open_fleet(str(site)).do("rollout", WhichRollout(begun.id))
    return begun


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
