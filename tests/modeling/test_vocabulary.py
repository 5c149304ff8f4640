"""A smaller vocabulary still writes any text, and every id in every file follows it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from edgegen.errors import UnsupportedError
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.vocabulary import Vocabulary, count_tokens, renumbered_ids
from tests.tiny_models import make_tokenizer, sample_texts

NAMES: dict[str, dict[str, str]] = {
    "bytelevel": {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"},
    "llama3": {"eos_token": "<|im_end|>"},
    "sentencepiece": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
UNSEEN = [
    "",
    " ",
    "the cat and the dog",
    "  two spaces,\ttabs\nand\n\n\nlines  ",
    "Zürich naïve œuvre",
    "日本語 العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🐟",
    "\u200b\ufeff\x07 \U0001f9ff 12345 {}[]<>",
    "<|im_start|>user hi<|im_end|>",
    "a" * 300,
]


@pytest.fixture(scope="module", params=sorted(NAMES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(request.param, size=600), **NAMES[request.param]
    ).save_pretrained(path)
    eos = open_tokenizer(path).eos_token_id
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, 0], "temperature": 0.5}))
    return path


def counts_of(tokenizer: Any, size: int, texts: int = 3) -> np.ndarray[Any, np.dtype[np.int64]]:
    return count_tokens((tokenizer.encode(text) for text in sample_texts(texts, seed=5, words=8)), size)


@pytest.mark.parametrize("size", [1, 320, 400])
def test_closed_under_merging_with_bytes_and_specials(folder: Path, size: int) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    kept = vocabulary.choose(counts_of(open_tokenizer(folder), vocabulary.size), size)
    state = json.loads((folder / "tokenizer.json").read_text())
    ids, left = state["model"]["vocab"], set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert {token["id"] for token in state["added_tokens"]} <= left
    single = {i for text, i in ids.items() if len(text) == 1 or text.startswith("<0x")}
    assert vocabulary.always <= left and len(vocabulary.always) >= 256
    assert folder.name.startswith(("sentencepiece", "gemma")) or single <= left
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in state["model"]["merges"]]
    made = {ids[a + b]: {ids[a], ids[b]} for a, b in reversed(merges)}
    assert all(made[token] <= left for token in left if token in made)
    assert len(kept) % 32 == 0 and len(kept) < max(size, len(vocabulary.always)) + 32


@pytest.mark.parametrize("size", [1, 320, 400])
def test_any_text_still_comes_back(folder: Path, size: int, tmp_path: Path) -> None:
    original = open_tokenizer(folder)
    vocabulary = Vocabulary(folder / "tokenizer.json")
    kept = vocabulary.choose(counts_of(original, vocabulary.size), size)
    vocabulary.write_trimmed(folder, tmp_path, kept)
    trimmed = open_tokenizer(tmp_path)
    assert len(trimmed) == len(kept)
    for text in [*UNSEEN, *sample_texts(20, seed=99)]:
        ids = trimmed.encode(text)
        assert max(ids, default=0) < len(kept)
        assert trimmed.unk_token_id is None or trimmed.unk_token_id not in ids
        for skip in (False, True):
            assert trimmed.decode(ids, skip_special_tokens=skip) == original.decode(
                original.encode(text), skip_special_tokens=skip
            )
        # In the original's ids it is another spelling of the same text.
        assert original.decode(kept[ids]) == trimmed.decode(ids)


def test_text_of_kept_tokens_is_cut_as_before(folder: Path, tmp_path: Path) -> None:
    original = open_tokenizer(folder)
    vocabulary = Vocabulary(folder / "tokenizer.json")
    counts = counts_of(original, vocabulary.size)
    needed = set(vocabulary.always).union(*(vocabulary.ancestors(int(token)) for token in counts.nonzero()[0]))
    kept = vocabulary.choose(counts, len(needed))
    assert needed <= set(kept.tolist()) and len(kept) < len(needed) + 32
    vocabulary.write_trimmed(folder, tmp_path, kept)
    trimmed = open_tokenizer(tmp_path)
    for text in sample_texts(3, seed=5, words=8):
        assert kept[trimmed.encode(text)].tolist() == original.encode(text)


def test_ids_are_renumbered_everywhere(folder: Path, tmp_path: Path) -> None:
    original = open_tokenizer(folder)
    vocabulary = Vocabulary(folder / "tokenizer.json")
    kept = vocabulary.choose(counts_of(original, vocabulary.size), 320)
    vocabulary.write_trimmed(folder, tmp_path, kept)
    trimmed = open_tokenizer(tmp_path)
    new = {int(old): number for number, old in enumerate(kept)}
    for role in ("bos", "eos", "unk", "pad"):
        old = getattr(original, f"{role}_token_id")
        assert getattr(trimmed, f"{role}_token_id") == (None if old is None else new[old])
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [new[original.eos_token_id], new[0]], "temperature": 0.5}
    assert [t["id"] for t in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]] == [
        new[t["id"]] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ]
    if original.bos_token_id is not None and original.encode("a")[0] == original.bos_token_id:
        assert trimmed.encode("a")[0] == trimmed.bos_token_id, "the post-processor inserts the moved id"


def test_the_original_is_not_changed(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    vocabulary = Vocabulary(folder / "tokenizer.json")
    kept = vocabulary.choose(np.zeros(600, dtype=np.int64), 320)
    vocabulary.write_trimmed(folder, tmp_path / "a", kept)
    vocabulary.write_trimmed(folder, tmp_path / "b", kept)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }


def test_special_tokens_that_move() -> None:
    """Special tokens at the end of the vocabulary, as many models have them."""
    tree = {
        "bos_token_id": 90,
        "eos_token_id": [91, 92],
        "pad_token_id": 99,
        "use_cache": True,
        "unk_token_id": None,
        "added_tokens_decoder": {"90": {"content": "<s>"}, "99": {"content": "<pad>"}},
    }
    found = renumbered_ids(tree, {5: 0, 90: 1, 92: 2})
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (1, [2], None)
    assert found["added_tokens_decoder"] == {"1": {"content": "<s>"}}
    assert found["use_cache"] is True and found["unk_token_id"] is None
    assert tree["bos_token_id"] == 90


def test_more_is_never_less(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    counts = counts_of(open_tokenizer(folder), vocabulary.size, texts=30)
    covered = [counts[vocabulary.choose(counts, size)].sum() for size in (1, 300, 330, 360, 400, 600, 10_000)]
    assert covered == sorted(covered) and covered[-1] == counts.sum()


def test_suggested_sizes_fall_in_multiples(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    sizes = vocabulary.sizes(counts_of(open_tokenizer(folder), vocabulary.size))
    assert sizes, "a few words do not need 600 tokens"
    assert all(size % 32 == 0 for size in sizes)
    assert all(b <= 0.97 * a for a, b in zip([600, *sizes], sizes, strict=False))


def test_padding_rows_are_never_kept(folder: Path) -> None:
    vocabulary = Vocabulary(folder / "tokenizer.json")
    counts = np.zeros(640, dtype=np.int64)
    counts[620] = 1000
    assert vocabulary.choose(counts, 10_000).tolist() == list(range(vocabulary.size))


def test_no_bytes_to_fall_back_on_keeps_every_character(tmp_path: Path) -> None:
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ß": 2, "ab": 3, "aß": 4}, "merges": ["a b", "a ß"]},
        "added_tokens": [],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    assert vocabulary.always == {0, 1, 2}
    assert vocabulary.ancestors(4) == {0, 2, 4}


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_kinds_are_refused_with_the_way_out(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": kind, "vocab": {}}}))
    with pytest.raises(UnsupportedError, match=f"a {kind} vocabulary cannot be trimmed") as caught:
        Vocabulary(tmp_path / "tokenizer.json")
    assert "--vocab keep" in caught.value.hint


def test_count_tokens() -> None:
    assert count_tokens([[1, 1, 2], np.array([2, 9])], 4).tolist() == [0, 2, 2, 0]
