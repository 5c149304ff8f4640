"""A plan carried out: the packed rows are the plan's, and a failure leaves nothing."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.compress import execute
from edgegen.compress.execute import compress_model, steps_of
from edgegen.errors import ConfigError, DeviceError
from edgegen.grids import ggml
from edgegen.modeling.load import find_model, open_tokenizer, read_config
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Plan, TensorChoice
from edgegen.sdk.planning import with_vocabulary
from tests.modeling.opened import Opened, open_all
from tests.tiny_models import make_tiny

IMPORTANCE = np.linspace(1, 5, 64, dtype=np.float32)


def plan_for(base: Plan, opened: Opened, grids: dict[str, str] | None = None, size: int | None = None) -> Plan:
    """A plan for any model: q8_0 for matrices unless said otherwise."""
    summary = opened.source.summary if size is None else with_vocabulary(opened.source.summary, size)
    choices = []
    for t in summary.tensors:
        grid = (grids or {}).get(t.name, "q8_0" if t.quantizable else "f16" if t.role == "position" else "f32")
        size_bytes = t.rows * ggml.row_bytes(grid, t.columns)
        choices.append(TensorChoice(t.name, t.role, t.layer, t.rows, t.columns, grid, size_bytes, 0.0))
    return msgspec.structs.replace(
        base,
        model=opened.ref,
        summary=summary,
        original=opened.summary,
        tensors=tuple(choices),
        vocabulary=msgspec.structs.replace(
            base.vocabulary, original_size=opened.summary.vocab_size, size=summary.vocab_size
        ),
    )


@pytest.fixture(scope="module")
def base(finished: Path) -> Plan:
    return load_json(finished / "plan.json", Plan)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Opened:
    return open_all(tiny_llama)


def compress(opened: Opened, plan: Plan, out: Path, kept: Any = None, **more: Any) -> Compressed:
    return compress_model(plan, opened.source, read_config(opened.ref), kept, out, **more)


def rows_in(folder: Path, record: Compressed, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    tensor = next(t for t in record.tensors if t.name == name)
    raw = (folder / "weights.bin").read_bytes()[tensor.offset : tensor.offset + tensor.bytes]
    return np.frombuffer(raw, dtype=np.uint8).reshape(tensor.rows, -1)


def test_weights_are_the_directly_packed_rows(base: Plan, llama: Opened, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    llama.source.use_importance({name: IMPORTANCE})
    record = compress(llama, plan_for(base, llama, {name: "q4_0"}), tmp_path / "c")
    state = load_file(Path(llama.ref.path) / "model.safetensors")
    for tensor in record.tensors:
        values = np.atleast_2d(state[tensor.name].numpy())
        importance = IMPORTANCE if tensor.name == name else None
        wanted = ggml.pack(values, tensor.grid, importance)
        assert np.array_equal(rows_in(tmp_path / "c", record, tensor.name), wanted), tensor.name
        assert tensor.grid == ("f32" if values.shape[0] == 1 else "q4_0" if tensor.name == name else "q8_0")
    llama.source.use_importance({})


def test_the_record_describes_the_file(base: Plan, llama: Opened, tmp_path: Path) -> None:
    plan = plan_for(base, llama)
    steps: list[tuple[int, int]] = []
    record = compress(llama, plan, tmp_path / "c", progress=lambda done, total: steps.append((done, total)))
    assert load_json(tmp_path / "c" / "compressed.json", Compressed) == record
    assert record.digest == digest_file(tmp_path / "c" / "weights.bin")
    offsets = [t.offset for t in record.tensors]
    ends = [t.offset + t.bytes for t in record.tensors]
    assert offsets == [0, *ends[:-1]] and ends[-1] == (tmp_path / "c" / "weights.bin").stat().st_size
    assert [t.bytes for t in record.tensors] == [c.bytes for c in plan.tensors]
    assert steps == [(n, len(plan.tensors)) for n in range(1, len(plan.tensors) + 1)]
    assert sorted([*record.files, "weights.bin", "compressed.json"]) == sorted(
        p.name for p in (tmp_path / "c").iterdir()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_trimmed_table_is_a_selection_of_its_rows(base: Plan, tmp_path: Path, tied: bool) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "m", tied=tied, padding=8))
    vocabulary = Vocabulary(tmp_path / "m" / "tokenizer.json")
    kept = vocabulary.choose(np.zeros(408, dtype=np.int64), 320)
    record = compress(opened, plan_for(base, opened, size=len(kept)), tmp_path / "c", kept)
    for name in ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"]):
        whole = opened.source.packed(name, "q8_0")
        assert np.array_equal(rows_in(tmp_path / "c", record, name), whole[kept])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(rows_in(tmp_path / "c", record, name), opened.source.packed(name, "q8_0"))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    tokenizer = open_tokenizer(tmp_path / "c")
    assert config["vocab_size"] == len(kept) == len(tokenizer)
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert kept[tokenizer.eos_token_id] == opened.tokenizer.eos_token_id


@pytest.mark.parametrize(("family", "key"), [("llama", "intermediate_size"), ("gpt2", "n_inner")])
def test_a_padded_width_is_in_the_configuration(base: Plan, tmp_path: Path, family: str, key: str) -> None:
    opened = open_all(make_tiny(family, tmp_path / "m", ffn=100))
    record = compress(opened, plan_for(base, opened), tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())[key] == record.summary.ffn_size == 128
    assert any("padded with zeros from 100 to 128" in step for step in record.steps)


def test_gpt2_without_an_inner_width_gets_one(base: Plan, tmp_path: Path) -> None:
    opened = open_all(make_tiny("gpt2", tmp_path / "m", hidden=36, heads=2, ffn=None))  # type: ignore[arg-type]
    assert opened.summary.ffn_size == 144
    plan = plan_for(base, opened, {t.name: "f16" for t in opened.summary.tensors if t.quantizable})
    compress(opened, plan, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["n_inner"] == 160


def test_licence_card_and_template_travel(base: Plan, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    for name in ("README.md", "LICENSE", "NOTICE", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_text("{}")
    opened = open_all(folder)
    record = compress(opened, plan_for(base, opened), tmp_path / "c")
    for name in ("README.md", "LICENSE", "NOTICE", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "c" / name).read_bytes() == (folder / name).read_bytes()
        assert name in record.files


def test_same_plan_same_bytes(base: Plan, llama: Opened, tmp_path: Path) -> None:
    first, second = (compress(llama, plan_for(base, llama), tmp_path / name) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a" / "weights.bin").read_bytes() == (tmp_path / "b" / "weights.bin").read_bytes()


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("fails", ["copyfile", "fsync", "save_json", "interrupt"])
def test_a_failure_leaves_the_old_one_or_nothing(
    base: Plan, llama: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, old: bool
) -> None:
    plan = plan_for(base, llama)
    if old:
        compress(llama, plan, tmp_path / "c")
    before = {p.name: p.read_bytes() for p in tmp_path.glob("c/*")}

    def full(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt if fails == "interrupt" else OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt if fails == "interrupt" else DeviceError):
        patch.setattr(
            *{
                "copyfile": (execute.shutil, "copyfile"),
                "fsync": (execute.os, "fsync"),
                "save_json": (execute, "save_json"),
                "interrupt": (llama.source, "packed"),
            }[fails],
            full,
        )
        compress(llama, plan, tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == (["c"] if old else [])
    assert {p.name: p.read_bytes() for p in tmp_path.glob("c/*")} == before


def test_a_disk_that_is_too_small_is_said_first(
    base: Plan, llama: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("edgegen.common.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DeviceError, match=r"[\d,]+ bytes are needed on the disk and 1,000 are free"):
        compress(llama, plan_for(base, llama), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tensor_leaves_nothing(base: Plan, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors")
    opened = open_all(folder)
    assert torch.isnan(opened.model.model.layers[1].mlp.up_proj.weight).any()
    with pytest.raises(ConfigError, match=r"tensor 'model.layers.1.mlp.up_proj.weight' holds 1 values"):
        compress(opened, plan_for(base, opened), tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_steps_in_words(base: Plan, llama: Opened) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    (only,) = steps_of(plan_for(base, llama, {name: "q4_0"}))
    assert only == "weights rounded onto 14 × q8_0, 1 × q4_0"
    plan = plan_for(base, llama)
    some = {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"}
    tensors = tuple(msgspec.structs.replace(t, compensated=t.name in some) for t in plan.tensors)
    (only,) = steps_of(msgspec.structs.replace(plan, tensors=tensors))
    assert only == "weights rounded onto 15 × q8_0, with error compensation in 2 of 15 matrices"
    first, _ = steps_of(plan_for(base, llama, size=320))
    assert first == "vocabulary trimmed from 400 to 320 tokens"


def test_the_finished_outputs_own_record(finished: Path) -> None:
    record = load_json(finished / "compressed" / "compressed.json", Compressed)
    plan = load_json(finished / "plan.json", Plan)
    assert record.steps == steps_of(plan)
    assert record.digest == digest_file(finished / "compressed" / "weights.bin")
    assert find_model(plan.model.source).digest == plan.model.digest
