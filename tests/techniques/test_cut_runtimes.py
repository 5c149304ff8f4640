"""What cuts leave runs on every runtime that their techniques do not refuse, with torch's numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from edgegen.catalog.load import load_target
from edgegen.export import exporter_for
from edgegen.records.structure import Change
from edgegen.runtime.llamacpp import LlamaCpp
from edgegen.techniques import depth, heads, kv_heads, layer_width, width
from tests.export.packed_models import IDS, SETTINGS, TEXTS, check_strict, mean_kl, torch_logits
from tests.modeling.opened import open_all
from tests.techniques.cut_models import Cut, calibrated, store
from tests.tiny_models import make_tiny, pack_uniform

pytestmark = pytest.mark.slow

SHORTER = (depth, {"removed": (1,)})
NARROWER = (width, {"width": (96,)})
BY_LAYER = (layer_width, {"widths": (64, 96)})
FEWER = (heads, {"kv_heads": (2,)})
SHARED = (kv_heads, {"kv_heads": (1,)})
_TOKENIZER = {"gemma": "gemma", "gemma3_text": "gemma", "qwen2": "qwen2", "mistral": "sentencepiece"}


def derive(folder: Path, family: str, target: str, *steps: tuple[Any, dict[str, tuple[int, ...]]]) -> Path:
    """A checkpoint that was changed step by step, each on what the one before wrote; packed without rounding."""
    sizes = {"heads": 4, "kv_heads": 4} if family == "phi" else {"heads": 8, "kv_heads": 4}
    now = make_tiny(family, folder / "0", layers=3, tokenizer=_TOKENIZER.get(family, "bytelevel"), **sizes)
    for number, (technique, values) in enumerate(steps, 1):
        opened = open_all(now)
        assert technique.obstacle(opened.model.config, load_target(target)) == ""
        cut = Cut(now, opened, calibrated(opened, tokens=200))
        model, change = copy.deepcopy(opened.model), Change(technique=technique.NAME, values=values, words="")
        technique.apply(model, change, cut.calibration)
        now = store(model, cut, folder / str(number), change)
    return pack_uniform(now, folder / "compressed", "f32")


def check(compressed: Path, folder: Path, target: str) -> None:
    if target != "gguf":
        check_strict(compressed, folder, target=target)
        return
    exporter_for("gguf").export(compressed, folder / "a", SETTINGS, prove_texts=TEXTS)
    wanted = torch_logits(compressed, IDS)
    with LlamaCpp().open(folder / "a" / "model.gguf", SETTINGS) as session:
        assert mean_kl(wanted, session.score(IDS)[:, : wanted.shape[1]]) < 1e-5


@pytest.mark.parametrize(
    ("target", "widths"),
    [("gguf", NARROWER), ("onnx", NARROWER), ("onnx", BY_LAYER), ("litert", BY_LAYER)],
    ids=["gguf", "onnx", "onnx, by layer", "litert, by layer"],
)
def test_all_cuts_together(target: str, widths: tuple[Any, dict[str, tuple[int, ...]]], tmp_path: Path) -> None:
    check(derive(tmp_path, "llama", target, SHORTER, widths, FEWER, SHARED), tmp_path, target)


_SHAPED = (SHORTER, NARROWER, FEWER, SHARED)
_SQUARE = (SHORTER, NARROWER, SHARED)


@pytest.mark.parametrize(
    ("family", "target", "steps"),
    [
        ("qwen2", "gguf", _SQUARE),
        ("qwen3", "gguf", _SHAPED),
        ("gemma3_text", "gguf", _SHAPED),
        ("phi", "gguf", _SQUARE),
        ("phi3", "gguf", (SHORTER, NARROWER)),
        ("gpt2", "gguf", (SHORTER, NARROWER)),
        ("qwen2", "onnx", _SHAPED),
        ("gemma3_text", "onnx", _SHAPED),
        ("phi", "onnx", _SHAPED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_families(family: str, target: str, steps: tuple[Any, ...], tmp_path: Path) -> None:
    check(derive(tmp_path, family, target, *steps), tmp_path, target)
