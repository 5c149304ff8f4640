"""`edgegen evaluate` as a user runs it: a checkpoint, and its compressed output in its own runtime, against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError
from edgegen.evaluate.quality import Wanted
from edgegen.records.evaluation import EVALUATION_FILE, Answered, Evaluation
from edgegen.sdk.judging import ANSWERS_FILE
from tests.evaluate.test_fairness import crows
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts

_FEW = ("--limit", "4", "--samples", "3", "--max-tokens", "8", "--quiet")


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("requests") / "rows.jsonl"
    call = '{"name": "lamp", "arguments": {"on": true}}'
    path.write_text("".join(json.dumps({"prompt": t, "completion": call}) + "\n" for t in sample_texts(20, words=8)))
    return path


@pytest.mark.slow
def test_an_artifact_against_its_original(finished: Path, calm_llama: Path, requests: Path, tmp_path: Path) -> None:
    pairs = crows(tmp_path / "crows.csv", [("the cat ran", "the dog ran", "age"), ("she sat", "he sat", "gender")] * 4)
    gates = tmp_path / "gates.toml"
    gates.write_text("[gates]\nmax_perplexity_ratio = 1.5\nmax_bias_rise = 0.6\nmin_top1_agreement = 0.5\n")
    out = tmp_path / "evaluation"
    done = run_cli(
        "evaluate", finished, "--against", calm_llama, "--data", requests, "--out", out, "--fairness", pairs,
        "--suite", "quality,fairness,safety", "--gates", gates, *_FEW,
    )  # fmt: skip
    assert done.code == 0, done.err + done.out
    found = load_json(out / EVALUATION_FILE, Evaluation)
    assert found.passed and found.model.runtime == "llama.cpp" and found.teacher is not None
    assert found.teacher.runtime == "torch" and found.model.kind == "artifact"
    near = found.find("bits_per_byte")
    assert near is not None and near.difference is not None and abs(near.difference.value) < 0.2
    agreed = found.find("top1_agreement")
    assert agreed is not None and agreed.model is not None and agreed.model.value > 0.8
    names = {metric.name for metric in found.metrics}
    assert {"exact_match", "token_f1", "json_valid", "function_match", "teacher_chrf", "teacher_perplexity"} <= names
    assert {"distinct_2", "self_bleu", "compression_ratio", "repetition_4", "crows_pairs", "toxicity"} <= names
    assert "bits_per_byte" in done.out and "✓ max_perplexity_ratio" in done.out and "insults" in done.out
    assert (out / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    answers = [json.loads(line) for line in (out / ANSWERS_FILE).read_text().splitlines()]
    assert len(answers) == 4 and set(answers[0]) == set(Answered.__struct_fields__)

    gates.write_text("[gates]\nmin_exact_match = 0.99\n")
    done = run_cli("evaluate", finished, "--data", requests, "--out", out, "--gates", gates, "--json", *_FEW)
    assert done.code == 5 and json.loads(done.out)["passed"] is False
    assert load_json(out / EVALUATION_FILE, Evaluation).teacher is None


def test_a_model_against_itself_differs_nowhere(tiny_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    wanted = Wanted(max_tokens=6, samples=3)
    found = edgegen.evaluate(str(tiny_llama), against=str(tiny_llama), data=str(tiny_data), limit=4, wanted=wanted)
    for metric in found.metrics:
        assert metric.difference is None or abs(metric.difference.value) < 1e-9, metric
    agreed, same = found.find("top1_agreement"), found.find("teacher_same_answer")
    assert agreed is not None and agreed.model is not None and agreed.model.value == 1
    assert same is not None and same.model is not None and same.model.value == 1
    assert found.find("exact_match") is None  # plain text has no right answer


def test_the_perplexity_is_the_training_loss(tiny_llama: Path, tiny_data: Path) -> None:
    """Another path to the same number."""
    import math

    from edgegen.evaluate.scorer import CheckpointScorer
    from edgegen.modeling.forward import counted_log_probs, counted_targets
    from edgegen.modeling.text import make_windows
    from edgegen.sdk.judging import judged_rows

    rows, _, _ = judged_rows(str(tiny_data))
    found = edgegen.evaluate(str(tiny_llama), data=str(tiny_data), wanted=Wanted(max_tokens=2, samples=1))
    with CheckpointScorer(str(tiny_llama)) as scorer:
        windows = make_windows(scorer.tokenizer, rows, max_tokens=10**9, window_tokens=256)
        log_probs, targets = counted_log_probs(scorer.model, windows), counted_targets(windows)
    nats = -log_probs.gather(1, targets[:, None]).double().mean()
    perplexity = found.find("perplexity")
    assert perplexity is not None and perplexity.model is not None
    assert perplexity.model.value == pytest.approx(math.exp(nats), rel=1e-4)


def test_other_tokens_are_not_compared(tiny_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    other = make_tiny("llama", tmp_path / "other", tokenizer="qwen2", vocab=330)
    wanted = Wanted(max_tokens=4, samples=2)
    found = edgegen.evaluate(str(other), against=str(tiny_llama), data=str(tiny_data), limit=3, wanted=wanted)
    perplexity, bits = found.find("perplexity"), found.find("bits_per_byte")
    assert perplexity is not None and perplexity.difference is None and "bits per byte" in perplexity.note
    assert bits is not None and bits.difference is not None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "rows to judge on"),
        (("--suite", "qualty"), "unknown"),
        (("--suite", "fairness"), "--fairness FILE"),
        (("--suite", "tasks"), "--tasks"),
        (("--data", "DATA", "--limit", "0"), "--limit"),
        (("--data", "DATA", "--runtime", "llama.cpp"), "torch only"),
        (("--data", "DATA", "--gates", "none.toml"), "no such file"),
        (("--data", "DATA", "--temperature", "-1"), "--temperature"),
        (("--data", "none.jsonl"), "none.jsonl"),
        (("--data", "DATA", "--out", "OCCUPIED"), "no evaluation"),
    ],
)
def test_wrong_wishes(arguments: tuple[str, ...], says: str, tiny_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine").write_text("keep")
    names = {"DATA": str(tiny_data), "OCCUPIED": str(occupied)}
    out = () if "--out" in arguments else ("--out", tmp_path / "e")
    done = run_cli("evaluate", tiny_llama, "--quiet", *out, *(names.get(a, a) for a in arguments))
    assert done.code == 2 and says in done.err and "Traceback" not in done.err
    assert not (tmp_path / "e").exists() and (occupied / "mine").read_text() == "keep"


def test_an_encoder_or_nothing_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        edgegen.evaluate(str(tmp_path / "none"), data=str(tiny_data))
