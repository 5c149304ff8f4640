"""Verify an artifact: two fresh processes measure, this one judges and writes the report."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.common.host import cpu_name
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan
from edgegen.records.reference import Reference
from edgegen.records.report import Check, Machine, Quality, Report, Sample, TaskScore, VectorQuality
from edgegen.records.target import Target
from edgegen.verify.limits import budget_checks, parity_checks, strict_check, vector_checks
from edgegen.verify.litertlm import has_container, judge_container
from edgegen.verify.process import run_worker
from edgegen.verify.task import looks_sane, score_answers
from edgegen.verify.worker import Request, Result

_REPEATS = 5
_ANSWER_TOKENS = 96
_SAMPLES = 6
_FEW_WINDOWS = 12
_FEW_TEXTS = 50
_LIBRARIES = (
    *("edgegen", "llama-cpp-python", "gguf", "onnxruntime", "onnxruntime-genai", "ai-edge-litert", "litert-torch"),
    "litert-lm-api",
    *("numpy", "tokenizers", "torch", "transformers"),
)


def verify_artifact(
    artifact_folder: Path,
    reference_folder: Path,
    plan: Plan,
    target: Target,
    *,
    is_device: bool,
    strict_folder: Path | None = None,
    runtime: str = "",
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure an artifact in fresh processes and hold it against its plan.

    Args:
        artifact_folder: with artifact.json.
        reference_folder: what the original said.
        plan: budgets and predictions.
        is_device: whether this machine is the plan's device, so that its speed counts.
        strict_folder: the same model for the runtime's strict-accuracy mode, where it is at hand.
        runtime: one that runs the target; empty: the first that is installed.
        command: what the user typed, for the receipt.
        progress: called with (steps done, steps in all).

    Returns:
        The report, failing or not; nothing is raised for a bad artifact.

    Raises:
        ConfigError: artifact.json or the reference is not there.
    """
    started = time.monotonic()
    artifact = load_json(artifact_folder / "artifact.json", Artifact)
    reference = load_json(reference_folder / "reference.json", Reference)
    checks = [_intact(artifact_folder, artifact)]
    results: dict[str, Result] = {}
    has_strict = strict_folder is not None and (strict_folder / artifact.model).exists()
    asked = ("speed", "quality", "parity") if has_strict else ("speed", "quality")
    for number, what in enumerate(asked):
        request = request_for(artifact_folder, reference_folder, plan, what, runtime=runtime)
        if what == "parity":
            request = msgspec.structs.replace(request, strict=str(strict_folder))
        results[what] = run_worker(request, target) if checks[0].passed else Result(error="files were altered")
        if progress:
            progress(number + 1, len(asked))
    errors = [result.error for result in results.values() if result.error]
    ran = f"{results['speed'].runtime} {results['speed'].version}"
    checks.append(_check("loads", not errors, errors[0] if errors else ran))
    checks.append(_check("tokenizer", bool(artifact.tokenizer_proof), artifact.tokenizer_proof))
    speed, memory = results["speed"].speed, results["speed"].memory
    parity, quality = results["quality"].parity, results["quality"].quality
    samples: tuple[Sample, ...] = ()
    task: TaskScore | None = None
    unverified: tuple[str, ...] = ()
    is_encoder = artifact.task == "encoder"
    if not results["quality"].error and not is_encoder:
        texts = _decoded(artifact_folder, results["quality"].answers)
        originals = [prompt.answer.split() for prompt in reference.prompts]
        if reference.prompts:
            sane, seen = looks_sane(
                originals, [text.split() for text in texts], texts, [prompt.answer for prompt in reference.prompts]
            )
            checks.append(_check("sane_text", sane, seen))
        samples = tuple(
            Sample(prompt=prompt.prompt, original=prompt.answer, artifact=text, expected=prompt.expected)
            for prompt, text in list(zip(reference.prompts, texts, strict=True))[:_SAMPLES]
        )
        scored = [(p, t) for p, t in zip(reference.prompts, texts, strict=True) if p.expected]
        if scored:
            task = score_answers([p.expected for p, _ in scored], [p.answer for p, _ in scored], [t for _, t in scored])
        if has_container(artifact):
            asked_last = request_for(artifact_folder, reference_folder, plan, "litertlm", runtime=runtime)
            judged, unverified = judge_container(asked_last, reference, target)
            checks += judged
    exact = results.get("parity", Result())
    vectors, vector_parity = results["quality"].vectors, results["quality"].vector_parity
    if is_encoder:
        checks += vector_checks(vector_parity, vectors, target)
        checks += vector_checks(exact.vector_parity, None, target, is_strict=True) if has_strict else []
    else:
        checks += parity_checks(parity, target)
        checks += [strict_check(exact.parity, target)] if has_strict else []
    checks += budget_checks(
        plan,
        artifact_bytes=artifact.model_bytes,
        quality=quality,
        vectors=vectors,
        speed=speed,
        memory=memory,
        is_device=is_device,
    )
    return Report(
        schema=1,
        passed=all(check.passed for check in checks),
        model=plan.model.source,
        target=plan.target,
        runtime=results["speed"].runtime,
        profile=plan.profile.name,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        checks=tuple(checks),
        parity=parity,
        strict=exact.parity,
        quality=quality,
        model_task=artifact.task,
        vectors=vectors,
        vector_parity=vector_parity,
        vector_strict=exact.vector_parity,
        speed=speed,
        memory=memory,
        bounds=results["speed"].bounds,
        rounding=artifact.rounding,
        task=task,
        samples=samples,
        machine=describe_machine(is_device=is_device),
        versions=_versions(results["speed"].version),
        digests={
            "model": plan.model.digest,
            "data": plan.data.digest,
            "artifact": next(f.digest for f in artifact.files if f.path == artifact.model),
            **({"lineage": artifact.lineage} if artifact.lineage else {}),
        },
        artifact_bytes=artifact.model_bytes,
        notes=(*plan.notes, *artifact.notes, *unverified, *_notes(plan, target, quality, vectors, is_device)),
    )


def _notes(
    plan: Plan, target: Target, quality: Quality | None, vectors: VectorQuality | None, is_device: bool
) -> list[str]:
    notes = []
    if vectors and vectors.texts < _FEW_TEXTS:
        notes.append(
            f"Only {vectors.texts} held-out texts were there to judge on: the intervals are rough. Give more data."
        )
    if quality and quality.windows < _FEW_WINDOWS:
        notes.append(
            f"Only {quality.windows} held-out windows were there to judge on: the intervals are rough. Give more data."
        )
    if plan.data.generic:
        notes.append(
            "No --data was given: calibrated and judged on edgegen's generic text; quality on your own text is unknown."
        )
    if not is_device and plan.budgets.min_tokens_per_s is not None:
        notes.append(
            f"This machine is not a {plan.profile.title}: its speed limits are judged by prediction. "
            "Verify on the device to measure."
        )
    for fault in target.faults:
        if plan.profile.device.meets(fault):
            notes.append(f"On a {plan.profile.title}, {fault.runtime} as published fails: {fault.what} {fault.remedy}")
    return notes


def _intact(folder: Path, artifact: Artifact) -> Check:
    for file in artifact.files:
        path = folder / file.path
        if not path.exists():
            return _check("intact", False, f"{file.path} is missing")
        if digest_file(path) != file.digest:
            return _check("intact", False, f"{file.path} was altered: its digest is not the one in artifact.json")
    return _check("intact", True, f"{len(artifact.files)} files have their digests")


def _check(name: str, passed: bool, detail: str) -> Check:
    return Check(name=name, limit=None, measured=None, predicted=None, unit="", passed=passed, detail=detail)


def request_for(artifact: Path, reference: Path, plan: Plan, what: str, *, runtime: str = "") -> Request:
    """What a worker is asked to measure of an artifact as it ships, with the plan's workload."""
    return Request(
        artifact=str(artifact.resolve()),
        reference=str(reference.resolve()),
        runtime=runtime,
        strict="",
        what=what,
        prompt_tokens=plan.profile.workload.prompt_tokens,
        decode_tokens=plan.profile.workload.decode_tokens,
        repeats=_REPEATS,
        answer_tokens=_ANSWER_TOKENS,
        terms=plan.terms,
    )


def _decoded(folder: Path, answers: tuple[tuple[int, ...], ...]) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in answers]


def describe_machine(*, is_device: bool) -> Machine:
    """This machine; whether it is a profile's device is the caller's knowledge."""
    return Machine(
        cpu=cpu_name(),
        arch=platform.machine(),
        cores=psutil.cpu_count(logical=True) or 1,
        ram_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        is_device=is_device,
    )


def _versions(runtime: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "runtime": runtime}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
