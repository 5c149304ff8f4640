"""Sentence encoders: how they pool, what a small change of weights costs, what cannot be read."""

import json
from pathlib import Path

import pytest
import torch

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.modeling.encoder import make_texts, mean_distance, padded, vectors_of
from edgegen.modeling.encoder_statistics import collect_vector_statistics
from edgegen.modeling.pooling import pool, read_pooling
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.statistics import LayerSample, fisher_kl
from edgegen.modeling.tasks import task_of
from edgegen.records.data import Example
from edgegen.records.model import Pooling
from tests.modeling.opened import Opened, open_all, rows
from tests.tiny_models import make_tiny_encoder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_all(make_tiny_encoder(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_every_tensor_has_its_role(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny_encoder(tmp_path, family))
    summary = opened.summary
    assert summary.task == "encoder" and summary.pooling == Pooling(mode="mean", normalize=True)
    assert not summary.tied and summary.context_tokens == 64 and summary.kv_heads == summary.heads == 4
    assert summary.ffn_size == 128 and summary.hidden_size == 64 and summary.layers == 2
    roles = [t.role for t in summary.tensors if t.layer == 1 and t.role != "vector"]
    assert sorted(roles) == ["attention_in"] * 3 + ["attention_out", "ffn_in", "ffn_out"]
    assert [t.name for t in summary.tensors if t.role == "embedding"] == ["embeddings.word_embeddings.weight"]
    assert not any("pooler" in t.name for t in summary.tensors)


def test_vectors_are_those_of_transformers(bert: Opened) -> None:
    texts = make_texts(bert.tokenizer, rows(5, words=9), max_tokens=10_000, window_tokens=64)
    found = vectors_of(bert.model, Pooling(mode="mean", normalize=True), texts)
    for window, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = bert.model(torch.from_numpy(window.ids)[None]).last_hidden_state[0]
        alone = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        torch.testing.assert_close(vector, alone, atol=2e-6, rtol=0)


def test_padding_does_not_count() -> None:
    hidden = torch.tensor([[[1.0, 0], [3, 4], [9, 9]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(hidden, mask, Pooling(mode="mean", normalize=False)).tolist() == [[2, 2]]
    assert pool(hidden, mask, Pooling(mode="cls", normalize=False)).tolist() == [[1, 0]]
    assert pool(hidden, mask, Pooling(mode="mean", normalize=True))[0].norm() == pytest.approx(1)


def test_a_text_is_one_window_cut_where_the_encoder_cuts(bert: Opened) -> None:
    long, turns = "cat dog bird " * 60, (("user", "the cat"), ("assistant", "a dog"))
    texts = make_texts(
        bert.tokenizer, (Example(text=long), Example(messages=turns)), max_tokens=10_000, window_tokens=16
    )
    assert len(texts) == 2 and len(texts[0].ids) == 16
    assert texts[0].ids[-1] == bert.tokenizer.sep_token_id and texts[0].counts.all()
    assert list(texts[1].ids) == bert.tokenizer.encode("the cat\na dog")
    ids, mask = padded(texts)
    assert ids.shape == mask.shape == (2, 16) and mask.sum() == 16 + len(texts[1].ids)


def test_distance_in_closed_form() -> None:
    a, b = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[0.0, 3], [0, 5]])
    assert mean_distance(a, b) == pytest.approx(0.5)
    assert mean_distance(a, 7 * a) == 0


def test_grouped_fisher_sums_a_texts_tokens_before_squaring() -> None:
    inputs = torch.tensor([[1.0], [1.0], [2.0]])
    gradients = torch.tensor([[[1.0], [-1.0], [1.0]]])
    sample = LayerSample(inputs=inputs, gradients=gradients, groups=torch.tensor([0, 0, 1]))
    assert fisher_kl(sample, torch.ones(1, 1), 1.0) == pytest.approx(0.5 * (0 + 4) / 2)


def test_small_changes_cost_what_is_predicted(bert: Opened) -> None:
    summary = bert.summary
    assert summary.pooling is not None
    texts = make_texts(bert.tokenizer, rows(80, words=12), max_tokens=10_000, window_tokens=64)
    statistics = collect_vector_statistics(bert.model, summary, texts)
    reference = vectors_of(bert.model, summary.pooling, texts)
    generator = torch.Generator().manual_seed(4)
    predicted = exact = 0.0
    for tensor in (t for t in summary.tensors if t.quantizable and t.layer >= 0):
        parameter = bert.model.get_parameter(tensor.name)
        change = 1e-3 * torch.randn(parameter.shape, generator=generator)
        predicted += fisher_kl(statistics.samples[tensor.name], change, statistics.weight)
        parameter.data.add_(change)
        exact += mean_distance(reference, vectors_of(bert.model, summary.pooling, texts))
        parameter.data.sub_(change)
    assert predicted == pytest.approx(exact, rel=0.25)


def test_rounding_moves_vectors_and_is_undone(bert: Opened) -> None:
    task = task_of(bert.summary)
    texts = task.windows(bert.tokenizer, rows(10), max_tokens=500, window_tokens=64)
    before = task.outputs(bert.model, bert.summary, texts)
    grids = {t.name: "u4_32" for t in bert.summary.tensors if t.quantizable}
    with rounded_model(bert.model, bert.source, grids, dict.fromkeys(grids.values(), "int8_32")):
        coarse = task.distance(before, task.outputs(bert.model, bert.summary, texts))
    assert coarse > 1e-4
    assert task.distance(before, task.outputs(bert.model, bert.summary, texts)) < 1e-12


def test_a_plain_checkpoint_is_averaged_and_says_so(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path, sentence_tokens=None)
    found, notes = read_pooling(folder)
    assert found == Pooling(mode="mean", normalize=False) and "modules.json" in notes[0]
    assert open_all(folder).summary.context_tokens == 96


def test_what_pooling_cannot_be(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path, pooling="cls", normalize=False)
    assert read_pooling(folder) == (Pooling(mode="cls", normalize=False), [])
    settings = folder / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedError, match="pooling_mode_max_tokens"):
        read_pooling(folder)
    settings.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_pooling(folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": "x.Dense"}]))
    with pytest.raises(UnsupportedError, match="Transformer, Pooling, Dense"):
        read_pooling(folder)
