"""What a device has to install for each runtime, and that nothing else is needed.

    python tools/device_installs.py BUILD...

BUILD is a finished output, or a comparison of several targets. For each target an empty virtual environment gets the
base wheel with that runtime's extra alone; then `edgegen verify` and `edgegen run` are started there on a copy of the
output. Prints a Markdown table: what is installed, its size with and without the packages that pip itself brings, and
how the verification ended. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes
from edgegen.records.plan import Plan
from edgegen.sdk.comparison import compared_targets

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
    print("| runtime | packages | installed | without pip | verified | answers |")
    print("|---|---|---|---|---|---|")
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
    cells = [
        target,
        str(len(packages)),
        format_bytes(total),
        format_bytes(own),
        "yes" if verified.returncode == 0 else f"exit {verified.returncode}",
        "yes" if answered.returncode == 0 and answered.stdout.strip() else f"exit {answered.returncode}",
    ]
    for done in (verified, answered):
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
    return f"| {' | '.join(cells)} |", verified.returncode == 0 and answered.returncode == 0


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
