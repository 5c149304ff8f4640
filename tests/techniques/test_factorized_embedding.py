"""Tables with short rows: exact where they have that rank, best where it counts, alike on runtimes that have them."""

import types
from pathlib import Path

import pytest
import torch

from edgegen.catalog import load_target
from edgegen.modeling.thin_tables import ThinHead, ThinTable
from edgegen.records.structure import Change
from edgegen.techniques import factorized_embedding, tying
from edgegen.techniques.factorized_embedding import Use, shorten
from tests.export.packed_models import check_strict
from tests.modeling.opened import Opened, open_all
from tests.techniques.derived import calibrated, changed, logits, pack_derived, reopened
from tests.tiny_models import make_tiny

CHANGE = Change(technique="factorized_embedding", values={"rank": (32,)}, words="short rows")


def of_low_rank(family: str, folder: Path, **sizes: bool) -> Opened:
    """A model whose tables have rank 24."""
    opened = open_all(make_tiny(family, folder, **sizes))
    torch.manual_seed(0)
    for module in {opened.model.get_input_embeddings(), opened.model.get_output_embeddings()}:
        entries, width = module.weight.shape
        module.weight.copy_(torch.randn(entries, 24) @ torch.randn(24, width) / 24)
    return opened


def test_tables_of_that_rank_say_the_same(tmp_path: Path) -> None:
    for tied in (True, False):
        opened = of_low_rank("llama", tmp_path / f"hf {tied}", tied=tied)
        model = changed(factorized_embedding, CHANGE, calibrated(opened))
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert isinstance(table, ThinTable) and isinstance(head, ThinHead)
        assert (head.weight is table.weight) == tied
        assert table.weight.shape[1] == head.weight.shape[1] == 32
        torch.testing.assert_close(logits(model), logits(opened.model), rtol=0, atol=2e-3)
        assert not isinstance(opened.model.get_input_embeddings(), ThinTable)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "phi3"])
def test_families(family: str, tmp_path: Path) -> None:
    """The derived checkpoint opens again, with the family's own scale and its roles."""
    opened = of_low_rank(family, tmp_path / "hf")
    model = changed(factorized_embedding, CHANGE, calibrated(opened))
    torch.testing.assert_close(logits(model), logits(opened.model), rtol=0, atol=5e-3)
    again = reopened(model, CHANGE, tmp_path / "hf", tmp_path / "derived")
    roles = [t.role for t in again.summary.tensors if t.layer < 0 and t.role not in ("vector", "position")]
    tied = ["embedding", "projection", "projection"]
    assert sorted(roles) == (tied if opened.summary.tied else sorted([*tied, "head"]))
    assert again.summary.tied == opened.summary.tied
    assert again.summary.vocab_size == opened.summary.vocab_size


def test_the_error_is_least_for_what_is_used() -> None:
    """For one use it is the best that there is; two uses cost less with both in mind than with either."""
    torch.manual_seed(1)

    def use(seed: int) -> Use:
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(500, 40, generator=generator) @ torch.diag(torch.logspace(1, -2, 40))
        states = states[:, torch.randperm(40, generator=generator)].double()
        return Use(states.T @ states / 500, torch.rand(300, generator=generator).double() + 1e-3)

    def loss(use: Use, table: torch.Tensor, rows: torch.Tensor, product: torch.Tensor) -> float:
        change = rows @ product - table
        return float((use.entries[:, None] * (change @ use.moment * change)).sum())

    table, one, other = torch.randn(300, 40).double(), use(2), use(3)
    rows, (product,) = shorten(table, (one,), 8)
    inner = torch.linalg.cholesky(one.moment)
    best = torch.linalg.svdvals(one.entries.sqrt()[:, None] * table @ inner)[8:].square().sum()
    assert float(best) <= loss(one, table, rows, product) < 1.02 * float(best)

    def both(*uses: Use) -> float:
        rows, _ = shorten(table, uses, 8)
        found = 0.0
        for each in (one, other):
            weighted = (each.entries[:, None] * rows).T
            found += loss(each, table, rows, torch.linalg.solve(weighted @ rows, weighted @ table))
        return found

    assert both(one, other) < min(both(one), both(other))


def test_uses_are_those_of_the_quadratic(tmp_path: Path) -> None:
    """A small change of the head costs half of what states and chances say, one of the embedding what gradients say."""
    opened = open_all(make_tiny("llama", tmp_path / "hf", tied=False))
    calibration = calibrated(opened)
    embedding, head = factorized_embedding.uses_of(calibration)
    model = opened.model
    assert calibration.distance(model) == 0
    for module, use in ((model.get_input_embeddings(), embedding), (model.get_output_embeddings(), head)):
        torch.manual_seed(2)
        step = 0.02 * float(module.weight.std()) * torch.randn(module.weight.shape)
        module.weight.add_(step)
        measured = calibration.distance(model)
        module.weight.sub_(step)
        wanted = 0.5 * float((use.entries[:, None] * (step.double() @ use.moment * step.double())).sum())
        assert 0.5 < measured / wanted < 2


def test_proposals_save_weights(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", hidden=128, tied=False))
    calibration = calibrated(opened)
    found = factorized_embedding.propose(calibration, load_target("onnx"))
    assert [change.values["rank"] for change in found] == [(96,), (64,)]
    model = changed(factorized_embedding, found[0], calibration)
    assert sum(p.numel() for p in model.parameters()) < opened.summary.parameters
    again = reopened(model, found[0], tmp_path / "hf", tmp_path / "derived")
    assert factorized_embedding.propose(calibrated(again), load_target("onnx")) == []
    assert tying.propose(calibrated(again), load_target("onnx")) == []
    narrow = open_all(make_tiny("llama", tmp_path / "narrow", hidden=32, heads=2, kv_heads=2))
    assert factorized_embedding.propose(calibrated(narrow), load_target("onnx")) == []


def test_who_cannot_have_it() -> None:
    llama, bert, phi = (types.SimpleNamespace(model_type=kind) for kind in ("llama", "bert", "phi"))
    assert "width" in factorized_embedding.obstacle(llama, load_target("gguf"))
    assert [factorized_embedding.obstacle(llama, load_target(name)) for name in ("onnx", "litert")] == ["", ""]
    assert "encoders" in factorized_embedding.obstacle(bert, load_target("onnx"))
    assert "bias" in factorized_embedding.obstacle(phi, load_target("onnx"))


@pytest.mark.parametrize(
    ("family", "target", "grid", "tied"),
    [
        ("llama", "onnx", "s4_32", True),
        pytest.param("llama", "onnx", "u8_32", False, marks=pytest.mark.slow),
        pytest.param("gemma3_text", "onnx", "f16", True, marks=pytest.mark.slow),
        pytest.param("gpt2", "onnx", "s4_32", True, marks=pytest.mark.slow),
        pytest.param("llama", "litert", "i8_row", True, marks=pytest.mark.slow),
        pytest.param("gemma", "litert", "f32", True, marks=pytest.mark.slow),
        pytest.param("qwen2", "litert", "i4_32", False, marks=pytest.mark.slow),
    ],
)
def test_runtimes_say_what_torch_says(family: str, target: str, grid: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = {"gemma": "gemma", "gemma3_text": "gemma", "qwen2": "qwen2"}.get(family, "bytelevel")
    hf = make_tiny(family, tmp_path / "hf", tokenizer=tokenizer, **({} if tied else {"tied": False}))
    model = changed(factorized_embedding, CHANGE, calibrated(open_all(hf)))
    again = reopened(model, CHANGE, hf, tmp_path / "derived")
    check_strict(pack_derived(again, tmp_path / "c", lambda _: grid), tmp_path, target=target)
