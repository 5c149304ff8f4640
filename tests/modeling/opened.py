"""A checkpoint with everything that the tests look at, opened as the stages do."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import empty_model, find_model, open_model, open_tokenizer
from edgegen.modeling.source import TensorSource
from edgegen.modeling.summary import summarize
from edgegen.modeling.text import Window, make_windows
from edgegen.records.data import Example
from edgegen.records.model import ModelRef, ModelSummary
from tests.tiny_models import sample_texts


class Opened(NamedTuple):
    ref: ModelRef
    checkpoint: Checkpoint
    empty: Any
    summary: ModelSummary
    source: TensorSource
    model: Any
    tokenizer: Any


def open_all(folder: Path) -> Opened:
    ref = find_model(str(folder))
    checkpoint = Checkpoint(folder)
    empty = empty_model(ref)
    summary = summarize(empty, checkpoint)
    source = TensorSource(empty, checkpoint, summary)
    model = open_model(ref, parameters=summary.parameters)
    return Opened(ref, checkpoint, empty, summary, source, model, open_tokenizer(folder))


def rows(count: int, *, seed: int = 3, words: int = 30) -> tuple[Example, ...]:
    return tuple(Example(text=text) for text in sample_texts(count, seed=seed, words=words))


def windows(tokenizer: Any, count: int = 8, *, seed: int = 3, tokens: int = 400) -> list[Window]:
    return make_windows(tokenizer, rows(count, seed=seed), max_tokens=tokens, window_tokens=64)


def all_counted(ids: list[int]) -> Window:
    counts = np.ones(len(ids), dtype=bool)
    counts[-1] = False
    return Window(ids=np.array(ids, dtype=np.int64), counts=counts, bytes=len(ids))
