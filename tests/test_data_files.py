"""Every shipped target and profile is read, checked, and is the same when written and read again."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from edgegen.catalog import load_profile, load_target
from edgegen.catalog.load import encode_toml
from edgegen.common.codec import encode_json
from edgegen.records.profile import Profile
from edgegen.records.target import Target

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted((ROOT / "profiles").glob("*.toml"))
TARGETS = sorted((ROOT / "targets").glob("*.toml"))
MEGABYTE = 1_000_000


def test_there_are_enough_devices_to_choose_from() -> None:
    assert len(PROFILES) >= 16
    assert {"raspberry-pi-5-8gb", "raspberry-pi-zero-2-w", "home-gateway-512mb"} <= {path.stem for path in PROFILES}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_survives_writing_and_reading(path: Path) -> None:
    profile = load_profile(path)
    assert msgspec.json.decode(encode_json(profile), type=Profile) == profile
    assert msgspec.convert(tomllib.loads(encode_toml(profile)), type=Profile) == profile


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_is_plausible(path: Path) -> None:
    profile = load_profile(path)
    device, budgets = profile.device, profile.budgets
    assert 1e9 < device.bandwidth_bytes_per_s.value < 200e9
    assert 0.5 <= device.clock_ghz.value <= 6
    assert budgets.max_rss_bytes is not None and budgets.max_bytes is not None
    assert budgets.max_bytes < budgets.max_rss_bytes, "weights are resident, and the runtime needs room beside them"
    assert budgets.max_rss_bytes <= 0.6 * device.ram_bytes.value, "the system and the product need room"
    assert budgets.max_rss_bytes > 60 * MEGABYTE, "the runtime alone takes 45 MB"
    assert all(number.note for number in (device.clock_ghz, device.ram_bytes, device.bandwidth_bytes_per_s))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_has_kernel_costs_in_each_target_that_is_shipped(path: Path) -> None:
    profile = load_profile(path)
    for target_path in TARGETS:
        if target_path.stem in profile.targets:
            for grid in load_target(target_path).grids:
                assert profile.device.isa in grid.cycles_per_weight, grid.name


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_target_survives_writing_and_reading(path: Path) -> None:
    target = load_target(path)
    assert msgspec.json.decode(encode_json(target), type=Target) == target
    assert msgspec.convert(tomllib.loads(encode_toml(target)), type=Target) == target


def test_gguf_blocks_and_bits_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for grid in load_target("gguf").grids:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[grid.name.upper()]]
        assert (grid.block, grid.bits_per_weight) == (block, size * 8 / block), grid.name
        assert grid.activation == ("float" if block == 1 else f"int8_{block}"), grid.name


def test_gguf_plans_with_grids_of_every_size_and_asks_importance_where_ggml_does() -> None:
    target = load_target("gguf")
    planned = {grid.name for grid in target.grids if grid.planned}
    assert {"q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "iq4_nl", "q3_k", "q2_k", "f16"} <= planned
    assert {"iq2_xxs", "iq2_xs"} <= {grid.name for grid in target.grids if grid.needs_importance}


def test_prefill_is_never_dearer_than_decoding_on_cores_without_repacking() -> None:
    for grid in load_target("gguf").grids:
        for isa, cycles in grid.prefill_cycles_per_weight.items():
            assert cycles <= 1.05 * grid.cycles_per_weight[isa], (grid.name, isa)
