"""A changed model's tensors take the original's prices."""

from __future__ import annotations

import math

import pytest

from edgegen.catalog import load_target
from edgegen.records.structure import Change, kept_layers
from edgegen.sdk.carrying import _price, original_name


def removed(*places: int) -> Change:
    return Change(technique="depth", values={"removed": places}, words="")


def test_blocks_keep_the_originals_number_through_several_cuts() -> None:
    assert kept_layers(6, ()) == (0, 1, 2, 3, 4, 5)
    assert kept_layers(6, (removed(2, 3),)) == (0, 1, 4, 5)
    assert kept_layers(6, (removed(2, 3), removed(0, 2))) == (1, 5)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.4.mlp.up_proj.weight"),
        ("model.layers.1.mlp.up_proj.0.weight", "model.layers.4.mlp.up_proj.weight"),
        ("transformer.h.0.attn.c_attn.1.weight", "transformer.h.1.attn.c_attn.weight"),
        ("model.layers.0.mlp.up_proj.residual.1.weight", "model.layers.1.mlp.up_proj.weight"),
        ("model.embed_tokens.up.weight", "model.embed_tokens.weight"),
        ("lm_head.0.weight", "lm_head.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_a_tensor_is_found_under_the_originals_name(name: str, source: str) -> None:
    assert original_name(name, (1, 4)) == source


def test_a_grid_that_the_original_had_no_rows_for_is_priced_between_its_neighbours() -> None:
    target = load_target("gguf")
    prices = {"q4_0": 0.04, "q8_0": 0.0004}
    between = _price("q5_0", prices, target)
    share = (target.grid("q5_0").bits_per_weight - 4.5) / 4
    assert between == pytest.approx(0.04 * math.exp(share * math.log(0.01)), rel=1e-6)
    assert _price("q4_0", prices, target) == 0.04
    assert _price("q4_0", {}, target) == 0.0
