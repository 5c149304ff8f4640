"""Tokenizers: written in GGUF's words and proven on llama.cpp."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.proof import PROBES, Proof, prove
from edgegen.export.gguf.tokenizer import build_vocabulary, read_tokenizer
from tests.tiny_models import make_tokenizer, sample_texts

TEXTS = [*sample_texts(60, seed=9), "  ", "\n\n", "WE'RE  1234567 tall", "x" * 300]


def proven(folder: Path, tokenizer: Tokenizer, texts: list[str] | None = None, *, rows: int | None = None) -> Proof:
    tokenizer.save(str(folder / "tokenizer.json"))
    files = read_tokenizer(folder)
    vocabulary = build_vocabulary(files, rows or tokenizer.get_vocab_size())
    return prove("llama", {}, vocabulary, files, TEXTS if texts is None else texts)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("bytelevel", "gpt-2"),
        ("smollm", "smollm"),
        ("qwen2", "qwen2"),
        ("llama3", "llama-bpe"),
        ("sentencepiece", "SentencePiece"),
        ("gemma", "SentencePiece"),
    ],
)
def test_kinds_are_proven_at_first_guess(kind: str, rule: str, tmp_path: Path) -> None:
    proof = proven(tmp_path, make_tokenizer(kind))
    assert proof.words == f"64 of 64 held-out texts tokenise identically, 6 of 6 probes too (llama.cpp's {rule} rule)"
    assert proof.notes == ("the tokenizer names no end-of-sequence token",)


def test_same_steps_in_other_words(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("smollm")
    gpt2 = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(gpt2, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert proven(tmp_path, tokenizer).metadata["tokenizer.ggml.pre"] == "smollm"


def test_a_rule_is_found_by_trying(tmp_path: Path) -> None:
    """Steps that no table knows: the plain rule fails its proof, a later one passes."""
    tokenizer = make_tokenizer("bytelevel")
    steps = [pre_tokenizers.Split(Regex("[0123456789]"), "isolated"), tokenizer.pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    proof = proven(tmp_path, tokenizer)
    assert proof.metadata["tokenizer.ggml.pre"] not in ("gpt-2", "")
    assert proof.words.startswith("64 of 64")


def test_no_rule_fits(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[aeiou]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    with pytest.raises(UnsupportedError, match=r"does not tokenise like this model: '.*': ids from position .* \[.*\]"):
        proven(tmp_path, tokenizer)


def test_failing_probes_alone_are_a_note(tmp_path: Path) -> None:
    """A rule that only differs on text that the held-out set does not have is taken, and said."""
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.normalizer = normalizers.Replace("Größe", "size")
    proof = proven(tmp_path, tokenizer)
    assert proof.words.startswith("64 of 64")
    assert any("unusual text" in note for note in proof.notes)


def test_without_texts_it_says_so(tmp_path: Path) -> None:
    proof = proven(tmp_path, make_tokenizer("bytelevel"), [])
    assert proof.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert any("probes only" in note for note in proof.notes)


def trimmed(tokenizer: Tokenizer, drop: int) -> Tokenizer:
    """Drop every other of the last tokens that no merge builds on, their merges too, and number the rest
    anew."""
    state = json.loads(tokenizer.to_str())
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    parts = {part for merge in merges for part in merge}
    leaves = [left + right for left, right in merges if left + right not in parts]
    dropped = set(leaves[::2][:drop])
    assert len(dropped) == drop
    vocab = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    state["model"]["vocab"] = {text: id_ for id_, text in enumerate(text for text in vocab if text not in dropped)}
    state["model"]["merges"] = [list(merge) for merge in merges if "".join(merge) not in dropped]
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("kind", ["bytelevel", "llama3", "sentencepiece", "gemma"])
def test_trimmed_vocabulary(kind: str, tmp_path: Path) -> None:
    whole = make_tokenizer(kind)
    small = trimmed(whole, 20)
    assert small.get_vocab_size() == whole.get_vocab_size() - 20
    assert any(small.encode(text).ids != whole.encode(text).ids for text in TEXTS)
    assert proven(tmp_path, small).words.startswith("64 of 64")


def test_missing_byte_tokens(tmp_path: Path) -> None:
    """Such a vocabulary can be written; texts with characters outside it are left out, not fed to
    llama.cpp."""
    tokenizer = make_tokenizer("sentencepiece")
    state = json.loads(tokenizer.to_str())
    kept = [t for t in sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__) if "<0x" not in t]
    state["model"]["vocab"] = {text: id_ for id_, text in enumerate(kept)}
    proof = proven(tmp_path, Tokenizer.from_str(json.dumps(state)), ["the cat ran", "the Größe"])
    assert proof.words.startswith("1 of 1 held-out texts tokenise identically, 1 were left out")
    assert any("256 of 256 byte tokens are missing" in note for note in proof.notes)


def test_spaces_as_user_defined_tokens(tmp_path: Path) -> None:
    """Gemma lists runs of ▁ as added tokens; llama.cpp looks for them in raw text."""
    tokenizer = make_tokenizer("gemma")
    tokenizer.add_tokens([AddedToken("▁▁▁", special=False, normalized=True)])
    proof = proven(tmp_path, tokenizer, ["the   cat", "one two"])
    assert proof.words.startswith("2 of 2")


def test_padding_and_holes(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytelevel")
    proof = proven(tmp_path, tokenizer, rows=410)
    tokens = proof.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert tokens[400:] == [f"[PAD{id_}]" for id_ in range(400, 410)]
    with pytest.raises(ConfigError, match="token id 399 and the embedding only 390 rows"):
        proven(tmp_path, tokenizer, rows=390)


def test_two_tokens_with_one_spelling(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.add_tokens(["[PAD401]"])
    with pytest.raises(ConfigError, match="share their spelling"):
        proven(tmp_path, tokenizer, rows=402)


def _write(folder: Path, **files: Any) -> None:
    for name, tree in files.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))


def test_special_tokens(tmp_path: Path) -> None:
    make_tokenizer("llama3").save(str(tmp_path / "tokenizer.json"))
    _write(
        tmp_path,
        tokenizer_config={
            "bos_token": {"content": "<|endoftext|>"},
            "eos_token": "<|im_end|>",
            "add_bos_token": True,
            "chat_template": [{"name": "default", "template": "A"}, {"name": "tools", "template": "B"}],
        },
        special_tokens_map={"pad_token": "<|endoftext|>"},
        generation_config={"eos_token_id": [2, 0]},
    )
    vocabulary = build_vocabulary(read_tokenizer(tmp_path), 400)
    assert (vocabulary.bos_id, vocabulary.eos_ids, vocabulary.add_bos) == (0, (2, 0), True)
    wanted = {
        **{"bos_token_id": 0, "eos_token_id": 2, "eot_token_id": 0, "padding_token_id": 0},
        **{"add_bos_token": True, "add_eos_token": False},
    }
    for key, value in wanted.items():
        assert vocabulary.metadata[f"tokenizer.ggml.{key}"] == value
    assert vocabulary.metadata["tokenizer.chat_template"] == "A"
    assert vocabulary.metadata["tokenizer.chat_template.tools"] == "B"
    assert vocabulary.metadata["tokenizer.chat_templates"] == ["tools"]


def test_chat_template_file_wins(tmp_path: Path) -> None:
    make_tokenizer("bytelevel").save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")
    vocabulary = build_vocabulary(read_tokenizer(tmp_path), 400)
    assert vocabulary.metadata["tokenizer.chat_template"] == "new"
    assert any("end-of-sequence" in note for note in vocabulary.notes)


def test_bos_follows_the_tokenizers_own_template(tmp_path: Path) -> None:
    make_tokenizer("gemma").save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, tokenizer_config={"bos_token": "<bos>", "eos_token": "<eos>"})
    vocabulary = build_vocabulary(read_tokenizer(tmp_path), 400)
    assert vocabulary.add_bos
    assert vocabulary.metadata["tokenizer.ggml.add_space_prefix"] is False


def test_special_id_outside_the_vocabulary(tmp_path: Path) -> None:
    make_tokenizer("bytelevel").save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, config={"eos_token_id": 4000})
    with pytest.raises(ConfigError, match="special token id 4000"):
        build_vocabulary(read_tokenizer(tmp_path), 400)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0))
    with pytest.raises(UnsupportedError, match="Unigram"):
        proven(tmp_path, unigram)
    pieces = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UnsupportedError, match="WordPiece"):
        proven(tmp_path, pieces)
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.decoder = decoders.BPEDecoder()
    plain.train_from_iterator(sample_texts(5), trainers.BpeTrainer(vocab_size=60, show_progress=False))
    with pytest.raises(UnsupportedError, match="neither byte-level nor byte-fallback"):
        proven(tmp_path, plain)


def test_probes_are_distinct() -> None:
    assert len(set(PROBES)) == len(PROBES)
