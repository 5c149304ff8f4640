"""Runs an artifact in a process of its own: `python -m edgegen.verify.worker REQUEST.json RESULT.json`.

A fresh process shows what a device would see: the runtime loads the file from disk, memory starts from nothing, and a
crash is an exit code instead of the end of the program that verifies.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgegen.common.codec import load_json
from edgegen.common.process import peak_rss_bytes, rss_bytes
from edgegen.common.worker import answer_request
from edgegen.errors import DeviceError
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.plan import Settings, Terms
from edgegen.records.reference import Reference, ReferenceWindow
from edgegen.records.report import Bounds, Memory, Parity, Quality, Speed, VectorParity, VectorQuality
from edgegen.runtime.base import EncoderSession, Session, Timing
from edgegen.runtime.checks import settings_here
from edgegen.runtime.litertlm import CONTAINER_FILE, Compared, compare_answers
from edgegen.runtime.registry import encoder_runtime_for, runtime_for
from edgegen.verify.bounds import find_bounds
from edgegen.verify.quality import (
    add_window,
    compare_parity,
    counted_positions,
    empty_scores,
    summarize_quality,
)
from edgegen.verify.vectors import vector_parity, vector_quality


class Request(Record, frozen=True):
    """What to measure."""

    artifact: str
    """The artifact's folder."""
    runtime: str
    """Name of the runtime; empty: the first that is installed."""
    strict: str
    """Folder of the same model for strict accuracy, to be measured instead; empty: the artifact as it ships."""
    reference: str
    """The reference's folder."""
    what: str
    """`speed`, `quality`, `parity`, `logits`, `sample` or `litertlm`."""
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    answer_tokens: int
    logits: str = ""
    """File for the (P, V) float32 logits of the parity windows, or an encoder's (P, D) vectors, where `logits` or
    `sample` is asked for."""
    prompts: tuple[str, ...] = ()
    """For `litertlm`: what a person says to both engines."""
    terms: Terms | None = None
    """For `speed`: the work of a token, to find what the machine allows at best."""
    sample_tokens: int = 0
    """For `sample`: how many positions of the parity windows to keep."""


class Result(Record, frozen=True):
    """What was measured; only the asked part is there."""

    error: str = ""
    version: str = ""
    runtime: str = ""
    """The runtime's name."""
    speed: Speed | None = None
    memory: Memory | None = None
    bounds: Bounds | None = None
    parity: Parity | None = None
    quality: Quality | None = None
    vector_parity: VectorParity | None = None
    """Of an encoder, as `vectors`."""
    vectors: VectorQuality | None = None
    answers: tuple[tuple[int, ...], ...] = ()
    """Greedy continuations of the reference's prompts; for `logits` of its greedy runs, for `sample` of the first."""
    compared: Compared | None = None
    """For `litertlm`: what both engines answer."""


def main(request_path: str, result_path: str) -> int:
    """Measure, write the result; errors become part of it."""
    return answer_request(
        request_path,
        result_path,
        asks=Request,
        work=measure,
        failed=lambda error: Result(error=str(error)),
    )


def measure(request: Request) -> Result:
    """Open the artifact and measure what is asked."""
    folder = Path(request.artifact)
    artifact = load_json(folder / "artifact.json", Artifact)
    is_encoder = artifact.task == "encoder"
    runtime = (encoder_runtime_for if is_encoder else runtime_for)(artifact.target, request.runtime)
    version = runtime.version()
    reference = load_json(Path(request.reference) / "reference.json", Reference)
    baseline = rss_bytes()
    started = time.perf_counter()
    settings = settings_here(artifact.settings)
    if request.strict:
        folder, settings = Path(request.strict), msgspec.structs.replace(settings, kv_type="f32")
    with contextlib.closing(runtime.open(folder / artifact.model, settings)) as session:
        load_ms = 1000 * (time.perf_counter() - started)
        if request.what == "speed":
            speed = _measure_speed(session, request, reference, settings, load_ms)
            if isinstance(session, EncoderSession):
                session.embed(_tokens(reference, session.context_tokens))  # memory is that of the longest text
            memory = Memory(peak_rss_bytes=peak_rss_bytes(), baseline_rss_bytes=baseline)
            found = Result(speed=speed, memory=memory)
            if request.terms is not None and not is_encoder:
                found = msgspec.structs.replace(found, bounds=find_bounds(request.terms, artifact.target, speed))
        elif isinstance(session, EncoderSession):
            found = _compare_vectors(session, request, reference)
        elif request.what == "litertlm":
            found = Result(compared=_compare_engines(session, request, settings))
        elif request.what == "logits":
            np.save(request.logits, np.concatenate([session.score(w.ids) for w in parity_windows(reference)]))
            runs = tuple(tuple(session.generate(run.ids, max_tokens=len(run.tokens))) for run in reference.greedy)
            found = Result(answers=runs)
        elif request.what == "sample":
            found = Result(answers=(_sample(session, request, reference),))
        elif request.what == "parity":
            found = Result(parity=compare_with_torch(session, Path(request.reference), reference))
        else:
            parity, quality = score_against(session, Path(request.reference), reference)
            answers = tuple(
                tuple(session.generate(prompt.ids, max_tokens=request.answer_tokens, stop_ids=artifact.eos_ids))
                for prompt in reference.prompts
            )
            found = Result(parity=parity, quality=quality, answers=answers)
    return msgspec.structs.replace(found, version=version, runtime=runtime.name)


def _measure_speed(
    session: Session | EncoderSession, request: Request, reference: Reference, settings: Settings, load_ms: float
) -> Speed:
    context = session.context_tokens
    encodes = isinstance(session, EncoderSession)
    decode = 0 if encodes else max(1, min(request.decode_tokens, context // 2))
    wanted = max(1, min(request.prompt_tokens, context - decode - (not encodes)))
    prompt = _tokens(reference, wanted)

    def run(decoded: int) -> Timing:
        if isinstance(session, EncoderSession):
            return session.measure(prompt)
        return session.measure(prompt, decode_tokens=decoded)

    run(1)  # the first pass also reads the file from disk
    timings = [run(decode) for _ in range(request.repeats)]
    prefill = [timing.prompt_tokens / timing.prefill_s for timing in timings]
    speeds = prefill if encodes else [timing.decoded_tokens / timing.decode_s for timing in timings]
    return Speed(
        threads=settings.threads,
        repeats=request.repeats,
        load_ms=load_ms,
        ttft_ms=1000 * statistics.median(timing.prefill_s for timing in timings),
        prefill_tokens_per_s=statistics.median(prefill),
        decode_tokens_per_s=statistics.median(speeds),
        decode_spread_fraction=(max(speeds) - min(speeds)) / statistics.median(speeds),
        prompt_tokens=wanted,
        decode_tokens=decode,
    )


def _tokens(reference: Reference, count: int) -> list[int]:
    """So many tokens of the held-out text, from its start, again and again."""
    ids = [i for window in reference.windows for i in window.ids]
    return (ids * (count // len(ids) + 1))[:count]


def _compare_vectors(session: EncoderSession, request: Request, reference: Reference) -> Result:
    """Encode a reference folder's texts: all, or those that the torch model with rounded weights encoded too."""
    folder = Path(request.reference)
    windows = {"quality": reference.windows, "sample": sample_texts(reference, request.sample_tokens)}.get(
        request.what, parity_windows(reference)
    )
    found = np.stack([session.embed(window.ids) for window in windows])
    if not np.isfinite(found).all():
        raise DeviceError("the runtime computes NaN from these weights")
    if request.what in ("logits", "sample"):
        np.save(request.logits, found)
        return Result()
    expected = np.load(folder / "parity.npy")
    parity = vector_parity(expected, found[: len(expected)])
    if request.what == "parity":
        return Result(vector_parity=parity)
    return Result(vector_parity=parity, vectors=vector_quality(np.load(folder / "quality.npy"), found))


def _compare_engines(session: Session, request: Request, settings: Settings) -> Compared:
    from edgegen.runtime.text import Text

    folder = Path(request.artifact)
    return compare_answers(
        folder / CONTAINER_FILE,
        session,
        Text(folder),
        request.prompts,
        max_tokens=request.answer_tokens,
        threads=settings.threads,
    )


def sample_texts(reference: Reference, tokens: int) -> tuple[ReferenceWindow, ...]:
    """The first parity windows, whole, of so many tokens together; at least one."""
    windows = parity_windows(reference)
    together = np.cumsum([len(window.ids) for window in windows])
    return windows[: max(1, int((together <= tokens).sum()))]


def sample_windows(reference: Reference, tokens: int) -> list[tuple[int, ...]]:
    """The first tokens of the parity windows, at most so many in all; where a window ends, its start is kept."""
    found: list[tuple[int, ...]] = []
    for window in reference.windows[: reference.parity_windows]:
        left = tokens - sum(map(len, found))
        if left > 0:
            found.append(window.ids[:left])
    return found


def _sample(session: Session, request: Request, reference: Reference) -> tuple[int, ...]:
    """Save the logits of a few windows; the first tokens of a greedy continuation."""
    parts = [session.score(ids) for ids in sample_windows(reference, request.sample_tokens)]
    np.save(request.logits, np.concatenate(parts))
    if not reference.greedy:
        return ()
    run = reference.greedy[0]
    return tuple(session.generate(run.ids, max_tokens=min(request.answer_tokens, len(run.tokens))))


def compare_with_torch(session: Session, folder: Path, reference: Reference) -> Parity:
    """Logits and greedy continuations against the torch model with the same rounded weights."""
    expected = np.load(folder / "parity.npy", mmap_mode="r")
    windows = parity_windows(reference)
    starts = np.cumsum([0, *(len(window.ids) for window in windows)])
    pairs = (
        (np.asarray(expected[start : start + len(window.ids)]), session.score(window.ids))
        for start, window in zip(starts, windows, strict=False)
    )
    return with_greedy(compare_parity(pairs), session, reference)


def with_greedy(parity: Parity, session: Session, reference: Reference) -> Parity:
    """The same with the least agreement of greedy continuations."""
    agreed, wanted = [], []
    for run in reference.greedy:
        made = list(session.generate(run.ids, max_tokens=len(run.tokens)))
        agreed.append(common_prefix(made, run.tokens))
        wanted.append(len(run.tokens))
    shortest = int(np.argmin(agreed)) if agreed else -1
    return msgspec.structs.replace(
        parity,
        greedy_prefix=agreed[shortest] if agreed else 0,
        greedy_tokens=wanted[shortest] if wanted else 0,
    )


def parity_windows(reference: Reference) -> tuple[ReferenceWindow, ...]:
    """Those that `parity.npy` holds logits of."""
    return reference.windows[: reference.parity_windows]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that agree from the start."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    return same.index(False) if False in same else len(same)


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
    parity = with_greedy(compare_parity(iter(pairs)), session, reference)
    return parity, summarize_quality(scores, reference)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
