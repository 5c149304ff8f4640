"""Deriving students: sizes, what is kept, and that nothing changes where nothing is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.data import Example
from edgegen.training.batches import encode
from edgegen.tune.student import (
    Shape,
    choose_shape,
    count_parameters,
    derive_student,
    kept_layers,
    parse_student,
    shape_of,
)
from tests.tiny_models import make_tiny, sample_texts


def opened(family: str, folder: Path, **sizes: Any) -> tuple[Any, Any]:
    path = make_tiny(family, folder, **sizes)
    tokenizer = AutoTokenizer.from_pretrained(path)
    items = encode(tokenizer, [Example(text=text) for text in sample_texts(4)], max_tokens=64)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False), items


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral", "gemma2"])
def test_sizes_are_those_asked_for_and_weights_are_the_teachers(family: str, tmp_path: Path) -> None:
    teacher, items = opened(family, tmp_path / "t", hidden=64, layers=4, ffn=128)
    shape = Shape(layers=2, hidden=32, ffn=64, heads=2, kv_heads=1)
    student = derive_student(teacher, shape, items)
    assert shape_of(student.config) == shape
    assert sum(p.numel() for p in student.parameters()) == count_parameters(teacher.config, shape)
    rows = student.model.layers[0].mlp.up_proj.weight
    whole = teacher.model.layers[0].mlp.up_proj.weight.flatten().tolist()
    assert set(rows.flatten().tolist()) <= set(whole)
    with torch.no_grad():
        assert torch.isfinite(student(torch.tensor([[5, 6, 7]])).logits).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_whole_shape_is_the_teacher(family: str, tmp_path: Path) -> None:
    teacher, items = opened(family, tmp_path / "t")
    student = derive_student(teacher, shape_of(teacher.config), items)
    ids = torch.tensor([[5, 9, 30, 2]])
    with torch.no_grad():
        assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_dead_dimensions_go_first(tmp_path: Path) -> None:
    teacher, items = opened("llama", tmp_path / "t", hidden=64, layers=2, ffn=128)
    dead = torch.tensor(np.random.default_rng(0).choice(128, 64, replace=False))
    for layer in teacher.model.layers:
        layer.mlp.up_proj.weight[dead] = 0.0
    shape = Shape(layers=2, hidden=64, ffn=64, heads=4, kv_heads=2)
    student = derive_student(teacher, shape, items)
    ids = items[0].ids[None]
    with torch.no_grad():
        difference = student(torch.from_numpy(ids)).logits - teacher(torch.from_numpy(ids)).logits
    assert float(difference.abs().max()) < 1e-3


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_a_share_is_kept_and_used(share: float, tmp_path: Path) -> None:
    teacher, _ = opened("llama", tmp_path / "t", hidden=128, layers=4, ffn=256)
    whole = sum(p.numel() for p in teacher.parameters())
    size = count_parameters(teacher.config, choose_shape(teacher.config, share))
    assert 0.6 * share * whole < size <= share * whole


def test_layers_are_kept_at_even_distances() -> None:
    assert kept_layers(8, 8) == list(range(8)) and kept_layers(8, 1) == [7]
    assert kept_layers(8, 3) == [0, 4, 7] and kept_layers(12, 4) == [0, 4, 7, 11]


def test_wishes_are_read(tmp_path: Path) -> None:
    teacher, items = opened("llama", tmp_path / "t")
    assert parse_student("./other", teacher.config) is None
    assert parse_student("layers=1, ffn=64", teacher.config) == Shape(1, 64, 64, 4, 2)
    for wrong, words in (
        ("1.5x", "between 0 and 1"),
        ("layers=two", "is no size"),
        ("depth=2,x=1", "is no size"),
        ("layers=9", "does not lie between 1 and the teacher's 2"),
        ("hidden=33", "not a multiple"),
        ("", "is empty"),
        ("0.x.x", ""),
    ):
        if words:
            with pytest.raises(ConfigError, match=words):
                parse_student(wrong, teacher.config)
    with pytest.raises(ConfigError, match="layers=9 does not lie between 1 and the teacher's 2"):
        derive_student(teacher, Shape(9, 64, 128, 4, 2), items)
    with pytest.raises(ConfigError, match="another ratio"):
        derive_student(teacher, Shape(2, 64, 128, 3, 2), items)
    with pytest.raises(ConfigError, match=r"no student with at most 0\.0001"):
        choose_shape(teacher.config, 0.0001)
    gpt2, items = opened("gpt2", tmp_path / "g", layers=4)
    assert choose_shape(gpt2.config, 0.8).layers < 4
    with pytest.raises(UnsupportedError, match="narrower student"):
        derive_student(gpt2, Shape(2, 32, 128, 2, 2), items)
