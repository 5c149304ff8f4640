"""Two tables as one: where they are alike, and only there."""

import types
from pathlib import Path

import pytest
import torch

from edgegen.catalog import load_target
from edgegen.records.structure import Change
from edgegen.techniques import tying
from tests.modeling.opened import Opened, open_all
from tests.techniques.derived import calibrated, changed, logits, reopened
from tests.tiny_models import make_tiny


def nearly_tied(family: str, folder: Path, apart: float) -> Opened:
    opened = open_all(make_tiny(family, folder, tied=False))
    table = opened.model.get_input_embeddings().weight
    torch.manual_seed(0)
    opened.model.get_output_embeddings().weight.copy_(table + apart * torch.randn(table.shape))
    return opened


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_a_head_that_is_the_table_is_tied_exactly(family: str, tmp_path: Path) -> None:
    opened = nearly_tied(family, tmp_path / "hf", 0.0)
    calibration = calibrated(opened)
    (change,) = tying.propose(calibration, load_target("gguf"))
    model = changed(tying, change, calibration)
    torch.testing.assert_close(logits(model), logits(opened.model))
    again = reopened(model, change, tmp_path / "hf", tmp_path / "derived")
    assert again.summary.tied and not opened.summary.tied
    table = opened.model.get_input_embeddings().weight
    assert opened.summary.parameters - again.summary.parameters == table.numel()


def test_the_table_that_serves_both_best_is_taken(tmp_path: Path) -> None:
    calibration = calibrated(nearly_tied("llama", tmp_path / "hf", 0.01))
    (change,) = tying.propose(calibration, load_target("gguf"))
    distances = {
        table: calibration.distance(
            changed(tying, Change(technique="tying", values={table: ()}, words=""), calibration)
        )
        for table in tying.TABLES
    }
    assert list(change.values) == [min(distances, key=lambda table: distances[table])]


def test_tables_of_different_models_stay_two(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", tied=False))
    assert tying.propose(calibrated(opened), load_target("gguf")) == []


def test_who_cannot_have_it() -> None:
    def why(family: str, tied: bool) -> str:
        config = types.SimpleNamespace(model_type=family, tie_word_embeddings=tied)
        return tying.obstacle(config, load_target("onnx"))

    assert why("llama", False) == ""
    assert "already" in why("llama", True)
    assert "bias" in why("phi", False)
    assert "no head" in why("bert", True)
