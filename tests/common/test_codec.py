"""What a person reads when a record's file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgegen.common.codec import canonical_json, did_you_mean, digest_record, load_json, load_toml, save_json
from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.build import Build, StageMark


class Inner(Record, frozen=True):
    value: float
    name: str = ""


class Outer(Record, frozen=True):
    schema: int
    inner: Inner
    many: tuple[Inner, ...] = ()
    table: dict[str, Inner] = {}


def test_round_trip(tmp_path: Path) -> None:
    record = Outer(schema=1, inner=Inner(1.5, "é"), many=(Inner(2.0),), table={"a b": Inner(3.0)})
    save_json(tmp_path / "it.json", record)
    assert load_json(tmp_path / "it.json", Outer) == record
    assert (tmp_path / "it.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ('{"schema": 1, "inner": {"valu": 1}}', "unknown key 'inner.valu'", "value"),
        ('{"schema": 1, "inner": {"value": 1}, "inner2": 1}', "unknown key 'inner2'", "inner"),
        ('{"schema": 1, "inner": {"value": 1}, "many": [{"value": 1, "nam": ""}]}', r"unknown key 'many\[", "name"),
        ('{"schema": 1, "inner": {"value": 1}, "zzzz": 1}', "unknown key 'zzzz'", "Known: "),
        ('{"schema": 1, "inner": {"value": "x"}}', "inner.value: .*float", ""),
        ('{"schema": 1, "inner": {"value": 1}, "table": {"k": {"value": []}}}', "table.*value: .*float", ""),
        ('{"schema": 1}', "required field `inner`", ""),
        ("[]", "xpected `object`", ""),
        ("{", "not valid JSON", ""),
        ("", "not valid JSON", ""),
    ],
)
def test_json_errors_name_file_key_and_neighbour(tmp_path: Path, text: str, words: str, hint: str) -> None:
    place = tmp_path / "it.json"
    place.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_json(place, Outer)
    assert str(caught.value).startswith(str(place))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = 1\n[inner]\nvalu = 1.0", "unknown key 'inner.valu'"),
        ("schema = 1\n[inner]\nvalue = true", "inner.value: .*float"),
        ("schema = 1\n[inner", "not valid TOML"),
        ("schema = 1\nschema = 2", "not valid TOML"),
        ("# schema = 1\n", "it says nothing"),
        ("schema = 1\n[inner]\nvalue = nan", "inner.value: nan is no finite number"),
    ],
)
def test_toml_errors_name_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    place = tmp_path / "it.toml"
    place.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_toml(place, Outer)
    assert str(caught.value).startswith(str(place))


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text("schema = 1\ninner = { value = 2 }")
    assert load_toml(tmp_path / "it.toml", Outer).inner.value == 2.0


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    for load in (load_json, load_toml):
        with pytest.raises(ConfigError, match="nothing: no such file"):
            load(tmp_path / "nothing", Outer)
        with pytest.raises(ConfigError, match="irectory"):
            load(tmp_path, Outer)
        (tmp_path / "latin").write_bytes(b'{"sch\xff": 1}')
        with pytest.raises(ConfigError, match="latin: not valid"):
            load(tmp_path / "latin", Outer)


def test_equal_values_have_equal_digests() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == b'{"a":[1,2],"b":1}'
    assert digest_record({"b": 1, "a": 2}) == digest_record({"a": 2, "b": 1})
    assert digest_record({"a": 1}) != digest_record({"a": 2})
    mark = StageMark(name="a", key="b", outputs=("c",))
    assert digest_record(Build(schema=1, command="", version="", stages=(mark,))).startswith("sha256:")


def test_suggestions() -> None:
    assert did_you_mean("max_byte", ["max_bytes", "max_kl"]) == "Did you mean 'max_bytes'?"
    assert did_you_mean("qqq", ["b", "a"]) == "Known: a, b."
