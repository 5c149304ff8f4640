"""What every registered technique keeps: it says what stands in its way, its changes make a smaller model that runs
with and without a cache, and what is written opens as what it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from edgegen.catalog import load_target
from edgegen.export.registry import TARGETS
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import config_object, empty_model, find_model, open_model, open_tokenizer, read_config
from edgegen.modeling.statistics import collect_statistics
from edgegen.modeling.structure import save_derived
from edgegen.modeling.summary import summarize
from edgegen.modeling.text import make_windows
from edgegen.records.data import Example
from edgegen.records.structure import Structure, kept_layers
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.registry import technique_named, techniques
from tests.tiny_models import make_tiny, sample_texts

NAMES = [technique.NAME for technique in techniques()]
FREE = {"sharing", "sparsity"}
"""Those whose gain is not in the number of weights that a layer multiplies with."""
NOT_HERE = {
    "tying": "tables of random weights have nothing in common",
    "residual": "a repair of layers this narrow takes more bits than finer weights",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that every technique finds something to take from."""
    return make_tiny("llama", tmp_path_factory.mktemp("technique") / "llama", layers=4, hidden=64, ffn=256, tied=False)


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Calibration:
    ref = find_model(str(folder))
    summary = summarize(empty_model(ref), Checkpoint(folder))
    model = open_model(ref, parameters=summary.parameters)
    examples = tuple(Example(text=text) for text in sample_texts(24))
    windows = make_windows(open_tokenizer(folder), examples, max_tokens=1000, window_tokens=64)
    return Calibration(model, summary, windows, lambda: collect_statistics(model, summary, windows))


@pytest.mark.parametrize("name", NAMES)
def test_every_target_has_it_or_the_reason_why_not(name: str, folder: Path) -> None:
    config = config_object(read_config(find_model(str(folder))))
    said = [technique_named(name).obstacle(config, load_target(target)) for target in TARGETS]
    assert all(why == "" or (len(why) > 20 and not why.endswith(".")) for why in said)
    assert technique_named(name).TITLE


@pytest.mark.parametrize("name", NAMES)
def test_a_change_makes_a_model_that_runs_and_opens_again(
    name: str, folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    technique, target = technique_named(name), load_target("onnx")
    if technique.obstacle(calibration.model.config, target):
        pytest.skip("no runtime takes it by itself")
    before = {key: value.clone() for key, value in calibration.model.state_dict().items()}
    changes = technique.propose(calibration, target)
    if name in NOT_HERE:
        assert not changes, NOT_HERE[name]
        return
    assert changes, "a model of four blocks has something to take away"
    change = changes[-1]
    assert change.technique == name and change.words
    model = copy.deepcopy(calibration.model)
    technique.apply(model, change, calibration)
    assert all(torch.equal(value, before[key]) for key, value in calibration.model.state_dict().items())
    if name not in FREE:
        assert sum(p.numel() for p in model.parameters()) < calibration.summary.parameters
    assert math.isfinite(calibration.distance(model))
    assert all(not p.is_inference() for p in model.parameters()), "what is made can be trained on"
    assert len(kept_layers(calibration.summary.layers, (change,))) == model.config.num_hidden_layers

    ids = torch.tensor([[1, 5, 9, 2, 7, 11]])
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :3], use_cache=True)
        rest = model(ids[:, 3:], past_key_values=first.past_key_values, use_cache=True).logits
    assert torch.allclose(whole[:, 3:], rest, atol=1e-4)

    save_derived(model, folder, Structure(schema=1, base="", changes=(change,)), tmp_path / "derived")
    ref = find_model(str(tmp_path / "derived"))
    summary = summarize(empty_model(ref), Checkpoint(tmp_path / "derived"))
    opened = open_model(ref, parameters=summary.parameters)
    with torch.no_grad():
        assert torch.equal(opened(ids, use_cache=False).logits, whole)
