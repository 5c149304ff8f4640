"""Encoders as ONNX graphs: the torch model's vectors, whatever the family, pooling, grid and length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export import exporter_for
from edgegen.export.folder import map_weights
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.encoder import SentenceEncoder
from edgegen.modeling.load import empty_model, find_model
from edgegen.modeling.rebuild import rebuild_model
from edgegen.modeling.source import TensorSource
from edgegen.modeling.summary import summarize
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.registry import encoder_runtime_for, runtime_for
from edgegen.runtime.text import Text
from tests.tiny_models import make_tiny_encoder, sample_texts

SETTINGS = Settings(context_tokens=64, ubatch_tokens=64, threads=1, kv_type="f32")


def pack(checkpoint: Path, out: Path, grid: str) -> Path:
    """A compressed folder with one grid for all matrices and f16 tables of positions."""
    ref = find_model(str(checkpoint))
    stored, empty = Checkpoint(checkpoint), empty_model(ref)
    summary = summarize(empty, stored)
    source = TensorSource(empty, stored, summary, pad=False)
    out.mkdir(parents=True)
    tensors, data = [], b""
    for tensor in summary.tensors:
        chosen = grid if tensor.quantizable else "f16" if tensor.role == "position" else "f32"
        rows = source.packed(tensor.name, chosen).tobytes()
        tensors.append(PackedTensor(tensor.name, chosen, tensor.rows, tensor.columns, len(data), len(rows)))
        data += rows
    (out / "weights.bin").write_bytes(data)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        (out / name).write_bytes((checkpoint / name).read_bytes())
    from edgegen.common.files import digest_file

    record = Compressed(
        schema=1,
        summary=summary,
        tensors=tuple(tensors),
        digest=digest_file(out / "weights.bin"),
        steps=("packed with one grid",),
        files=names,
    )
    save_json(out / "compressed.json", record)
    return out


def expected(folder: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """Vectors of the torch model with the packed weights."""
    compressed = load_json(folder / "compressed.json", Compressed)
    model = rebuild_model(folder, compressed, map_weights(folder, compressed)).model
    assert compressed.summary.pooling is not None
    encoder = SentenceEncoder(model, compressed.summary.pooling)
    with torch.no_grad():
        return [encoder(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0].numpy() for ids in texts]


def export(checkpoint: Path, folder: Path, grid: str) -> tuple[Path, Artifact]:
    compressed = pack(checkpoint, folder / "compressed", grid)
    artifact = exporter_for("onnx").export(
        compressed, folder / "artifact", SETTINGS, prove_texts=sample_texts(5), strict=folder / "strict"
    )
    return folder, artifact


CASES = [
    ("bert", "u8_32", {}),
    ("bert", "s8_128", {"pooling": "cls", "normalize": False}),
    ("bert", "u4_16", {"hidden": 48, "heads": 3, "ffn": 80}),
    ("distilbert", "s4_32", {}),
    ("roberta", "u8_64", {"normalize": False}),
]


@pytest.mark.parametrize(("family", "grid", "more"), CASES, ids=[f"{family}-{grid}" for family, grid, _ in CASES])
def test_vectors_are_the_torch_models(family: str, grid: str, more: dict[str, object], tmp_path: Path) -> None:
    checkpoint = make_tiny_encoder(tmp_path / "hf", family, **more)  # type: ignore[arg-type]
    folder, artifact = export(checkpoint, tmp_path, grid)
    text = Text(folder / "artifact")
    texts = [text.sentence(line) for line in ["", "a", *sample_texts(4, words=9), "dog " * 100]]
    assert len(texts[-1]) == 64 and len(texts[0]) == 2
    wanted = expected(folder / "compressed", texts)
    with encoder_runtime_for("onnx").open(folder / "strict" / artifact.model, SETTINGS) as session:
        for ids, vector in zip(texts, wanted, strict=True):
            found = session.embed(ids)
            assert found.dtype == np.float32 and found.shape == (session.dimension,) == vector.shape
            np.testing.assert_allclose(found, vector, atol=3e-6 * np.abs(vector).max())
    with encoder_runtime_for("onnx").open(folder / "artifact" / artifact.model, SETTINGS) as session:
        shipped = np.stack([session.embed(ids) for ids in texts])
    same = (shipped * wanted).sum(-1) / np.linalg.norm(shipped, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert same.min() > 0.99


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("encoder")
    return export(make_tiny_encoder(folder / "hf"), folder, "s8_32")


def test_the_record(made: tuple[Path, Artifact]) -> None:
    folder, artifact = made
    assert artifact.task == "encoder" and artifact.eos_ids == () and artifact.bos_id is None
    assert artifact.context_tokens == 96 and not (folder / "artifact" / "genai_config.json").exists()
    names = {file.path for file in artifact.files}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= names
    twin, own = (folder / name / "model.onnx.data" for name in ("strict", "artifact"))
    assert twin.read_bytes() == own.read_bytes()


def test_overhead_is_close(made: tuple[Path, Artifact]) -> None:
    folder, artifact = made
    compressed = load_json(folder / "compressed" / "compressed.json", Compressed)
    exporter, config = exporter_for("onnx"), {"model_type": "bert"}
    tensors = sum(exporter.tensor_bytes(t.grid, t.rows, t.columns) for t in compressed.tensors)
    overhead = exporter.overhead_bytes(config, folder, compressed.tensors, SETTINGS)
    assert tensors + overhead == pytest.approx(artifact.model_bytes, rel=0.01)


def test_sessions_refuse_what_does_not_fit(made: tuple[Path, Artifact]) -> None:
    folder, artifact = made
    model = folder / "artifact" / artifact.model
    runtime = encoder_runtime_for("onnx", "onnxruntime")
    session = runtime.open(model, SETTINGS)
    for ids, said in (([], "no tokens"), ([5] * 65, "do not fit"), ([session.vocab_size], "outside the vocabulary")):
        with pytest.raises(ConfigError, match=said):
            session.embed(ids)
    timing = session.measure([5] * 9)
    assert timing.prompt_tokens == 9 and timing.prefill_s > 0 and timing.decoded_tokens == 0
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        session.embed([5])
    with pytest.raises(ConfigError, match="made for 96 tokens"):
        runtime.open(model, Settings(context_tokens=97, ubatch_tokens=97, threads=1, kv_type="f32"))
    with pytest.raises(ConfigError, match="no such file"):
        runtime.open(folder / "nothing.onnx", SETTINGS)
    with pytest.raises(DeviceError, match="cache"):
        runtime_for("onnx", "onnxruntime").open(model, SETTINGS)


def test_targets_without_encoders_say_so() -> None:
    with pytest.raises(UnsupportedError, match="encoders"):
        encoder_runtime_for("tape")
    with pytest.raises(UnsupportedError, match="does not run onnx encoders"):
        encoder_runtime_for("onnx", "onnxruntime-genai")


def test_relative_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="relative_key"):
        exporter_for("onnx").context_tokens({"model_type": "bert", "position_embedding_type": "relative_key"})
