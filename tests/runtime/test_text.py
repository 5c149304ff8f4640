"""Text to ids and back: special tokens, templates, and streams that never break a character or show a stop."""

import datetime
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgegen.common.codec import save_json
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings
from edgegen.runtime.text import Text
from tests.tiny_models import make_tokenizer, sample_texts

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARD = "naïve 日本語 🙂👩‍👩‍👧 e\u0301 ﷽ \U0001f1e9\U0001f1ea tab\tend\n\n  two  spaces "
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello\n yes"}]
KINDS = ["bytelevel", "smollm", "qwen2", "llama3", "sentencepiece", "gemma"]


def make_text(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    bos: str | None = None,
    eos: Sequence[str] = (),
    add_bos: bool = False,
    config: dict[str, Any] | None = None,
    **files: str,
) -> Text:
    """A folder with what `Text` reads."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    record = Artifact(
        schema=1,
        target="gguf",
        model="model.gguf",
        model_files=("model.gguf",),
        files=(),
        family="llama",
        parameters=1,
        vocab_size=tokenizer.get_vocab_size(),
        context_tokens=64,
        settings=Settings(context_tokens=64, ubatch_tokens=8, threads=1, kv_type="f16"),
        bos_id=tokenizer.token_to_id(bos) if bos else None,
        eos_ids=tuple(tokenizer.token_to_id(text) for text in eos),
        add_bos=add_bos,
        parent="",
        tokenizer_proof="",
    )
    save_json(folder / "artifact.json", record)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("_jinja", ".jinja").replace("_json", ".json")).write_text(content)
    return Text(folder)


def chat(folder: Path, template: str, **config: Any) -> Text:
    return make_text(folder, make_tokenizer(), chat_template_jinja=template, config=config or None)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def text(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Text:
    return make_text(tmp_path_factory.mktemp("text") / kind, make_tokenizer(kind))


def metaspace() -> Tokenizer:
    """A Unigram-like splitter whose decoder drops the first space, without bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(sample_texts(50), trainer)
    return tokenizer


# Streaming


def test_a_stream_gives_whole_characters_and_all_of_them(text: Text) -> None:
    for sample in (HARD, *sample_texts(5, seed=3)):
        ids = text.encode(sample)
        pieces = list(text.stream(ids))
        assert "".join(pieces) == text.decode(ids)
        assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_at_its_last(text: Text, kind: str) -> None:
    ids = text.encode("🙂")
    assert len(ids) >= 4
    seen: list[int] = []

    def feed() -> Iterator[int]:
        for token in ids:
            seen.append(token)
            yield token

    first = next(text.stream(feed()))
    assert first == "🙂" and len(seen) == len(ids)


def test_a_stream_goes_on_after_its_prompt_with_the_space_between(text: Text) -> None:
    """SentencePiece-like decoders drop the first space of a text; a continuation is not one."""
    whole = "the cat looked at 日本 and 🙂 then ran"
    for cut in range(4, len(whole), 3):
        ids = text.tokenizer.encode(whole).ids
        head = next(n for n in range(len(ids), 0, -1) if whole.startswith(text.decode(ids[:n])) and n <= cut)
        assert text.decode(ids[:head]) + "".join(text.stream(ids[head:], after=ids[:head])) == whole


def test_a_stream_skips_special_tokens_and_keeps_the_space_behind_them(text: Text) -> None:
    special = sorted(text._special)[-1]
    ids = text.tokenizer.encode("the cat", add_special_tokens=False).ids
    more = text.tokenizer.encode("the cat looked", add_special_tokens=False).ids[len(ids) :]
    assert "".join(text.stream([special, *ids, special, *more, special])) == "the cat looked"


def test_any_ids_can_be_streamed(text: Text) -> None:
    """A bad model writes bytes that are no text; every character that `decode` shows is given, in its order.

    With byte fallback more may be: `decode` takes back a byte's own character once bytes behind it are no text.
    """
    dice = random.Random(2)
    size = text.tokenizer.get_vocab_size()
    for _ in range(60):
        ids = [dice.randrange(size) for _ in range(dice.randrange(1, 30))]
        given = iter("".join(text.stream(ids)))
        assert all(character in given for character in text.decode(ids).replace("\ufffd", ""))
    alone = text.encode("🙂")[:-1]
    assert "".join(text.stream(alone)) == text.decode(alone)
    assert list(text.stream([])) == []


def test_metaspace_without_splitting(tmp_path: Path) -> None:
    text = make_text(tmp_path / "a", metaspace())
    ids = text.encode("the cat looked at a dog")
    assert "".join(text.stream(ids)) == text.decode(ids) == "the cat looked at a dog"
    assert "".join(text.stream(ids[2:], after=ids[:2])) == "the cat looked at a dog"[len(text.decode(ids[:2])) :]


def in_pieces(text: Text, pieces: Sequence[str]) -> list[int]:
    return [i for piece in pieces for i in text.tokenizer.encode(piece, add_special_tokens=False).ids]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return make_text(tmp_path_factory.mktemp("plain") / "a", make_tokenizer())


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["ab", "c", "d", "ef"], ["cd"], "ab"),
        (["ab", "c", "x", "ef"], ["cd"], "abcxef"),
        (["ab", "c"], ["cd"], "abc"),
        (["ab", "cdef"], ["cd", "b"], "a"),
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["ab", "ab", "ac"], ["abac"], "ab"),
        (["stop"], ["stop"], ""),
        (["x", "stop"], [""], "xstop"),
        (["x\n", "\n", "User:"], ["\n\n"], "x"),
        (["a", "🙂", "b"], ["🙂"], "a"),
        (["x"], [], "x"),
    ],
)
def test_stops_across_pieces(plain: Text, pieces: list[str], stop: list[str], expected: str) -> None:
    got = list(plain.stream(in_pieces(plain, pieces), stop=stop))
    assert "".join(got) == expected and "" not in got


def test_stops_against_looking_at_the_whole_text(plain: Text) -> None:
    dice = random.Random(4)
    for _ in range(400):
        pieces = ["".join(dice.choice("ab") for _ in range(dice.randrange(1, 4))) for _ in range(8)]
        stops = ["".join(dice.choice("ab") for _ in range(dice.randrange(1, 5))) for _ in range(dice.randrange(1, 3))]
        whole = "".join(pieces)
        places = [whole.find(stop) for stop in stops if stop in whole]
        made = "".join(plain.stream(in_pieces(plain, pieces), stop=stops))
        if len(stops) == 1:
            assert made == (whole[: places[0]] if places else whole)
        else:  # one that ends first may begin later than another: what was given is final
            assert whole.startswith(made) and not any(stop in made for stop in stops)


def test_a_stop_ends_the_reading_of_ids(plain: Text) -> None:
    read: list[int] = []

    def feed() -> Iterator[int]:
        for token in in_pieces(plain, ["a", "b", "c", "d"]):
            read.append(token)
            yield token

    assert "".join(plain.stream(feed(), stop=["b"])) == "a"
    assert len(read) == 2


# Ids of plain text


def test_encode_is_what_transformers_makes(text: Text) -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=text.tokenizer)
    made = make_text(
        Path(text.folder),
        text.tokenizer,
        bos="<s>" if text.tokenizer.token_to_id("<s>") is not None else "<bos>",
        add_bos=text.tokenizer.token_to_id("<bos>") is not None or text.tokenizer.token_to_id("<s>") is not None,
    )
    for sample in (HARD, "", "the cat", *sample_texts(3)):
        assert made.encode(sample) == other.encode(sample)


def with_ends(*, bos: bool, eos: bool) -> Tokenizer:
    tokenizer = make_tokenizer()
    start, end = "<|im_start|>", "<|im_end|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start + ' ' if bos else ''}$A{' ' + end if eos else ''}",
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in (start, end)],
    )
    return tokenizer


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_bos_stands_once_or_not_at_all(tmp_path: Path, adds: bool, wanted: bool) -> None:
    text = make_text(
        tmp_path / "a", with_ends(bos=adds, eos=True), bos="<|im_start|>", eos=["<|im_end|>"], add_bos=wanted
    )
    bos = text.tokenizer.token_to_id("<|im_start|>")
    ids = text.encode("the cat")
    assert (ids[0] == bos) == wanted and ids.count(bos) == wanted
    assert text.tokenizer.token_to_id("<|im_end|>") not in ids
    assert text.decode(ids) == "the cat"
    if wanted:
        assert text.encode("<|im_start|>the cat").count(bos) == (2 if adds else 1)


def test_what_the_text_itself_spells_stays(tmp_path: Path) -> None:
    text = make_text(tmp_path / "a", make_tokenizer(), bos="<|im_start|>", eos=["<|im_end|>"])
    ids = text.encode("<|im_start|>the cat<|im_end|>")
    assert ids[0] == text.tokenizer.token_to_id("<|im_start|>") and ids[-1] == text.tokenizer.token_to_id("<|im_end|>")


def test_an_empty_text_is_bos_or_nothing(tmp_path: Path) -> None:
    end = "<|endoftext|>"
    with_bos = make_text(tmp_path / "a", make_tokenizer(), bos=end, eos=[end], add_bos=True)
    assert with_bos.encode("") == [with_bos.tokenizer.token_to_id(end)]
    assert make_text(tmp_path / "b", make_tokenizer(), bos=end, eos=[end]).encode("") == []


def test_truncation_and_padding_of_the_tokenizer_file_are_off(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    text = make_text(tmp_path / "a", tokenizer)
    assert text.decode(text.encode("the cat looked at a dog")) == "the cat looked at a dog"
    assert len(text.encode("a")) == 1


# Conversations


def as_transformers(text: Text, template: str, turns: list[dict[str, str]], **special: str) -> list[int]:
    other = PreTrainedTokenizerFast(tokenizer_object=text.tokenizer, **special)
    other.chat_template = template
    return list(other.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


TEMPLATES = {
    "chatml": CHATML,
    "tools": "{% if tools is not none %}{{ tools | length }}{% endif %}{% if documents is defined and documents %}d"
    "{% endif %}" + CHATML,
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}[{{ m.content | trim }}]{% endif %}{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}\n  {{- m.content }}\n{% endfor %}",
    "json": "{{ messages | tojson(indent=2, separators=(',', ':'), sort_keys=true) }}{{ 'é<' | tojson }}",
    "bos": "{{ bos_token }}{{ pad_token }}{% for m in messages %}{{ m['content'].split('\n')[-1] }}{{ eos_token }}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_what_transformers_makes(name: str, tmp_path: Path) -> None:
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    text = chat(tmp_path / "a", TEMPLATES[name], **special)
    turns = [*TURNS, {"role": "assistant", "content": " é <|im_end|> "}, {"role": "user", "content": "and?"}]
    assert text.conversation(turns) == as_transformers(text, TEMPLATES[name], turns, **special)


def test_special_tokens_may_stand_in_either_file_and_in_either_form(tmp_path: Path) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}"
    text = make_text(
        tmp_path / "a",
        make_tokenizer(),
        chat_template_jinja=template,
        config={"bos_token": {"content": "B", "lstrip": False}, "unk_token": None},
        special_tokens_map_json=json.dumps({"bos_token": "old", "eos_token": "E"}),
    )
    assert text.decode(text.conversation(TURNS)) == "B|E|"


def test_bos_is_not_added_to_what_a_template_writes(tmp_path: Path) -> None:
    text = make_text(
        tmp_path / "a",
        with_ends(bos=True, eos=True),
        bos="<|im_start|>",
        eos=["<|im_end|>"],
        add_bos=True,
        chat_template_jinja=CHATML,
    )
    ids = text.conversation(TURNS)
    assert ids.count(text.tokenizer.token_to_id("<|im_start|>")) == 3
    assert ids.count(text.tokenizer.token_to_id("<|im_end|>")) == 2


def test_the_date_is_todays(tmp_path: Path) -> None:
    text = chat(tmp_path / "a", "{{ strftime_now('%Y %B') }}")
    assert text.decode(text.conversation(TURNS)) == datetime.datetime.now().strftime("%Y %B")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[9].content }}", "refuses"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_what_a_template_refuses_is_said_in_one_line(template: str, said: str, tmp_path: Path) -> None:
    text = chat(tmp_path / "a", template)
    with pytest.raises(ConfigError, match=said) as caught:
        text.conversation(TURNS)
    assert "\n" not in str(caught.value)


def test_the_template_file_goes_before_the_one_in_the_settings(tmp_path: Path) -> None:
    text = chat(tmp_path / "a", "file", chat_template="settings")
    assert text.decode(text.conversation(TURNS)) == "file"
    both = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default"}]
    named = make_text(tmp_path / "b", make_tokenizer(), config={"chat_template": both})
    assert named.decode(named.conversation(TURNS)) == "default"


def test_without_a_template_it_says_what_can_be_done(tmp_path: Path) -> None:
    for number, config in enumerate((None, {}, {"chat_template": None}, {"chat_template": []})):
        text = make_text(tmp_path / str(number), make_tokenizer(), config=config)
        assert not text.has_template
        with pytest.raises(ConfigError, match="no chat template") as caught:
            text.conversation(TURNS)
        assert "--raw" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("artifact.json", None),
        ("tokenizer_config.json", "[1]"),
        ("special_tokens_map.json", "no"),
        ("chat_template.jinja", "{% for"),
        ("chat_template.jinja", "{% nonsense %}"),
    ],
)
def test_broken_files_are_named(name: str, content: str | None, tmp_path: Path) -> None:
    chat(tmp_path / "a", CHATML)
    path = tmp_path / "a" / name
    path.write_text(content) if content is not None else path.unlink()
    with pytest.raises(ConfigError, match=name.split(".")[0].replace("chat_", "chat.?")):
        Text(tmp_path / "a")
