"""Prompts whose answers are known, and how answers look: what a device checks itself against before it serves.

The artifact answers them on the machine that packs it, on its own runtime, in a fresh process (runtimes keep memory and
threads). Golden answers are greedy, so they are the same on every machine up to the processor's arithmetic: a device
asks that the first tokens agree and that the answer is about as likely as it was here. The answers that the reference
profile is made of are drawn (see `profile`).

python -m edgegen.bundle.golden REQUEST RESULT    (JSON in, JSON out)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgegen.bundle.profile import Answer, profile
from edgegen.common.codec import load_json, save_json
from edgegen.common.worker import answer_request
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.bundle import Golden, ReferenceProfile
from edgegen.records.reference import Reference
from edgegen.runtime.adapters import open_model
from edgegen.runtime.base import Session
from edgegen.runtime.features import distinct_fraction, features
from edgegen.runtime.likelihood import byte_fraction, byte_ids, token_likelihood
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.sampling import GREEDY, Sampler, Sampling
from edgegen.runtime.text import Text

GOLDEN_TOKENS = 32
MOST_GOLDEN = 4
PROFILE_TOKENS = 96


class Request(Record, frozen=True):
    """What the process is asked."""

    artifact: str
    runtime: str
    prompts: tuple[tuple[int, ...], ...]
    golden: int
    """The first so many are golden prompts."""
    adapter: str = ""
    """LoRA file over the artifact's weights; empty: none."""


class Result(Record, frozen=True):
    """What it found."""

    runtime: str = ""
    version: str = ""
    golden: tuple[Golden, ...] = ()
    reference: ReferenceProfile = ReferenceProfile()
    error: str = ""


def ask_artifact(artifact: Path, reference: Path, *, runtime: str = "") -> Result:
    """Golden answers and the reference profile of an artifact, from a fresh process.

    Args:
        artifact: its folder.
        reference: folder with the original's prompts.
        runtime: one that runs the target; empty: the first that is installed.

    Raises:
        UnsupportedError: an artifact that does not continue text, or a runtime that does not run it.
        DeviceError: the runtime refuses it or crashes.
    """
    record = load_json(artifact / "artifact.json", Artifact)
    if record.task != "causal":
        raise UnsupportedError(
            f"{artifact}: a {record.task} cannot be packed yet: its answers are no tokens",
            hint="Models that continue text can.",
        )
    if runtime:
        runtime_for(record.target, runtime)  # refuses a wrong name, which the fresh process could say only as a failure
    prompts = choose_prompts(load_json(reference / "reference.json", Reference), record.context_tokens)
    return ask_prompts(artifact, prompts, runtime=runtime)


def ask_prompts(
    artifact: Path, prompts: tuple[tuple[int, ...], ...], *, runtime: str = "", adapter: Path | None = None
) -> Result:
    """Answers to some prompts, the first of which are golden, from a fresh process.

    Args:
        artifact: folder of a model that continues text.
        adapter: LoRA file over its weights.

    Raises:
        DeviceError: the runtime refuses a file or crashes.
    """
    request = Request(
        artifact=str(artifact.resolve()),
        runtime=runtime,
        prompts=prompts,
        golden=min(MOST_GOLDEN, len(prompts)),
        adapter=str(adapter.resolve()) if adapter else "",
    )
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        asked, told = Path(scratch) / "request.json", Path(scratch) / "result.json"
        save_json(asked, request)
        done = subprocess.run(
            [sys.executable, "-m", "edgegen.bundle.golden", str(asked), str(told)],
            capture_output=True,
            text=True,
            check=False,
        )
        result = load_json(told, Result) if told.exists() else None
    if result is None:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DeviceError(f"the runtime crashed (exit code {done.returncode}): {last[0][:300]}")
    if result.error:
        raise DeviceError(result.error)
    return result


def choose_prompts(reference: Reference, context_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The requests that the original answered, then the starts of held-out text; those that leave room to answer."""
    found = [prompt.ids for prompt in reference.prompts] + [run.ids for run in reference.greedy]
    return tuple(dict.fromkeys(ids for ids in found if 0 < len(ids) <= context_tokens // 2))


def answer(session: Session, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = ()) -> Golden:
    """The greedy continuation of a prompt with its mean log-probability, nats per token; 0 without tokens.

    Ends before a stop token, when the context is full, or after `max_tokens`.
    """
    tokens, likelihoods = _continue(session, ids, max_tokens, stop_ids, GREEDY)
    mean = min(0.0, float(np.mean([log_prob for log_prob, _ in likelihoods]))) if tokens else 0.0
    return Golden(ids=tuple(int(i) for i in ids), tokens=tuple(tokens), log_prob=mean)


def sampled_answer(
    session: Session,
    text: Text,
    ids: Sequence[int],
    lone: frozenset[int] | None,
    *,
    stop_ids: Sequence[int],
    seed: int,
) -> Answer:
    """An answer as the device's API gives it when nothing else is asked for, in numbers.

    Args:
        lone: `byte_ids` of the tokenizer.
    """
    tokens, likelihoods = _continue(session, ids, PROFILE_TOKENS, stop_ids, Sampling(temperature=1.0, seed=seed))
    log_prob, entropy = np.mean(likelihoods, axis=0) if tokens else (None, None)
    return Answer(
        prompt_tokens=len(ids),
        answer_tokens=len(tokens),
        features=features(text.decode(tokens)),
        mean_log_prob=None if log_prob is None else float(log_prob),
        mean_entropy=None if entropy is None else float(entropy),
        distinct_fraction=distinct_fraction(tokens),
        byte_fraction=byte_fraction(ids, lone),
    )


def _continue(
    session: Session, ids: Sequence[int], max_tokens: int, stop_ids: Sequence[int], sampling: Sampling
) -> tuple[list[int], list[tuple[float, float]]]:
    """Tokens of an answer, and of each its log-probability and the entropy that it was chosen at, nats."""
    sampler = Sampler(sampling, ids)
    logits = session.start(ids)
    tokens: list[int] = []
    likelihoods: list[tuple[float, float]] = []
    room = min(max_tokens, session.context_tokens - len(ids))
    while len(tokens) < room:
        token = sampler.choose(logits)
        if token in stop_ids:
            break
        likelihoods.append(token_likelihood(logits, token))
        tokens.append(token)
        if len(tokens) < room:
            logits = session.step(token)
    return tokens, likelihoods


def main(request_path: str, result_path: str) -> int:
    """Entry point of the process."""
    return answer_request(
        request_path,
        result_path,
        asks=Request,
        work=_ask,
        failed=lambda error: Result(error=str(error)),
    )


def _ask(request: Request) -> Result:
    folder = Path(request.artifact)
    artifact = load_json(folder / "artifact.json", Artifact)
    runtime = runtime_for(artifact.target, request.runtime)
    threads = min(artifact.settings.threads, os.cpu_count() or 1)
    settings = msgspec.structs.replace(artifact.settings, threads=threads)
    adapter = Path(request.adapter) if request.adapter else None
    text = Text(folder)
    lone = byte_ids(text.tokenizer)
    with open_model(runtime, folder / artifact.model, settings, adapter) as session:
        answers = [
            sampled_answer(session, text, ids, lone, stop_ids=artifact.eos_ids, seed=seed)
            for seed, ids in enumerate(request.prompts)
        ]
        golden = [
            answer(session, ids, max_tokens=GOLDEN_TOKENS, stop_ids=artifact.eos_ids)
            for ids in request.prompts[: request.golden]
        ]
    return Result(
        runtime=runtime.name,
        version=runtime.version(),
        golden=tuple(item for item in golden if item.tokens),
        reference=profile(answers),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
