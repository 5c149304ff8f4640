"""What a device has to install for each runtime, and that nothing else is needed.

    python tools/device_installs.py BUILD...

BUILD is a finished output, or a comparison of several targets. For each target an empty virtual environment gets the
base wheel with that runtime's extra alone; then `edgegen verify` and `edgegen run` are started there on a copy of the
output, and `edgegen-agent` installs and serves it as a signed release. Prints a Markdown table: what is installed, its
size with and without the packages that pip itself brings, how that ended, and the resident memory of the agent and of
the process that serves. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

import psutil

from edgegen.bundle.ledger import create_keys
from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes
from edgegen.records.bundle import Health
from edgegen.records.plan import Plan
from edgegen.sdk.comparison import compared_targets
from edgegen.sdk.release import pack_bundle

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Install, verify, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("builds", nargs="+", type=Path, help="finished outputs")
    given = parser.parse_args()
    outputs: dict[str, Path] = {}
    for build in given.builds:
        folders = [build / target for target in compared_targets(build)] or [build]
        outputs |= {load_json(folder / "plan.json", Plan).target: folder for folder in folders}
    failed = False
    print("| runtime | packages | installed | without pip | verified | answers | agent, idle | it serves with |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel = build_wheel(place)
        for target, output in outputs.items():
            row, passed = install(target, output, wheel, place / target)
            print(row, flush=True)
            failed |= not passed
    return int(failed)


def build_wheel(place: Path) -> Path:
    """The project's wheel."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, ROOT)
    return next(place.glob("edgegen-*.whl"))


def install(target: str, output: Path, wheel: Path, place: Path) -> tuple[str, bool]:
    """One line of the table, and whether the artifact was verified there."""
    venv.create(place / "venv", with_pip=True)
    scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[{target}]")
    listed = run(scripts / "python", "-m", "pip", "list", "--format=freeze").stdout.split()
    packages = [line for line in listed if not line.startswith(("pip=", "setuptools=", "edgegen="))]
    site = next((place / "venv").glob("lib/python*/site-packages"))
    total = size_of(site)
    own = total - sum(
        size_of(path) for name in ("pip", "setuptools", "pkg_resources") for path in site.glob(f"{name}*")
    )
    copy = shutil.copytree(output, place / "output")
    verified = run(scripts / "edgegen", "verify", copy, "--quiet", check=False)
    answered = run(scripts / "edgegen", "run", copy, "Once upon a time", "--raw", "--max-tokens", "8", check=False)
    agent, serving = serve(output, place / "agent", scripts / "edgegen-agent")
    cells = [
        target,
        str(len(packages)),
        format_bytes(total),
        format_bytes(own),
        "yes" if verified.returncode == 0 else f"exit {verified.returncode}",
        "yes" if answered.returncode == 0 and answered.stdout.strip() else f"exit {answered.returncode}",
        format_bytes(agent),
        format_bytes(serving),
    ]
    for done in (verified, answered):
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
    return f"| {' | '.join(cells)} |", verified.returncode == 0 and answered.returncode == 0 and serving > 0


def serve(output: Path, place: Path, program: Path) -> tuple[int, int]:
    """Resident bytes of an agent that serves the output, and of its serving process; 0 if it does not come to that."""
    create_keys(place / "keys", root_keys=1, root_threshold=1)
    release = pack_bundle(
        output, keys=place / "keys", out=place / "bundle", name="model", version="1.0.0", health=Health(probation_s=1.0)
    )
    config = place / "agent.toml"
    config.write_text(
        'schema = 1\nhome = "home"\n[serve]\nport = 0\n[repository]\nroot = "keys/root.json"\n', encoding="utf-8"
    )
    words = ["--config", config, "install", "--repository", release.folder, "--target", release.bundle.target]
    done = run(program, *words, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        return 0, 0
    agent = subprocess.Popen([str(program), "--config", str(config)], cwd="/", stderr=subprocess.DEVNULL)
    try:
        wait_for_health(place / "home" / "port")
        process = psutil.Process(agent.pid)
        return process.memory_info().rss, sum(child.memory_info().rss for child in process.children())
    finally:
        agent.terminate()
        agent.wait(30)


def wait_for_health(port: Path) -> None:
    """Until the API answers."""
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().strip()}/healthz", timeout=60):
                return
        except (OSError, ValueError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def size_of(path: Path) -> int:
    """Bytes of a file or of everything in a folder; hard links count once."""
    if path.is_file():
        return path.stat().st_size
    seen = {(entry.stat().st_ino, entry.stat().st_size) for entry in path.rglob("*") if entry.is_file()}
    return sum(size for _, size in seen)


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program outside the checkout, so that only what is installed is found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    sys.exit(main())
