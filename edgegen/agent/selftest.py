"""Try a release before it serves: load it on the device's own runtime, answer the golden prompts, measure.

It runs in a process of its own (`python -m edgegen.agent.selftest REQUEST.json RESULT.json`), so a model that crashes,
hangs or eats the memory is a verdict and not the end of the agent. The process ends with the agent: it reads a pipe
that closes then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when onnxruntime is imported

import msgspec
import psutil

from edgegen.agent.child import end_with_parent
from edgegen.agent.golden import Answered, ask_golden
from edgegen.agent.runtimes import chosen_runtime
from edgegen.agent.update import Verdict
from edgegen.common.codec import load_json, save_json
from edgegen.common.host import allowed_cores
from edgegen.common.process import peak_rss_bytes
from edgegen.common.worker import answer_request
from edgegen.records.base import Record
from edgegen.records.bundle import Golden, Health, Manifest
from edgegen.records.deployment import Reason
from edgegen.records.plan import Settings

_DECODED = 24
"""Tokens over which speed is measured."""
_LOOK_S = 0.05
_STOP_S = 2.0
"""In which a stop that reached this process's child reaches this process too."""


class Request(Record, frozen=True):
    """What to try."""

    model: str
    """The file that the runtime opens."""
    adapter: str
    """The LoRA file that lies over it; empty: none."""
    target: str
    runtime: str
    settings: Settings
    golden: tuple[Golden, ...]
    loaded: str
    """File that is made when the model is open."""


class Result(Record, frozen=True):
    """What came out."""

    error: str = ""
    load_s: float = 0.0
    golden: tuple[Answered, ...] = ()
    tokens_per_s: float = 0.0
    peak_rss_bytes: int = 0


class SelfTest:
    """The `Tester` of a real device."""

    def __init__(self, *, runtime: str = "", threads: int | None = None) -> None:
        """Prepare.

        Args:
            runtime: name; empty: the first installed one that the release names.
            threads: None: the release's number, as far as this device has cores.
        """
        self._runtime, self._threads = runtime, threads

    def test(self, folder: Path, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        """See `Tester`."""
        with tempfile.TemporaryDirectory(prefix="edgegen-selftest-") as scratch:
            loaded = Path(scratch) / "loaded"
            request = Request(
                model=str(folder / manifest.entry),
                adapter=str(folder / manifest.adapter) if manifest.adapter else "",
                target=manifest.target,
                runtime=chosen_runtime(manifest, self._runtime),
                settings=fitting_settings(manifest.settings, self._threads),
                golden=manifest.golden,
                loaded=str(loaded),
            )
            save_json(Path(scratch) / "request.json", request)
            result = Path(scratch) / "result.json"
            command = [sys.executable, "-m", "edgegen.agent.selftest", str(Path(scratch) / "request.json"), str(result)]
            log = Path(scratch) / "stderr"
            with (
                log.open("wb") as errors,
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process,
            ):
                try:
                    stopped = _wait(process, manifest.health, loaded, between)
                finally:
                    process.kill()
            if stopped is not None:
                return stopped
            if not result.is_file():
                said = log.read_text(errors="replace").strip().splitlines()
                where = "while it answered" if loaded.exists() else "while it was loaded"
                words = f"the test process ended with code {process.returncode} {where}" + (
                    f": {said[-1][:200]}" if said else ""
                )
                return Verdict(Reason.CRASHED if loaded.exists() else Reason.LOAD_FAILED, words)
            return judge(load_json(result, Result), manifest)


def judge(result: Result, manifest: Manifest) -> Verdict:
    """Whether what came out is good enough for the release's own criteria."""
    health = manifest.health
    if result.error:
        return Verdict(Reason.LOAD_FAILED, result.error)
    if result.load_s > health.load_timeout_s:
        return Verdict(Reason.LOAD_FAILED, f"loading took {result.load_s:.1f} s of {health.load_timeout_s:g}")
    for number, (golden, answer) in enumerate(zip(manifest.golden, result.golden, strict=True), start=1):
        wanted = min(health.min_golden_prefix, len(golden.tokens))
        if answer.prefix < wanted:
            return Verdict(
                Reason.GOLDEN, f"golden prompt {number}: {answer.prefix} of {wanted} tokens are as they were packed"
            )
        if answer.log_prob < golden.log_prob - health.max_log_prob_drop:
            return Verdict(
                Reason.GOLDEN,
                f"golden prompt {number}: {answer.log_prob:.3f} nats a token, {golden.log_prob:.3f} when packed",
            )
    if health.min_tokens_per_s is not None and result.golden and result.tokens_per_s < health.min_tokens_per_s:
        return Verdict(Reason.TOO_SLOW, f"{result.tokens_per_s:.1f} tokens/s of {health.min_tokens_per_s:g}")
    if health.max_rss_bytes is not None and result.peak_rss_bytes > health.max_rss_bytes:
        return Verdict(Reason.TOO_MUCH_MEMORY, f"{result.peak_rss_bytes:,} bytes of {health.max_rss_bytes:,}")
    return Verdict(Reason.NONE)


def fitting_settings(settings: Settings, threads: int | None) -> Settings:
    """A release's settings with threads that this device has."""
    return msgspec.structs.replace(settings, threads=threads or min(settings.threads, allowed_cores()))


def _wait(
    process: subprocess.Popen[bytes], health: Health, loaded: Path, between: Callable[[], None]
) -> Verdict | None:
    """Until the process ends by itself; a verdict if it had to be stopped."""
    started = time.monotonic()
    while process.poll() is None:
        between()
        if not loaded.exists() and time.monotonic() - started > health.load_timeout_s + 5:
            return Verdict(Reason.LOAD_FAILED, f"not loaded after {health.load_timeout_s:g} s")
        if health.max_rss_bytes is not None:
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(process.pid).memory_info().rss
                if used > health.max_rss_bytes:
                    return Verdict(Reason.TOO_MUCH_MEMORY, f"{used:,} bytes of {health.max_rss_bytes:,}")
        time.sleep(_LOOK_S)
    # Who stops the agent may have stopped its children first; that is not the release's fault.
    asked_to_stop = process.returncode in (-signal.SIGTERM, -signal.SIGINT)
    until = time.monotonic() + (_STOP_S if asked_to_stop else 0)
    between()
    while time.monotonic() < until:
        time.sleep(_LOOK_S)
        between()
    return None


def main(request_path: str, result_path: str) -> int:
    """Try it, write the result; errors become part of it."""
    end_with_parent()
    return answer_request(
        request_path,
        result_path,
        asks=Request,
        work=measure,
        failed=lambda error: Result(error=str(error)),
    )


def measure(request: Request) -> Result:
    """Open the model and answer."""
    from edgegen.runtime.adapters import open_model
    from edgegen.runtime.registry import runtime_for

    started = time.perf_counter()
    runtime = runtime_for(request.target, request.runtime)
    adapter = Path(request.adapter) if request.adapter else None
    with open_model(runtime, Path(request.model), request.settings, adapter) as session:
        load_s = time.perf_counter() - started
        Path(request.loaded).touch()
        answers, speed = [ask_golden(session, golden) for golden in request.golden], 0.0
        if request.golden:
            ids = request.golden[0].ids
            count = max(1, min(_DECODED, session.context_tokens - len(ids)))
            timing = session.measure(ids, decode_tokens=count)
            speed = timing.decoded_tokens / timing.decode_s if timing.decode_s > 0 else 0.0
    return Result(load_s=load_s, golden=tuple(answers), tokens_per_s=speed, peak_rss_bytes=peak_rss_bytes())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
