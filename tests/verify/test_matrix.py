"""The parity matrix on two real outputs of one model."""

import shutil
from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json, save_json
from edgegen.records.reference import Reference
from edgegen.verify.matrix import parity_matrix


@pytest.fixture(scope="module")
def twins(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same output twice, as if two targets had come to the same numbers."""
    other = tmp_path_factory.mktemp("twin") / "out"
    shutil.copytree(finished, other)
    return {"one": finished, "two": other}


def test_equal_artifacts_agree_and_each_is_held_against_torch(twins: dict[str, Path]) -> None:
    pairs = parity_matrix(twins)
    assert [(p.first, p.second, p.mode) for p in pairs] == [
        (first, second, mode)
        for mode in ("strict", "shipped")
        for first, second in (("torch", "one"), ("torch", "two"), ("one", "two"))
    ]
    assert not any(pair.missing for pair in pairs)
    for pair in pairs:
        assert pair.kl is not None and pair.greedy_prefix is not None
        if pair.first == "one":
            assert pair.kl == 0 and pair.top1_fraction == 1 and pair.greedy_prefix == pair.greedy_tokens
        if pair.mode == "strict" and pair.first == "torch":
            assert pair.kl < 1e-6 and pair.greedy_prefix == pair.greedy_tokens


def test_what_cannot_be_compared_says_why(twins: dict[str, Path], tmp_path: Path) -> None:
    lacking = shutil.copytree(twins["two"], tmp_path / "lacking")
    shutil.rmtree(lacking / "strict")
    reference = load_json(lacking / "reference" / "reference.json", Reference)
    window = msgspec.structs.replace(reference.windows[0], ids=reference.windows[0].ids[::-1])
    changed = msgspec.structs.replace(reference, windows=(window, *reference.windows[1:]))
    save_json(lacking / "reference" / "reference.json", changed)
    found = {(p.first, p.mode): p.missing for p in parity_matrix({"one": twins["one"], "two": lacking})}
    assert "not at hand" in found[("one", "strict")]
    assert found[("one", "shipped")] == "their vocabularies differ"
