"""A model larger than the memory it may take is planned block by block, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgegen
from edgegen.catalog import load_target
from edgegen.common.codec import load_json
from edgegen.errors import UnsupportedError
from edgegen.records.measured import Measured
from edgegen.records.plan import Plan
from edgegen.records.reference import Reference
from edgegen.sdk import stages
from edgegen.sdk.job import Job
from edgegen.sdk.subject import Subject
from edgegen.sdk.workspace import Workspace

PROFILE = "laptop-x86-16gb"
LITTLE = 100_000
"""Bytes: less than any model takes."""
WISHES = {"max_bytes": 150_000, "grids": ("q8_0", "q4_0")}


@pytest.fixture
def no_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr("edgegen.sdk.subject.open_model", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_whole_model")
def test_planned_like_in_memory(
    calm_llama: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    arguments = {"profile": PROFILE, "data": str(tiny_data), **WISHES}
    found = edgegen.plan(
        str(calm_llama),
        out=tmp_path / "streamed",
        memory_bytes=LITTLE,
        notify=lambda stage, state, done, total: told.append((stage, done, total)),
        **arguments,
    )
    assert isinstance(found, Plan)
    assert any("block by block" in note for note in found.notes)
    assert any("The vocabulary stays whole" in note for note in found.notes)
    assert ("measure", 8, 8) in told and ("plan", 3, 3) in told
    monkeypatch.undo()
    usual = edgegen.plan(str(calm_llama), out=tmp_path / "usual", vocab="keep", **arguments)
    assert isinstance(usual, Plan)
    assert found.prediction.bytes == usual.prediction.bytes
    assert found.prediction.kl == pytest.approx(usual.prediction.kl, rel=0.3)
    measured = [load_json(Workspace(tmp_path / n).folder / "measured.json", Measured) for n in ("streamed", "usual")]
    assert measured[0].kl.keys() == measured[1].kl.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("no_whole_model")
def test_the_reference_is_the_originals(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    subject = Subject(str(calm_llama), str(tiny_data), [load_target("gguf")], memory_bytes=LITTLE)
    found = edgegen.plan(
        str(calm_llama), profile=PROFILE, data=str(tiny_data), out=tmp_path / "o", memory_bytes=LITTLE, **WISHES
    )
    assert isinstance(found, Plan)
    job, folder = Job(subject, found.profile, load_target("gguf"), None), Workspace(tmp_path / "o").folder
    stages.compress(job, folder, found)
    stages.export(job, folder, found)
    stages.reference(job, folder, found)
    reference = load_json(folder / "reference" / "reference.json", Reference)
    quality = np.load(folder / "reference" / "quality.npy")
    assert quality.shape == (sum(e - s for w in reference.windows for s, e in w.counts), found.summary.vocab_size)
    assert np.exp(quality.astype(np.float64)).sum(-1) == pytest.approx(1, abs=0.01)
    parity = np.load(folder / "reference" / "parity.npy")
    assert len(parity) == sum(len(w.ids) for w in reference.windows[: reference.parity_windows])
    assert not reference.prompts and not reference.greedy


def test_another_vocabulary_is_refused(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="whole model in memory"):
        edgegen.plan(
            str(calm_llama),
            profile=PROFILE,
            data=str(tiny_data),
            out=tmp_path / "o",
            memory_bytes=LITTLE,
            vocab="300",
            **WISHES,
        )
