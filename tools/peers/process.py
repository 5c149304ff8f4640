"""Programs in processes of their own, with what they cost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
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
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            list(command),
            env={**os.environ, **OFFLINE, "PYTHONPATH": paths, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        if child.returncode not in codes:
            said.seek(0)
            last = "\n".join(said.read().decode(errors="replace").splitlines()[-25:])
            raise ProgramError(f"{' '.join(command[:6])} … ended with {child.returncode}:\n{last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall_s=wall, cpu_s=used.ru_utime + used.ru_stime, peak_rss_bytes=used.ru_maxrss * unit)
