"""Finding and checking a model: every refusal names what is wrong and who must act."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
from edgegen.modeling import load
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import check_model, empty_model, find_model, open_model, open_tokenizer, stored_names
from tests.tiny_models import make_tiny, reference_logits

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def edit_weights(folder: Path, change: Any) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def check(folder: Path) -> list[str]:
    ref = find_model(str(folder))
    return check_model(ref, empty_model(ref), Checkpoint(folder), open_tokenizer(folder))


def test_a_sound_model_has_no_notes(tiny_llama: Path) -> None:
    assert check(tiny_llama) == []


def test_digest_follows_weights_and_tokenizer_but_not_the_card(copy: Path) -> None:
    digests = [find_model(str(copy)).digest]
    (copy / "README.md").write_text("# another card")
    assert find_model(str(copy)).digest == digests[0]
    for name in (WEIGHTS, "tokenizer.json", "config.json"):
        path = copy / name
        path.write_bytes(path.read_bytes() + b" ")
        digests.append(find_model(str(copy)).digest)
    assert len(set(digests)) == 4


def test_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    "source", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "../x", "", "org/", "/", "-a/b", "a b/c"]
)
def test_a_path_that_is_not_there_never_asks_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_download", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError):
        find_model(source)


def test_a_file_is_no_model(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="a file, not a folder"):
        find_model(str(tiny_llama / WEIGHTS))


@pytest.mark.parametrize("source", ["org/name", "Qwen/Qwen2.5-0.5B-Instruct", "a/b_c.d"])
def test_unknown_hub_id_offline_fails_at_once(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(NetworkError, match=f"{source}: not a folder here") as caught:
        find_model(source)
    assert caught.value.retryable
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type"'])
def test_broken_configuration(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="not a model configuration"):
        load.read_config(find_model(str(copy)))


def test_unknown_architecture(copy: Path) -> None:
    edit_config(copy, model_type="mystery")
    with pytest.raises(UnsupportedError, match="'mystery' is no language model"):
        empty_model(find_model(str(copy)))


def test_sizes_that_do_not_go_together(copy: Path) -> None:
    edit_config(copy, num_attention_heads=3)
    with pytest.raises(UnsupportedError, match="not a multiple of the number of attention heads"):
        empty_model(find_model(str(copy)))
    with pytest.raises(UnsupportedError, match="not a multiple of the number of attention heads"):
        load.config_object(json.loads((copy / "config.json").read_text()))


def test_missing_tensor_is_named(copy: Path) -> None:
    edit_weights(copy, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"1 tensors are missing .* 'model.layers.1.mlp.up_proj.weight'"):
        check(copy)


def test_wrong_shape_is_named(copy: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    edit_weights(copy, lambda state: state.update({name: torch.zeros(64, 96)}))
    with pytest.raises(ConfigError, match=rf"'{name}' is \[64, 96\], but config.json makes it \[64, 128\]"):
        check(copy)


def test_stray_tensors_are_noted(copy: Path) -> None:
    edit_weights(copy, lambda state: state.update({"vision.proj": torch.zeros(3)}))
    assert check(copy) == ["1 stored tensors are not used by the architecture and were left out"]


def test_tokenizer_larger_than_the_embedding(copy: Path) -> None:
    edit_config(copy, vocab_size=390)
    edit_weights(copy, lambda state: state.update({EMBEDDING: state[EMBEDDING][:390].clone()}))
    with pytest.raises(ConfigError, match="ids up to 399 but the embedding has 390 rows"):
        check(copy)


def test_no_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        open_tokenizer(copy)


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ConfigError, match="tokenizer cannot be read"):
        open_tokenizer(copy)


def test_slow_only_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.model").write_bytes(b"\x0a\x05\x0a\x01a")
    with pytest.raises((ConfigError, UnsupportedError), match="tokenizer") as caught:
        open_tokenizer(copy)
    assert caught.value.hint


@pytest.mark.parametrize("stored", [EMBEDDING, HEAD])
def test_a_tied_table_is_found_under_either_name(copy: Path, stored: str) -> None:
    wanted = reference_logits(copy, [5, 6, 7])
    edit_weights(copy, lambda state: state.update({stored: state.pop(EMBEDDING)}))
    ref = find_model(str(copy))
    assert check(copy) == []
    assert stored_names(empty_model(ref), Checkpoint(copy))[EMBEDDING] == stored
    with torch.no_grad():
        found = open_model(ref, parameters=1000)(torch.tensor([[5, 6, 7]])).logits[0].numpy()
    assert abs(found - wanted).max() < 1e-4


def test_a_tied_table_stored_twice_is_not_noted(copy: Path) -> None:
    edit_weights(copy, lambda state: state.update({HEAD: state[EMBEDDING].clone()}))
    assert check(copy) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_without_the_base_models_prefix(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "model", tied=True)
    prefix = "transformer." if family == "gpt2" else "model."
    bare = {name.removeprefix(prefix): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(bare, folder / WEIGHTS)
    assert check(folder) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_models_calibrate_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    ref = find_model(str(make_tiny("llama", tmp_path / "model", dtype=dtype)))
    model = open_model(ref, parameters=100_000)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_large_models_calibrate_in_bfloat16(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_FP32_PARAMETERS", 10)
    model = open_model(find_model(str(tiny_llama)), parameters=100)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_too_little_memory_says_how_much(tiny_llama: Path) -> None:
    with pytest.raises(DeviceError, match=r"calibrating needs about [\d.]+ GB of memory and [\d.]+ GB are free"):
        open_model(find_model(str(tiny_llama)), parameters=10**14)
