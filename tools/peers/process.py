"""Programs in processes of their own, with what they cost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgegen.records.base import Record

OFFLINE = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
_LAUNCHER = """
import os, resource, subprocess, sys, time
started = time.monotonic()
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
with open(sys.argv[1], "w") as stream:
    print(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, file=stream)
sys.exit(code if code >= 0 else 128 - code)
"""
"""A small process in between: a new process's peak memory begins at that of the one that started it."""


class ProgramError(RuntimeError):
    """A program ended with another code than 0; the message holds its last lines."""


class Cost(Record, frozen=True):
    """What a program took, the processes that it started and waited for included."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    """Of the largest process."""


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, codes: tuple[int, ...] = (0,)) -> Cost:
    """Run a program offline, quietly, to its end.

    Args:
        codes: exit codes that are no failure.

    Raises:
        ProgramError: it failed.
    """
    tools = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (tools, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "cost"
        done = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, str(told), *command],
            env={**os.environ, **OFFLINE, "PYTHONPATH": paths, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode not in codes:
            last = "\n".join(done.stdout.splitlines()[-25:])
            raise ProgramError(f"{' '.join(command[:6])} … ended with {done.returncode}:\n{last}")
        wall, cpu, rss = map(float, told.read_text().split())
    return Cost(wall_s=wall, cpu_s=cpu, peak_rss_bytes=int(rss))
