"""The file and the folder: exact sizes, exact rows, all or nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export import TARGETS, exporter_for
from edgegen.export.gguf.export import export_gguf, gguf_overhead_bytes, predict_gguf_bytes
from edgegen.export.gguf.tensors import head_order, tensor_bytes
from edgegen.grids import ggml
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Settings
from tests.tiny_models import export_tiny, load_state, make_tiny, pack_uniform, sample_texts

SETTINGS = Settings(context_tokens=128, ubatch_tokens=32, threads=1, kv_type="f16")
TEXTS = sample_texts(10, seed=3)
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(
        "llama", tmp_path_factory.mktemp("hf"), hidden=256, ffn=288, chat_template="{{ messages }}", padding=7
    )
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Apache")
    return folder


@pytest.mark.parametrize("grid", ["f32", "f16", "q8_0", "q4_k"])
def test_predicted_size_is_the_size(checkpoint: Path, tmp_path: Path, grid: str) -> None:
    compressed = pack_uniform(checkpoint, tmp_path / "c", grid)
    export_gguf(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    record = load_json(compressed / "compressed.json", Compressed)
    config = json.loads((checkpoint / "config.json").read_text())
    actual = (tmp_path / "a" / "model.gguf").stat().st_size
    assert predict_gguf_bytes(config, compressed, record.tensors, prove_texts=TEXTS) == actual
    overhead = gguf_overhead_bytes(config, compressed, record.tensors)
    assert overhead + sum(tensor_bytes(t.grid, t.rows, t.columns) for t in record.tensors) == actual


def test_overhead_does_not_depend_on_grids(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    records = [
        load_json(pack_uniform(checkpoint, tmp_path / grid, grid) / "compressed.json", Compressed)
        for grid in ("f16", "q8_0", "q4_k")
    ]
    assert len({gguf_overhead_bytes(config, checkpoint, record.tensors) for record in records}) == 1


def test_repeated_and_computed_tensors_are_overhead(tmp_path: Path) -> None:
    hf = make_tiny("phi", tmp_path / "hf", tied=True)
    compressed = pack_uniform(hf, tmp_path / "c")
    artifact = export_gguf(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    record = load_json(compressed / "compressed.json", Compressed)
    config = json.loads((hf / "config.json").read_text())
    actual = (tmp_path / "a" / "model.gguf").stat().st_size
    assert predict_gguf_bytes(config, hf, record.tensors) == actual
    assert any("stored twice" in note for note in artifact.notes)
    assert artifact.parameters == record.summary.parameters


@pytest.mark.parametrize("grid", ["f16", "q8_0", "q6_k"])
def test_packed_rows_are_moved_exactly(checkpoint: Path, tmp_path: Path, grid: str) -> None:
    export_gguf(pack_uniform(checkpoint, tmp_path / "c", grid), tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a" / "model.gguf").tensors}
    state = load_state(checkpoint)
    for name, heads in (("q", 4), ("k", 2)):
        weights = state[f"model.layers.1.self_attn.{name}_proj.weight"].numpy()
        wanted = ggml.pack(weights, grid)[head_order(len(weights), heads)]
        tensor = written[f"blk.1.attn_{name}.weight"]
        np.testing.assert_array_equal(np.asarray(tensor.data).view(np.uint8).reshape(wanted.shape), wanted)
        assert list(tensor.shape) == [256, len(weights)]


def test_head_order_turns_halves_into_pairs() -> None:
    assert head_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert sorted(head_order(96, 3)) == list(range(96))


def test_artifact_folder(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    compressed = pack_uniform(checkpoint, tmp_path / "c", "q8_0")
    artifact = export_gguf(
        compressed,
        tmp_path / "a",
        SETTINGS,
        prove_texts=TEXTS,
        progress=lambda name, done: seen.append((name, done)),
    )
    out = tmp_path / "a"
    assert load_json(out / "artifact.json", Artifact) == artifact
    assert {file.path for file in artifact.files} == {path.name for path in out.iterdir()} - {"artifact.json"}
    assert {"model.gguf", "tokenizer.json", "LICENSE", "README.md"} <= {file.path for file in artifact.files}
    for file in artifact.files:
        assert file.bytes == (out / file.path).stat().st_size
        assert file.digest == digest_file(out / file.path)
    assert artifact.parent == digest_file(compressed / "weights.bin")
    assert (artifact.bos_id, artifact.eos_ids, artifact.add_bos) == (0, (0,), False)
    assert (artifact.vocab_size, artifact.context_tokens) == (407, 256)
    assert artifact.tokenizer_proof.startswith("10 of 10 held-out texts")
    assert seen[-1][1] == 1.0
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_metadata(checkpoint: Path, tmp_path: Path) -> None:
    export_tiny(checkpoint, tmp_path, "q8_0")
    fields = gguf.GGUFReader(tmp_path / "artifact" / "model.gguf").fields
    value = {key: field.contents() for key, field in fields.items()}
    assert value["general.architecture"] == "llama"
    assert value["general.license"] == "apache-2.0"
    assert value["general.file_type"] == 7
    assert value["general.quantization_version"] == 2
    assert value["llama.rope.freq_base"] == 10000.0
    assert value["llama.attention.head_count_kv"] == 2
    assert value["tokenizer.chat_template"] == "{{ messages }}"
    assert value["tokenizer.ggml.bos_token_id"] == 0
    assert value["tokenizer.ggml.tokens"][-7:] == [f"[PAD{id_}]" for id_ in range(400, 407)]
    assert value["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert value["tokenizer.ggml.token_type"][-7:] == [5] * 7


def test_an_earlier_artifact_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    export_gguf(pack_uniform(checkpoint, tmp_path / "c", "q8_0"), out, SETTINGS, prove_texts=TEXTS)
    small = (out / "model.gguf").stat().st_size
    export_gguf(pack_uniform(checkpoint, tmp_path / "d", "f16"), out, SETTINGS, prove_texts=TEXTS)
    assert (out / "model.gguf").stat().st_size > small
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_foreign_folder_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ConfigError, match="is no artifact"):
        export_gguf(pack_uniform(checkpoint, tmp_path / "c"), out, SETTINGS, prove_texts=TEXTS)
    assert [path.name for path in out.iterdir()] == ["cat.jpg"]


def test_interrupted_export_leaves_the_old_artifact(checkpoint: Path, tmp_path: Path) -> None:
    out, compressed = tmp_path / "a", pack_uniform(checkpoint, tmp_path / "c", "q8_0")
    export_gguf(compressed, out, SETTINGS, prove_texts=TEXTS)
    before = digest_file(out / "model.gguf")

    def stop(name: str, done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            export_gguf(compressed, target, SETTINGS, prove_texts=TEXTS, progress=stop)
    assert digest_file(out / "model.gguf") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def _cut(folder: Path) -> None:
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[:-100])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "weights.bin").read_bytes())
    data[1000] ^= 1
    (folder / "weights.bin").write_bytes(data)


def _edit(folder: Path, change: Any) -> None:
    record = json.loads((folder / "compressed.json").read_text())
    change(record)
    (folder / "compressed.json").write_text(json.dumps(record))


def _rename(old: str, new: str) -> Any:
    def change(record: dict[str, Any]) -> None:
        for tensor in record["tensors"]:
            tensor["name"] = tensor["name"].replace(old, new)

    return lambda folder: _edit(folder, change)


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (_cut, ConfigError, "cut off"),
        (_flip, ConfigError, "damaged"),
        (lambda folder: (folder / "weights.bin").unlink(), ConfigError, "weights.bin: no such file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), ConfigError, "tokenizer.json: no such file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ConfigError, "not a tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), ConfigError, "not valid JSON"),
        (_config(vocab_size=399), ConfigError, "vocab_size=399"),
        (_config(num_hidden_layers=3), ConfigError, "tensors are missing"),
        (_config(num_hidden_layers=1), UnsupportedError, "has no place"),
        (_rename("mlp.up_proj", "mlp.odd"), UnsupportedError, "mlp.odd.weight"),
        (_rename("layers.1.mlp.up", "layers.0.mlp.up"), ConfigError, "the same one"),
    ],
)
def test_damaged_input_is_named(
    harm: Any, kind: type[Exception], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    compressed = pack_uniform(checkpoint, tmp_path / "c", "q8_0")
    harm(compressed)
    with pytest.raises(kind, match=message):
        export_gguf(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    assert not (tmp_path / "a").exists()


def test_fewer_rows_than_tokens(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf")
    compressed = pack_uniform(hf, tmp_path / "c")
    other = make_tiny("llama", tmp_path / "other", vocab=410)
    (compressed / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="token id 409 and the embedding only 400 rows"):
        export_gguf(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)


def test_context_beyond_the_model(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context of 512 tokens is more than the 256"):
        export_tiny(checkpoint, tmp_path, context_tokens=512)


def test_name_that_would_end_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp looks tokens up that are not there when the name holds `phi-3`."""
    hf = make_tiny("phi3", tmp_path / "hf")
    _config(_name_or_path="someone/Phi-3-mini")(hf)
    export_tiny(hf, tmp_path)
    fields = gguf.GGUFReader(tmp_path / "artifact" / "model.gguf").fields
    assert fields["general.name"].contents() == "Phi 3-mini"


def test_sharded_bfloat16_checkpoint(tmp_path: Path) -> None:
    import torch

    hf = make_tiny("llama", tmp_path / "hf", dtype=torch.bfloat16, shards=3)
    assert len(list(hf.glob("*.safetensors"))) > 1
    export_tiny(hf, tmp_path, "bf16")


def test_unknown_target_lists_what_there_is() -> None:
    assert "gguf" in TARGETS
    with pytest.raises(UnsupportedError) as caught:
        exporter_for("tape")
    assert all(target in caught.value.hint for target in TARGETS)


def test_no_torch_on_the_way() -> None:
    code = (
        "import sys, edgegen.export.gguf, edgegen.runtime.llamacpp; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
