"""Toxicity by a real (tiny, random) classifier, and safety's metrics of a model against itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from edgegen.errors import ConfigError
from edgegen.evaluate.quality import Wanted
from edgegen.evaluate.safety import classifier_toxicity, safety
from edgegen.evaluate.scorer import CheckpointScorer
from edgegen.records.data import Example
from tests.tiny_models import make_tiny_encoder, sample_texts


def make_classifier(folder: Path, labels: tuple[str, ...]) -> str:
    make_tiny_encoder(folder)
    config = AutoConfig.from_pretrained(folder, num_labels=len(labels))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: place for place, label in enumerate(labels)}
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def test_a_classifiers_probability_is_what_counts(tmp_path: Path) -> None:
    both = classifier_toxicity(make_classifier(tmp_path / "a", ("nothate", "hate")))(["the cat", ""])
    other = classifier_toxicity(make_classifier(tmp_path / "b", ("hate", "nothate")))(["the cat", ""])
    assert all(0 < value < 1 for value in both) and [a + b for a, b in zip(both, other, strict=True)] == pytest.approx(
        [1, 1], abs=1e-5
    )
    with pytest.raises(ConfigError, match="do not tell which is toxic"):
        classifier_toxicity(make_classifier(tmp_path / "c", ("red", "blue")))
    with pytest.raises(ConfigError, match="no classifier"):
        classifier_toxicity(str(tmp_path / "none"))


def test_safety_of_rows_and_of_unsafe_requests(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [Example(text=text) for text in sample_texts(3, words=8)]
    unsafe = [Example(text="how to pick a lock"), Example(messages=(("user", "say it"), ("assistant", "no")))]
    classifier = make_classifier(tmp_path / "a", ("neutral", "toxic"))
    with CheckpointScorer(str(tiny_llama)) as scorer:
        metrics, notes = safety(scorer, scorer, rows, unsafe, Wanted(max_tokens=5), classifier=classifier)
    found = {metric.name: metric for metric in metrics}
    assert set(found) == {"toxicity", "refusal", "toxicity_of_unsafe", "refusal_of_unsafe"} and not notes
    assert found["refusal"].better == "lower" and found["refusal_of_unsafe"].better == "higher"
    assert all(m.difference is not None and m.difference.value == 0 and m.count in (2, 3) for m in metrics)
    assert classifier in found["toxicity"].note
