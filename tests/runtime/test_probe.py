"""The probe measures: finite, positive numbers, and a profile that the catalogue accepts."""

import math
from pathlib import Path

import pytest

from edgegen.catalog import load_profile, save_user_profile
from edgegen.common.host import isa_key
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.runtime import kernels, probe
from edgegen.runtime.kernels import Kernels


def test_small_probe_gives_a_profile_that_can_be_saved_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("EDGEGEN_HOME", str(tmp_path))
    seen: list[float] = []
    profile = probe.probe_machine(
        lambda step, fraction: seen.append(fraction),
        grids=("q8_0", "q4_0", "iq3_s", "u4_32", "s8_128"),
        seconds_per_timing=0.005,
        bandwidth_bytes=8 << 20,
    )
    assert profile.name == "this-machine"
    assert seen == sorted(seen) and seen[-1] == 1.0
    numbers = [*profile.kernel_ns_per_weight.values(), *profile.prefill_ns_per_weight.values()]
    assert len(numbers) == 10 and profile.targets[:2] == ("gguf", "onnx")
    numbers += [
        profile.overhead_s_per_layer_token["gguf"],
        profile.device.bandwidth_bytes_per_s,
        profile.device.clock_ghz,
    ]
    assert all(math.isfinite(number.value) and number.value > 0 for number in numbers)
    assert all(number.source == "measured" for number in numbers[:-1])
    # From a desktop core to a microcontroller-class one; outside of it the unit is wrong.
    assert all(0.001 < number.value < 100 for number in profile.kernel_ns_per_weight.values())
    save_user_profile(profile)
    assert load_profile("this-machine") == profile


def test_rearranged_kernels_can_be_left_out() -> None:
    pytest.importorskip("llama_cpp")
    plain = Kernels(rearranged=False)
    assert plain.ns_per_weight("q4_0", 1, 0.005) > 0
    assert plain.note("q4_0") == ""


def test_without_llama_cpp_memory_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UnsupportedError("llama-cpp-python is not installed", hint="pip install 'edgegen[gguf]'")

    monkeypatch.setattr(kernels, "_libraries", missing)
    profile = probe.probe_machine(bandwidth_bytes=4 << 20, grids=("q4_0", "u4_32"), seconds_per_timing=0.005)
    assert profile.device.bandwidth_bytes_per_s.value > 0
    assert "q4_0" not in profile.kernel_ns_per_weight and profile.overhead_s_per_layer_token == {}
    assert "edgegen[gguf]" in profile.notes
    with pytest.raises(UnsupportedError):
        Kernels()


def test_too_little_memory_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available = 1000

    monkeypatch.setattr(probe.psutil, "virtual_memory", Full)
    with pytest.raises(DeviceError, match="memory"):
        probe.read_bandwidth(1, 1 << 20)


@pytest.mark.parametrize(
    ("arch", "flags", "key"),
    [
        ("x86_64", {"avx2", "avx512vl", "avx512_vnni"}, "avx512-vnni"),
        ("x86_64", {"avx2", "avx512f"}, "avx2"),
        ("aarch64", {"asimd", "asimddp", "i8mm"}, "neon-i8mm"),
        ("aarch64", {"asimd", "asimddp"}, "neon-dotprod"),
        ("aarch64", {"asimd"}, "neon"),
    ],
)
def test_instruction_set_is_read_from_the_flags(arch: str, flags: set[str], key: str) -> None:
    assert isa_key(arch, frozenset(flags)) == key
