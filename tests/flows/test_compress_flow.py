"""The whole chain from the command line: what is written, what is said, what is done again."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.prepare import split
from edgegen.records.artifact import Artifact
from edgegen.records.build import Build
from edgegen.records.data import Example
from edgegen.records.plan import Plan
from edgegen.records.report import Report
from tests.flows.command import LOOSE, Done, make_calm, run, run_cli
from tests.tiny_models import sample_texts

STAGES = ["measure", "plan", "compress", "export", "reference", "verify"]


@pytest.fixture
def compress(calm_llama: Path, tiny_data: Path) -> Any:
    def work(out: Path, *more: object, data: Path | None = tiny_data) -> Done:
        given = ("--data", data) if data else ()
        return run_cli("compress", calm_llama, *given, "--out", out, *LOOSE, *more)

    return work


def done_before(done: Done) -> list[bool]:
    return [line.endswith("(done before)") for line in done.err.splitlines()]


def test_everything_is_written_and_nothing_is_left_over(finished: Path) -> None:
    assert sorted(p.name for p in finished.iterdir()) == [
        "artifact",
        "build.json",
        "compressed",
        "hessians",
        "importance.npz",
        "measured.json",
        "plan.json",
        "reference",
        "report.html",
        "report.json",
        "strict",
        "vocabularies.npz",
    ]
    assert [p.name for p in finished.parent.iterdir()] == ["out"], "no partial and no old folder"
    build = load_json(finished / "build.json", Build)
    assert [mark.name for mark in build.stages] == STAGES


def test_the_reports_numbers_are_the_records(finished: Path) -> None:
    plan = load_json(finished / "plan.json", Plan)
    report = load_json(finished / "report.json", Report)
    artifact = load_json(finished / "artifact" / "artifact.json", Artifact)
    model = finished / "artifact" / artifact.model
    assert report.passed and all(check.passed for check in report.checks)
    assert report.artifact_bytes == model.stat().st_size == plan.prediction.bytes, "the size is predicted exactly"
    assert report.digests == {
        "model": plan.model.digest,
        "data": plan.data.digest,
        "artifact": digest_file(model),
        "lineage": plan.lineage,
    }
    assert sum(choice.bytes for choice in plan.tensors) < report.artifact_bytes
    checks = {check.name: check for check in report.checks}
    assert report.quality is not None and report.memory is not None
    assert checks["max_kl"].measured == report.quality.kl.value
    assert checks["max_kl"].limit == plan.budgets.max_kl == 0.5
    assert checks["max_kl"].predicted == plan.prediction.kl + plan.vocabulary.kl
    assert checks["max_rss"].measured == report.memory.peak_rss_bytes
    assert plan.data.rows == plan.data.calibration_rows + plan.data.heldout_rows == 48
    assert artifact.settings == plan.settings


def test_measured_kl_is_near_the_planned(finished: Path) -> None:
    report = load_json(finished / "report.json", Report)
    plan = load_json(finished / "plan.json", Plan)
    assert report.quality is not None
    assert report.quality.kl.value == pytest.approx(plan.prediction.kl, rel=0.25)


def test_the_same_again_skips_everything(compress: Any, finished_copy: Path) -> None:
    before = {p: digest_file(p) for p in finished_copy.rglob("*") if p.is_file() and p.name != "build.json"}
    done = compress(finished_copy, "--json")
    assert done.code == 0
    assert done_before(done) == [True] * 6
    assert {p: digest_file(p) for p in before} == before
    assert msgspec.json.decode(done.out, type=Report) == load_json(finished_copy / "report.json", Report)


@pytest.mark.slow
def test_rounding_is_a_wish_and_gives_the_same_bytes_each_time(compress: Any, finished: Path, tmp_path: Path) -> None:
    plan = load_json(finished / "plan.json", Plan)
    inside = [choice for choice in plan.tensors if choice.role != "vector" and choice.layer >= 0]
    assert any(choice.compensated for choice in inside)
    assert "error compensation" in (finished / "report.html").read_text()
    assert compress(tmp_path / "again").code == 0
    ours, again = finished / "artifact" / "model.gguf", tmp_path / "again" / "artifact" / "model.gguf"
    assert digest_file(again) == digest_file(ours)
    assert compress(tmp_path / "again", "--rounding", "plain").code == 0
    assert not any(choice.compensated for choice in load_json(tmp_path / "again" / "plan.json", Plan).tensors)
    assert not (tmp_path / "again" / "hessians").exists()
    done = compress(tmp_path / "again", "--rounding", "up")
    assert done.code == 2 and "'up' is not one of auto, compensated, plain" in done.err


@pytest.mark.slow
def test_another_budget_reuses_the_measuring(compress: Any, finished_copy: Path) -> None:
    smaller = int(load_json(finished_copy / "plan.json", Plan).prediction.bytes * 1.2)
    done = compress(finished_copy, "--max-bytes", smaller)
    assert done.code == 0, done.err
    assert done_before(done) == [True] + [False] * 5
    plan = load_json(finished_copy / "plan.json", Plan)
    assert plan.budgets.max_bytes == smaller and plan.prefer == "quality"
    assert (finished_copy / "artifact" / "model.gguf").stat().st_size <= smaller


def test_stdout_is_the_result_and_stderr_the_talk(compress: Any, finished_copy: Path) -> None:
    done = compress(finished_copy)
    assert "PASS" in done.out.splitlines()[0]
    assert f"{finished_copy}/report.html" in done.out and "done before" not in done.out
    assert all(line.endswith("(done before)") for line in done.err.splitlines())
    assert compress(finished_copy, "--quiet").err == ""


@pytest.mark.slow
def test_an_artifact_that_was_removed_is_made_again(compress: Any, tmp_path: Path, tiny_data: Path) -> None:
    """Also where tokens were dropped: which, is known from the measuring."""
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in sample_texts(48, seed=4)))
    out = tmp_path / "out"
    first = compress(out, "--vocab", "320", "--max-kl", "20", "--grids", "q8_0", data=data)
    assert first.code == 0, first.out + first.err
    plan = load_json(out / "plan.json", Plan)
    assert plan.vocabulary.size == 320 < plan.vocabulary.original_size
    model = (out / "artifact" / "model.gguf").read_bytes()
    for folder in ("artifact", "compressed", "reference"):
        for path in (out / folder).iterdir():
            path.unlink()
        (out / folder).rmdir()
    done = compress(out, "--vocab", "320", "--max-kl", "20", "--grids", "q8_0", data=data)
    assert done.code == 0, done.out + done.err
    assert done_before(done) == [True, True, False, False, False, True]
    assert (out / "artifact" / "model.gguf").read_bytes() == model
    report = load_json(out / "report.json", Report)
    assert report.quality is not None and report.quality.renormalised and report.quality.lost_mass_nats > 0


def test_verify_again(finished_copy: Path) -> None:
    before = load_json(finished_copy / "report.json", Report)
    done = run_cli("verify", finished_copy, "--json")
    assert done.code == 0
    after = msgspec.json.decode(done.out, type=Report)
    assert after == load_json(finished_copy / "report.json", Report)
    assert after.quality == before.quality and after.parity == before.parity and after.samples == before.samples
    assert after.created >= before.created


@pytest.mark.slow
def test_plan_says_what_would_be_done_and_compress_uses_it(
    compress: Any, calm_llama: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run_cli("plan", calm_llama, "--data", tiny_data, "--out", out, *LOOSE, "--json", "--max-bytes", "90kB")
    assert done.code == 0
    plan = msgspec.json.decode(done.out, type=Plan)
    assert not out.exists()
    after = compress(out, "--max-bytes", "90kB")
    assert done_before(after)[:2] == [True, True]
    assert load_json(out / "plan.json", Plan) == plan


@pytest.mark.slow
def test_without_data_a_note_says_so(compress: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generic = [Example(text=text) for text in sample_texts(30, seed=8)]
    monkeypatch.setattr(split, "generic_examples", lambda: generic)
    done = compress(tmp_path / "out", data=None)
    assert done.code == 0
    report = load_json(tmp_path / "out" / "report.json", Report)
    assert any(note.startswith("No --data was given") for note in report.notes)
    assert "No --data was given" in done.out


@pytest.mark.parametrize(
    ("option", "limit", "binding"),
    [("--max-bytes", "10kB", "max_bytes"), ("--max-rss", "30MB", "max_rss"), ("--max-kl", "1e-9", "max_kl")],
)
def test_an_impossible_budget_is_named(
    compress: Any, finished_copy: Path, option: str, limit: str, binding: str
) -> None:
    before = {p: digest_file(p) for p in finished_copy.rglob("*") if p.is_file()}
    done = compress(finished_copy, option, limit)
    assert done.code == 4
    message = [line for line in done.err.splitlines() if line.startswith("edgegen: ")]
    assert len(message) == 1 and (binding in message[0] or option in message[0] or option[2:] in message[0])
    assert "Nearest: " in done.err and done.out == ""
    assert {p: digest_file(p) for p in before} == before, "the old output stays"


def test_an_impossible_budget_writes_nothing_at_out(compress: Any, tmp_path: Path) -> None:
    assert compress(tmp_path / "out", "--max-bytes", "10kB").code == 4
    assert not (tmp_path / "out").exists()
    done = run_cli("verify", tmp_path / "out")
    assert done.code == 2 and "interrupted" in done.err


def test_plan_in_json_gives_the_infeasible_record(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = run_cli(
        "plan", calm_llama, "--data", tiny_data, "--out", tmp_path / "out", *LOOSE, "--json", "--max-bytes", "10kB"
    )
    assert done.code == 4
    record = json.loads(done.out)
    assert record["binding"] == "max_bytes" and record["limit"] == 10_000 < record["best"]
    assert "Nearest: " in done.err


def test_in_a_process_of_its_own(finished: Path) -> None:
    """Nothing but the result on stdout, and no library's chatter on stderr."""
    done = run("verify", finished, "--quiet", "--json")
    assert done.code == 0 and done.err == ""
    assert msgspec.json.decode(done.out, type=Report).command == re.sub(
        r"\s+", " ", f"edgegen verify {finished} --quiet --json"
    )


@pytest.mark.slow
def test_compress_in_a_process_of_its_own(calm_llama: Path, tiny_data: Path, finished: Path, tmp_path: Path) -> None:
    done = run("compress", calm_llama, "--data", tiny_data, "--out", tmp_path / "out", *LOOSE, "--json")
    assert done.code == 0, done.err
    report = msgspec.json.decode(done.out, type=Report)
    assert report.command.startswith(f"edgegen compress {calm_llama} --data {tiny_data}")
    assert len(done.err.splitlines()) == 6 and all(line.endswith(" …") for line in done.err.splitlines())
    assert digest_file(tmp_path / "out/artifact/model.gguf") == digest_file(finished / "artifact/model.gguf")


@pytest.mark.slow
def test_a_cache_in_fewer_bits_is_planned_measured_and_shipped(tmp_path: Path, tiny_data: Path) -> None:
    model = make_calm("llama", tmp_path / "model", heads=2, kv_heads=1)
    found = {}
    for kv_type in ("f16", "q8_0"):
        out = tmp_path / kv_type
        done = run_cli("compress", model, "--data", tiny_data, "--out", out, *LOOSE, "--kv-type", kv_type, "--quiet")
        assert done.code == 0, done.err
        assert load_json(out / "artifact" / "artifact.json", Artifact).settings.kv_type == kv_type
        found[kv_type] = load_json(out / "plan.json", Plan).prediction.rss_bytes
    cached = 2 * 2 * 32 * 256  # keys and values of two layers, one head of 32 numbers, for the whole context
    assert found["f16"] - found["q8_0"] == pytest.approx(cached * (16 - 8.5) / 8, abs=1)


@pytest.mark.parametrize(
    ("kv_type", "said"), [("q2_k", "keeps no keys and values in 'q2_k'"), ("q8_0", "heads have 16 numbers")]
)
def test_a_cache_that_cannot_be_had_is_refused(compress: Any, tmp_path: Path, kv_type: str, said: str) -> None:
    done = compress(tmp_path / "out", "--kv-type", kv_type)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
