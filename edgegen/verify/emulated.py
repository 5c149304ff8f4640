"""Run an artifact on the profile's own processor core, emulated, and hold it against the plan and against this machine.

The same worker runs twice, here and under emulation, and saves logits of the same few windows and a short greedy
continuation. What it computes on that core has to be what was planned: the check's limit is the target's for shipped
parity, against the torch model with the same rounded weights. How far it is from this machine is shown beside it; two
processors round int8 activations differently, so that they differ from each other by about as much as each does from
torch.

A fault of the published package that is known for such processors is met first and reported; then the run is repeated
with its remedy, as the device has to be set up, and that run is judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.emulate import RUNTIME_PACKAGES, Finished, emulated_core, read_setup, run_module
from edgegen.errors import UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.model import Task
from edgegen.records.plan import Plan
from edgegen.records.profile import Device
from edgegen.records.reference import Reference
from edgegen.records.report import Check, Emulated, Parity, VectorParity
from edgegen.records.target import Fault, Target
from edgegen.verify.process import WORKER, known_fault, last_words, run_worker
from edgegen.verify.quality import compare_parity
from edgegen.verify.vectors import vector_parity
from edgegen.verify.worker import Request, Result, common_prefix, sample_texts, sample_windows

_TOKENS = 128
_ANSWER_TOKENS = 16


class Findings(Record, frozen=True):
    """What emulation adds to a report."""

    runs: tuple[Emulated, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


class _Sample(msgspec.Struct, frozen=True):
    """What one machine computed."""

    result: Result
    values: NDArray[np.float32] | None
    """(T, V) logits of all windows, or an encoder's (W, D) vectors; None where it failed."""


def emulate_artifact(
    artifact_folder: Path,
    reference_folder: Path,
    plan: Plan,
    target: Target,
    *,
    runtime: str,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Run the artifact on the device's core.

    Args:
        artifact_folder: with artifact.json, its files already proven intact.
        reference_folder: what torch computed.
        runtime: that runs the artifact here; the same runs it there.
        progress: called with (runs done, runs in all).

    Returns:
        The runs, one check, and notes. Without a set-up or where there is nothing to emulate: a note alone.

    Raises:
        ConfigError: the reference is not there, or the set-up's record is damaged.
        DeviceError: the disk cannot take what the runs write.
    """
    device = plan.profile.device
    if device.arch != "aarch64":
        return Findings(notes=(f"Not emulated: {plan.profile.title} has no ARM processor.",))
    if not device.cpu_model:
        return Findings(
            notes=(f"Not emulated: the profile {plan.profile.name} does not name its processor core (cpu_model).",)
        )
    if plan.summary.task == "encoder":
        return _not_checked(device.cpu_model, "emulation compares logits, which an encoder has none of")
    reference = load_json(reference_folder / "reference.json", Reference)
    setup = read_setup()
    if setup is None:
        return _not_checked(device.cpu_model, "run edgegen emulate setup")
    if RUNTIME_PACKAGES[runtime] not in setup.packages:
        more = " --with-llama" if runtime == "llama.cpp" else " again"
        return _not_checked(device.cpu_model, f"{runtime} is not set up there: run edgegen emulate setup{more}")
    try:
        core = emulated_core(device.cpu_model, setup)
    except UnsupportedError as error:
        return _not_checked(device.cpu_model, f"{error}. {error.hint}")
    tell = progress or (lambda *event: None)
    artifact = load_json(artifact_folder / "artifact.json", Artifact)
    with tempfile.TemporaryDirectory() as scratch:
        request = _request(artifact_folder, reference_folder, runtime, Path(scratch))
        here = _sample_of(run_worker(request, target), request)
        tell(1, 2)
        bench = _Bench(
            device=device,
            core=core,
            target=target,
            request=request,
            planned=_planned(reference_folder, reference, artifact.task),
            here=here,
            version=setup.packages[RUNTIME_PACKAGES[runtime]],
            task=artifact.task,
        )
        runs = [bench.run(None)]
        fault = next((fault for fault in target.faults if runs[0].remedy == fault.remedy), None)
        if fault and fault.remove:
            tell(2, 3)
            runs.append(bench.run(fault))
    tell(1, 1)
    return Findings(
        runs=tuple(runs), checks=(_check(runs[-1], target),), notes=tuple(_notes(runs[-1], here.result.version))
    )


class _Bench(msgspec.Struct, frozen=True):
    """What every run has in common."""

    device: Device
    core: str
    target: Target
    request: Request
    planned: _Sample
    here: _Sample
    version: str
    """Of the package that is set up."""
    task: Task

    def run(self, remedied: Fault | None) -> Emulated:
        """Run the artifact under emulation, after a fault's remedy if one is given."""
        scratch = Path(self.request.logits).parent
        request_path, result_path = scratch / "request.json", scratch / "result.json"
        request = msgspec.structs.replace(self.request, logits=str(scratch / "emulated.npy"))
        save_json(request_path, request)
        result_path.unlink(missing_ok=True)
        without = remedied.remove if remedied else ()
        ended = run_module(WORKER, [str(request_path), str(result_path)], core=self.core, without=without)
        has_result = result_path.exists()
        found = _sample_of(load_json(result_path, Result) if has_result else Result(error=_failure(ended)), request)
        error, fault = found.result.error, known_fault(ended.stderr, self.target) if not has_result else None
        if has_result and error and not remedied:
            ended, fault = self._confirm()
        planned, planned_vectors = self._compared(self.planned, found)
        host, host_vectors = self._compared(self.here, found)
        kl_kept = planned is not None and planned.kl <= self.target.parity_max_kl
        distance_kept = planned_vectors is not None and planned_vectors.distance <= self.target.parity_max_distance
        return Emulated(
            cpu_model=self.device.cpu_model,
            emulated_as=self.core,
            runtime=self.request.runtime,
            version=found.result.version or self.version,
            change="without " + ", ".join(without) if without else "",
            passed=kl_kept or distance_kept,
            planned=planned,
            host=host,
            planned_vectors=planned_vectors,
            host_vectors=host_vectors,
            seconds=ended.seconds,
            fault=f"{_failure(ended)} Known: {fault.what}" if fault else error,
            remedy=fault.remedy if fault else "",
        )

    def _confirm(self) -> tuple[Finished, Fault | None]:
        """The runtime refused beforehand: whether a known fault is the reason, shown by what it would have loaded."""
        ended = Finished(code=0, signal=0, timed_out=False, stderr="", seconds=0.0)
        for fault in self.target.faults:
            if fault.runtime == self.request.runtime and self.device.meets(fault) and fault.remove:
                ended = run_module("edgegen.emulate.load", fault.remove, core=self.core)
                if fault.sign in ended.stderr:
                    return ended, fault
        return ended, None

    def _compared(self, expected: _Sample, found: _Sample) -> tuple[Parity | None, VectorParity | None]:
        if expected.values is None or found.values is None:
            return None, None
        if self.task == "encoder":
            return None, vector_parity(expected.values, found.values)
        parity = compare_parity(iter([(expected.values, found.values)]))
        wanted, made = (sample.result.answers[0] if sample.result.answers else () for sample in (expected, found))
        return (
            msgspec.structs.replace(parity, greedy_prefix=common_prefix(wanted, made), greedy_tokens=len(wanted)),
            None,
        )


def _request(artifact: Path, reference: Path, runtime: str, scratch: Path) -> Request:
    return Request(
        artifact=str(artifact.resolve()),
        reference=str(reference.resolve()),
        runtime=runtime,
        strict="",
        what="sample",
        prompt_tokens=0,
        decode_tokens=0,
        repeats=0,
        answer_tokens=_ANSWER_TOKENS,
        sample_tokens=_TOKENS,
        logits=str(scratch / "here.npy"),
    )


def _sample_of(result: Result, request: Request) -> _Sample:
    if result.error:
        return _Sample(result=result, values=None)
    values = np.load(request.logits)
    if not np.isfinite(values).all():
        wrong = "the runtime computes numbers that are not finite"
        return _Sample(result=msgspec.structs.replace(result, error=wrong), values=None)
    return _Sample(result=result, values=values)


def _planned(folder: Path, reference: Reference, task: Task) -> _Sample:
    """What the torch model with the same rounded weights says."""
    stored = np.load(folder / "parity.npy", mmap_mode="r")
    if task == "encoder":
        return _Sample(result=Result(), values=np.array(stored[: len(sample_texts(reference, _TOKENS))]))
    starts = np.cumsum([0, *(len(window.ids) for window in reference.windows)])
    parts = [
        np.asarray(stored[start : start + len(ids)], dtype=np.float32)
        for start, ids in zip(starts, sample_windows(reference, _TOKENS), strict=False)
    ]
    tokens = tuple(run.tokens[:_ANSWER_TOKENS] for run in reference.greedy[:1])
    return _Sample(result=Result(answers=tokens), values=np.concatenate(parts))


def _failure(ended: Finished) -> str:
    return f"the runtime ended ({ended.reason}): {last_words(ended.stderr)}"


def _check(run: Emulated, target: Target) -> Check:
    what = f"{run.runtime} {run.version}" + (f" {run.change}" if run.change else "")
    is_encoder = run.planned_vectors is not None
    compared = (
        f"{run.planned_vectors.texts} texts"
        if run.planned_vectors
        else f"{run.planned.tokens} tokens"
        if run.planned
        else ""
    )
    measured = run.planned_vectors.distance if run.planned_vectors else run.planned.kl if run.planned else None
    return Check(
        name=f"runs_on_{run.cpu_model}",
        limit=target.parity_max_distance if is_encoder else target.parity_max_kl,
        measured=measured,
        predicted=None,
        unit="1 - cosine" if is_encoder else "nats/token",
        passed=run.passed,
        detail=f"emulated, {what}: " + (run.fault or f"{compared} against the torch model with the same weights"),
    )


def _notes(last: Emulated, version: str) -> list[str]:
    notes = []
    if last.emulated_as != last.cpu_model:
        notes.append(f"The emulator knows no {last.cpu_model}: {last.emulated_as} stood in for it.")
    if version and last.version != version:
        notes.append(
            f"Emulated with {last.runtime} {last.version}, here is {version}: run edgegen emulate setup to renew it."
        )
    return notes


def _not_checked(cpu_model: str, why: str) -> Findings:
    return Findings(notes=(f"Not checked on {cpu_model}: {why}.",))
