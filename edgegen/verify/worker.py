"""Runs an artifact in a process of its own: `python -m edgegen.verify.worker REQUEST.json RESULT.json`.

A fresh process shows what a device would see: the runtime loads the file from disk, memory starts from nothing, and a
crash is an exit code instead of the end of the program that verifies.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from edgegen.common.codec import load_json, save_json
from edgegen.common.process import peak_rss_bytes, rss_bytes
from edgegen.errors import DeviceError, EdgegenError
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.plan import Settings
from edgegen.records.reference import Reference
from edgegen.records.report import Memory, Parity, Quality, Speed
from edgegen.runtime.base import Session
from edgegen.runtime.registry import runtime_for
from edgegen.verify.quality import (
    add_window,
    compare_parity,
    counted_positions,
    empty_scores,
    summarize_quality,
)


class Request(Record, frozen=True):
    """What to measure."""

    artifact: str
    """The artifact's folder."""
    reference: str
    """The reference's folder."""
    what: str
    """`speed` or `quality`."""
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    answer_tokens: int


class Result(Record, frozen=True):
    """What was measured; only the asked part is there."""

    error: str = ""
    version: str = ""
    speed: Speed | None = None
    memory: Memory | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    answers: tuple[tuple[int, ...], ...] = ()
    """Greedy continuations of the reference's prompts."""


def main(request_path: str, result_path: str) -> int:
    """Measure, write the result; errors become part of it."""
    request = load_json(Path(request_path), Request)
    try:
        result = measure(request)
    except EdgegenError as error:
        result = Result(error=str(error))
    save_json(Path(result_path), result)
    return 0


def measure(request: Request) -> Result:
    """Open the artifact and measure what is asked."""
    folder = Path(request.artifact)
    artifact = load_json(folder / "artifact.json", Artifact)
    runtime = runtime_for(artifact.target)
    version = runtime.version()
    reference = load_json(Path(request.reference) / "reference.json", Reference)
    baseline = rss_bytes()
    started = time.perf_counter()
    # More threads than this machine has cores would only wait for each other.
    threads = min(artifact.settings.threads, os.cpu_count() or 1)
    settings = msgspec.structs.replace(artifact.settings, threads=threads)
    session = runtime.open(folder / artifact.model, settings)
    load_ms = 1000 * (time.perf_counter() - started)
    try:
        if request.what == "speed":
            speed = _measure_speed(session, request, reference, settings, load_ms)
            memory = Memory(peak_rss_bytes=peak_rss_bytes(), baseline_rss_bytes=baseline)
            return Result(version=version, speed=speed, memory=memory)
        parity, quality = score_against(session, Path(request.reference), reference)
        answers = tuple(
            tuple(session.generate(prompt.ids, max_tokens=request.answer_tokens, stop_ids=artifact.eos_ids))
            for prompt in reference.prompts
        )
        return Result(version=version, parity=parity, quality=quality, answers=answers)
    finally:
        session.close()


def _measure_speed(
    session: Session, request: Request, reference: Reference, settings: Settings, load_ms: float
) -> Speed:
    context = session.context_tokens
    decode = max(1, min(request.decode_tokens, context // 2))
    wanted = max(1, min(request.prompt_tokens, context - decode - 1))
    ids = [i for window in reference.windows for i in window.ids]
    prompt = (ids * (wanted // len(ids) + 1))[:wanted]
    session.time_generation(prompt, decode_tokens=1)  # the first pass also reads the file from disk
    timings = [session.time_generation(prompt, decode_tokens=decode) for _ in range(request.repeats)]
    speeds = [timing.decoded_tokens / timing.decode_s for timing in timings]
    return Speed(
        threads=settings.threads,
        repeats=request.repeats,
        load_ms=load_ms,
        ttft_ms=1000 * statistics.median(timing.prefill_s for timing in timings),
        prefill_tokens_per_s=statistics.median(timing.prompt_tokens / timing.prefill_s for timing in timings),
        decode_tokens_per_s=statistics.median(speeds),
        decode_spread_fraction=(max(speeds) - min(speeds)) / statistics.median(speeds),
        prompt_tokens=wanted,
        decode_tokens=decode,
    )


def score_against(session: Session, folder: Path, reference: Reference) -> tuple[Parity, Quality]:
    """Score every window of a reference folder with an open model."""
    stored = np.load(folder / "quality.npy", mmap_mode="r")
    parity_logits = np.load(folder / "parity.npy", mmap_mode="r")
    scores = empty_scores()
    pairs = []
    position = parity_row = 0
    for number, window in enumerate(reference.windows):
        logits = session.score(window.ids)
        if np.isnan(logits).any():
            raise DeviceError("the runtime computes NaN from these weights")
        if number < reference.parity_windows:
            pairs.append((np.asarray(parity_logits[parity_row : parity_row + len(window.ids)]), logits))
            parity_row += len(window.ids)
        count = len(counted_positions(window))
        add_window(scores, window, np.asarray(stored[position : position + count]), logits)
        position += count
    return compare_parity(iter(pairs)), summarize_quality(scores, reference)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
