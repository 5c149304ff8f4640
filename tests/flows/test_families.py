"""The whole chain for every family: a passing receipt from llama.cpp itself."""

from pathlib import Path

import msgspec
import pytest
from transformers import AutoTokenizer

from edgegen.records.report import Report
from tests.flows.command import LOOSE, make_calm, run_cli
from tests.tiny_models import FAMILIES

TOKENIZERS = {
    "llama": "sentencepiece",
    "mistral": "llama3",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "ffn"), [("llama", 96), *((family, 100) for family in FAMILIES)])
def test_a_passing_receipt(family: str, ffn: int, tiny_data: Path, tmp_path: Path) -> None:
    kind = TOKENIZERS.get(family, "bytelevel")
    model = make_calm(family, tmp_path / "model", ffn=ffn, tokenizer=kind, padding=5)
    done = run_cli("compress", model, "--data", tiny_data, "--out", tmp_path / "out", *LOOSE, "--json", "--quiet")
    assert done.code == 0, done.err + done.out
    report = msgspec.json.decode(done.out, type=Report)
    assert report.passed and report.parity is not None and report.parity.kl < 0.002
    plan = (tmp_path / "out" / "plan.json").read_text()
    assert ("q4" in plan) or ("q8_0" in plan), "something was rounded"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_fewer_tokens_and_a_short_context(family: str, tiny_data: Path, tmp_path: Path) -> None:
    """A context shorter than a window, a trimmed vocabulary, padding rows, an untied head."""
    model = make_calm(family, tmp_path / "model", tied=family == "gpt2", padding=8, context=128)
    profile = tmp_path / "short.toml"
    shipped = Path(__file__).resolve().parents[2] / "profiles" / "laptop-x86-16gb.toml"
    text = shipped.read_text().replace('name = "laptop-x86-16gb"', 'name = "short"')
    text = text.replace("context_tokens = 4096", "context_tokens = 40").replace("_tokens = 64", "_tokens = 16")
    profile.write_text(text)
    done = run_cli(
        *("compress", model, "--data", tiny_data, "--out", tmp_path / "out", "--profile", profile),
        *("--max-kl", "20", "--grids", "q8_0", "--vocab", "320", "--json"),
    )
    report = msgspec.json.decode(done.out, type=Report)
    # What random weights write with a fifth of their tokens gone need not be text.
    assert not [check for check in report.checks if not check.passed and check.name != "sane_text"], done.err
    assert report.quality is not None and report.quality.renormalised and report.quality.lost_mass_nats > 0


@pytest.mark.slow
def test_an_added_token_beyond_the_embedding_is_left_out(tiny_data: Path, tmp_path: Path) -> None:
    """As Gemma 3's image token in its text-only checkpoints."""
    model = make_calm("llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model)
    for vocab in ("keep", "320"):
        done = run_cli(
            *("compress", model, "--data", tiny_data, "--out", tmp_path / vocab, "--profile", "laptop-x86-16gb"),
            *("--max-kl", "20", "--grids", "q8_0", "--vocab", vocab, "--json"),
        )
        assert done.code == 0, done.err + done.out
