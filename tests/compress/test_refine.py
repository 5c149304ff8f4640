"""Tuning rounded weights: nearer to the original, never farther, in the same bytes; cut off, it goes on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgegen.common.codec import load_json
from edgegen.compress.refine import RefineOptions, rate_for, read_refinement, refine, use_refined
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.text import Window, windows_of
from edgegen.records.refinement import Refined, Refinement
from edgegen.training.batches import Item
from tests.modeling.opened import Opened, open_all, rows
from tests.tiny_models import make_tiny

LONG = RefineOptions(seconds=3600, steps=40)


class Case(msgspec.Struct):
    opened: Opened
    chosen: dict[str, str]
    items: list[Item]
    heldout: list[Item]
    scored: list[Window]

    def kl(self) -> float:
        """Of what the source rounds at the moment."""
        opened = self.opened
        original = counted_log_probs(opened.model, self.scored)
        with rounded_model(opened.model, opened.source, opened.source.changed(self.chosen), {}):
            return mean_kl(original, counted_log_probs(opened.model, self.scored))

    def refine(self, out: Path, options: RefineOptions = LONG, **more: object) -> Refinement:
        opened = self.opened
        arguments = {"judge": self.kl, "identity": "a", **more}
        return refine(
            opened.model, opened.model, opened.source, self.chosen, self.items, self.heldout, out=out, options=options,
            **arguments,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def case(tmp_path: Path) -> Case:
    opened = open_all(make_tiny("llama", tmp_path / "model", hidden=64, ffn=64, layers=2))
    windows = [w for row in rows(60, words=16) for w in windows_of(opened.tokenizer, row, 32)]
    items = [Item(ids=w.ids, counts=w.counts, index=number) for number, w in enumerate(windows)]
    chosen = {t.name: "u2_32" if t.quantizable else "f32" for t in opened.source.summary.tensors}
    return Case(opened, chosen, items[:40], items[40:48], windows[48:])


def weights_in(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def test_it_comes_nearer_in_the_same_bytes(case: Case, tmp_path: Path) -> None:
    source, before = case.opened.source, case.kl()
    sizes = {name: source.packed(name, grid).shape for name, grid in case.chosen.items()}
    found = case.refine(tmp_path / "out")
    assert found.kept and found.kl_before == before and found.kl_after == case.kl() < 0.9 * before
    assert found.steps == 40 and found.tensors == len(case.chosen) and found.seconds > 0
    assert found.tokens == pytest.approx(40 * 4 * np.mean([item.tokens for item in case.items]), rel=0.1)
    assert {name: source.packed(name, grid).shape for name, grid in case.chosen.items()} == sizes
    assert read_refinement(tmp_path / "out") == found
    assert load_json(tmp_path / "out" / "refinement.json", Refined) == Refined(1, found, case.chosen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"], "work in progress is gone"


def test_its_source_takes_the_tuned_weights_and_leaves_them(case: Case, tmp_path: Path) -> None:
    source, name = case.opened.source, next(iter(case.chosen))
    plain = source.packed(name, "u2_32").copy()
    case.refine(tmp_path / "out")
    tuned = source.packed(name, "u2_32")
    assert not np.array_equal(tuned, plain)
    assert np.array_equal(source.packed(name, "u2_32", plain=True), plain), "without compensation is without tuning"
    assert "u4_32" not in case.chosen.values() and source.packed(name, "u4_32").shape != tuned.shape
    source.use_tuned({}, None)
    assert np.array_equal(source.packed(name, "u2_32"), plain)
    use_refined(source, tmp_path / "out")
    assert np.array_equal(source.packed(name, "u2_32"), tuned)


def test_cut_off_it_goes_on_to_the_same_weights(case: Case, tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done >= total // 2:
            raise CutError

    case.refine(tmp_path / "whole")
    with pytest.raises(CutError):
        case.refine(tmp_path / "cut", progress=cut)
    assert not (tmp_path / "cut").exists()
    told: list[int] = []
    case.refine(tmp_path / "cut", progress=lambda done, total: told.append(done))
    assert weights_in(tmp_path / "cut") == weights_in(tmp_path / "whole")
    assert 0 < len(told) < 40 and told[-1] == 40


def test_a_rate_that_makes_it_worse_is_lowered(case: Case, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    case.chosen = {name: grid.replace("u2", "u4") for name, grid in case.chosen.items()}
    options = RefineOptions(seconds=3600, steps=64, rate=2.0)
    found = case.refine(tmp_path / "out", options, progress=lambda done, total: told.append((done, total)))
    starts = [total for done, total in told if done == 1]
    assert len(starts) > 1 and starts[0] == 64 and starts == sorted(starts, reverse=True)
    assert found.kept and found.kl_after < found.kl_before and found.steps == starts[-1]


def test_what_is_no_better_is_not_kept(case: Case, tmp_path: Path) -> None:
    judged = iter([0.1, 0.2])
    name, before = next(iter(case.chosen)), case.kl()
    found = case.refine(tmp_path / "out", judge=lambda: next(judged))
    assert not found.kept and (found.kl_before, found.kl_after, found.digest) == (0.1, 0.1, "")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["refinement.json"]
    use_refined(case.opened.source, tmp_path / "out")
    assert case.kl() == before and case.opened.source.packed(name, "u2_32").any()


def test_too_little_time_or_text_changes_nothing(case: Case, tmp_path: Path) -> None:
    short = case.refine(tmp_path / "short", RefineOptions(seconds=1e-6))
    case.items, case.heldout = [], []
    none = case.refine(tmp_path / "none")
    assert not short.kept and not none.kept and short.steps == none.steps == 0
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["refinement.json"]


def test_tokens_that_are_trimmed_are_none_of_it(case: Case, tmp_path: Path) -> None:
    opened = case.opened
    kept = np.unique(np.concatenate([item.ids for item in (*case.items, *case.heldout)] + [w.ids for w in case.scored]))
    assert len(kept) < opened.summary.vocab_size
    columns = torch.from_numpy(kept)

    def kl() -> float:
        original = torch.log_softmax(counted_log_probs(opened.model, case.scored)[:, columns], -1)
        with rounded_model(opened.model, opened.source, opened.source.changed(case.chosen), {}):
            rounded = counted_log_probs(opened.model, case.scored)
        return mean_kl(original, torch.log_softmax(rounded[:, columns], -1))

    found = case.refine(tmp_path / "out", judge=kl, kept=kept)
    assert found.kept and found.kl_after < 0.9 * found.kl_before


def test_the_rate_follows_how_much_there_is_to_learn_from() -> None:
    rates = [rate_for(predictions, 1_000_000) for predictions in (10_000, 40_000, 160_000, 10_000_000)]
    assert rates == pytest.approx([0.02, 0.04, 0.08, 0.15])
