"""Weights that learn are exactly what the runtime unpacks, before and after, and only they learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen import grids
from edgegen.compress.latents import LatentModel, learns
from edgegen.modeling.simulate import rounded_model
from edgegen.records.model import TensorInfo
from tests.modeling.opened import Opened, open_all
from tests.tiny_models import make_tiny

GRIDS = ("q4_k", "q6_k", "q3_k", "q2_k", "iq4_nl", "iq4_xs", "q5_0", "q5_1", "q8_0", "u4_32", "s8_64", "i8_row")
IDS = torch.tensor([[5, 60, 17, 300, 4, 4, 99]])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_all(make_tiny("llama", tmp_path_factory.mktemp("latents") / "model", hidden=256, ffn=256, tied=True))


def chosen_grids(opened: Opened, grid: str) -> dict[str, str]:
    return {t.name: grid if t.quantizable else "f32" for t in opened.source.summary.tensors}


def unpacked(latents: LatentModel, opened: Opened, chosen: dict[str, str]) -> dict[str, np.ndarray]:
    columns = {t.name: t.columns for t in opened.source.summary.tensors}
    return {name: grids.unpack(rows, chosen[name], columns[name]) for name, rows in latents.packed()}


def learn(latents: LatentModel, steps: int = 20, rate: float = 0.05) -> list[float]:
    """Towards other outputs than the model's."""
    optimizer, losses = torch.optim.Adam(latents.parameters(), lr=rate), []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(latents(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("grid", GRIDS)
def test_nothing_learnt_is_nothing_changed(opened: Opened, grid: str) -> None:
    chosen = chosen_grids(opened, grid)
    latents = LatentModel(opened.model, opened.source, chosen)
    for name, rows in latents.packed():
        assert np.array_equal(rows, opened.source.packed(name, chosen[name])), name


@pytest.mark.parametrize("grid", GRIDS)
def test_what_learns_computes_with_what_will_be_packed(opened: Opened, grid: str) -> None:
    chosen = chosen_grids(opened, grid)
    latents = LatentModel(opened.model, opened.source, chosen)
    with torch.no_grad(), rounded_model(opened.model, opened.source, opened.source.changed(chosen), {}):
        wanted = opened.model(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(latents(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    losses = learn(latents)
    assert losses[-1] < losses[0] - 0.1
    found = unpacked(latents, opened, chosen)
    for name, tensor in zip(chosen, latents.tensors, strict=True):
        with torch.no_grad():
            values = tensor().numpy()
        # Scales are rounded once more when they are packed: to 4 to 11 bits.
        error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
        assert error < 0.05, (name, error)
        assert not np.array_equal(found[name], opened.source.rounded(name, chosen[name])), name


def test_the_model_and_its_source_stay(opened: Opened) -> None:
    before = {name: p.detach().clone() for name, p in opened.model.named_parameters()}
    latents = LatentModel(opened.model, opened.source, chosen_grids(opened, "q4_k"))
    rows = {name: packed.copy() for name, packed in latents.packed()}
    learn(latents, 3)
    assert all(torch.equal(p, before[name]) for name, p in opened.model.named_parameters())
    assert all(
        np.array_equal(opened.source.packed(name, "q4_k"), rows[name]) for name in rows if rows[name].shape[0] > 1
    )


def test_grids_without_codes_stay(opened: Opened) -> None:
    first, *others = (t.name for t in opened.source.summary.tensors if t.quantizable)
    chosen = chosen_grids(opened, "q4_k") | {first: "iq3_s", others[0]: "f16"}
    assert [learns(chosen[name]) for name in (first, others[0], others[1])] == [False, False, True]
    latents = LatentModel(opened.model, opened.source, chosen)
    with torch.no_grad():
        before = latents.tensors[list(chosen).index(first)]().clone()
    learn(latents, 3)
    assert not {first, others[0]} & {name for name, _ in latents.packed()}
    with torch.no_grad():
        assert torch.equal(latents.tensors[list(chosen).index(first)](), before)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text"])
def test_padded_transposed_and_tied_weights_find_their_place(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model", ffn=90))
    chosen = {t.name: _grid_for(t) for t in opened.source.summary.tensors}
    latents = LatentModel(opened.model, opened.source, chosen)
    with torch.no_grad(), rounded_model(opened.model, opened.source, opened.source.changed(chosen), {}):
        wanted = opened.model(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(latents(input_ids=IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    losses = learn(latents)
    assert losses[-1] < losses[0]


def _grid_for(tensor: TensorInfo) -> str:
    return "q8_0" if tensor.quantizable and tensor.columns % 32 == 0 else "f32"
