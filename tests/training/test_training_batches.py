"""Batches: what counts, in which order, and that packing changes no sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.training.batches import Item, Order, collate, encode, pack
from edgegen.training.losses import cross_entropy
from tests.tiny_models import make_tiny, sample_texts


def items(*lengths: int) -> list[Item]:
    found = []
    for index, length in enumerate(lengths):
        counts = np.ones(length, dtype=bool)
        counts[-1] = False
        found.append(Item(np.arange(length) % 50 + 5, counts, index=index))
    return found


def test_every_item_is_shown_once_an_epoch_and_the_order_follows_from_the_step() -> None:
    some = items(*range(2, 34))
    order, again = Order(some, rows=4, seed=3), Order(some, rows=4, seed=3)
    assert order.steps_per_epoch == 8
    shown = [item.index for step in range(8) for row in order.at(step)[0].items for item in row]
    assert sorted(shown) == list(range(32))
    assert [i.index for row in again.at(5)[0].items for i in row] == shown[20:24]
    second = [item.index for step in range(8, 16) for row in order.at(step)[0].items for item in row]
    assert sorted(second) == list(range(32)) and second != shown
    assert [i.index for row in Order(some, rows=4, seed=4).at(0)[0].items for i in row] != shown[:4]


def test_processes_share_a_batch() -> None:
    some = items(*range(2, 34))
    whole, weight = Order(some, rows=5, seed=0).at(2)
    parts = [Order(some, rows=5, seed=0, process=p, processes=2).at(2) for p in range(2)]
    assert all(total == weight for _, total in parts)
    together = [i.index for batch, _ in parts for row in batch.items for i in row]
    assert sorted(together) == sorted(i.index for row in whole.items for i in row)


def test_rows_are_packed_without_loss() -> None:
    some = items(30, 3, 9, 17, 8, 25, 64, 12)
    rows = pack(some, 64)
    assert sorted(item.index for row in rows for item in row) == list(range(8))
    assert all(sum(len(item.ids) for item in row) <= 64 for row in rows)
    assert len(rows) == 3  # 168 tokens


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_items_do_not_see_each_other(family: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny(family, tmp_path / "m"), dtype=torch.float32)
    model.eval().requires_grad_(False)
    some = items(7, 12, 5, 9)
    alone = sum(float(cross_entropy(model, collate([[item]], packed=False))) for item in some)
    beside = float(cross_entropy(model, collate([[item] for item in some], packed=False)))
    packed = float(cross_entropy(model, collate([some], packed=True)))
    assert beside == pytest.approx(alone, rel=1e-5)
    assert packed == pytest.approx(alone, rel=1e-5)


def test_only_answers_count_and_weights_multiply(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny("llama", tmp_path / "m"))
    chat = Example(messages=(("user", "turn on the lamp"), ("assistant", "the lamp is on")), completion=True)
    (item,) = encode(tokenizer, [chat], max_tokens=128)
    whole = encode(tokenizer, [Example(text=sample_texts(1)[0], weight=2.0)], max_tokens=128)[0]
    assert 0 < item.tokens < len(item.ids) - 4
    assert whole.tokens == len(whole.ids) - 1 and whole.weight == 2.0
    assert encode(tokenizer, [chat, Example(text="the dog ran", weight=0.0)], max_tokens=128) != []
    assert float(collate([[whole]], packed=False).weights.max()) == 2.0


def test_too_little_data_is_refused_in_one_line(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny("llama", tmp_path / "m"))
    with pytest.raises(ConfigError, match="no row gives a token"):
        encode(tokenizer, [Example(text="a")], max_tokens=1)
    with pytest.raises(ConfigError, match="fills 3 rows, a batch takes 8"):
        Order(items(3, 4, 5), rows=8, seed=0)
    with pytest.raises(ConfigError, match="split among 4 processes"):
        Order(items(3, 4, 5), rows=2, seed=0, processes=4)
