"""Verify an artifact: two fresh processes measure, this one judges and writes the report."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import digest_file
from edgegen.common.host import cpu_name
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan
from edgegen.records.reference import Reference
from edgegen.records.report import Check, Machine, Quality, Report, Sample, TaskScore
from edgegen.records.target import Target
from edgegen.verify.limits import budget_checks, parity_checks
from edgegen.verify.task import looks_sane, score_answers
from edgegen.verify.worker import Request, Result

_REPEATS = 5
_ANSWER_TOKENS = 96
_SAMPLES = 6
_FEW_WINDOWS = 12
_LIBRARIES = ("edgegen", "llama-cpp-python", "gguf", "numpy", "tokenizers", "torch", "transformers")


def verify_artifact(
    artifact_folder: Path,
    reference_folder: Path,
    plan: Plan,
    target: Target,
    *,
    is_device: bool,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure an artifact in fresh processes and hold it against its plan.

    Args:
        artifact_folder: with artifact.json.
        reference_folder: what the original said.
        plan: budgets and predictions.
        is_device: whether this machine is the plan's device, so that its speed counts.
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
    for number, what in enumerate(("speed", "quality")):
        results[what] = (
            _run_worker(artifact_folder, reference_folder, plan, what)
            if checks[0].passed
            else Result(error="files were altered")
        )
        if progress:
            progress(number + 1, 2)
    errors = [result.error for result in results.values() if result.error]
    checks.append(_check("loads", not errors, errors[0] if errors else f"llama.cpp {results['speed'].version}"))
    checks.append(_check("tokenizer", bool(artifact.tokenizer_proof), artifact.tokenizer_proof))
    speed, memory = results["speed"].speed, results["speed"].memory
    parity, quality = results["quality"].parity, results["quality"].quality
    samples: tuple[Sample, ...] = ()
    task: TaskScore | None = None
    if not results["quality"].error:
        texts = _decoded(artifact_folder, results["quality"].answers)
        originals = [prompt.answer.split() for prompt in reference.prompts]
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
    checks += parity_checks(parity, target)
    checks += budget_checks(
        plan,
        artifact_bytes=_model_bytes(artifact),
        quality=quality,
        speed=speed,
        memory=memory,
        is_device=is_device,
    )
    return Report(
        schema=1,
        passed=all(check.passed for check in checks),
        model=plan.model.source,
        target=plan.target,
        profile=plan.profile.name,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        checks=tuple(checks),
        parity=parity,
        quality=quality,
        speed=speed,
        memory=memory,
        task=task,
        samples=samples,
        machine=_machine(is_device=is_device),
        versions=_versions(results["speed"].version),
        digests={
            "model": plan.model.digest,
            "data": plan.data.digest,
            "artifact": next(f.digest for f in artifact.files if f.path == artifact.model),
        },
        artifact_bytes=_model_bytes(artifact),
        notes=(*plan.notes, *artifact.notes, *_notes(plan, quality, is_device)),
    )


def _notes(plan: Plan, quality: Quality | None, is_device: bool) -> list[str]:
    notes = []
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


def _run_worker(artifact: Path, reference: Path, plan: Plan, what: str) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        request_path, result_path = Path(scratch) / "request.json", Path(scratch) / "result.json"
        request = Request(
            artifact=str(artifact.resolve()),
            reference=str(reference.resolve()),
            what=what,
            prompt_tokens=plan.profile.workload.prompt_tokens,
            decode_tokens=plan.profile.workload.decode_tokens,
            repeats=_REPEATS,
            answer_tokens=_ANSWER_TOKENS,
        )
        save_json(request_path, request)
        done = subprocess.run(
            [sys.executable, "-m", "edgegen.verify.worker", str(request_path), str(result_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result_path.exists():
            return load_json(result_path, Result)
    reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return Result(error=f"the runtime crashed ({reason}): {last[0][:300]}")


def _decoded(folder: Path, answers: tuple[tuple[int, ...], ...]) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in answers]


def _model_bytes(artifact: Artifact) -> int:
    for file in artifact.files:
        if file.path == artifact.model:
            return file.bytes
    raise ConfigError(f"artifact.json does not list its model file {artifact.model!r}")


def _machine(*, is_device: bool) -> Machine:
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
