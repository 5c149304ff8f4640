"""What each grid costs: order, sums against the whole, and the edges."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.catalog import load_target
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.hessians import Hessians, save_hessians
from edgegen.modeling.sensitivity import Sensitivity, fitting_grids, interpolated, measure_sensitivity
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.statistics import collect_statistics
from edgegen.records.model import TensorInfo
from tests.modeling.opened import Opened, open_all, windows
from tests.tiny_models import make_tiny

TARGET = load_target("gguf")
ACTIVATION = {g.name: g.activation for g in TARGET.grids}


def measured(opened: Opened, allowed: tuple[str, ...] | None, **more: Any) -> tuple[Sensitivity, Any, Any]:
    some, other = windows(opened.tokenizer, 40, tokens=1200), windows(opened.tokenizer, 20, seed=8, tokens=500)
    statistics = collect_statistics(opened.model, opened.summary, some)
    opened.source.use_importance(statistics.importance)
    reference = counted_log_probs(opened.model, other)
    found = measure_sensitivity(opened.model, opened.source, statistics, reference, other, TARGET, allowed, **more)
    return found, reference, other


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_all(make_tiny("llama", tmp_path_factory.mktemp("m"), hidden=256, ffn=256, heads=4, tied=False))


@pytest.fixture(scope="module")
def found(llama: Opened) -> tuple[Sensitivity, Any, Any]:
    return measured(llama, ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"))


def test_finer_grids_cost_less(found: tuple[Sensitivity, Any, Any]) -> None:
    order = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
    summed = [sum(prices[grid] for prices in found[0].kl.values()) for grid in order]
    assert summed == sorted(summed, reverse=True)
    assert summed[0] > 20 * summed[-1] > 0
    for prices in found[0].kl.values():
        assert prices["q2_k"] > prices["q4_k"] > prices["q8_0"] >= 0


@pytest.mark.parametrize("grid", ["q6_k", "q5_k", "q4_k"])
def test_the_sum_is_close_to_the_measured_whole(llama: Opened, found: tuple[Sensitivity, Any, Any], grid: str) -> None:
    sensitivity, reference, other = found
    chosen = dict.fromkeys(sensitivity.kl, grid)
    with rounded_model(llama.model, llama.source, chosen, {}):
        whole = mean_kl(reference, counted_log_probs(llama.model, other))
    assert sum(prices[grid] for prices in sensitivity.kl.values()) == pytest.approx(whole, rel=0.35)


def test_the_floor_is_the_activations_alone(llama: Opened, found: tuple[Sensitivity, Any, Any]) -> None:
    sensitivity, reference, other = found
    with rounded_model(llama.model, llama.source, dict.fromkeys(sensitivity.kl, "f32"), {"f32": "int8_256"}):
        alone = mean_kl(reference, counted_log_probs(llama.model, other))
    with rounded_model(llama.model, llama.source, dict.fromkeys(sensitivity.kl, "f32"), {"f32": "int8_32"}):
        finer = mean_kl(reference, counted_log_probs(llama.model, other))
    assert sensitivity.floor == pytest.approx(alone, rel=1e-4) or sensitivity.floor == pytest.approx(finer, rel=1e-4)
    assert 0 < sensitivity.floor < sum(prices["q4_k"] for prices in sensitivity.kl.values())


def test_every_tensor_and_step_is_counted(tiny_llama: Path) -> None:
    opened = open_all(tiny_llama)
    steps: list[tuple[int, int]] = []
    sensitivity, *_ = measured(opened, None, progress=lambda done, total: steps.append((done, total)))
    assert set(sensitivity.kl) == {t.name for t in opened.summary.tensors if t.quantizable}
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_only_exact_grids_have_no_floor_and_no_cost(tiny_llama: Path) -> None:
    sensitivity, *_ = measured(open_all(tiny_llama), ("f32",))
    assert sensitivity.floor == pytest.approx(0, abs=1e-9)
    assert all(prices == {"f32": pytest.approx(0, abs=1e-9)} for prices in sensitivity.kl.values())


def tensor(role: str, columns: int) -> TensorInfo:
    return TensorInfo(
        name="t", role=role, layer=0, rows=8, columns=columns, quantizable=role not in ("vector", "position")
    )


@pytest.mark.parametrize(
    ("role", "columns", "allowed", "wanted"),
    [
        ("vector", 64, None, ("f32",)),
        ("position", 64, None, ("f16",)),
        ("position", 64, ("f32",), ("f32",)),
        ("ffn_in", 100, None, ("f16",)),
        ("ffn_in", 100, ("q8_0",), ("f16",)),
        ("ffn_in", 100, ("f32",), ("f32",)),
        ("ffn_in", 64, ("q8_0", "q4_k"), ("q8_0",)),
        ("ffn_in", 256, ("q8_0", "q4_k"), ("q4_k", "q8_0")),
    ],
)
def test_fitting_grids(role: str, columns: int, allowed: tuple[str, ...] | None, wanted: tuple[str, ...]) -> None:
    assert fitting_grids(tensor(role, columns), TARGET, allowed) == wanted


def test_planned_grids_are_smallest_first_and_fit() -> None:
    grids = fitting_grids(tensor("ffn_in", 96), TARGET, None)
    bits = [TARGET.grid(name).bits_per_weight for name in grids]
    assert bits == sorted(bits) and all(96 % TARGET.grid(name).block == 0 for name in grids)
    assert "f32" not in grids


@pytest.mark.slow
def test_compensated_grids_are_priced_as_they_will_be_rounded(
    llama: Opened, found: tuple[Sensitivity, Any, Any], tmp_path: Path
) -> None:
    save_hessians(llama.model, llama.summary, windows(llama.tokenizer, 40, tokens=1200), tmp_path / "h")
    llama.source.use_hessians(Hessians(tmp_path / "h"))
    try:
        ours, reference, other = measured(llama, ("q8_0", "q4_k", "q3_k", "iq3_xxs"))
        chosen = {t.name: "q4_k" for t in llama.summary.tensors if t.quantizable and t.layer >= 0}
        with rounded_model(llama.model, llama.source, chosen, {}):
            whole = mean_kl(reference, counted_log_probs(llama.model, other))
    finally:
        llama.source.use_hessians(None)
    assert sum(ours.kl[name]["q4_k"] for name in chosen) == pytest.approx(whole, rel=0.35)
    assert {"q4_k", "iq3_xxs"} <= set(ours.factors), "both ways of rounding were tried on the whole"
    assert sum(ours.kl[name]["q4_k"] for name in chosen) < sum(found[0].kl[name]["q4_k"] for name in chosen)


def test_interpolation_is_a_line_in_logarithms() -> None:
    errors = {"coarse": 1e-2, "middle": 1e-3, "fine": 1e-4}
    found = interpolated({"coarse": 1e-1, "fine": 1e-3}, errors, "middle")
    assert found == pytest.approx(1e-2, rel=1e-6)


def test_tables_beyond_their_time_are_interpolated(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_all(tiny_llama)
    grids = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    whole, *_ = measured(opened, grids)
    monkeypatch.setattr("edgegen.modeling.sensitivity._TABLE_SECONDS", -1)
    quick, *_ = measured(opened, grids)
    name = "model.embed_tokens.weight"
    same = [grid for grid in grids if quick.kl[name][grid] == pytest.approx(whole.kl[name][grid], rel=1e-6)]
    assert len(same) == 3, "the ends and the middle are measured"
    for grid in grids:
        assert quick.kl[name][grid] == pytest.approx(whole.kl[name][grid], rel=0.5)


def test_records_are_plain(found: tuple[Sensitivity, Any, Any]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(found[0]), type=Sensitivity) == found[0]
