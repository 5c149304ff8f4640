"""A bad artifact gives a failing report, never a traceback; its reason is in the check that fails."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgegen.catalog import load_target
from edgegen.common.codec import load_json, save_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan
from edgegen.records.report import Check, Report
from edgegen.verify import process as module
from edgegen.verify import worker
from edgegen.verify.verify import verify_artifact
from tests.flows.command import run_cli


def verify(folder: Path, **changes: Any) -> Report:
    plan = msgspec.structs.replace(load_json(folder / "plan.json", Plan), **changes)
    return verify_artifact(folder / "artifact", folder / "reference", plan, load_target(plan.target), is_device=False)


def check(report: Report, name: str) -> Check:
    (found,) = [c for c in report.checks if c.name == name]
    return found


def alter(path: Path, position: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def sign_again(folder: Path) -> None:
    """Give artifact.json the digests of what lies beside it, as a faulty exporter would have."""
    record = load_json(folder / "artifact.json", Artifact)
    files = tuple(
        msgspec.structs.replace(f, digest=digest_file(folder / f.path), bytes=(folder / f.path).stat().st_size)
        for f in record.files
    )
    save_json(folder / "artifact.json", msgspec.structs.replace(record, files=files))


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("an altered file was opened"))


def test_every_artifact_file_is_covered_by_a_digest(finished: Path) -> None:
    record = load_json(finished / "artifact" / "artifact.json", Artifact)
    there = {p.relative_to(finished / "artifact").as_posix() for p in (finished / "artifact").rglob("*") if p.is_file()}
    assert {f.path for f in record.files} == there - {"artifact.json"}


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json"])
def test_a_tampered_file_is_never_opened(finished_copy: Path, name: str, no_worker: None) -> None:
    alter(finished_copy / "artifact" / name)
    report = verify(finished_copy)
    assert not report.passed
    assert not check(report, "intact").passed and name in check(report, "intact").detail
    assert not check(report, "loads").passed
    assert (report.speed, report.quality, report.parity, report.samples) == (None, None, None, ())
    assert not check(report, "max_kl").passed, "what was not measured does not pass"


def test_a_missing_file_is_named(finished_copy: Path, no_worker: None) -> None:
    (finished_copy / "artifact" / "tokenizer.json").unlink()
    report = verify(finished_copy)
    assert check(report, "intact").detail == "tokenizer.json is missing"


def test_tampering_is_exit_5_with_a_kept_report(finished_copy: Path, no_worker: None) -> None:
    alter(finished_copy / "artifact" / "model.gguf")
    done = run_cli("verify", finished_copy, "--quiet")
    assert done.code == 5 and done.err == ""
    assert "FAIL" in done.out and "altered" in done.out
    assert not load_json(finished_copy / "report.json", Report).passed
    assert "altered" in (finished_copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("position", "reason"), [(0, "llama.cpp refuses this file: .*magic"), (8, "llama.cpp refuses this file: .+")]
)
def test_a_corrupted_file_fails_with_llama_cpps_reason(finished_copy: Path, position: int, reason: str) -> None:
    alter(finished_copy / "artifact" / "model.gguf", position)
    sign_again(finished_copy / "artifact")
    report = verify(finished_copy)
    assert check(report, "intact").passed
    assert not check(report, "loads").passed
    assert re.search(reason, check(report, "loads").detail)


def test_a_truncated_file_fails_with_llama_cpps_reason(finished_copy: Path) -> None:
    path = finished_copy / "artifact" / "model.gguf"
    path.write_bytes(path.read_bytes()[:-5000])
    sign_again(finished_copy / "artifact")
    report = verify(finished_copy)
    assert "llama.cpp refuses this file" in check(report, "loads").detail
    assert not report.passed


def test_other_weights_than_planned_fail_parity(finished_copy: Path) -> None:
    """The file loads and writes text, but it is not what was planned: a build fault."""
    path = finished_copy / "reference" / "parity.npy"
    logits = np.load(path)
    np.save(path, logits + np.random.default_rng(0).normal(size=logits.shape, scale=0.5).astype(np.float32))
    report = verify(finished_copy)
    assert check(report, "loads").passed
    assert not check(report, "parity_kl").passed
    assert not report.passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})", "signal 9"),
        ("import sys; sys.stderr.write('first\\nlast words'); sys.exit(3)", r"exit code 3\): last words"),
        ("import sys; sys.exit(134)", r"exit code 134\): no message"),
    ],
)
def test_a_crash_of_the_runtime_is_reported(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    real = subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda _, **more: real([sys.executable, "-c", program], **more))
    report = verify(finished_copy)
    assert not report.passed
    detail = check(report, "loads").detail
    assert detail.startswith("the runtime crashed (") and re.search(reason, detail)


def test_a_damaged_reference_is_reported(finished_copy: Path) -> None:
    (finished_copy / "reference" / "quality.npy").unlink()
    report = verify(finished_copy)
    assert "quality.npy" in check(report, "loads").detail
    assert report.speed is not None and report.quality is None


@pytest.mark.parametrize("name", ["artifact/artifact.json", "reference/reference.json"])
def test_without_its_records_nothing_can_be_verified(finished_copy: Path, name: str) -> None:
    (finished_copy / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name.split('/')[1]}: no such file"):
        verify(finished_copy)


def request_for(folder: Path, what: str) -> worker.Request:
    return worker.Request(
        artifact=str(folder / "artifact"),
        reference=str(folder / "reference"),
        runtime="",
        strict="",
        what=what,
        prompt_tokens=10**6,
        decode_tokens=10**6,
        repeats=2,
        answer_tokens=4,
    )


def test_the_worker_fits_its_prompt_into_the_context(finished: Path) -> None:
    result = worker.measure(request_for(finished, "speed"))
    assert result.speed is not None and result.memory is not None
    assert result.speed.prompt_tokens + result.speed.decode_tokens < 256
    # The system counts a peak for each thread now and then, so that it may lag behind by some pages.
    assert result.memory.peak_rss_bytes > 0.99 * result.memory.baseline_rss_bytes > 10**7
    assert result.quality is None and result.parity is None


def test_the_workers_quality_repeats_itself(finished: Path) -> None:
    first, again = (worker.measure(request_for(finished, "quality")) for _ in range(2))
    assert first == again
    assert first.speed is None and all(len(answer) <= 4 for answer in first.answers)
    assert first.quality == load_json(finished / "report.json", Report).quality


class Broken:
    """A runtime whose logits are NaN."""

    name = "broken"
    context_tokens = 256

    def version(self) -> str:
        return "broken"

    def open(self, *_: Any) -> "Broken":
        return self

    def score(self, ids: Any) -> Any:
        return np.full((len(ids), 400), np.nan, dtype=np.float32)

    def close(self) -> None:
        pass


def test_nan_is_a_reason_not_a_number(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "runtime_for", lambda *_: Broken())
    save_json(tmp_path / "request.json", request_for(finished, "quality"))
    assert worker.main(str(tmp_path / "request.json"), str(tmp_path / "result.json")) == 0
    result = load_json(tmp_path / "result.json", worker.Result)
    assert "NaN" in result.error and result.quality is None


def test_budgets_missed_are_exit_5(finished_copy: Path) -> None:
    plan = load_json(finished_copy / "plan.json", Plan)
    tight = msgspec.structs.replace(plan.budgets, max_rss_bytes=1_000_000, max_bytes=1000)
    save_json(finished_copy / "plan.json", msgspec.structs.replace(plan, budgets=tight))
    done = run_cli("verify", finished_copy, "--json")
    assert done.code == 5
    report = msgspec.json.decode(done.out, type=Report)
    assert report == load_json(finished_copy / "report.json", Report)
    assert {c.name for c in report.checks if not c.passed} == {"max_bytes", "max_rss"}
    assert report.command.startswith("edgegen verify ")
