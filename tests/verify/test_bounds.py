"""What a machine allows at best is measured on it, with the runtime's own kernels."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json
from edgegen.errors import DeviceError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan, Terms
from edgegen.records.report import Report, Speed
from edgegen.verify import bounds as module
from edgegen.verify.bounds import find_bounds

SPEED = Speed(
    threads=1,
    repeats=5,
    load_ms=1.0,
    ttft_ms=1.0,
    prefill_tokens_per_s=100.0,
    decode_tokens_per_s=50.0,
    decode_spread_fraction=0.1,
    prompt_tokens=8,
    decode_tokens=8,
)


def terms(**weights: int) -> Terms:
    return Terms(
        layers=2, read_bytes=1e6, weights=weights, prompt_weights={}, cached_numbers=0.0, model_bytes=1, rss_bytes=1.0
    )


def test_a_speed_is_held_against_the_bandwidth_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_bandwidth", lambda threads, *_: 1e9 * threads)
    monkeypatch.setattr(module, "time_kernels", lambda *_: {"q8_0": 2e-9, "q4_0": 1e-9})
    found = find_bounds(
        terms(q8_0=1_000_000, q4_0=2_000_000, f32=1000), "gguf", msgspec.structs.replace(SPEED, threads=2)
    )
    assert found is not None
    assert (found.read_bytes, found.bandwidth_bytes_per_s) == (1e6, 2e9)
    assert found.bandwidth_fraction == pytest.approx(1e6 * 50 / 2e9)
    assert found.kernels_tokens_per_s == pytest.approx(2 / 0.004)
    assert found.kernels_fraction == pytest.approx(50 / 500)


@pytest.mark.parametrize("timed", [{}, {"q8_0": 2e-9}])
def test_kernels_that_cannot_be_timed_give_no_bound(timed: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_kernels", lambda *_: timed)
    found = find_bounds(terms(q8_0=1_000_000, iq3_s=2_000_000), "gguf", SPEED)
    assert found is not None and found.bandwidth_fraction > 0
    assert found.kernels_tokens_per_s is None and found.kernels_fraction is None


def test_without_free_memory_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise DeviceError("too little free memory")

    monkeypatch.setattr(module, "read_bandwidth", full)
    assert find_bounds(terms(q8_0=1), "gguf", SPEED) is None


@pytest.mark.parametrize(("target", "grid"), [("gguf", "q8_0"), ("onnx", "u4_32"), ("litert", "i8_row")])
def test_each_runtimes_own_kernels_are_timed(target: str, grid: str) -> None:
    found = find_bounds(terms(**{grid: 1_000_000}), target, SPEED)
    assert found is not None and found.kernels_tokens_per_s is not None
    # A weight takes between a hundredth of a nanosecond and ten.
    assert 1e2 < found.kernels_tokens_per_s < 1e5


def test_a_receipt_says_how_near_it_is(finished: Path) -> None:
    report, plan = load_json(finished / "report.json", Report), load_json(finished / "plan.json", Plan)
    assert plan.terms is not None and report.bounds is not None and report.speed is not None
    assert report.bounds.read_bytes == plan.terms.read_bytes
    fraction = plan.terms.read_bytes * report.speed.decode_tokens_per_s / report.bounds.bandwidth_bytes_per_s
    assert report.bounds.bandwidth_fraction == pytest.approx(fraction)
    assert report.rounding == load_json(finished / "artifact" / "artifact.json", Artifact).rounding
    assert report.rounding is not None and report.rounding.gap_db > 0 and 2 < report.rounding.bits_per_weight < 16
