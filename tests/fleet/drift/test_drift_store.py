"""Drift read from a store: cells, the control group, whose fault it is."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgegen.fleet.drift import compare
from edgegen.fleet.drift.cells import device_changes, device_fault, drift_cells
from edgegen.fleet.drift.compare import gate
from edgegen.fleet.drift.gauge import TelemetryGauge, read_gauge
from edgegen.fleet.drift.read import device_kind
from edgegen.fleet.judge import Standing, weigh
from edgegen.records.bundle import ReferenceProfile
from edgegen.records.deployment import GateMetric, Rollout, Thresholds
from edgegen.records.monitor import Ask, Verdict
from tests.fleet.drift.reports import Reports, draw_answer, plain, reference_profile
from tests.fleet.site import Desk

NOW = 1_000_000.0
HOUR = 3600.0
ASK = Ask(until_s=NOW)


@pytest.fixture
def reports(store: str) -> Iterator[Reports]:
    desk = Desk(store, NOW)
    yield Reports(desk)
    desk.database.close()


def answering(seed: int, **shifts: float) -> Callable[[], dict[str, Any]]:
    dice = np.random.default_rng(seed)
    return lambda: draw_answer(dice, **shifts)


def fill(reports: Reports, release: str, devices: list[str], count: int, seed: int, **shifts: float) -> None:
    """Two hours of answers, the same in both."""
    draw = answering(seed, **shifts)
    for device in devices:
        for begin in (NOW - 2 * HOUR, NOW - HOUR):
            reports.answers(device, release, count, begin, begin + HOUR, draw)


def test_a_planted_shift_is_the_cell_that_drifts(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    reports.device("b", "porch")
    fill(reports, release, ["a"], 400, 1, mean_log_prob=-0.9)
    fill(reports, release, ["b"], 150, 2)
    cells = reports.desk.run(lambda tx: drift_cells(tx, ASK))
    found = {(cell.group, cell.metric): cell for cell in cells}
    moved = found["kitchen", "mean_log_prob"]
    assert moved.verdict is Verdict.DRIFT and moved.label == "kitchen@1.0.0" and moved.n == 400
    assert moved.psi is not None and moved.threshold is not None and moved.psi > moved.threshold
    assert moved.p is not None and moved.p < 0.001 and sum(moved.current) == 400 and sum(moved.reference) == 400
    others = {cell.verdict for cell in cells if cell.group == "kitchen" and cell.metric != "mean_log_prob"}
    assert others == {Verdict.OK}
    assert {cell.verdict for cell in cells if cell.group == "porch"} == {Verdict.TOO_FEW}
    assert all(cell.against == "reference" for cell in cells)


def test_the_operation_answers_as_records_that_survive_json(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    fill(reports, release, ["a"], 250, 1)
    cells = reports.desk.do("monitor-drift", window_s=HOUR, group="kitchen")
    assert len(cells) == 13 and {cell.verdict for cell in cells} == {Verdict.OK}
    assert plain(cells)[0]["verdict"] == "ok"
    assert reports.desk.do("monitor-drift", group="nobody") == ()


def test_one_beyond_window_is_watched(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    reports.answers("a", release, 400, NOW - 2 * HOUR, NOW - HOUR, answering(1))
    reports.answers("a", release, 400, NOW - HOUR, NOW, answering(2, mean_entropy=1.0))
    cells = reports.desk.run(lambda tx: drift_cells(tx, ASK))
    assert [cell.metric for cell in cells if cell.verdict is Verdict.WATCH] == ["mean_entropy"]
    # As it was an hour earlier.
    earlier = reports.desk.run(lambda tx: drift_cells(tx, Ask(until_s=NOW - HOUR)))
    assert {cell.verdict for cell in earlier} == {Verdict.OK}


def test_manifests_without_metrics_and_unknown_releases_make_no_cells(reports: Reports) -> None:
    whole = reference_profile(np.random.default_rng(0))
    few = ("answer_tokens", "mean_log_prob", "distinct_fraction")
    old = ReferenceProfile(
        edges={metric: whole.edges[metric] for metric in few} | {"broken": (2.0, 1.0)},
        counts={metric: whole.counts[metric] for metric in few} | {"broken": (1, 2, 3)},
    )
    release = reports.publish("1.0.0", old)
    reports.device("a")
    fill(reports, release, ["a"], 250, 1)
    fill(reports, "sha256:" + "0" * 64, ["a"], 250, 1)
    cells = reports.desk.run(lambda tx: drift_cells(tx, ASK))
    assert {cell.metric for cell in cells} == set(few)


def test_unknown_values_and_errors_are_not_counted_as_answers(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    fill(reports, release, ["a"], 210, 1)
    failed = {"stop": "error", "error": "x", "prompt_tokens": 5, "answer_tokens": 0, "flags": 32}
    reports.answers("a", release, 50, NOW - HOUR, NOW, lambda: failed)
    cells = {cell.metric: cell.n for cell in reports.desk.run(lambda tx: drift_cells(tx, ASK))}
    assert cells["prompt_tokens"] == 260 and cells["mean_log_prob"] == 210 and cells["refusal"] == 210


def test_embeddings_are_compared_with_the_windows_before(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    fill(reports, release, ["a"], 210, 1)
    dice = np.random.default_rng(5)
    for place in range(20):
        reports.embedding("a", release, NOW - 2 * HOUR - place, "prompts", dice.normal(0, 0.1, 64).tolist())
        reports.embedding("a", release, NOW - place, "prompts", dice.normal(0.1, 0.1, 64).tolist())
        reports.embedding("a", release, NOW - 2 * HOUR - place, "answers", dice.normal(0, 0.1, 64).tolist())
    reports.embedding("a", release, NOW, "answers", dice.normal(0, 0.1, 64).tolist())
    cells = {cell.metric: cell for cell in reports.desk.run(lambda tx: drift_cells(tx, ASK))}
    assert cells["embedding_prompts"].verdict is Verdict.WATCH and cells["embedding_prompts"].against == "before"
    assert cells["embedding_answers"].verdict is Verdict.TOO_FEW


def rollout(reports: Reports, digest: str) -> Rollout:
    return Rollout(
        **{"id": 1, "name": "kitchen", "version": "2.0.0", "digest": digest, "group": "kitchen", "state": "running"},
        **{"reason": "", "kind": "update", "thresholds": Thresholds(), "waves": (), "created_by": "test"},
        created_s=NOW - 2 * HOUR,
    )


def two_releases(reports: Reports, count: int = 80, **shifts: float) -> Rollout:
    """Six devices with the new release, six with the old one."""
    profile = reference_profile(np.random.default_rng(0))
    old, new = reports.publish("1.0.0", profile), reports.publish("2.0.0", profile)
    names = {old: [f"old-{k}" for k in range(6)], new: [f"new-{k}" for k in range(6)]}
    for device in (*names[old], *names[new]):
        reports.device(device, arch="aarch64", ram_bytes=str(4 << 30))
    fill(reports, old, names[old], count, 1)
    fill(reports, new, names[new], count, 2, **shifts)
    return rollout(reports, new)


def test_a_new_release_that_refuses_more_is_worse_than_the_control(reports: Reports) -> None:
    running = two_releases(reports, refusal=0.08)
    readings = reports.desk.run(lambda tx: gate(tx, running, NOW))
    (found,) = (reading for reading in readings if reading.finding.beyond)
    assert found.finding.metric == "refusal" and found.finding.verdict is Verdict.DRIFT and found.worse
    assert found.kind == "aarch64 4 GiB" and found.devices_told
    assert found.finding.n == 480 and found.control_n == 480 and "against" in found.words


def test_the_gauge_reads_what_the_judge_weighs(reports: Reports) -> None:
    running = two_releases(reports, mean_entropy=0.9, tokens_per_s=-0.4)
    gauge = TelemetryGauge()
    readings = reports.desk.run(lambda tx: gauge(tx, running, NOW))
    assert reports.desk.run(lambda tx: gauge(tx, running, NOW + 1)) is readings
    rules = Thresholds(drift=0.1, min_tokens_per_s_ratio=0.8, max_error_fraction_rise=0.02, max_ttft_ratio=1.2)
    worse = {
        str(found.reading.part or found.reading.metric)
        for found in weigh(readings, rules)
        if found.standing is Standing.WORSE
    }
    assert worse == {"mean_entropy", "tokens_per_s"}
    errors = next(reading for reading in readings if reading.metric is GateMetric.ERRORS)
    assert errors.new == 0 and errors.n_new == 960


def test_a_difference_between_devices_is_not_one_between_releases(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = reference_profile(np.random.default_rng(0))
    old, new = reports.publish("1.0.0", profile), reports.publish("2.0.0", profile)
    for release, name in ((old, "old"), (new, "new")):
        for place in range(6):
            reports.device(f"{name}-{place}")
            fill(reports, release, [f"{name}-{place}"], 60, place + (release == new))
    # Some users write very long prompts; with the new release there happen to be three more of them.
    for place in range(4):
        fill(reports, new, [f"new-{place}"], 120, place, prompt_tokens=2.5)
    fill(reports, old, ["old-0"], 120, 9, prompt_tokens=2.5)

    def beyond() -> list[str]:
        readings = reports.desk.run(lambda tx: gate(tx, rollout(reports, new), NOW))
        return [reading.finding.metric for reading in readings if reading.finding.beyond]

    assert beyond() == []
    monkeypatch.setattr(compare, "LEAST_DEVICES", 99)  # answer by answer it looks certain
    assert beyond() == ["prompt_tokens"]


def test_without_a_control_group_there_are_no_readings(reports: Reports) -> None:
    new = reports.publish("2.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    fill(reports, new, ["a"], 250, 1)
    assert reports.desk.run(lambda tx: gate(tx, rollout(reports, new), NOW)) == ()
    assert reports.desk.run(lambda tx: read_gauge(tx, rollout(reports, new), NOW)) == ()


def test_ratings_are_the_last_of_each_answer(reports: Reports) -> None:
    running = two_releases(reports, count=40)
    for device in [f"new-{k}" for k in range(6)]:
        rows = reports.desk.run(
            lambda tx, device=device: tx.rows("SELECT generation FROM generations WHERE device = ?", device)
        )
        for row in rows[:8]:
            reports.feedback(device, row["generation"], 1)
            reports.feedback(device, row["generation"], -1)
    readings = reports.desk.run(lambda tx: read_gauge(tx, running, NOW))
    (thumbs,) = (reading for reading in readings if reading.metric is GateMetric.THUMBS_DOWN)
    assert thumbs.new == pytest.approx(48 / 480) and thumbs.control == 0


def test_a_device_whose_golden_answers_change_is_at_fault(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    reports.device("b")
    fill(reports, release, ["a", "b"], 250, 1)
    fault = lambda device: reports.desk.run(lambda tx: device_fault(tx, device, ASK))  # noqa: E731
    assert fault("a") == ""
    for device in ("a", "b"):
        reports.canary(device, release, NOW - HOUR)
        reports.canary(device, release, NOW - 10)
    assert fault("a") == "" and fault("b") == ""
    reports.canary("a", release, NOW - 5, agreed=3)
    assert fault("a").startswith("device: golden prompt 0 agrees for 3 of 8 tokens, 8 at first") and fault("b") == ""
    reports.canary("b", release, NOW - 5, intact=0)
    assert fault("b").startswith("device: the release's files")
    assert fault("nobody") == ""


def test_moved_prompts_with_the_same_golden_answers_are_data(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    fill(reports, release, ["a"], 300, 1, prompt_tokens=1.0, mean_entropy=1.0)
    for at_s in (NOW - HOUR, NOW - 1):
        reports.canary("a", release, at_s)
    found = reports.desk.run(lambda tx: device_fault(tx, "a", ASK))
    assert found == "data: prompts moved (prompt_tokens) while golden answers did not change"


def test_answers_that_moved_everywhere_are_the_releases(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    for device in ("a", "b", "c"):
        reports.device(device)
    fill(reports, release, ["a", "b", "c"], 300, 1, mean_entropy=1.0)
    found = reports.desk.run(lambda tx: device_fault(tx, "a", ASK))
    assert found.startswith("release: answers moved (mean_entropy) on this device and on the others")


def test_a_device_that_slows_down_has_a_change(reports: Reports) -> None:
    release = reports.publish("1.0.0", reference_profile(np.random.default_rng(0)))
    reports.device("a")
    reports.answers("a", release, 700, NOW - HOUR, NOW - HOUR / 2, answering(1))
    reports.answers("a", release, 200, NOW - HOUR / 2, NOW, answering(2, tokens_per_s=-0.15))
    found = reports.desk.run(lambda tx: device_changes(tx, "a", ASK))
    assert set(found) == {"tokens_per_s"} and not found["tokens_per_s"].upwards
    assert 700 < found["tokens_per_s"].found < 760


def test_the_kind_of_a_device_is_what_it_says() -> None:
    assert device_kind('{"kind": "pi-4"}') == "pi-4"
    assert device_kind('{"arch": "x86_64", "ram_bytes": "8200000000"}') == "x86_64 8 GiB"
    assert device_kind("{}") == "unknown"
