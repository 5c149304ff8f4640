"""Everything that a change must pass, in one command; what `make check`, `make test` and CI run.

python tools/check.py                all steps, without the slow tests
python tools/check.py --all          with them
python tools/check.py --only types   one step

Every step runs in a process of its own, so that none can hide another's failure. A step that passes is one line; one
that fails shows its output. The tests come last and always show their summary, because "passed" without how many were
run or skipped says little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests"


@dataclass(frozen=True)
class Step:
    """One program to run.

    Attributes:
        name: as `--only` takes it.
        arguments: after the Python interpreter.
    """

    name: str
    arguments: tuple[str, ...]


def steps(*, slow: bool) -> tuple[Step, ...]:
    """All steps, the quickest first."""
    # Tests of one module stay in one process, which then makes their shared fixtures once.
    pytest = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadscope")
    return (
        Step("lint", ("-m", "ruff", "check", ".")),
        Step("format", ("-m", "ruff", "format", "--check", ".")),
        Step("readme", ("tools/readme_blocks.py", "--check")),
        Step("schemas", ("tools/schemas.py",)),
        Step("imports", ("-c", "from importlinter.cli import lint_imports_command as run; run()")),
        Step("types", ("-m", "mypy")),
        Step(TESTS, pytest if slow else (*pytest, "-m", "not slow")),
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every step passed, 1 otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="run the slow tests too")
    parser.add_argument("--only", choices=[step.name for step in steps(slow=False)], help="run one step")
    options = parser.parse_args(arguments)
    chosen = [step for step in steps(slow=options.all) if options.only in (None, step.name)]
    failed = [step.name for step in chosen if not passes(step)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def passes(step: Step) -> bool:
    """Run a step and print its line, and its output where that matters."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *step.arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    passed = done.returncode == 0
    print(f"{'✓' if passed else '✗'} {step.name:<8} {time.monotonic() - started:6.1f} s", flush=True)
    if not passed:
        print(done.stdout.rstrip(), flush=True)
    elif step.name == TESTS:
        print(summary(done.stdout), flush=True)
    return passed


def environment() -> dict[str, str]:
    """The caller's, with one thread a process: two test processes with a pool each would wait for one another."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def summary(output: str) -> str:
    """pytest's short summary (what was skipped and why) and its closing line."""
    lines = output.rstrip().splitlines()
    marks = [number for number, line in enumerate(lines) if "short test summary info" in line]
    return "\n".join(lines[marks[-1] :] if marks else lines[-1:])


if __name__ == "__main__":
    sys.exit(main())
