"""What answers look like in numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel

from edgegen.runtime.features import MARKERS, distinct_fraction, features
from edgegen.runtime.likelihood import byte_fraction, byte_ids, token_likelihood


def test_an_ordinary_answer() -> None:
    found = features("The kettle boils at 100 degrees.")
    assert found.characters == 32 and not found.empty and not found.refusal and not found.leaked
    assert found.repetition == 0 and found.distinct2 == 1 and found.script == "latin"
    assert found.non_letter_fraction == pytest.approx(4 / 27)
    assert found.json_valid is None


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_an_empty_answer_knows_no_shares(text: str) -> None:
    found = features(text)
    assert found.empty and found.distinct2 is None and found.non_letter_fraction is None and found.script == ""


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can\u2019t help with that.", True),
        ("Sorry, I cannot do this", True),
        ("As an AI language model, I have no taste.", True),
        ("Hello! I'm unable to open files.", True),
        ("**I cannot provide** that", True),
        ("I can't wait to see you!", False),
        ("She said I cannot help you.", False),
        ("as an airplane flies", False),
        ("I am sorry for your loss.", False),
        ("Let me explain at some length what is going on here. I cannot help you.", False),
    ],
)
def test_a_refusal_is_known_by_its_beginning(text: str, refusal: bool) -> None:
    assert features(text).refusal is refusal


def test_refusals_may_be_ones_own() -> None:
    assert features("Es tut mir leid", refusals=("es tut mir leid",)).refusal
    assert not features("I cannot help you", refusals=()).refusal


def test_repetition_finds_words_and_cycles() -> None:
    assert features("the cat sat on the mat " * 10).repetition > 0.85
    assert features("好的,我们走吧。" * 5).repetition == pytest.approx(0.8)
    assert features("It begins well and then " + "no" * 100).repetition > 0.8
    assert features("1,000,000 and 1,000,000").repetition == 0
    assert features("a" * 100_000).repetition > 0.99


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Добрый день", "cyrillic"),
        ("नमस्ते", "devanagari"),
        ("\uff21\uff22\uff23", "latin"),
        ("今日は良い天気", "han"),
        ("12 + 30", ""),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert features(text).script == script


def test_a_template_that_leaks() -> None:
    assert all(features(f"Sure. {marker}").leaked for marker in MARKERS)
    assert features("Sure. <|turn|>", markers=["<|turn|>"]).leaked
    assert not features("Sure.", markers=["", " "]).leaked


@pytest.mark.parametrize(
    ("text", "valid"), [('{"a": [1]}', True), (" 1 ", True), ("{", False), ("NaN", False), ("[" * 50_000, False)]
)
def test_json_is_judged_where_it_was_asked_for(text: str, valid: bool) -> None:
    assert features(text, wants_json=True).json_valid is valid


@given(st.text(st.characters(), max_size=300))
def test_every_text_has_features_within_their_ranges(text: str) -> None:
    found = features(text, wants_json=True)
    assert 0 <= found.repetition <= 1
    assert found.distinct2 is None or 0 < found.distinct2 <= 1
    assert found.non_letter_fraction is None or 0 <= found.non_letter_fraction <= 1


def test_likelihood_of_a_token() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    log_prob, entropy = token_likelihood(logits, 1)
    assert log_prob == pytest.approx(math.log(0.25)) and entropy == pytest.approx(1.5 * math.log(2))
    logits[0] = -np.inf
    log_prob, entropy = token_likelihood(logits + 1000, 1)
    assert log_prob == pytest.approx(math.log(0.5)) and entropy == pytest.approx(math.log(2))
    assert token_likelihood(np.array([0, 500], dtype=np.float32), 1) == (0.0, pytest.approx(0))


def test_bytes_that_stand_for_want_of_a_word() -> None:
    fallback = Tokenizer(BPE({**{f"<0x{byte:02X}>": byte for byte in range(256)}, "a": 256}, [], byte_fallback=True))
    known = byte_ids(fallback)
    assert known is not None and len(known) == 255 and 0x0A not in known
    assert byte_fraction([256, 256, 0xE2, 0x0A], known) == 0.25
    assert byte_fraction([], known) is None
    assert byte_ids(Tokenizer(WordLevel({"a": 0}, unk_token="a"))) is None


def test_bytes_of_a_byte_level_vocabulary() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    known = byte_ids(tokenizer)
    assert known is not None and len(known) == 128
    assert byte_fraction(tokenizer.encode("ab é").ids, known) == pytest.approx(2 / 5)


def test_distinct_tokens() -> None:
    assert distinct_fraction([1, 1, 2, 2]) == 0.5 and distinct_fraction([]) is None
