"""Coefficients from measurements of devices whose true coefficients are known (see `reports`)."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import pytest

from edgegen.catalog.learned import unlearned
from edgegen.errors import ConfigError
from edgegen.planner.cost import device_of
from edgegen.planner.learning import learn
from edgegen.records.learning import Learning, Observations
from edgegen.records.profile import Number, Profile
from tests.planner.reports import (
    EXTRA_RSS,
    LOAD_BYTES_PER_S,
    ONE,
    PROFILE,
    SETTINGS,
    SEVERAL,
    TARGETS,
    fleet,
    observed,
    release,
    scaled,
    speed,
    terms_of,
)


def learned(found: Observations, profile: Profile = PROFILE, **more: Any) -> Learning:
    return learn(profile, TARGETS, found, **more)


def basis(found: Learning) -> dict[str, str]:
    return {one.key: one.basis for one in found.coefficients}


@pytest.mark.parametrize("source", ["datasheet", "assumed", "measured"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_bandwidth_wrong_by_two_is_corrected_from_50_reports(factor: float, source: Any) -> None:
    """Also where the wrong number was called measured; where reading is no longer the bound, as far as that shows."""
    own = PROFILE.device.bandwidth_bytes_per_s.value
    planted = msgspec.structs.replace(
        PROFILE,
        device=msgspec.structs.replace(PROFILE.device, bandwidth_bytes_per_s=Number(own * factor, source)),
    )
    found = learned(fleet(PROFILE, ONE), planted)
    assert found.speed.before > 0.15
    assert found.speed.after < 0.15
    assert speed(found.profile, ONE[0]) == pytest.approx(speed(PROFILE, ONE[0]), rel=0.15)
    if factor == 0.5:
        assert found.profile.device.bandwidth_bytes_per_s.value == pytest.approx(own, rel=0.15)
        assert basis(found)["device.bandwidth_bytes_per_s"] == "measured"


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_bandwidth_and_kernels_both_called_measured_and_both_wrong(factor: float) -> None:
    """One release, one device: the prediction is put right, whichever of the two is to blame."""
    planted = scaled(PROFILE, bandwidth=factor, kernels=1 / factor)
    sure = msgspec.structs.replace(
        planted,
        device=msgspec.structs.replace(
            planted.device, bandwidth_bytes_per_s=Number(planted.device.bandwidth_bytes_per_s.value, "measured")
        ),
        kernel_ns_per_weight={g: Number(n.value, "measured") for g, n in planted.kernel_ns_per_weight.items()},
    )
    found = learned(fleet(PROFILE, ONE), sure)
    assert found.speed.before > 0.4 and found.speed.after < 0.15


@pytest.mark.parametrize(
    "truth",
    [
        {"bandwidth": 2.0},
        {"kernels": 2.0},
        {"kernels": 0.5, "bandwidth": 2.0},
        {"kernels": 2.0, "bandwidth": 2.0},
        {"bandwidth": 0.5},
    ],
)
def test_releases_of_several_sizes_tell_bandwidth_and_kernels_apart(truth: dict[str, float]) -> None:
    true = scaled(PROFILE, **truth)
    found = learned(fleet(true, SEVERAL, devices=3))
    assert found.speed.after < 0.06
    for one in SEVERAL:
        assert speed(found.profile, one) == pytest.approx(speed(true, one), rel=0.1)
    named = basis(found)
    got, want = found.profile.device.bandwidth_bytes_per_s.value, true.device.bandwidth_bytes_per_s.value
    if truth.get("kernels", 1.0) > 1 and truth.get("bandwidth", 1.0) > 1:
        # Reading is nowhere the bound any more: then only the least bandwidth shows, and the note says so.
        assert PROFILE.device.bandwidth_bytes_per_s.value < got < want
        assert found.profile.device.bandwidth_bytes_per_s.note.startswith("at least")
    else:
        assert named["device.bandwidth_bytes_per_s"] == "stays" or got == pytest.approx(want, rel=0.15)
    if truth.get("kernels") == 2.0:
        # They bind, so they are measured, and the factor is carried over to grids that no release has.
        assert named["kernel_ns_per_weight.q8_0"] == named["kernel_ns_per_weight.q4_k"] == "measured"
        assert named["kernel_ns_per_weight.q5_0"] == "carried over"
        for grid in ("q8_0", "q4_k", "q6_k", "q5_0"):
            ratio = (
                found.profile.kernel_ns_per_weight[grid].value
                / (device_of(PROFILE, TARGETS["gguf"], SETTINGS).seconds_per_weight[grid] * 1e9)
            )  # fmt: skip
            assert ratio == pytest.approx(2.0, rel=0.15)
        assert "carried over" in found.profile.kernel_ns_per_weight["q5_0"].note


def test_one_grid_that_is_slower_than_the_others_is_found() -> None:
    device = device_of(PROFILE, TARGETS["gguf"], SETTINGS)
    slow = msgspec.structs.replace(
        PROFILE,
        kernel_ns_per_weight={"q6_k": Number(3e9 * device.seconds_per_weight["q6_k"], "measured")},
    )
    mixes: tuple[dict[str, float], ...] = ({"q6_k": 1.0}, {"q4_k": 1.0}, {"q6_k": 0.5, "q4_k": 0.5})
    releases = tuple(release(i, terms_of(20_000_000, mix, layers=6)) for i, mix in enumerate(mixes))
    found = learned(fleet(slow, releases, devices=8))
    assert found.speed.after < 0.15
    learnt = found.profile.kernel_ns_per_weight
    q6, q4 = (learnt[grid].value / device.seconds_per_weight[grid] / 1e9 for grid in ("q6_k", "q4_k"))
    assert q6 / q4 > 1.7


def test_one_release_says_what_it_does_not_tell() -> None:
    found = learned(fleet(scaled(PROFILE, bandwidth=0.5), ONE))
    named = basis(found)
    assert named["device.bandwidth_bytes_per_s"] == "measured"
    assert named["overhead_s_per_layer_token.gguf"] == "stays"
    assert not found.profile.overhead_s_per_layer_token
    assert not found.profile.kernel_ns_per_weight
    # Slower kernels would explain one slow release just as well, and that is said.
    assert any("kernels of gguf would as well" in note for note in found.notes)


def test_what_was_right_stays_nearly_as_it_was() -> None:
    found = learned(fleet(PROFILE, SEVERAL, devices=5))
    assert found.speed.after < 0.06
    own = PROFILE.device.bandwidth_bytes_per_s.value
    assert found.profile.device.bandwidth_bytes_per_s.value == pytest.approx(own, rel=0.06)


def test_a_fifth_of_outliers_moves_little() -> None:
    true = scaled(PROFILE, bandwidth=2.0)
    clean = fleet(true, SEVERAL, devices=20)
    rows = [
        msgspec.structs.replace(row, tokens_per_s=(row.tokens_per_s or 0) * (0.05 if i % 2 else 8.0))
        if int(row.device.removeprefix("pi-")) < 4
        else row
        for i, row in enumerate(clean.rows)
    ]
    found = learned(msgspec.structs.replace(clean, rows=tuple(rows)))
    for one in SEVERAL:
        assert speed(found.profile, one) == pytest.approx(speed(true, one), rel=0.1)


def test_throttled_answers_are_counted_and_left_out() -> None:
    clean = fleet(PROFILE, ONE, devices=2)
    hot = msgspec.structs.replace(clean.rows[0], answers=30, throttled=20)
    cooked = msgspec.structs.replace(clean.rows[1], answers=0, throttled=40, tokens_per_s=None, speed_answers=0)
    found = learned(msgspec.structs.replace(clean, rows=(hot, cooked)))
    assert (found.reports, found.throttled, found.devices) == (30, 60, 1)
    assert sum(found.left_out.values()) == 0


def test_devices_that_contradict_each_other_are_named() -> None:
    true = scaled(PROFILE, bandwidth=0.5)
    rows = [observed(true, ONE[0], device=f"pi-{i}") for i in range(5)] + [observed(PROFILE, ONE[0], device="other")]
    found = learned(Observations(at_s=1.8e9, rows=tuple(rows), releases=ONE))
    assert any("Devices disagree" in note and "other" in note for note in found.notes)
    assert speed(found.profile, ONE[0]) == pytest.approx(speed(true, ONE[0]), rel=0.15)


def test_too_few_reports_are_refused_with_what_was_left_out() -> None:
    few = fleet(PROFILE, ONE, answers=7)
    with pytest.raises(ConfigError, match="7 usable reports, and 20 are the fewest"):
        learned(few)
    assert learned(few, min_reports=5).reports == 7
    other = msgspec.structs.replace(few.rows[0], profile="laptop-x86-16gb", answers=900)
    with pytest.raises(ConfigError, match="900 of another profile, laptop-x86-16gb"):
        learned(msgspec.structs.replace(few, rows=(other,)))
    escape = msgspec.structs.replace(other, profile="\x1b[31mred\n")
    with pytest.raises(ConfigError, match="of another profile, �\\[31mred�"):
        learned(msgspec.structs.replace(few, rows=(escape,)))
    unknown = msgspec.structs.replace(few.rows[0], release="sha256:nothing", answers=900)
    with pytest.raises(ConfigError, match="of a release that the fleet does not know"):
        learned(msgspec.structs.replace(few, rows=(unknown,)))
    with pytest.raises(ConfigError, match="0 usable reports"):
        learned(Observations(at_s=1.8e9, rows=(), releases=()), min_reports=0)


def test_releases_without_terms_and_with_adapters_are_left_out_by_name() -> None:
    clean = fleet(PROFILE, ONE)
    old, lora = release(7, None), release(8, None, kind="adapter")
    rows = (
        *clean.rows,
        msgspec.structs.replace(clean.rows[0], release=old.digest, answers=3),
        msgspec.structs.replace(clean.rows[0], release=lora.digest, answers=4),
    )
    found = learned(msgspec.structs.replace(clean, rows=rows, releases=(*ONE, old, lora)))
    assert found.left_out == {"of a release that was packed without its plan's terms": 3, "with an adapter": 4}
    assert found.reports == 50


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.0, 1e300, 5e-324])
def test_hostile_numbers_change_nothing(value: float) -> None:
    clean = fleet(scaled(PROFILE, bandwidth=0.5), ONE, devices=3)
    evil = msgspec.structs.replace(
        clean.rows[0],
        device="evil",
        tokens_per_s=value,
        ttft_s=value,
        prompt_tokens=value,
        peak_rss_bytes=value,
        load_s=value,
        threads=1 << 40,
    )
    found = learned(msgspec.structs.replace(clean, rows=(*clean.rows, evil)))
    assert found.left_out == {"with numbers that cannot be": 50}
    assert found.profile == learned(clean).profile


def test_a_lone_liar_cannot_move_a_number_far() -> None:
    clean = fleet(PROFILE, ONE, devices=9)
    for factor in (1e-3, 50.0):
        liar = msgspec.structs.replace(clean.rows[0], device="liar", tokens_per_s=speed(PROFILE, ONE[0]) * factor)
        found = learned(msgspec.structs.replace(clean, rows=(*clean.rows, liar)))
        assert speed(found.profile, ONE[0]) == pytest.approx(speed(PROFILE, ONE[0]), rel=0.06)


def test_prompts_memory_and_loading_are_learned_too() -> None:
    true = scaled(PROFILE, kernels=1.6)
    found = learned(fleet(true, SEVERAL, devices=4))
    assert found.first_token is not None and found.first_token.before > 0.3 and found.first_token.after < 0.1
    assert found.memory is not None and found.memory.after < 1e-6
    assert found.profile.rss_offset_bytes["gguf"].value == EXTRA_RSS
    assert found.profile.load_bytes_per_s["gguf"].value == pytest.approx(LOAD_BYTES_PER_S, rel=1e-3)
    device = device_of(found.profile, TARGETS["gguf"], SETTINGS)
    assert device.rss_offset_bytes == EXTRA_RSS
    assert device.load_bytes_per_s == pytest.approx(LOAD_BYTES_PER_S, rel=1e-3)


def test_learning_again_starts_from_the_profiles_own_numbers() -> None:
    reports = fleet(scaled(PROFILE, bandwidth=0.5), SEVERAL, devices=3)
    once = learned(reports)
    assert once.profile.learned is not None
    assert unlearned(once.profile) == PROFILE
    assert learned(reports, once.profile) == once
    numbers = [*once.profile.rss_offset_bytes.values(), once.profile.device.bandwidth_bytes_per_s]
    assert all(number.source == "learned" and "of 3 devices" in number.note for number in numbers)
    assert "450 reports" in once.profile.device.bandwidth_bytes_per_s.note


def test_another_targets_coefficients_stay() -> None:
    lite = release(5, terms_of(30_000_000, {"i8_row": 1.0}, target="litert"), target="litert")
    found = learned(fleet(scaled(PROFILE, kernels=2.0), SEVERAL, devices=3))
    assert not any(key.endswith((".litert", ".i8_row", ".u4_32")) for key in basis(found))
    only = learned(fleet(PROFILE, (lite,)))
    assert "kernel_ns_per_weight.q8_0" not in only.profile.kernel_ns_per_weight
    assert only.profile.rss_offset_bytes.keys() == {"litert"}


def test_ten_thousand_observations_take_seconds() -> None:
    reports = fleet(scaled(PROFILE, kernels=2.0), SEVERAL, devices=3000)
    started = time.process_time()
    found = learned(reports)
    assert found.devices == 3000 and found.speed.after < 0.05
    assert time.process_time() - started < 60  # about four here
