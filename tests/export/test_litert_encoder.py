"""Encoders as LiteRT files: the torch model's vectors at every length, on both runtimes."""

from pathlib import Path

import numpy as np
import pytest

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export import exporter_for
from edgegen.export.litert.encoder import lengths_of
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Settings
from edgegen.runtime.registry import encoder_runtime_for, runtime_for
from edgegen.runtime.text import Text
from tests.export.test_onnx_encoder import expected, pack
from tests.tiny_models import make_tiny_encoder, sample_texts

SETTINGS = Settings(context_tokens=40, ubatch_tokens=40, threads=1, kv_type="f32")
CASES = [
    pytest.param(("bert", "i8_row", {})),
    pytest.param(("bert", "i4_32", {"pooling": "cls", "normalize": False}), marks=pytest.mark.slow),
    pytest.param(("roberta", "i8_row", {}), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CASES, ids=["bert-i8_row", "bert-i4_32", "roberta-i8_row"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    family, grid, more = request.param
    folder = tmp_path_factory.mktemp("encoder")
    compressed = pack(make_tiny_encoder(folder / "hf", family, **more), folder / "compressed", grid)
    artifact = exporter_for("litert").export(
        compressed, folder / "artifact", SETTINGS, prove_texts=sample_texts(5), strict=folder / "strict"
    )
    return folder, artifact


@pytest.mark.parametrize("name", ["litert", "litert-interpreter"])
def test_vectors_are_the_torch_models(made: tuple[Path, Artifact], name: str) -> None:
    folder, artifact = made
    text = Text(folder / "artifact")
    texts = [text.sentence(line) for line in ["", "the cat", *sample_texts(3, words=9), "dog " * 100]]
    assert len(texts[-1]) == 40
    wanted = expected(folder / "compressed", texts)
    runtime = encoder_runtime_for("litert", name)
    with runtime.open(folder / "strict" / artifact.model, SETTINGS) as session:
        assert session.vocab_size == artifact.vocab_size and session.dimension == 64
        for ids, vector in zip(texts, wanted, strict=True):
            np.testing.assert_allclose(session.embed(ids), vector, atol=3e-6 * np.abs(vector).max())
    with runtime.open(folder / "artifact" / artifact.model, SETTINGS) as session:
        shipped = np.stack([session.embed(ids) for ids in texts])
    same = (shipped * wanted).sum(-1) / np.linalg.norm(shipped, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert same.min() > 0.99


def test_the_record_and_its_size(made: tuple[Path, Artifact]) -> None:
    folder, artifact = made
    assert artifact.task == "encoder" and artifact.eos_ids == () and artifact.context_tokens == 40
    compressed = load_json(folder / "compressed" / "compressed.json", Compressed)
    exporter = exporter_for("litert")
    tensors = sum(exporter.tensor_bytes(t.grid, t.rows, t.columns) for t in compressed.tensors)
    config = {"model_type": "bert", "num_hidden_layers": 2}
    overhead = exporter.overhead_bytes(config, folder, compressed.tensors, SETTINGS)
    assert 0.95 < (tensors + overhead) / artifact.model_bytes < 1.08


def test_sessions_refuse_what_does_not_fit(made: tuple[Path, Artifact]) -> None:
    folder, artifact = made
    model = folder / "artifact" / artifact.model
    with encoder_runtime_for("litert").open(model, SETTINGS) as session:
        for ids, said in (([], "no tokens"), ([5] * 41, "do not fit"), ([session.vocab_size], "outside")):
            with pytest.raises(ConfigError, match=said):
                session.embed(ids)
    with pytest.raises(ConfigError, match="made for 40 tokens"):
        longer = Settings(context_tokens=41, ubatch_tokens=41, threads=1, kv_type="f32")
        encoder_runtime_for("litert").open(model, longer)
    with pytest.raises(DeviceError, match="decode"):
        runtime_for("litert", "litert-interpreter").open(model, SETTINGS)


def test_lengths() -> None:
    assert lengths_of(256) == (16, 64, 256)
    assert lengths_of(64) == (16, 64)
    assert lengths_of(10) == (10,)


def test_distilbert_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'distilbert' cannot be written for LiteRT"):
        exporter_for("litert").context_tokens({"model_type": "distilbert"})
