"""What the original said, as it is kept: exact enough, complete, whole or not there."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgegen.common.codec import load_json
from edgegen.errors import DeviceError
from edgegen.modeling import reference as module
from edgegen.modeling.forward import counted_log_probs
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.reference import greedy, save_reference
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.text import make_windows
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.records.data import Example
from edgegen.records.reference import Reference
from edgegen.verify.quality import counted_positions, log_softmax
from tests.modeling.opened import Opened, open_all, rows
from tests.tiny_models import make_tiny

HELDOUT = rows(12, seed=21)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Opened:
    return open_all(tiny_llama)


def save(opened: Opened, out: Path, **more: Any) -> Reference:
    arguments: dict[str, Any] = {
        "tokenizer": opened.tokenizer,
        "artifact_tokenizer": opened.tokenizer,
        "kept": None,
        "grids": {t.name: "q4_0" if t.quantizable else "f32" for t in opened.summary.tensors},
        "heldout": HELDOUT,
        "prompts": 3,
        "eos_ids": (0,),
        "context_tokens": 256,
        "out": out,
    }
    return save_reference(opened.model, opened.source, **(arguments | more))


def test_the_record_is_what_was_saved(llama: Opened, tmp_path: Path) -> None:
    record = save(llama, tmp_path / "reference")
    assert load_json(tmp_path / "reference" / "reference.json", Reference) == record
    assert not record.trimmed and record.vocab_size == 400 and len(record.prompts) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference"]


def test_float16_keeps_the_distribution(llama: Opened, tmp_path: Path) -> None:
    record = save(llama, tmp_path / "reference")
    windows = make_windows(llama.tokenizer, HELDOUT, max_tokens=10**6, window_tokens=256)
    exact = counted_log_probs(llama.model, windows).double().numpy()
    stored = np.load(tmp_path / "reference" / "quality.npy").astype(np.float64)
    assert stored.shape == exact.shape == (sum(w.tokens for w in windows), 400)
    assert np.abs(stored - exact).max() < 8e-3
    kl = (np.exp(exact) * (exact - log_softmax(stored))).sum(1).mean()
    assert kl < 1e-6
    for window, kept in zip(windows, record.windows, strict=True):
        assert list(kept.ids) == window.ids.tolist() and kept.bytes == window.bytes
        assert counted_positions(kept).tolist() == np.flatnonzero(window.counts).tolist()


def test_parity_is_the_rounded_model(llama: Opened, tmp_path: Path) -> None:
    record = save(llama, tmp_path / "reference")
    grids = {t.name: "q4_0" for t in llama.summary.tensors if t.quantizable}
    ids = [torch.tensor([window.ids]) for window in record.windows[: record.parity_windows]]
    with rounded_model(llama.model, llama.source, grids, {}), torch.no_grad():
        wanted = torch.cat([llama.model(one).logits[0] for one in ids]).numpy()
    assert np.abs(np.load(tmp_path / "reference" / "parity.npy") - wanted).max() < 1e-4


def test_answers_are_torchs_greedy_ones(llama: Opened, tmp_path: Path) -> None:
    record = save(llama, tmp_path / "reference")
    for prompt in record.prompts:
        ids = torch.tensor([prompt.ids])
        made = llama.model.generate(
            ids, max_new_tokens=96, do_sample=False, eos_token_id=0, pad_token_id=0, attention_mask=torch.ones_like(ids)
        )[0, len(prompt.ids) :].tolist()
        made = made[: made.index(0)] if 0 in made else made
        assert prompt.answer_tokens == len(made)
        assert prompt.answer == llama.tokenizer.decode(made, skip_special_tokens=True)


def test_greedy_stops_at_the_end_and_at_the_context(llama: Opened) -> None:
    whole = greedy(llama.model, [5, 6], max_tokens=20, eos_ids=())
    assert len(whole) == 20
    stop = whole[7]
    assert greedy(llama.model, [5, 6], max_tokens=20, eos_ids=(stop,)) == whole[: whole.index(stop)]
    assert greedy(llama.model, list(range(5, 255)), max_tokens=20, eos_ids=()) != []
    assert len(greedy(llama.model, [5] * 250, max_tokens=20, eos_ids=())) == 6


def test_a_trimmed_vocabulary_keeps_the_mass_that_is_left(llama: Opened, tmp_path: Path) -> None:
    vocabulary = Vocabulary(Path(llama.ref.path) / "tokenizer.json")
    kept = vocabulary.choose(np.zeros(400, dtype=np.int64), 320)
    vocabulary.write_trimmed(Path(llama.ref.path), tmp_path / "tokenizer", kept)
    trimmed = open_tokenizer(tmp_path / "tokenizer")
    record = save(llama, tmp_path / "reference", artifact_tokenizer=trimmed, kept=kept)
    assert record.trimmed and record.vocab_size == len(kept)
    stored = np.load(tmp_path / "reference" / "quality.npy").astype(np.float64)
    mass = np.exp(stored).sum(1)
    windows = make_windows(trimmed, HELDOUT, max_tokens=10**6, window_tokens=256)
    originals = [w.__class__(ids=kept[w.ids], counts=w.counts, bytes=w.bytes) for w in windows]
    exact = counted_log_probs(llama.model, originals)[:, torch.from_numpy(kept)].exp().sum(1).numpy()
    np.testing.assert_allclose(mass, exact, atol=2e-3)
    assert mass.mean() < 0.99
    assert all(max(prompt.ids) < len(kept) for prompt in record.prompts)
    assert np.load(tmp_path / "reference" / "parity.npy").shape[1] == len(kept)


def test_windows_and_requests_fit_the_context(llama: Opened, tmp_path: Path) -> None:
    long = Example(messages=(("user", HELDOUT[0].text * 3), ("assistant", "yes, good")), completion=True)
    short = Example(messages=(("user", "hello"), ("assistant", "yes, good dog")), completion=True)
    record = save(llama, tmp_path / "reference", heldout=(long, short), context_tokens=48)
    assert all(len(window.ids) <= 48 for window in record.windows)
    assert [prompt.expected for prompt in record.prompts] == ["yes, good dog"]
    assert all(len(prompt.ids) < 48 for prompt in record.prompts)


def test_learned_positions_are_not_read_past_their_end(tmp_path: Path) -> None:
    opened = open_all(make_tiny("gpt2", tmp_path / "m", context=32))
    record = save(opened, tmp_path / "reference", context_tokens=32)
    assert max(len(window.ids) for window in record.windows) == 32


@pytest.mark.parametrize("fails", ["_answer", "_save_quality", "save_json"])
def test_a_full_disk_leaves_the_old_one_and_nothing_else(
    llama: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    save(llama, tmp_path / "reference")
    before = {p.name: p.read_bytes() for p in (tmp_path / "reference").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, fails, full)
    with pytest.raises(DeviceError, match="no space left"):
        save(llama, tmp_path / "reference", prompts=1)
    assert [p.name for p in tmp_path.iterdir()] == ["reference"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "reference").iterdir()} == before


def test_progress_reaches_its_end(llama: Opened, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    save(llama, tmp_path / "reference", progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] and [d for d, _ in steps] == sorted(d for d, _ in steps)
