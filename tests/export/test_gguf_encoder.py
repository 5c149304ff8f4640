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
from tests.tiny_models import export_tiny, make_tiny, make_tiny_encoder, make_tokenizer, sample_texts

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
    a, b = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=-1, keepdims=True) for v in (found, wanted)
    )
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
    # llama.cpp's table of GELU has 16 bits; without it this would be 1e-12.
    assert distances(found, wanted).max() < 3e-7
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    with runtime.open(folder / "artifact" / artifact.model, SETTINGS) as session:
        shipped = np.stack([session.embed(ids) for ids in texts])
    assert distances(shipped, wanted).max() < 2e-3
    lengths = np.linalg.norm(shipped, axis=-1)
    assert np.allclose(lengths, 1, atol=1e-5) == bool(more.get("normalize", True))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_size_is_known_before(family: str, tmp_path: Path) -> None:
    folder, artifact = export(make_tiny_encoder(tmp_path / "hf", family), tmp_path, "q8_0")
    compressed = load_json(folder / "compressed" / "compressed.json", Compressed)
    exporter, config = exporter_for("gguf"), json.loads((folder / "compressed" / "config.json").read_bytes())
    tensors = sum(exporter.tensor_bytes(t.grid, t.rows, t.columns) for t in compressed.tensors)
    overhead = exporter.overhead_bytes(config, folder / "compressed", compressed.tensors, SETTINGS)
    assert tensors + overhead == artifact.model_bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("encoder")
    return export(make_tiny_encoder(folder / "hf"), folder, "q8_0")


def test_the_record(made: tuple[Path, Artifact]) -> None:
    _, artifact = made
    assert artifact.task == "encoder" and artifact.eos_ids == () and artifact.bos_id is None and not artifact.add_bos
    assert artifact.context_tokens == 96 and artifact.model_files == ("model.gguf",)
    assert "12 of 12 held-out texts tokenise identically, 6 of 6 probes too" in artifact.tokenizer_proof
    assert "WordPiece" in artifact.tokenizer_proof and any("GELU" in note for note in artifact.notes)


def test_the_files_words(made: tuple[Path, Artifact]) -> None:
    """What other programs read: the architecture, pooling and WordPiece vocabulary of llama.cpp's own converter."""
    folder, artifact = made
    reader = gguf.GGUFReader(folder / "artifact" / artifact.model)
    found = {key: field.contents() for key, field in reader.fields.items()}
    wanted = {
        "general.architecture": "bert",
        "bert.context_length": 96,
        "bert.embedding_length": 64,
        "bert.feed_forward_length": 128,
        "bert.block_count": 2,
        "bert.attention.head_count": 4,
        "bert.attention.causal": False,
        "bert.pooling_type": int(gguf.PoolingType.MEAN),
        "edgegen.normalize": True,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.add_sep_token": True,
        "tokenizer.ggml.normalizer.lowercase": True,
    }
    assert {key: found[key] for key in wanted} == wanted
    vocabulary = json.loads((folder / "artifact" / "tokenizer.json").read_bytes())["model"]["vocab"]
    spelled = {id_: text for text, id_ in vocabulary.items()}
    for id_, text in enumerate(found["tokenizer.ggml.tokens"]):
        plain = spelled[id_]
        assert text == (plain if id_ < 5 else plain[2:] if plain.startswith("##") else f"▁{plain}")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["token_types.weight"] == kinds["blk.0.layer_output_norm.bias"] == "F32"


def test_a_tokenizer_that_llama_cpp_has_not_is_a_note(tmp_path: Path) -> None:
    """The device cuts texts with tokenizer.json itself, so the vectors are right all the same."""
    checkpoint = make_tiny_encoder(tmp_path / "hf")
    tree = json.loads((checkpoint / "tokenizer.json").read_bytes())
    tree["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tree))
    _, artifact = export(checkpoint, tmp_path, "q8_0")
    assert "the device cuts text with the original's own tokenizer.json" in artifact.tokenizer_proof
    assert any("llama.cpp's own tokenizer, not used here, differs" in note for note in artifact.notes)


def test_a_byte_level_tokenizer(tmp_path: Path) -> None:
    """As RoBERTa has it; its splitting rule is proven like that of models that continue text."""
    checkpoint = make_tiny_encoder(tmp_path / "hf", "roberta")
    rows = json.loads((checkpoint / "config.json").read_bytes())["vocab_size"]
    make_tokenizer("bytelevel", size=rows).save(str(checkpoint / "tokenizer.json"))
    folder, artifact = export(checkpoint, tmp_path, "q8_0")
    assert "12 of 12 held-out texts tokenise identically" in artifact.tokenizer_proof
    assert "gpt-2 rule" in artifact.tokenizer_proof and artifact.eos_ids == ()
    ids = Text(folder / "artifact").sentence("the cat")
    with encoder_runtime_for("gguf").open(folder / "strict" / artifact.model, STRICT) as session:
        found, (wanted,) = session.embed(ids), expected(folder / "compressed", [ids])
    assert distances(found[None], wanted[None])[0] < 3e-7


def test_files_of_other_kinds_are_refused(made: tuple[Path, Artifact], tmp_path: Path) -> None:
    folder, artifact = made
    with pytest.raises(DeviceError, match="continues no text"):
        runtime_for("gguf").open(folder / "artifact" / artifact.model, SETTINGS)
    causal = export_tiny(make_tiny("llama", tmp_path / "hf"), tmp_path)
    with pytest.raises(DeviceError, match="not an encoder that edgegen wrote"):
        encoder_runtime_for("gguf").open(tmp_path / "artifact" / causal.model, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"is_decoder": True}, "decoder"),
        ({"model_type": "xlm-roberta"}, "'xlm-roberta' cannot be written"),
    ],
)
def test_what_llama_cpp_cannot_say_is_refused(
    changes: dict[str, object], said: str, made: tuple[Path, Artifact]
) -> None:
    config = json.loads((made[0] / "compressed" / "config.json").read_bytes())
    with pytest.raises(UnsupportedError, match=said):
        exporter_for("gguf").context_tokens(config | changes)


def test_a_longer_context_than_the_models_is_refused(made: tuple[Path, Artifact], tmp_path: Path) -> None:
    longer = Settings(context_tokens=97, ubatch_tokens=97, threads=1, kv_type="f16")
    with pytest.raises(ConfigError, match="97 tokens is more than the 96"):
        exporter_for("gguf").export(made[0] / "compressed", tmp_path / "a", longer, prove_texts=[])
