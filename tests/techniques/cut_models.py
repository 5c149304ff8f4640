"""A tiny model, calibration text for it, and what every changed model has to be: runnable and storable."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import check_model, empty_model, find_model, open_model, open_tokenizer
from edgegen.modeling.statistics import collect_statistics
from edgegen.modeling.structure import save_derived
from edgegen.modeling.summary import summarize
from edgegen.records.structure import Change, Structure
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.technique import Technique
from tests.modeling.opened import Opened, open_all, windows
from tests.tiny_models import make_tiny

IDS = torch.tensor([[1, 5, 9, 2, 44, 17, 200, 31, 8, 77, 120, 6]])

_QUICK = ("llama", "gpt2")


def some_quick(families: tuple[str, ...]) -> list[Any]:
    """Families to go through, most of them only in slow runs."""
    return [family if family in _QUICK else pytest.param(family, marks=pytest.mark.slow) for family in families]


class Cut(NamedTuple):
    """An original that may be prepared, and text to look at it with."""

    folder: Path
    opened: Opened
    calibration: Calibration

    @property
    def model(self) -> Any:
        return self.opened.model


def calibrated(opened: Opened, *, tokens: int = 500) -> Calibration:
    some = windows(opened.tokenizer, 30, tokens=tokens)
    return Calibration(
        opened.model, opened.summary, some, lambda: collect_statistics(opened.model, opened.summary, some)
    )


def prepare(folder: Path, family: str = "llama", *, tokens: int = 500, **sizes: Any) -> Cut:
    """A tiny model in memory, which tests may write into before anything is measured."""
    opened = open_all(make_tiny(family, folder / "original", **sizes))
    return Cut(folder / "original", opened, calibrated(opened, tokens=tokens))


def changed(technique: Technique, change: Change, cut: Cut) -> Any:
    """A copy of the model with the change made."""
    model = copy.deepcopy(cut.model)
    technique.apply(model, change, cut.calibration)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits[0]
    return found


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def store(model: Any, cut: Cut, out: Path, *changes: Change) -> Path:
    save_derived(model, cut.folder, Structure(schema=1, base=cut.opened.ref.digest, changes=changes), out)
    return out


def check_sound(model: Any, cut: Cut, out: Path, change: Change) -> None:
    """Steps with a cache give what the whole text gives, and so does the checkpoint that is written and opened."""
    wanted = logits(model)
    with torch.no_grad():
        past, found = None, []
        for step in IDS.split(5, dim=1):
            answer = model(step, past_key_values=past, use_cache=True)
            past = answer.past_key_values
            found.append(answer.logits[0])
    torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-3, atol=1e-3)
    ref = find_model(str(store(model, cut, out, change)))
    empty, checkpoint = empty_model(ref), Checkpoint(out)
    assert check_model(ref, empty, checkpoint, open_tokenizer(out)) == []
    summary = summarize(empty, checkpoint)
    assert summary.parameters == parameters(model)
    assert torch.equal(logits(open_model(ref, parameters=summary.parameters)), wanted)
