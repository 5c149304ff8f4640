"""The split depends on what rows say and on nothing else."""

from __future__ import annotations

import random
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.errors import ConfigError
from edgegen.prepare.split import MIN_ROWS, Split, content_of, generic_examples, prepare_data, split_examples
from edgegen.records.data import Example


def texts(*values: object) -> list[Example]:
    return [Example(text=f"row {value}") for value in values]


def side(rows: tuple[Example, ...]) -> set[str]:
    return {content_of(row) for row in rows}


def both(split: Split) -> tuple[set[str], set[str]]:
    return side(split.calibration), side(split.heldout)


def test_a_quarter_is_held_out() -> None:
    split = split_examples(texts(*range(2000)), "here")
    assert split.ref.rows == 2000
    assert split.ref.calibration_rows + split.ref.heldout_rows == 2000
    assert 0.2 < split.ref.heldout_rows / 2000 < 0.3
    assert (len(split.calibration), len(split.heldout)) == (split.ref.calibration_rows, split.ref.heldout_rows)


@given(st.lists(st.text(min_size=1), min_size=MIN_ROWS, max_size=60))
def test_sides_never_overlap_and_nothing_is_lost(values: list[str]) -> None:
    rows = [Example(text=value) for value in values]
    distinct = {value for value in values if value.strip()}
    if len(distinct) < MIN_ROWS:
        with pytest.raises(ConfigError, match=f"{len(distinct)} usable rows"):
            split_examples(rows, "here")
        return
    calibration, heldout = both(split_examples(rows, "here"))
    assert not calibration & heldout
    assert calibration | heldout == distinct
    assert len(calibration) >= 2 and len(heldout) >= 2


def test_order_does_not_matter() -> None:
    rows = texts(*range(200))
    first = split_examples(rows, "here")
    random.Random(1).shuffle(rows)
    again = split_examples(rows, "here")
    assert again == first
    assert again.ref.digest == first.ref.digest


def test_adding_rows_moves_none() -> None:
    small, large = both(split_examples(texts(*range(100)), "x")), both(split_examples(texts(*range(1000)), "x"))
    assert small[0] <= large[0]
    assert small[1] <= large[1]


@pytest.mark.parametrize("count", range(MIN_ROWS, 24))
def test_few_rows_still_give_both_sides(count: int) -> None:
    for salt in range(30):
        split = split_examples(texts(*(f"{salt} {number}" for number in range(count))), "here")
        assert split.ref.heldout_rows >= 2
        assert split.ref.calibration_rows >= 2


def test_duplicates_and_empty_rows_are_dropped_and_counted() -> None:
    rows = [*texts(*range(20)), *texts(3, 4, 4), Example(), Example(text=" \n")]
    split = split_examples(rows, "here")
    assert (split.ref.rows, split.ref.duplicates, split.ref.empty) == (20, 3, 2)
    assert split.ref.digest == split_examples(texts(*range(20)), "elsewhere").ref.digest
    assert split.ref.characters == sum(len(content_of(row)) for row in texts(*range(20)))


def test_too_few_rows_say_what_was_dropped() -> None:
    with pytest.raises(ConfigError, match=r"here: 7 usable rows \(1 empty, 2 duplicates\); 8 are needed") as caught:
        split_examples([*texts(*range(7)), *texts(1, 2), Example()], "here")
    assert "--data" in caught.value.hint


def test_other_contents_have_another_digest() -> None:
    assert split_examples(texts(*range(20)), "x").ref.digest != split_examples(texts(*range(21)), "x").ref.digest


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (Example(messages=(("user", "q"), ("assistant", "a")), completion=True), "completion"),
        (Example(messages=(("user", "q"),)), "chat"),
        (Example(text="plain"), "chat"),
    ],
)
def test_kinds(last: Example, kind: str) -> None:
    answered = [Example(messages=(("user", str(n)), ("assistant", "a")), completion=True) for n in range(MIN_ROWS)]
    assert split_examples([*answered, last], "here").ref.kind == kind
    assert split_examples(texts(*range(MIN_ROWS)), "here").ref.kind == "text"


@pytest.mark.skipif(
    not resources.files("edgegen.prepare").joinpath("generic.jsonl").is_file(), reason="generic.jsonl is not there yet"
)
def test_without_data_the_generic_text_is_used() -> None:
    split = prepare_data(None)
    assert split.ref.generic and split.ref.source == "generic" and split.ref.kind == "text"
    assert split.ref.rows == len(generic_examples()), "no row is empty or double"
    assert split.ref.heldout_rows >= 8
    assert split.ref.characters > 20_000
