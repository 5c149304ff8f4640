"""llama.cpp's own sides: what it says, what it keeps quiet, and what would end the process."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgegen.errors import ConfigError, DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.llamacpp import LlamaCpp
from tests.adapters import make_adapter
from tests.tiny_models import export_tiny, load_state, make_tiny, make_tokenizer

IDS = [5, 9, 200, 31, 7, 12, 300, 18]


def settings(**changes: object) -> Settings:
    values = {"context_tokens": 64, "ubatch_tokens": 16, "threads": 1, "kv_type": "f16"} | changes
    return Settings(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    hf = make_tiny("llama", folder / "hf", heads=2, kv_heads=1, tokenizer="sentencepiece")
    return folder / "artifact" / export_tiny(hf, folder).model


def test_nothing_is_printed(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaCpp().open(model, settings()) as session:
        session.score(IDS)
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 100)
    with pytest.raises(DeviceError):
        LlamaCpp().open(tmp_path / "noise.gguf", settings())
    assert capfd.readouterr() == ("", "")


def test_refusal_carries_llama_cpps_reason(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(DeviceError, match="not within the file bounds"):
        LlamaCpp().open(path, settings())
    path.write_bytes(b"noise" * 100)
    with pytest.raises(DeviceError, match="invalid magic characters"):
        LlamaCpp().open(path, settings())


def test_quantised_cache(model: Path, tmp_path: Path) -> None:
    """Works where a head is a multiple of the block of 32; elsewhere llama.cpp's reason is given."""
    with (
        LlamaCpp().open(model, settings()) as plain,
        LlamaCpp().open(model, settings(kv_type="q8_0")) as small,
    ):
        wanted, got = plain.score(IDS), small.score(IDS)
        assert 0 < np.abs(wanted - got).max() < 1.0
    hf = make_tiny("llama", tmp_path / "hf", heads=8, kv_heads=8)
    other = tmp_path / "artifact" / export_tiny(hf, tmp_path).model
    with pytest.raises(DeviceError, match="does not divide n_embd_head"):
        LlamaCpp().open(other, settings(kv_type="q8_0"))


@pytest.mark.parametrize("change", [{"context_tokens": 0}, {"ubatch_tokens": 0}, {"threads": 0}, {"kv_type": "q4_0"}])
def test_settings_are_checked(model: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LlamaCpp().open(model, settings(**change))


def test_context_beyond_the_position_table(tmp_path: Path) -> None:
    hf = make_tiny("gpt2", tmp_path / "hf", context=48)
    model = tmp_path / "artifact" / export_tiny(hf, tmp_path, context_tokens=48).model
    with pytest.raises(ConfigError, match="made for 48 tokens"):
        LlamaCpp().open(model, settings())
    with LlamaCpp().open(model, settings(context_tokens=48)) as session:
        assert len(list(session.generate(IDS, max_tokens=100))) == 48 - len(IDS) + 1


def test_ties_go_to_the_lower_id(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf")
    state = load_state(hf)
    state["lm_head.weight"] = torch.zeros_like(state["lm_head.weight"])
    save_file(state, hf / "model.safetensors", metadata={"format": "pt"})
    model = tmp_path / "artifact" / export_tiny(hf, tmp_path).model
    with LlamaCpp().open(model, settings()) as session:
        assert list(session.generate(IDS, max_tokens=3)) == [0, 0, 0]


def test_stale_generation_is_noticed(model: Path) -> None:
    with LlamaCpp().open(model, settings()) as session:
        running = session.generate(IDS, max_tokens=5)
        next(running)
        session.score(IDS)
        with pytest.raises(ConfigError, match="another call"):
            next(running)


def test_tokenize(model: Path) -> None:
    original = make_tokenizer("sentencepiece")
    with LlamaCpp().open(model, settings()) as session, LlamaCpp().open_vocabulary(model) as vocabulary:
        assert vocabulary.size == session.vocab_size == 400
        for text in ("the cat ran", "", "Größe 東京", "a <s> b"):
            wanted = original.encode(text, add_special_tokens=False).ids
            assert session.tokenize(text) == wanted
            assert vocabulary.tokenize(text, parse_special=True) == wanted
        assert 1 not in vocabulary.tokenize("a <s> b", parse_special=False)
        long = "the cat " * 5000
        assert session.tokenize(long) == original.encode(long, add_special_tokens=False).ids
    with pytest.raises(ConfigError, match="closed"):
        vocabulary.tokenize("x")


def test_character_that_would_end_the_process(tmp_path: Path) -> None:
    """Without byte tokens llama.cpp throws through C at an unknown character."""
    hf = make_tiny("llama", tmp_path / "hf", tokenizer="sentencepiece")
    path = hf / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"] = {t.replace("<0x", "<byte "): id_ for t, id_ in tree["model"]["vocab"].items()}
    path.write_text(json.dumps(tree))
    model = tmp_path / "artifact" / export_tiny(hf, tmp_path).model
    with LlamaCpp().open_vocabulary(model) as vocabulary:
        assert vocabulary.tokenize("the cat")
        with pytest.raises(ConfigError, match="no tokens for"):
            vocabulary.tokenize("the ß")


def test_import_is_light() -> None:
    code = "import sys, edgegen.runtime.llamacpp; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("grid", ["f32", "q4_0"])
def test_an_adapter_changes_the_weights(grid: str, tmp_path: Path) -> None:
    """By exactly the product of its matrices, whether or not llama.cpp rearranged the weights it lies over."""
    hf = make_tiny("llama", tmp_path / "hf")
    model = tmp_path / "artifact" / export_tiny(hf, tmp_path, grid).model
    lora = make_adapter(tmp_path / "lora.gguf", model)
    with LlamaCpp().open(model, settings()) as session:
        plain = session.score(IDS)
    with LlamaCpp().open(model, settings(), lora) as session:
        adapted = session.score(IDS)
        row = session.start(IDS).copy()
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(row, adapted[-1], atol=0.03)
    if grid != "f32":
        return
    state, found = load_state(hf), {t.name: torch.tensor(np.array(t.data)) for t in gguf.GGUFReader(lora).tensors}
    for block in range(2):
        for name in ("gate", "up", "down"):
            wide, narrow = (found[f"blk.{block}.ffn_{name}.weight.lora_{side}"] for side in "ba")
            state[f"model.layers.{block}.mlp.{name}_proj.weight"] += wide @ narrow
    save_file(state, hf / "model.safetensors", metadata={"format": "pt"})
    merged = tmp_path / "merged" / "artifact" / export_tiny(hf, tmp_path / "merged").model
    with LlamaCpp().open(merged, settings()) as session:
        np.testing.assert_allclose(session.score(IDS), adapted, atol=0.03)


def test_an_unfit_adapter_is_refused_with_llama_cpps_reason(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.gguf"
    with pytest.raises(ConfigError, match="no such file"):
        LlamaCpp().open(model, settings(), path)
    for changes, reason in (
        ({"wider": 3}, "incorrect shape"),
        ({"arch": "gemma"}, "arch mismatch"),
        ({"kind": "other"}, "adapter.type"),
    ):
        make_adapter(path, model, **changes)  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match=reason):
            LlamaCpp().open(model, settings(), path)
    for data, reason in (
        (b"", "magic"),
        (make_adapter(path, model).read_bytes()[:-200], "within the file bounds"),
        (model.read_bytes(), "but got: model"),
    ):
        path.write_bytes(data)
        with pytest.raises(DeviceError, match=reason):
            LlamaCpp().open(model, settings(), path)
