"""Rows to windows: which predictions count, and how many bytes they spell."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edgegen.errors import ConfigError
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.text import batches, leading_rows, make_windows, prompt_ids, render, windows_of
from edgegen.records.data import Example
from tests.modeling.opened import rows
from tests.tiny_models import make_tokenizer, sample_texts

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = Example(
    messages=(("user", "turn on the kitchen light"), ("assistant", '{"lamp": "kitchen", "on": true} ok')),
    completion=True,
)


def tokenizer_of(folder: Path, kind: str, template: str | None = None) -> Any:
    names = {
        "sentencepiece": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "bytelevel": {"eos_token": "<|endoftext|>"},
    }[kind]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(kind), **names)
    if template:
        wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return open_tokenizer(folder)


@pytest.fixture(scope="module", params=["bytelevel", "sentencepiece"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(tmp_path_factory.mktemp("plain"), request.param)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(tmp_path_factory.mktemp("chat"), "bytelevel", TEMPLATE)


def spelled(tokenizer: Any, window: Any) -> str:
    return tokenizer.decode(window.ids[1:][window.counts[:-1]], clean_up_tokenization_spaces=False)


def test_in_plain_text_every_prediction_counts(plain: Any) -> None:
    text = sample_texts(1, seed=4)[0]
    (window,) = windows_of(plain, Example(text=text), 1000)
    assert window.ids.tolist() == plain.encode(text)
    assert window.counts[:-1].all() and not window.counts[-1]
    assert window.tokens == len(window.ids) - 1


def test_bytes_are_the_counted_texts(plain: Any) -> None:
    text = "a happy dog, naïve 🐟 ÄÖÜ"
    (window,) = windows_of(plain, Example(text=text), 1000)
    first = "" if plain.bos_token else plain.decode(window.ids[:1])
    assert window.bytes == len(text.encode()) - len(first.encode())


@pytest.mark.parametrize("answer", ["yes", '{"lamp": "kitchen", "on": true} ok', "née 🐟\nend", " leading space"])
def test_with_a_template_only_the_answer_counts(chat: Any, answer: str) -> None:
    example = Example(messages=(ASK.messages[0], ("assistant", answer)), completion=True)
    (window,) = windows_of(chat, example, 1000)
    assert spelled(chat, window) == answer + "<|im_end|>\n"
    assert window.ids.tolist()[: len(prompt_ids(chat, example))] == prompt_ids(chat, example)


@pytest.mark.parametrize("answer", ["yes", '{"lamp": "kitchen", "on": true} ok', "two\nlines"])
def test_without_a_template_only_the_answer_counts(plain: Any, answer: str) -> None:
    example = Example(messages=(ASK.messages[0], ("assistant", answer)), completion=True)
    (window,) = windows_of(plain, example, 1000)
    assert spelled(plain, window) == answer
    whole = ASK.messages[0][1] + "\n" + answer
    assert window.ids.tolist() == plain.encode(whole)


def test_a_conversation_without_an_answer_counts_whole(chat: Any) -> None:
    (window,) = windows_of(chat, Example(messages=(("user", "hello there you"),)), 1000)
    assert window.counts[:-1].all()


def test_a_template_that_rewrites_the_prompt_counts_everything(tmp_path: Path) -> None:
    rewriting = tokenizer_of(tmp_path, "bytelevel", "{{ messages | length }} {{ messages[-1]['content'] }}")
    assert render(rewriting, ASK) == ("", "2 " + ASK.messages[1][1], True)


def test_a_template_that_refuses_a_role_says_so(tmp_path: Path) -> None:
    refusing = tokenizer_of(tmp_path, "bytelevel", "{{ raise_exception('only users here') }}")
    with pytest.raises(ConfigError, match="refuses a row: only users here") as caught:
        render(refusing, ASK)
    assert "system" in caught.value.hint


def test_long_rows_are_sliced_without_losing_a_token(plain: Any) -> None:
    text = " ".join(sample_texts(4, seed=4))
    ids = plain.encode(text)
    found = windows_of(plain, Example(text=text), 32)
    assert all(len(w.ids) <= 32 for w in found)
    joined = [int(i) for w in found for i in w.ids]
    assert joined == ids[: len(joined)] and len(ids) - len(joined) < 8
    assert sum(w.tokens for w in found) == len(joined) - len(found), "the first of each slice is not predicted"


def test_slices_without_an_answer_are_left_out(chat: Any) -> None:
    asked = " ".join(sample_texts(6, seed=4))
    example = Example(messages=(("user", asked), ("assistant", "yes")), completion=True)
    found = windows_of(chat, example, 64)
    assert len(found) == 1 and spelled(chat, found[0]).startswith("yes")


def test_max_tokens_stops_after_the_window_that_reaches_it(plain: Any) -> None:
    some = rows(20)
    everything = make_windows(plain, some, max_tokens=10**9, window_tokens=64)
    found = make_windows(plain, some, max_tokens=100, window_tokens=64)
    assert [w.ids.tolist() for w in found] == [w.ids.tolist() for w in everything[: len(found)]]
    assert sum(w.tokens for w in found) >= 100 > sum(w.tokens for w in found[:-1])


def test_leading_rows_gives_whole_rows(plain: Any) -> None:
    some = rows(20)
    used = leading_rows(plain, some, max_tokens=100, window_tokens=64)
    tokens = [sum(w.tokens for w in windows_of(plain, row, 64)) for row in used]
    assert used == some[: len(used)] and sum(tokens) >= 100 > sum(tokens[:-1])
    assert leading_rows(plain, some, max_tokens=10**9, window_tokens=64) == some


def test_rows_too_short_to_predict_anything(chat: Any) -> None:
    with pytest.raises(ConfigError, match="too short"):
        make_windows(chat, (Example(text="a"),), max_tokens=10, window_tokens=64)


def test_batches_hold_every_window_once_within_the_limit(plain: Any) -> None:
    some = make_windows(plain, rows(30), max_tokens=10**9, window_tokens=48)
    groups = batches(some, batch_tokens=200)
    assert sorted(id(w) for group in groups for w in group) == sorted(id(w) for w in some)
    assert all(len(g) == 1 or len(g) * max(len(w.ids) for w in g) <= 200 for g in groups)
    assert batches([], batch_tokens=200) == []
