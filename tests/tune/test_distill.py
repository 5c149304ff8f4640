"""Distilling: live, cached, on-policy, by sequences; from Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgegen
from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.training.batches import collate, encode
from edgegen.training.losses import counted, logits_of
from edgegen.training.teacher import CachedTeacher, LiveTeacher, keep_answers
from edgegen.tune.distill import DistillationLoss, Distilling
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts

_RUN: dict[str, Any] = {"steps": 10, "batch": 4, "max_tokens": 64}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("distill") / "teacher", layers=3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill") / "rows.jsonl"
    texts = sample_texts(40, words=10)
    path.write_text("".join(json.dumps({"prompt": t, "completion": t[:20]}) + "\n" for t in texts))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distill") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in sample_texts(60)))
    return path


def distance(teacher: Path, student: Path) -> float:
    """Mean KL of the teacher to a student on some text."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    items = encode(tokenizer, [Example(text=text) for text in sample_texts(6, seed=9)], max_tokens=64)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (teacher, student)]
    live = LiveTeacher(models[0], 1.0)
    total = 0.0
    for item in items:
        batch = collate([[item]], packed=False)
        mask, _, _ = counted(batch)
        with torch.no_grad():
            found = live.distance(batch, logits_of(models[1], batch)[mask], kind="forward", alpha=0.0)
        total += float(found.mean())
    return total / len(items)


@pytest.mark.parametrize(
    "how",
    [
        Distilling(loss="forward", labels=0.0),
        Distilling(loss="skew-reverse", labels=0.0, temperature=2.0),
        Distilling(loss="skew", top=32, labels=0.0),
        Distilling(loss="reverse", labels=0.0, on_policy=0.5),
    ],
    ids=["forward", "skew-reverse", "cached", "on-policy"],
)
def test_a_derived_student_comes_nearer(
    how: Distilling, teacher: Path, rows: Path, texts: Path, tmp_path: Path
) -> None:
    rows = texts if not how.on_policy else rows
    fixed = {**_RUN, "steps": 1, "rate": 1e-9}
    run = {**_RUN, "steps": 40, "rate": 2e-3}
    edgegen.distill(str(teacher), student="layers=2", data=str(rows), out=tmp_path / "before", how=how, **fixed)
    done = edgegen.distill(str(teacher), student="layers=2", data=str(rows), out=tmp_path / "after", how=how, **run)
    assert done.heldout_after < done.heldout_before
    assert distance(teacher, tmp_path / "after") < 0.9 * distance(teacher, tmp_path / "before")
    assert done.teacher_digest and done.method == ("on-policy" if how.on_policy else "distill")
    assert not list(tmp_path.glob("*.teacher")) and not list(tmp_path.glob("*.training"))


def test_kept_answers_are_the_live_ones_and_survive_a_kill(teacher: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    texts = [Example(text=text) for text in sample_texts(300, words=4)]
    items = encode(tokenizer, texts, max_tokens=32)
    vocab = model.config.vocab_size
    settings: dict[str, Any] = {"identity": "a", "k": vocab, "temperature": 1.0, "vocab": vocab}

    class _KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise _KilledError

    with pytest.raises(_KilledError):
        keep_answers(model, items, tmp_path / "kept", **settings, progress=kill)
    first = (tmp_path / "kept" / "shard-00000" / "ids.npy").stat().st_mtime_ns
    keep_answers(model, items, tmp_path / "kept", **settings)
    assert (tmp_path / "kept" / "shard-00000" / "ids.npy").stat().st_mtime_ns == first
    cached, live = CachedTeacher(tmp_path / "kept", items), LiveTeacher(model, 1.0)
    batch = collate([[items[290]], [items[3]]], packed=False)
    mask, _, _ = counted(batch)
    student = torch.randn(int(mask.sum()), vocab, generator=torch.Generator().manual_seed(1))
    found = [t.distance(batch, student, kind="forward", alpha=0.1) for t in (cached, live)]
    assert torch.allclose(found[0], found[1], rtol=5e-3, atol=5e-3)  # float16 log-probabilities


def test_labels_alone_are_the_cross_entropy(teacher: Path) -> None:
    from edgegen.training.losses import cross_entropy

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).requires_grad_(False)
    (item,) = encode(tokenizer, [Example(text="the dog ran over the hill")], max_tokens=32)
    batch = collate([[item]], packed=False)
    alone = DistillationLoss(LiveTeacher(model, 1.0), Distilling(labels=1.0))(model, batch)
    assert float(alone) == pytest.approx(float(cross_entropy(model, batch)), rel=1e-6)
    none = DistillationLoss(LiveTeacher(model, 1.0), Distilling(labels=0.0))(model, batch)
    assert float(none) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--temperature", "inf"), "--temperature"),
        (("--alpha", "nan"), "--alpha"),
        (("--student", ""), "--student is empty"),
        (("--student", "hidden=33"), "--student: "),
        (("--few-shot", "4", "--task", "task.toml", "--loss", "js"), "--loss does not go with --few-shot"),
        (("--few-shot", "4", "--task", "task.toml", "--sequence-level"), "--sequence-level does not go with"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[str, ...], says: str, teacher: Path, rows: Path, tmp_path: Path
) -> None:
    student = () if "--student" in words else ("--student", "layers=1")
    done = run_cli("distill", teacher, "--data", rows, "--out", tmp_path / "s", *student, *words)
    assert done.code == 2 and not done.out and done.err.startswith(f"edgegen: {says}"), done
    assert not list(tmp_path.iterdir())


def test_other_vocabularies_need_sequences(teacher: Path, rows: Path, tmp_path: Path) -> None:
    other = make_tiny("llama", tmp_path / "other", vocab=350)
    with pytest.raises(ConfigError, match="different vocabularies") as caught:
        edgegen.distill(str(teacher), student=str(other), data=str(rows), out=tmp_path / "s", **_RUN)
    assert "--sequence-level" in caught.value.hint
    done = edgegen.distill(
        str(teacher), student=str(other), data=str(rows), out=tmp_path / "s", sequence_level=True, rate=3e-3, **_RUN
    )
    assert done.method == "sequence-level"
    assert (tmp_path / "s" / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert done.losses[-1].train < done.losses[1].train


def test_the_command(teacher: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ["--data", rows, "--out", tmp_path / "s", "--steps", 4, "--batch", 4, "--max-tokens", 64]
    done = run_cli("distill", teacher, "--student", "0.7x", *arguments)
    assert done.code == 0 and "held-out loss" in done.out
    for wrong, words in (
        (["--student", "2x"], "between 0 and 1"),
        (["--student", "0.7x", "--loss", "kl"], "'kl' is unknown"),
        (["--student", "0.7x", "--labels", 2], "--labels must lie between"),
        (["--student", "0.7x", "--top", 8, "--on-policy", 0.5], "--top keeps answers"),
        (["--student", "./nowhere"], "no such folder"),
    ):
        refused = run_cli("distill", teacher, *wrong, *arguments)
        assert refused.code == 2 and words in refused.err and "Traceback" not in refused.err
