"""Weights on disk: what can be wrong with them is said before work begins, naming the file."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from tests.tiny_models import load_state, make_tiny

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("sharded"), shards=3)


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_shards_read_as_one(sharded: Path) -> None:
    checkpoint = Checkpoint(sharded)
    state = load_state(sharded)
    assert len(checkpoint.files) > 1
    assert checkpoint.shapes == {name: tuple(t.shape) for name, t in state.items()}
    assert checkpoint.bytes == sum(t.numel() * 4 for t in state.values())
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state.items())
    assert set(checkpoint.check_finite()) == set(state)


def test_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "model")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=rf"1 of \d weight files are missing: {gone.name}"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}", '{"weight_map": {}}']
)
def test_broken_index(copy: Path, content: str) -> None:
    (copy / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json: (not a safetensors index|names no weights)"):
        Checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file_is_named(copy: Path, keep: int) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=rf"{WEIGHTS}: .*(truncated|not a safetensors file)") as caught:
        Checkpoint(copy)
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"hello, I am a text file that somebody renamed",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 9) + b'{"a": 1} ',
    ],
    ids=["text", "no tensors", "null", "number"],
)
def test_foreign_file_is_named(copy: Path, content: bytes) -> None:
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(ConfigError, match=WEIGHTS):
        Checkpoint(copy)


def test_pickle_only_is_refused_with_the_way_out(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle") as caught:
        Checkpoint(copy)
    assert "save_pretrained" in caught.value.hint


def test_no_weights(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        Checkpoint(copy)


def test_quantized_checkpoint_is_refused(copy: Path) -> None:
    state = {name: tensor.to(torch.int8) for name, tensor in load_file(copy / WEIGHTS).items()}
    save_file(state, copy / WEIGHTS)
    with pytest.raises(UnsupportedError, match="stored as I8") as caught:
        Checkpoint(copy)
    assert "float16" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_damaged_tensor_is_named(copy: Path, value: float) -> None:
    state = load_file(copy / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    state[name][3, 5:7] = value
    save_file(state, copy / WEIGHTS)
    with pytest.raises(ConfigError, match=rf"{WEIGHTS}: tensor '{name}' holds 2 values"):
        list(Checkpoint(copy).check_finite())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_types_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_tiny("llama", tmp_path / "model", dtype=dtype)
    checkpoint = Checkpoint(folder)
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    name = "model.layers.0.mlp.up_proj.weight"
    assert checkpoint.read(name).dtype == torch.float32
    assert torch.equal(checkpoint.read(name), load_state(folder)[name].float())


def test_the_index_decides_which_files_count(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "model")
    save_file({"stray": torch.zeros(2)}, folder / "another.safetensors")
    named = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    assert set(Checkpoint(folder).shapes) == named
