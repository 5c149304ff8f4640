"""Time artifacts side by side on this machine: `python -m edgegen.verify.bench REQUEST.json RESULT.json`.

Every measurement is a fresh process (see `trial`). Machines are noisy: something else runs for a minute, a phone gets
warm. So all are measured once before any is measured again, each round starts with another one, and medians are told
with their range.

As a program it needs the base install and the runtimes; with `-` for the result it writes that to stdout, behind a
line that marks it, and what is done of how much to stderr: that is how another machine is asked over SSH.
"""

from __future__ import annotations

import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgegen import __version__
from edgegen.common.codec import encode_json, load_json, save_json
from edgegen.common.host import allowed_cores
from edgegen.errors import ConfigError, EdgegenError, UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.bench import Bench, BenchRow, PromptSpeed, Spread
from edgegen.runtime.checks import settings_here
from edgegen.verify.trial import TrialRequest, TrialResult
from edgegen.verify.verify import describe_machine

RESULT_MARK = "--- edgegen bench result ---"
PROGRESS_MARK = "--- edgegen bench"


class Case(Record, frozen=True):
    """One artifact on one runtime."""

    name: str
    artifact: str
    """Its folder."""
    runtime: str
    """Name of the runtime; empty: the first that is installed."""


class BenchRequest(Record, frozen=True):
    """What to measure."""

    cases: tuple[Case, ...]
    threads: tuple[int, ...]
    """Empty: each artifact's own number, as far as the machine has cores, and 1."""
    prompt_tokens: tuple[int, ...]
    """Ascending."""
    decode_tokens: int
    repeats: int
    command: str


def main(request_path: str, result_path: str) -> int:
    """Measure and write the record; exit codes as everywhere."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        request = load_json(Path(request_path), BenchRequest)
        if result_path == "-":
            found = run_bench(request, progress=_tell)
            sys.stdout.write(f"{RESULT_MARK}\n{encode_json(found).decode()}")
        else:
            save_json(Path(result_path), run_bench(request))
    except EdgegenError as error:
        sys.stderr.write(f"{error} {error.hint}".strip() + "\n")
        return error.exit_code
    return 0


def _tell(done: int, total: int) -> None:
    sys.stderr.write(f"{PROGRESS_MARK} {done} {total}\n")
    sys.stderr.flush()


def run_bench(request: BenchRequest, progress: Callable[[int, int], None] | None = None) -> Bench:
    """Measure every case with every number of threads.

    Args:
        progress: called with (measurements done, in all).

    Raises:
        ConfigError: no artifact in one of the folders, or a number that is not positive.
        UnsupportedError: an encoder.
    """
    _check(request)
    started = time.monotonic()
    artifacts = {case.name: load_json(Path(case.artifact) / "artifact.json", Artifact) for case in request.cases}
    for name, artifact in artifacts.items():
        if artifact.task == "encoder":
            raise UnsupportedError(
                f"{name}: an encoder, which decodes no tokens", hint="edgegen verify measures its speed."
            )
    cells = [
        (case, threads) for case in request.cases for threads in request.threads or _own_threads(artifacts[case.name])
    ]
    results: dict[tuple[Case, int], list[TrialResult]] = {cell: [] for cell in cells}
    for number in range(request.repeats):
        turn = number % len(cells)
        for place, cell in enumerate(cells[turn:] + cells[:turn]):
            if not any(result.error for result in results[cell]):
                results[cell].append(_run_trial(*cell, request))
            if progress:
                progress(number * len(cells) + place + 1, request.repeats * len(cells))
    rows = tuple(_row(case, threads, artifacts[case.name], results[case, threads]) for case, threads in cells)
    return Bench(
        schema=1,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        command=request.command,
        version=__version__,
        where="",
        machine=describe_machine(is_device=False),
        rows=rows,
        notes=_notes(request, rows),
    )


def _check(request: BenchRequest) -> None:
    numbers = (*request.threads, *request.prompt_tokens, request.decode_tokens, request.repeats)
    if not request.cases or not request.prompt_tokens or min(numbers) < 1:
        raise ConfigError(
            "threads, prompt lengths, decoded tokens and repeats must be 1 or more", hint="Leave them out for defaults."
        )


def _own_threads(artifact: Artifact) -> tuple[int, ...]:
    return tuple(sorted({1, settings_here(artifact.settings).threads}))


def _run_trial(case: Case, threads: int, request: BenchRequest) -> TrialResult:
    with tempfile.TemporaryDirectory() as scratch:
        request_path, result_path = Path(scratch) / "request.json", Path(scratch) / "result.json"
        trial = TrialRequest(
            artifact=str(Path(case.artifact).resolve()),
            runtime=case.runtime,
            threads=threads,
            prompt_tokens=request.prompt_tokens,
            decode_tokens=request.decode_tokens,
        )
        save_json(request_path, trial)
        done = subprocess.run(
            [sys.executable, "-m", "edgegen.verify.trial", str(request_path), str(result_path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result_path.exists():
            return load_json(result_path, TrialResult)
    reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return TrialResult(error=f"the runtime crashed ({reason}): {last[0][:300]}")


def _row(case: Case, threads: int, artifact: Artifact, results: Sequence[TrialResult]) -> BenchRow:
    known = {
        "name": case.name,
        "target": artifact.target,
        "threads": threads,
        "bytes": artifact.model_bytes,
        "context_tokens": artifact.settings.context_tokens,
    }
    errors = [result.error for result in results if result.error]
    if errors:
        return BenchRow(**known, runtime=case.runtime, version="", error=errors[0])  # type: ignore[arg-type]
    first = results[0]
    prompts = []
    for place, tokens in enumerate(first.prompt_tokens):
        seconds = [result.prefill_s[place] for result in results]
        prompts.append(
            PromptSpeed(
                tokens=tokens,
                ttft_ms=_spread([1000 * value for value in seconds]),
                tokens_per_s=_spread([tokens / value for value in seconds]),
            )
        )
    return BenchRow(
        **known,  # type: ignore[arg-type]
        runtime=first.runtime,
        version=first.version,
        repeats=len(results),
        load_ms=_spread([result.load_ms for result in results]),
        start_ms=_spread([result.start_ms for result in results]),
        prompts=tuple(prompts),
        decode_tokens=first.decode_tokens,
        decode_tokens_per_s=_spread([result.decode_tokens / result.decode_s for result in results]),
        peak_rss_bytes=_spread([result.peak_rss_bytes for result in results]),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), low=min(values), high=max(values), values=tuple(values))


def _notes(request: BenchRequest, rows: Sequence[BenchRow]) -> tuple[str, ...]:
    notes = []
    for row in rows:
        lengths = tuple(prompt.tokens for prompt in row.prompts)
        if lengths and (lengths != request.prompt_tokens or row.decode_tokens != request.decode_tokens):
            notes.append(
                f"{row.name}: its context holds {row.context_tokens} tokens, so prompts are of "
                f"{' and '.join(map(str, lengths))} and {row.decode_tokens} are decoded."
            )
        if row.threads > allowed_cores():
            notes.append(f"{row.threads} threads share {allowed_cores()} cores of this machine.")
    return tuple(dict.fromkeys(notes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
