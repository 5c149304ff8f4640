"""Encoders as GGUF files: the torch model's vectors, whatever the family, pooling, grid and length."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export import exporter_for
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Settings
from edgegen.runtime.registry import encoder_runtime_for, runtime_for
from edgegen.runtime.text import Text
from tests.export.test_onnx_encoder import expected, pack
from tests.tiny_models import export_tiny, make_tiny, make_tiny_encoder, sample_texts

SETTINGS = Settings(context_tokens=64, ubatch_tokens=64, threads=1, kv_type="f16")
STRICT = Settings(context_tokens=64, ubatch_tokens=64, threads=1, kv_type="f32")


def export(checkpoint: Path, folder: Path, grid: str) -> tuple[Path, Artifact]:
    compressed = pack(checkpoint, folder / "compressed", grid)
    artifact = exporter_for("gguf").export(
        compressed, folder / "artifact", SETTINGS, prove_texts=sample_texts(12, seed=5), strict=folder / "strict"
    )
    return folder, artifact


CASES = [
    ("bert", "q8_0", {}),
    ("bert", "q4_0", {"pooling": "cls", "normalize": False}),
    ("bert", "q6_k", {"hidden": 256, "ffn": 512}),
    ("distilbert", "q5_1", {}),
    ("roberta", "q8_0", {"normalize": False}),
    ("bert", "f16", {"hidden_act": "gelu_pytorch_tanh"}),
]


def distances(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(W,) 1 - cosine similarity of (W, D) vectors."""
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=-1, keepdims=True) for v in (found, wanted))
    return np.square(a - b).sum(-1) / 2  # type: ignore[no-any-return]


@pytest.mark.parametrize(("family", "grid", "more"), CASES, ids=[f"{family}-{grid}" for family, grid, _ in CASES])
def test_vectors_are_the_torch_models(family: str, grid: str, more: dict[str, object], tmp_path: Path) -> None:
    checkpoint = make_tiny_encoder(tmp_path / "hf", family, **more)  # type: ignore[arg-type]
    folder, artifact = export(checkpoint, tmp_path, grid)
    text = Text(folder / "artifact")
    texts = [text.sentence(line) for line in ["", "a", *sample_texts(4, words=9), "dog " * 100]]
    assert len(texts[-1]) == 64 and len(texts[0]) == 2
    wanted = np.stack(expected(folder / "compressed", texts))
    runtime = encoder_runtime_for("gguf")
    with runtime.open(folder / "strict" / artifact.model, STRICT) as session:
        found = np.stack([session.embed(ids) for ids in texts])
        assert found.dtype == np.float32 and session.vocab_size == artifact.vocab_size
        assert found.shape == wanted.shape == (len(texts), session.dimension)
        np.testing.assert_array_equal(session.embed(texts[1]), found[1])
    print(distances(found, wanted), np.abs(found-wanted).max()/np.abs(wanted).max())
    with runtime.open(folder / "artifact" / artifact.model, SETTINGS) as session:
        shipped = np.stack([session.embed(ids) for ids in texts])
    print(distances(shipped, wanted))
    print(artifact.notes, artifact.tokenizer_proof)
