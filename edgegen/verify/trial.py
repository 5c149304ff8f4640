"""One timed run of an artifact in a process of its own: `python -m edgegen.verify.trial REQUEST.json RESULT.json`.

Every pass is repeated until it has taken some time in all, because a tiny model is through before a clock's and a
scheduler's noise has settled; its median counts. Prompts are drawn tokens: a dense model's speed does not depend on
what it reads.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from edgegen.common.codec import load_json
from edgegen.common.process import peak_rss_bytes
from edgegen.common.worker import answer_request
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.runtime.base import Session, Timing
from edgegen.runtime.registry import runtime_for

_SECONDS, _PASSES = 0.3, 5
"""A pass is repeated until both or the second are reached."""


class TrialRequest(Record, frozen=True):
    """What to time."""

    artifact: str
    """The artifact's folder."""
    runtime: str
    """Name of the runtime; empty: the first that is installed."""
    threads: int
    prompt_tokens: tuple[int, ...]
    """Ascending."""
    decode_tokens: int


class TrialResult(Record, frozen=True):
    """Times of one process."""

    error: str = ""
    runtime: str = ""
    version: str = ""
    load_ms: float = 0.0
    start_ms: float = 0.0
    prompt_tokens: tuple[int, ...] = ()
    """As the context allows them."""
    prefill_s: tuple[float, ...] = ()
    decode_tokens: int = 0
    decode_s: float = 0.0
    peak_rss_bytes: int = 0


def main(request_path: str, result_path: str) -> int:
    """Measure, write the result; errors become part of it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return answer_request(
        request_path,
        result_path,
        asks=TrialRequest,
        work=measure,
        failed=lambda error: TrialResult(error=f"{error} {error.hint}".strip()),
    )


def measure(request: TrialRequest) -> TrialResult:
    """Open the artifact and time it."""
    folder = Path(request.artifact)
    artifact = load_json(folder / "artifact.json", Artifact)
    runtime = runtime_for(artifact.target, request.runtime)
    version = runtime.version()
    settings = msgspec.structs.replace(artifact.settings, threads=request.threads)
    started = time.perf_counter()
    with runtime.open(folder / artifact.model, settings) as session:
        loaded = time.perf_counter()
        lengths, decode = fitting(request.prompt_tokens, request.decode_tokens, session.context_tokens)
        ids = [int(i) for i in np.random.default_rng(0).integers(session.vocab_size, size=max(lengths))]
        cold = session.measure(ids[: lengths[0]], decode_tokens=0)
        shortest = _repeated(session, ids[: lengths[0]], decode)
        longer = [_repeated(session, ids[:length], 0) for length in lengths[1:]]
        return TrialResult(
            runtime=runtime.name,
            version=version,
            load_ms=1000 * (loaded - started),
            start_ms=1000 * (loaded - started + cold.prefill_s),
            prompt_tokens=lengths,
            prefill_s=tuple(statistics.median(t.prefill_s for t in passes) for passes in (shortest, *longer)),
            decode_tokens=decode,
            decode_s=statistics.median(timing.decode_s for timing in shortest),
            peak_rss_bytes=peak_rss_bytes(),
        )


def fitting(prompts: tuple[int, ...], decode: int, context: int) -> tuple[tuple[int, ...], int]:
    """Prompt lengths and decoded tokens that a context holds: the shortest prompt together with what is decoded.

    Half of a context that is too small for both goes to decoding. Lengths that are cut to the same one count once.
    """
    shortest = max(1, min(prompts[0], context - min(decode, context // 2)))
    return tuple(sorted({shortest, *(min(length, context) for length in prompts[1:])})), min(decode, context - shortest)


def _repeated(session: Session, ids: list[int], decode: int) -> list[Timing]:
    passes: list[Timing] = []
    while len(passes) < _PASSES and sum(t.prefill_s + t.decode_s for t in passes) < _SECONDS:
        passes.append(session.measure(ids, decode_tokens=decode))
    return passes


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
