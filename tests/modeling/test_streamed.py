"""A model that is read block by block says and prices what it does in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen.catalog import load_target
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.sensitivity import fitting_grids, measure_sensitivity
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.statistics import LayerSample, collect_statistics
from edgegen.modeling.streamed import StreamedModel
from edgegen.modeling.streamed_sensitivity import (
    Variant,
    distance,
    measure_streamed,
    run_variants,
    streamed_importance,
)
from tests.modeling.opened import Opened, open_all, windows
from tests.modeling.test_source import opened_with_widths
from tests.tiny_models import FAMILIES, make_tiny


def streamed(opened: Opened) -> StreamedModel:
    return StreamedModel(opened.ref, opened.source)


def log_probs(stream: StreamedModel, hidden: torch.Tensor, head: str = "") -> torch.Tensor:
    return torch.log_softmax(stream.counted_logits(hidden, head_grid=head), dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_predictions(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "m", layers=3))
    text = sorted(windows(opened.tokenizer), key=lambda w: len(w.ids))
    (hidden,) = run_variants(streamed(opened), text, [Variant()], tmp_path)
    assert torch.allclose(log_probs(streamed(opened), hidden), counted_log_probs(opened.model, text), atol=1e-4)


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    stream = streamed(open_all(make_tiny("llama", tmp_path / "m", layers=3)))

    def present() -> set[str]:
        found = [name for name, p in stream.frame.named_parameters() if not p.is_meta]
        return {".".join(name.split(".")[:3]) for name in found if ".layers." in name}

    assert present() == set()
    with stream.block(1):
        assert present() == {"model.layers.1"}
    assert present() == set()


def test_derived_checkpoints_with_other_shapes(tmp_path: Path) -> None:
    opened = opened_with_widths(tmp_path, (128, 64, 96))
    text = sorted(windows(opened.tokenizer), key=lambda w: len(w.ids))
    (hidden,) = run_variants(streamed(opened), text, [Variant()], tmp_path)
    assert torch.allclose(log_probs(streamed(opened), hidden), counted_log_probs(opened.model, text), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2"])
def test_same_statistics(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "m", layers=3))
    text = windows(opened.tokenizer)
    expected = collect_statistics(opened.model, opened.summary, text)
    importance: dict[str, np.ndarray] = {}
    samples: dict[str, LayerSample] = {}
    order: list[set[str]] = []

    def see(found: dict[str, LayerSample], weight: float) -> None:
        assert weight == expected.weight
        order.append({".".join(name.split(".")[:3]) for name in found})
        samples.update(found)

    streamed_importance(streamed(opened), opened.summary, text, tmp_path, importance.update, see)
    assert importance.keys() == expected.importance.keys()
    for name, values in importance.items():
        assert np.allclose(values, expected.importance[name], rtol=1e-4), name
    assert samples.keys() == expected.samples.keys()
    for name, sample in samples.items():
        assert torch.allclose(sample.inputs, expected.samples[name].inputs, atol=1e-4), name
        assert torch.allclose(sample.gradients, expected.samples[name].gradients, atol=1e-4), name
    assert len(order) == 3


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gemma2", True)])
def test_same_distances_of_rounded_models(family: str, tied: bool, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "m", layers=3, tied=tied))
    text = windows(opened.tokenizer)
    blocks = {t.name: "q4_0" for t in opened.summary.tensors if t.quantizable and t.layer >= 0}
    table = "model.embed_tokens.weight"
    variants = [
        Variant(),
        Variant(grids=blocks),
        Variant(embedding="q4_0", head="q4_0" if tied else ""),
        Variant(activations={**dict.fromkeys(blocks, 32), table: 32}),
    ]
    stream = streamed(opened)
    hidden = run_variants(stream, text, variants, tmp_path)
    found = [distance(stream, hidden[0], h, v) for h, v in zip(hidden, variants, strict=True)]
    plain = counted_log_probs(opened.model, text)
    expected = [0.0]
    int8 = dict.fromkeys((*blocks, table), "f32")
    for grids, rounding in ((blocks, {}), ({table: "q4_0"}, {}), (int8, {"f32": "int8_32"})):
        with rounded_model(opened.model, opened.source, grids, rounding):
            expected.append(mean_kl(plain, counted_log_probs(opened.model, text)))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_prices_are_those_of_a_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "m", layers=3, ffn=100))
    target, allowed = load_target("gguf"), ("q4_0", "q5_0", "q8_0")
    text, scored = windows(opened.tokenizer), windows(opened.tokenizer, seed=5)
    statistics = collect_statistics(opened.model, opened.summary, text)
    opened.source.use_importance(statistics.importance)
    reference = counted_log_probs(opened.model, scored)
    expected = measure_sensitivity(opened.model, opened.source, statistics, reference, scored, target, allowed)
    fits = {t.name: fitting_grids(t, target, allowed) for t in opened.source.summary.tensors if t.quantizable}
    told: list[tuple[int, int]] = []
    found, importance = measure_streamed(
        streamed(opened),
        opened.source,
        text,
        scored,
        target,
        fits,
        tmp_path,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(n, told[0][1]) for n in range(1, told[0][1] + 1)]
    assert importance.keys() == statistics.importance.keys()
    assert found.floor == pytest.approx(expected.floor, rel=1e-3, abs=1e-7)
    assert found.factors == pytest.approx({g: expected.factors[g] for g in found.factors}, rel=1e-3)
    for name, prices in found.kl.items():
        assert prices.keys() == expected.kl[name].keys()
        for grid in ("q4_0", "q8_0"):
            assert prices[grid] == pytest.approx(expected.kl[name][grid], rel=1e-2), (name, grid)

    monkeypatch.setattr("edgegen.modeling.streamed_sensitivity._ALL_ROWS", 16)
    monkeypatch.setattr("edgegen.modeling.streamed_sensitivity._PRICED_ROWS", 12)
    some, _ = measure_streamed(streamed(opened), opened.source, text, scored, target, fits, tmp_path)
    ratios = [some.kl[name]["q4_0"] / found.kl[name]["q4_0"] for name in found.kl if ".layers." in name]
    assert 0.5 < float(np.median(ratios)) < 2
