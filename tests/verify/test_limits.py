"""Each budget, kept and missed, on the device and away from it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.catalog import load_target
from edgegen.common.codec import load_json
from edgegen.records.plan import Plan
from edgegen.records.profile import Budgets
from edgegen.records.report import Check, Report
from edgegen.verify.limits import budget_checks, parity_checks

TARGET = load_target("gguf")


@pytest.fixture(scope="module")
def report(finished: Path) -> Report:
    return load_json(finished / "report.json", Report)


@pytest.fixture(scope="module")
def plan(finished: Path) -> Plan:
    return load_json(finished / "plan.json", Plan)


def checks(plan: Plan, report: Report, budgets: Budgets, *, is_device: bool = False, **more: Any) -> list[Check]:
    arguments = {
        "artifact_bytes": report.artifact_bytes,
        "quality": report.quality,
        "speed": report.speed,
        "memory": report.memory,
    }
    return budget_checks(msgspec.structs.replace(plan, budgets=budgets), is_device=is_device, **(arguments | more))


def test_no_budget_no_check(plan: Plan, report: Report) -> None:
    assert checks(plan, report, Budgets()) == []


def test_size_at_the_limit_passes_and_one_byte_less_fails(plan: Plan, report: Report) -> None:
    size = report.artifact_bytes
    for limit, passed in ((size, True), (size - 1, False)):
        (check,) = checks(plan, report, Budgets(max_bytes=limit))
        assert (check.name, check.limit, check.measured, check.passed) == ("max_bytes", limit, size, passed)
        assert check.predicted == plan.prediction.bytes and check.basis == "measured"


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_memory(plan: Plan, report: Report, share: float) -> None:
    assert report.memory is not None
    (check,) = checks(plan, report, Budgets(max_rss_bytes=int(report.memory.peak_rss_bytes * share)))
    assert check.name == "max_rss" and check.passed == (share == 1.0)


def test_kl_has_the_dropped_tokens_in_it(plan: Plan, report: Report) -> None:
    assert report.quality is not None
    kl = report.quality.kl.value
    lossy = msgspec.structs.replace(report.quality, lost_mass_nats=0.1)
    for quality, passed in ((report.quality, True), (lossy, False)):
        (check,) = checks(plan, report, Budgets(max_kl=kl + 0.05), quality=quality)
        assert check.passed == passed
        assert check.measured == pytest.approx(kl + quality.lost_mass_nats)


@pytest.mark.parametrize("is_device", [True, False])
@pytest.mark.parametrize(("measured", "predicted"), [(5.0, 20.0), (20.0, 5.0), (20.0, 20.0), (10.0, 10.0), (5.0, 5.0)])
def test_speed_is_judged_by_measurement_only_on_the_device(
    plan: Plan, report: Report, is_device: bool, measured: float, predicted: float
) -> None:
    assert report.speed is not None
    speed = msgspec.structs.replace(report.speed, decode_tokens_per_s=measured, ttft_ms=1000 / measured)
    prediction = msgspec.structs.replace(plan.prediction, decode_tokens_per_s=predicted, ttft_ms=1000 / predicted)
    expected = msgspec.structs.replace(plan, prediction=prediction)
    budgets = Budgets(min_tokens_per_s=10.0, max_ttft_ms=100.0)
    judged = measured if is_device else predicted
    for check in checks(expected, report, budgets, is_device=is_device, speed=speed):
        assert check.passed == (judged >= 10.0), check.name
        assert check.basis == ("measured" if is_device else "predicted")


def test_what_could_not_be_measured_fails(plan: Plan, report: Report) -> None:
    budgets = Budgets(max_bytes=10**12, max_rss_bytes=10**12, min_tokens_per_s=1e-9, max_ttft_ms=1e9, max_kl=1e9)
    found = checks(plan, report, budgets, quality=None, speed=None, memory=None)
    assert {check.name: check.passed for check in found} == {
        "max_bytes": True,
        "max_rss": False,
        "max_kl": False,
        "min_tok_s": False,
        "max_ttft": False,
    }
    assert all(not check.passed and check.measured is None for check in parity_checks(None, TARGET))


@pytest.mark.parametrize(
    ("kl", "top1", "passed"),
    [(0.0, 1.0, [True, True]), (0.005, 0.95, [True, True]), (0.006, 0.949, [False, False]), (0.1, 1.0, [False, True])],
)
def test_parity_limits_are_the_targets(report: Report, kl: float, top1: float, passed: list[bool]) -> None:
    assert report.parity is not None
    parity = msgspec.structs.replace(report.parity, kl=kl, top1_fraction=top1)
    assert [check.passed for check in parity_checks(parity, TARGET)] == passed
