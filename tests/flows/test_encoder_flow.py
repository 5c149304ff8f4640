"""A sentence encoder through the whole chain: the same command, plan, receipt and verdicts as any model."""

import json
from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json
from edgegen.records.artifact import Artifact
from edgegen.records.bakeoff import BakeOff
from edgegen.records.embedding import Embedding
from edgegen.records.plan import Plan
from edgegen.records.report import Report
from tests.flows.command import Done, run_cli
from tests.tiny_models import make_tiny_encoder, sample_texts

BASE = ("--profile", "raspberry-pi-4-4gb", "--target", "onnx", "--min-cosine", "0.998")
"""A random encoder's texts are all alike, so that their order needs closer vectors than a trained one's."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    make_tiny_encoder(folder / "model")
    rows = [json.dumps({"text": text}) for text in sample_texts(240, seed=2, words=10)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def compress(root: Path, *more: object) -> Done:
    return run_cli("compress", root / "model", *BASE, "--data", root / "rows.jsonl", "--out", root / "build", *more)


@pytest.fixture(scope="module")
def build(root: Path) -> Path:
    done = compress(root)
    assert done.code == 0, done.err
    assert "Cosine similarity" in done.out and "Rank correlation" in done.out and "KL" not in done.out
    return root / "build"


def test_the_receipt(build: Path) -> None:
    report, plan = load_json(build / "report.json", Report), load_json(build / "plan.json", Plan)
    assert report.model_task == "encoder" and report.quality is None and report.parity is None
    vectors = report.vectors
    assert vectors is not None and vectors.texts == plan.data.heldout_rows
    assert plan.budgets.min_cosine == 0.998 and plan.budgets.max_kl is None
    assert vectors.cosine.low <= vectors.cosine.value <= vectors.cosine.high
    assert vectors.cosine.value == pytest.approx(1 - plan.prediction.kl, abs=0.004)
    assert report.vector_strict is not None and report.vector_strict.distance < 1e-10
    assert report.vector_parity is not None and report.vector_parity.distance < 2e-3
    assert report.speed is not None and report.speed.decode_tokens == 0 and report.speed.ttft_ms > 0
    assert report.artifact_bytes == pytest.approx(plan.prediction.bytes, rel=0.01)
    names = [check.name for check in report.checks]
    assert {"min_cosine", "rank_correlation", "strict_distance", "parity_distance", "max_ttft"} <= set(names)
    assert not {"max_kl", "parity_kl", "sane_text"} & set(names)
    page = (build / "report.html").read_text()
    assert "Cosine similarity" in page and "nats per token" not in page and "first token" not in page


def test_plans_trade_one_minus_cosine(build: Path) -> None:
    plan = load_json(build / "plan.json", Plan)
    assert plan.summary.task == "encoder" and plan.vocabulary.size == plan.vocabulary.original_size
    points = sorted(plan.front, key=lambda point: point.bytes)
    assert [p.kl for p in points] == sorted((p.kl for p in points), reverse=True)
    assert plan.prediction.decode_tokens_per_s == pytest.approx(plan.prediction.prefill_tokens_per_s)
    assert plan.prediction.ttft_ms == pytest.approx(1000 * 64 / plan.prediction.prefill_tokens_per_s)


def test_running_it(build: Path) -> None:
    done = run_cli("run", build, "the cat ran", "--json", "--with", "a dog walked", "--with", "the cat ran")
    found = msgspec.json.decode(done.out, type=Embedding)
    assert len(found.vector) == 64 and found.norm == pytest.approx(1, abs=1e-5) and not found.was_cut
    assert [other.text for other in found.similar] == ["the cat ran", "a dog walked"]
    assert found.similar[0].cosine == pytest.approx(1, abs=1e-6) and found.similar[1].cosine < 0.99999
    done = run_cli("run", build, "dog " * 200)
    assert "64 numbers, length 1.0000" in done.out and "cut off" in done.err
    assert run_cli("run", build).code == 2


def test_benching_it_is_refused(build: Path) -> None:
    done = run_cli("bench", build)
    assert done.code == 3 and "decodes nothing" in done.err


def test_emulating_it_says_what_is_missing(build: Path) -> None:
    done = run_cli("verify", build, "--emulate")
    assert done.code == 0 and "Not checked on cortex-a72" in done.out


def test_verifying_again_finds_a_damaged_file(build: Path, tmp_path: Path) -> None:
    assert run_cli("verify", build).code == 0
    artifact = load_json(build / "artifact" / "artifact.json", Artifact)
    path = build / "artifact" / artifact.model
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    try:
        done = run_cli("verify", build)
        assert done.code == 5 and "model.onnx was altered" in done.out
    finally:
        path.write_bytes(whole)


def test_a_stricter_limit_takes_more_bytes(root: Path, build: Path) -> None:
    size = load_json(build / "report.json", Report).artifact_bytes
    done = compress(root, "--min-cosine", "0.9995", "--out", root / "fine", "--json")
    report = msgspec.json.decode(done.out, type=Report)
    assert done.code == 0 and report.artifact_bytes > size
    assert report.vectors is not None and report.vectors.cosine.value >= 0.9995


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--max-kl", "0.1"), 2, "Use --min-cosine"),
        (("--min-cosine", "1"), 2, "must be below 1"),
        (("--vocab", "100"), 3, "an encoder's vocabulary stays whole"),
        (("--min-cosine", "0.9999999"), 4, "--min-cosine is 1; with the other budgets kept the best is 0.99"),
    ],
)
def test_what_cannot_be(root: Path, more: tuple[object, ...], code: int, said: str) -> None:
    done = compress(root, "--out", root / "never", *more)
    assert done.code == code and said in done.err
    assert not (root / "never").exists()


def test_gguf_goes_the_same_way(root: Path) -> None:
    done = compress(root, "--target", "gguf", "--out", root / "llama")
    assert done.code == 0, done.err
    report, plan = load_json(root / "llama" / "report.json", Report), load_json(root / "llama" / "plan.json", Plan)
    assert report.artifact_bytes == plan.prediction.bytes
    assert report.vectors is not None and report.vectors.cosine.value >= 0.998
    assert report.vector_strict is not None and report.vector_strict.distance < 1e-6
    assert report.vector_parity is not None and report.vector_parity.distance < 2e-3
    assert report.memory is not None
    assert plan.prediction.rss_bytes == pytest.approx(report.memory.peak_rss_bytes, rel=0.06)
    found = msgspec.json.decode(run_cli("run", root / "llama", "the cat ran", "--json").out, type=Embedding)
    assert len(found.vector) == 64 and found.norm == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_bake_off(root: Path) -> None:
    done = compress(root, "--target", "gguf,onnx,litert", "--out", root / "three")
    assert done.code == 0, done.err
    found = load_json(root / "three" / "bakeoff.json", BakeOff)
    strict = [pair.kl for pair in found.pairs if pair.mode == "strict" and pair.first == "torch"]
    assert len(strict) == 3 and all(kl is not None and kl < 1e-6 for kl in strict)
