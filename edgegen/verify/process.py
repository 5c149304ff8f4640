"""Start a worker in a fresh process and say how it ended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from edgegen.common.codec import load_json, save_json
from edgegen.records.target import Fault, Target
from edgegen.verify.worker import Request, Result

WORKER = "edgegen.verify.worker"


def run_worker(request: Request, target: Target | None = None) -> Result:
    """Measure in a fresh process on this machine; a crash becomes the result's error, a known one with its remedy."""
    with tempfile.TemporaryDirectory() as scratch:
        request_path, result_path = Path(scratch) / "request.json", Path(scratch) / "result.json"
        save_json(request_path, request)
        done = subprocess.run(
            [sys.executable, "-m", WORKER, str(request_path), str(result_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result_path.exists():
            return load_json(result_path, Result)
    reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    fault = known_fault(done.stderr, target) if target else None
    said = f"{fault.what} {fault.remedy}" if fault else last_words(done.stderr)
    return Result(error=f"the runtime crashed ({reason}): {said}")


def known_fault(stderr: str, target: Target) -> Fault | None:
    """The runtime's known fault that a crashed program's last words show."""
    return next((fault for fault in target.faults if fault.sign in stderr), None)


def last_words(stderr: str) -> str:
    """The last line of what a crashed program wrote."""
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    return last[0].strip()[:300]
