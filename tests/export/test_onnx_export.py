"""The folder: exact sizes, exact rows, the same bytes again, all or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export.onnx import export, exporter
from edgegen.export.onnx.export import OnnxExporter, export_onnx
from edgegen.grids import uniform
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.genai import OnnxGenai
from edgegen.runtime.text import Text
from tests.export.packed_models import SETTINGS, TEXTS, export_both, repack, state_of
from tests.tiny_models import FAMILIES, make_tiny, pack_uniform

CARD = "---\nlicense: apache-2.0\n---\n# Tiny\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny("llama", tmp_path_factory.mktemp("hf"), ffn=160, chat_template="{{ messages }}", tied=True)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Apache")
    return folder


def planned(compressed: Path) -> list[PackedTensor]:
    """Tensors as the planner gives them: their grids do not count."""
    tensors = load_json(compressed / "compressed.json", Compressed).tensors
    return [
        PackedTensor(
            name=t.name, grid="f32" if t.rows == 1 else "f16", rows=t.rows, columns=t.columns, offset=0, bytes=0
        )
        for t in tensors
    ]


def expected_bytes(compressed: Path, settings: Settings = SETTINGS) -> int:
    """What a planner expects of the model's files."""
    config = json.loads((compressed / "config.json").read_text())
    tensors = load_json(compressed / "compressed.json", Compressed).tensors
    sizes = sum(OnnxExporter().tensor_bytes(t.grid, t.rows, t.columns) for t in tensors)
    return sizes + OnnxExporter().overhead_bytes(config, compressed, planned(compressed), settings)


_DIFFERENT = {"q_proj": "u4_32", "k_proj": "u8_16", "v_proj": "u8_32"}


@pytest.mark.parametrize("family", [*FAMILIES[:-3], *FAMILIES[-2:], pytest.param("gpt2", marks=pytest.mark.slow)])
def test_expected_size_is_the_size(family: str, tmp_path: Path) -> None:
    """Exact where queries, keys and values differ in their grid; of a traced graph within a hundred bytes."""
    hf = make_tiny(family, tmp_path / "hf")
    compressed = pack_uniform(hf, tmp_path / "c", "u4_32")
    if family not in ("gpt2", "phi3"):
        record = load_json(compressed / "compressed.json", Compressed)
        parts = {t.name: state_of(hf)[t.name] for t in record.tensors}
        repack(
            compressed, lambda name: next((g for part, g in _DIFFERENT.items() if part in name), "u4_32"), parts=parts
        )
    found = export_both(compressed, tmp_path).model_bytes
    assert expected_bytes(compressed) - found == pytest.approx(0, abs=100)


@pytest.mark.parametrize("grid", ["f32", "f16", "s4_32", "s8_128", "u2_64"])
def test_a_size_budget_is_kept(grid: str, checkpoint: Path, tmp_path: Path) -> None:
    """One grid everywhere needs fewer parts than expected, never more."""
    compressed = pack_uniform(checkpoint, tmp_path / "c", grid)
    over = expected_bytes(compressed) - export_both(compressed, tmp_path).model_bytes
    assert 0 <= over < 6000


def test_packed_rows_are_moved_exactly(checkpoint: Path, tmp_path: Path) -> None:
    compressed = pack_uniform(checkpoint, tmp_path / "c", "u4_32")
    export_both(compressed, tmp_path)
    model = onnx.load(tmp_path / "a" / "model.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    record = load_json(compressed / "compressed.json", Compressed)
    raw = np.fromfile(compressed / "weights.bin", dtype=np.uint8)
    for tensor in record.tensors:
        if "down_proj" in tensor.name or "embed" in tensor.name:
            rows = raw[tensor.offset : tensor.offset + tensor.bytes].reshape(tensor.rows, -1)
            parts = uniform.split(rows, tensor.grid, tensor.columns)
            name = tensor.name.removeprefix("model.").removeprefix("layers.").removesuffix(".weight")
            np.testing.assert_array_equal(stored[f"{name}.codes"], parts.packed)
            np.testing.assert_array_equal(stored[f"{name}.scales"], parts.scales)
            np.testing.assert_array_equal(stored[f"{name}.zeros"], parts.zeros)


def test_artifact_folder(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    compressed = pack_uniform(checkpoint, tmp_path / "c", "s4_32")
    artifact = export_onnx(
        compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS, progress=lambda name, done: seen.append((name, done))
    )
    out = tmp_path / "a"
    assert load_json(out / "artifact.json", Artifact) == artifact
    assert {file.path for file in artifact.files} == {path.name for path in out.iterdir()} - {"artifact.json"}
    assert {"genai_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE", "README.md"} <= {
        file.path for file in artifact.files
    }
    assert artifact.model_files == ("model.onnx", "model.onnx.data")
    assert all(digest_file(out / file.path) == file.digest for file in artifact.files)
    assert (artifact.bos_id, artifact.eos_ids, artifact.add_bos) == (0, (0,), False)
    assert (artifact.vocab_size, artifact.context_tokens) == (400, 128)
    assert artifact.parameters == 400 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64) + 64
    assert f"{len(TEXTS)} of {len(TEXTS)} held-out texts" in artifact.tokenizer_proof
    assert any("positions for 128 tokens" in note for note in artifact.notes)
    assert seen[-1][1] == 1.0
    assert [done for _, done in seen] == sorted(done for _, done in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_genai_config(checkpoint: Path, tmp_path: Path) -> None:
    export_both(pack_uniform(checkpoint, tmp_path / "c", "s4_32"), tmp_path)
    tree = json.loads((tmp_path / "a" / "genai_config.json").read_text())
    decoder = tree["model"]["decoder"]
    assert (tree["model"]["vocab_size"], tree["model"]["context_length"]) == (400, 128)
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (16, 2, 2)
    assert "position_ids" not in decoder["inputs"]
    assert tree["search"]["past_present_share_buffer"] is True


def test_the_strict_twin_differs_in_accuracy_only(checkpoint: Path, tmp_path: Path) -> None:
    export_both(pack_uniform(checkpoint, tmp_path / "c", "s4_32"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
    ]
    for name in ("genai_config.json", "model.onnx.data"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    levels = []
    for folder in ("a", "s"):
        model = onnx.load(tmp_path / folder / "model.onnx", load_external_data=False)
        products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        found = {a.i for node in products for a in node.attribute if a.name == "accuracy_level"}
        assert len(products) == 2 * 5 + 1
        levels.append(found)
        for node in products:
            node.ClearField("attribute")
        (tmp_path / f"{folder}.graph").write_bytes(model.SerializeToString(deterministic=True))
    assert levels == [{4}, {1}]
    assert (tmp_path / "a.graph").read_bytes() == (tmp_path / "s.graph").read_bytes()


def test_nothing_travels_in_the_graph_that_the_runtime_does_not_need(tmp_path: Path) -> None:
    """No traces of where the code that was traced stands."""
    export_both(pack_uniform(make_tiny("gpt2", tmp_path / "hf"), tmp_path / "c", "s4_32"), tmp_path)
    data = (tmp_path / "a" / "model.onnx").read_bytes()
    model = onnx.load_model_from_string(data)
    assert len(data) < 10_000
    assert not model.graph.value_info and not model.graph.metadata_props and not model.functions
    assert not any(node.metadata_props or node.doc_string or node.name for node in model.graph.node)
    for text in (b"site-packages", b"pkg.", b"forward", b"torch"):
        assert text not in data


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_the_same_input_gives_the_same_bytes(family: str, tmp_path: Path) -> None:
    compressed = pack_uniform(make_tiny(family, tmp_path / "hf"), tmp_path / "c", "u4_32")
    first, again = (
        export_onnx(compressed, tmp_path / name, SETTINGS, prove_texts=TEXTS, strict=tmp_path / f"{name}s")
        for name in ("a", "b")
    )
    assert first == again
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "as" / name).read_bytes() == (tmp_path / "bs" / name).read_bytes()


def test_an_earlier_artifact_is_replaced_and_a_foreign_folder_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    small, large = (pack_uniform(checkpoint, tmp_path / grid, grid) for grid in ("s4_32", "f16"))
    before = export_both(small, tmp_path)
    assert export_both(large, tmp_path).model_bytes > before.model_bytes
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ConfigError, match="is no artifact"):
        export_onnx(small, tmp_path / "photos", SETTINGS, prove_texts=TEXTS)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def _edit(name: str, change: Any) -> Any:
    def harm(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        change(tree)
        (folder / name).write_text(json.dumps(tree))

    return harm


@pytest.mark.parametrize(
    ("harm", "kind", "message"),
    [
        (lambda c: (c / "weights.bin").write_bytes((c / "weights.bin").read_bytes()[:-100]), ConfigError, "cut off"),
        (lambda c: (c / "weights.bin").unlink(), ConfigError, "weights.bin: no such file"),
        (lambda c: (c / "tokenizer.json").unlink(), ConfigError, "tokenizer.json: no such file"),
        (lambda c: (c / "tokenizer.json").write_text("{}"), ConfigError, "not a tokenizer"),
        (lambda c: (c / "config.json").write_text("{"), ConfigError, "not valid JSON"),
        (_edit("config.json", lambda t: t.update(num_hidden_layers=3)), ConfigError, "is missing"),
        (_edit("config.json", lambda t: t.update(num_hidden_layers=1)), ConfigError, "has no place"),
        (_edit("config.json", lambda t: t.update(model_type="mamba")), UnsupportedError, "'mamba' cannot be written"),
    ],
)
def test_damaged_input_is_named(
    harm: Any, kind: type[Exception], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    compressed = pack_uniform(checkpoint, tmp_path / "c", "s4_32")
    harm(compressed)
    with pytest.raises(kind, match=message):
        export_onnx(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    assert not (tmp_path / "a").exists()


def test_a_tokenizer_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    compressed = pack_uniform(checkpoint, tmp_path / "c", "s4_32")
    other = make_tiny("llama", tmp_path / "other", vocab=410)
    (compressed / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="token id 409 and the embedding only 400 rows"):
        export_onnx(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)


def test_a_grid_of_another_runtime(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no operator for grid q4_0"):
        OnnxExporter().tensor_bytes("q4_0", 8, 32)
    with pytest.raises(UnsupportedError, match="no operator for grid i4_32"):
        OnnxExporter().tensor_bytes("i4_32", 8, 32)
    with pytest.raises(ConfigError, match="unknown grid"):
        OnnxExporter().tensor_bytes("q3", 8, 32)


def test_a_metaspace_tokenizer_that_does_not_split_and_no_chat_template(tmp_path: Path) -> None:
    """onnxruntime-genai's own tokenizer cuts such text otherwise; edgegen never asks it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    hf = make_tiny("llama", tmp_path / "hf", tokenizer="sentencepiece")
    original = Tokenizer.from_file(str(hf / "tokenizer.json"))
    original.normalizer = None  # type: ignore[assignment]
    original.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    original.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    original.save(str(hf / "tokenizer.json"))
    artifact = export_both(pack_uniform(hf, tmp_path / "c", "s8_32"), tmp_path)
    assert f"of {len(TEXTS)} held-out texts" in artifact.tokenizer_proof
    text = Text(tmp_path / "a")
    assert text.encode("the cat ran") == original.encode("the cat ran").ids
    assert not text.has_template
    with OnnxGenai().open(tmp_path / "a" / "model.onnx", SETTINGS) as session:
        assert len(list(session.generate(text.encode("the cat ran"), max_tokens=5))) == 5


def test_no_room_on_the_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, needed: int) -> None:
        raise DeviceError(f"{folder}: {needed} bytes are needed")

    monkeypatch.setattr(export, "require_free_bytes", full)
    with pytest.raises(DeviceError, match="bytes are needed"):
        export_both(pack_uniform(checkpoint, tmp_path / "c", "s4_32"), tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UnsupportedError, match="onnxscript") as caught:
        exporter()
    assert "edgegen[onnx,compress]" in caught.value.hint


def test_importing_prints_nothing_and_leaves_logging_alone(checkpoint: Path, tmp_path: Path) -> None:
    pack_uniform(checkpoint, tmp_path / "c", "s4_32")
    code = (
        "import logging, sys; from pathlib import Path; before = list(sys.path)\n"
        "from edgegen.export import exporter_for; from edgegen.records.plan import Settings\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "settings = Settings(context_tokens=64, ubatch_tokens=8, threads=1, kv_type='f32')\n"
        "exporter_for('onnx').export(folder / 'c', folder / 'a', settings, prove_texts=['a'])\n"
        "root = logging.getLogger()\n"
        "assert root.level == logging.WARNING and not root.handlers, (root.level, root.handlers)\n"
        "assert sys.path == before\n"
        "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
