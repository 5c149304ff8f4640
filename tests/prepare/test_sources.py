"""Every format that users have, and what is said about files that are wrong."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError, NetworkError
from edgegen.prepare.sources import read_examples
from edgegen.records.data import Example

PAIR = (("user", "How much?"), ("assistant", "42"))


def write(folder: Path, name: str, content: str | bytes) -> str:
    place = folder / name
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(place)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def one(folder: Path, row: Any) -> Example:
    (found,) = read_examples(write(folder, "it.jsonl", lines(row)))
    return found


def pair(*messages: tuple[str, str]) -> Example:
    return Example(messages=messages, completion=messages[-1][0] == "assistant")


@pytest.mark.parametrize("column", ["text", "content", "document"])
def test_text(tmp_path: Path, column: str) -> None:
    assert one(tmp_path, {column: "Hello", "id": 7}) == Example(text="Hello")


@pytest.mark.parametrize("prompt", ["prompt", "instruction", "question", "input", "request"])
@pytest.mark.parametrize("answer", ["completion", "response", "output", "answer", "reply"])
def test_prompt_and_answer(tmp_path: Path, prompt: str, answer: str) -> None:
    assert one(tmp_path, {"id": "x", answer: "42", prompt: "How much?"}) == pair(*PAIR)


def test_instruction_with_input(tmp_path: Path) -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3"}
    assert one(tmp_path, row) == pair(("user", "Add\n1 2"), ("assistant", "3"))
    assert one(tmp_path, {**row, "input": ""}) == pair(("user", "Add"), ("assistant", "3"))
    assert one(tmp_path, {**row, "input": None}) == pair(("user", "Add"), ("assistant", "3"))


def test_messages(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert one(tmp_path, {"messages": chat}) == Example(messages=(("system", "Be brief."), ("user", "Hi")))
    chat.append({"role": "assistant", "content": "Hello", "tool_calls": []})
    assert one(tmp_path, {"messages": chat}).completion
    assert one(tmp_path, {"messages": []}) == Example()


def test_conversations_in_other_words(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "How much?"}, {"from": "gpt", "value": "42"}]
    assert one(tmp_path, {"id": "a", "conversations": chat}) == pair(*PAIR)


def test_numbers_are_answers_and_dates_stay_text(tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "How much?", "answer": 42}) == pair(*PAIR)
    assert one(tmp_path, {"text": "2024-01-02"}) == Example(text="2024-01-02")


def test_rows_may_have_different_columns(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"prompt": "How much?", "answer": "42"}, {"text": "b", "more": 1}, {"text": None}]
    found = read_examples(write(tmp_path, "it.jsonl", lines(*rows)))
    assert found == [Example(text="a"), pair(*PAIR), Example(text="b"), Example()]


def test_a_column_that_comes_late_in_a_large_file(tmp_path: Path) -> None:
    rows = [{"text": "x" * 5000} for _ in range(3000)]
    assert len(read_examples(write(tmp_path, "it.jsonl", lines(*rows, {"text": "a", "more": 1})))) == 3001


@pytest.mark.parametrize("name", ["it.json", "it.JSON"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array(tmp_path: Path, name: str, indent: int | None) -> None:
    place = write(tmp_path, name, json.dumps([{"text": "a\nb"}, {"text": "c"}], indent=indent))
    assert [row.text for row in read_examples(place)] == ["a\nb", "c"]


def test_json_that_holds_lines_or_one_object(tmp_path: Path) -> None:
    assert len(read_examples(write(tmp_path, "lines.json", lines({"text": "a"}, {"text": "b"})))) == 2
    assert read_examples(write(tmp_path, "one.json", '{\n"text": "a"\n}')) == [Example(text="a")]


@pytest.mark.parametrize(("name", "delimiter"), [("it.csv", ","), ("it.tsv", "\t")])
def test_tables_keep_cells_as_written(tmp_path: Path, name: str, delimiter: str) -> None:
    answers = ["42", "007", "1.10", "NA", "null", "", "2024-01-01", 'say "hi", or\ttwo\nlines', "True"]
    with (tmp_path / name).open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([["prompt", "answer"], *(["q", each] for each in answers)])
    assert [row.messages[1][1] for row in read_examples(str(tmp_path / name))] == answers


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs edgegen[compress]")
    arrow = sys.modules["pyarrow"]
    chat = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "42"}]
    parquet.write_table(arrow.table({"messages": [chat] * 2000}), tmp_path / "it.parquet")
    assert read_examples(str(tmp_path / "it.parquet"), max_rows=1500) == [pair(*PAIR)] * 1500
    with pytest.raises(ConfigError, match=r"broken\.parquet: cannot be read as parquet"):
        read_examples(write(tmp_path, "broken.parquet", "junk"))


def test_plain_text_without_blank_lines_is_cut_at_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {number} of a long file without blank lines\n" for number in range(2000)))
    rows = read_examples(str(path))
    assert len(rows) > 20 and all(2000 <= len(row.text) < 4100 for row in rows[:-1])


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"{number} " + "word " * 250 for number in range(5)]
    found = read_examples(write(tmp_path, "it.txt", "\n\n".join(paragraphs)))
    assert [row.text[0] for row in found] == ["0", "2", "4"]
    assert "\n\n".join(row.text for row in found) == "\n\n".join(paragraphs)
    assert read_examples(write(tmp_path, "windows.txt", "a\r\n\r\nb")) == [Example(text="a\n\nb")]


def test_one_line(tmp_path: Path) -> None:
    assert read_examples(write(tmp_path, "it.txt", "Hello")) == [Example(text="Hello")]
    assert read_examples(write(tmp_path, "it.jsonl", '{"text": "Hello"}')) == [Example(text="Hello")]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "b.JSONL", lines({"text": "second"}))
    write(tmp_path, "a.txt", "first")
    write(tmp_path / "sub", "c.csv", "text\nthird\n")
    write(tmp_path, "ignored.bin", b"\xff")
    assert [row.text for row in read_examples(str(tmp_path))] == ["first", "second", "third"]
    with pytest.raises(ConfigError, match="no data files") as caught:
        (tmp_path / "empty").mkdir()
        read_examples(str(tmp_path / "empty"))
    assert ".parquet" in caught.value.hint


@pytest.mark.parametrize("name", ["it.jsonl", "it.json", "it.csv", "it.txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = {"it.jsonl": '{"text": "a"}\n', "it.json": '[{"text": "a"}]', "it.csv": "text\r\na\r\n", "it.txt": "a"}
    assert read_examples(write(tmp_path, name, "\ufeff" + content[name])) == [Example(text="a")]


def test_no_more_rows_than_asked_for(tmp_path: Path) -> None:
    rows = lines(*({"text": str(number)} for number in range(20)))
    write(tmp_path, "a.jsonl", rows)
    write(tmp_path, "b.jsonl", rows)
    assert len(read_examples(str(tmp_path / "a.jsonl"), max_rows=5)) == 5
    assert len(read_examples(str(tmp_path), max_rows=25)) == 25


@pytest.mark.parametrize("name", ["it.jsonl", "it.json", "it.csv", "it.parquet", "it.txt"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: the file is empty") as caught:
        read_examples(write(tmp_path, name, ""))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["it.jsonl", "it.json", "it.csv", "it.tsv", "it.txt"])
@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
def test_what_is_not_utf8_names_the_line(tmp_path: Path, name: str, broken: bytes) -> None:
    place = write(tmp_path, name, b'{"text": "a"}\n\n"' + broken)
    with pytest.raises(ConfigError, match=rf"{name}: line 3 is not UTF-8 \(byte {broken[0]:#04x}\)") as caught:
        read_examples(place)
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("it.jsonl", '{"text": "a"}\n\n{"text":\n{"text": "b"}\n', "line 3 is not JSON"),
        ("it.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is not a JSON object"),
        ("it.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', "row 2: text is list"),
        ("it.jsonl", '{"text": "\\ud800"}\n', "row 1: .*surrogates"),
        ("it.jsonl", '{"messages": ["hello"]}\n', "row 1: a message is str"),
        ("it.jsonl", '{"messages": [{"role": "user", "content": [1]}]}\n', "row 1: content is list"),
        ("it.jsonl", "[" * 100_000, "line 1 cannot be read"),
        ("it.json", '[{"text": "a"},\n{"text":}]\n', "line 2 is not JSON"),
        ("it.json", '[{"text": "a"}, 5]', "row 2 is not a JSON object"),
        ("it.csv", "text,more\na,b\nc,d,e\n", "line 3 has more cells"),
        ("it.csv", 'text\na\n"unclosed\n', "line [34] is no table row"),
        ("it.xyz", "a", "unknown data format '.xyz'"),
    ],
)
def test_broken_files_name_the_place(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: {words}"):
        read_examples(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("it.jsonl", lines({"foo": "a", "bar": "b"})),
        ("it.csv", "foo,bar\na,b\n"),
        ("it.json", '[{"foo": 1, "bar": 2}]'),
    ],
)
def test_unusable_columns_are_listed(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ConfigError, match="foo, bar") as caught:
        read_examples(write(tmp_path, name, content))
    assert "messages" in caught.value.hint


@pytest.mark.parametrize("source", ["nothing", "nothing.jsonl", "./no/thing", "a/b/c", "~/no-such-folder-here"])
def test_what_is_not_there(source: str) -> None:
    with pytest.raises(ConfigError, match="no such data file") as caught:
        read_examples(source)
    assert "org/name" in caught.value.hint


def test_a_hub_id_without_a_network_fails_at_once() -> None:
    code = "from edgegen.prepare.sources import read_examples; read_examples('some-org/some-name')"
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert time.monotonic() - before < 30
    assert "NetworkError: some-org/some-name: not a file here, and the hub cannot be reached" in done.stderr
    assert "Retrying" not in done.stderr


def test_a_hub_that_does_not_resolve_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub.constants", reason="needs edgegen[compress]")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(NetworkError, match="cannot be reached"):
        read_examples("some-org/some-name:test")
