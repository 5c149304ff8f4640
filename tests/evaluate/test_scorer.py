"""A checkpoint and its artifact answer the same calls, and nearly alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgegen.errors import ConfigError
from edgegen.evaluate.scorer import ArtifactScorer, CheckpointScorer, continuation, decode, text_continuation, write
from edgegen.runtime.sampling import Sampling
from tests.tiny_models import export_tiny, make_tiny_encoder

_TEXT = "the cat walked over the river and found a lamp"


@pytest.fixture(scope="module")
def checkpoint(calm_llama: Path) -> Iterator[CheckpointScorer]:
    with CheckpointScorer(str(calm_llama)) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def artifact(calm_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactScorer]:
    folder = tmp_path_factory.mktemp("scored")
    export_tiny(calm_llama, folder)
    with ArtifactScorer(folder / "artifact") as scorer:
        yield scorer


def test_a_continuations_log_probability_is_the_models(checkpoint: CheckpointScorer, calm_llama: Path) -> None:
    ids = checkpoint.encode(_TEXT)
    model = AutoModelForCausalLM.from_pretrained(calm_llama, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1).numpy()
    found, greedy = continuation(checkpoint, ids[:4], ids[4:])
    assert found == pytest.approx([expected[t - 1, ids[t]] for t in range(4, len(ids))], abs=1e-4)
    assert greedy == all(expected[t - 1].argmax() == ids[t] for t in range(4, len(ids)))


def test_the_runtime_agrees_with_torch(checkpoint: CheckpointScorer, artifact: ArtifactScorer) -> None:
    assert artifact.judged.runtime == "llama.cpp" and checkpoint.judged.runtime == "torch"
    assert artifact.encode(_TEXT) == checkpoint.encode(_TEXT)
    for before in ("the cat walked", ""):
        mine, _ = text_continuation(artifact, before, " over the river")
        its, _ = text_continuation(checkpoint, before, " over the river")
        assert mine == pytest.approx(its, abs=0.02)
    ids = checkpoint.encode(_TEXT)
    assert write(artifact, ids, max_tokens=6) == write(checkpoint, ids, max_tokens=6)
    drawn = Sampling(temperature=0.8, seed=3)
    assert write(checkpoint, ids, max_tokens=6, sampling=drawn) == write(checkpoint, ids, max_tokens=6, sampling=drawn)
    assert isinstance(decode(artifact, ids), str)


def test_a_greedy_answer_is_greedy_and_long_texts_are_cut(checkpoint: CheckpointScorer) -> None:
    ids = checkpoint.encode(_TEXT)
    answer = write(checkpoint, ids, max_tokens=5)
    assert continuation(checkpoint, ids, answer)[1]
    long = ids * 60
    assert len(long) > checkpoint.context_tokens
    assert len(continuation(checkpoint, long, answer)[0]) == len(answer)
    assert len(continuation(checkpoint, [], long)[0]) == checkpoint.context_tokens - 1
    assert len(write(checkpoint, long, max_tokens=4)) <= 4
    assert np.isfinite(continuation(checkpoint, long, answer)[0]).all()


def test_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an encoder"):
        CheckpointScorer(str(make_tiny_encoder(tmp_path / "e")))
