"""Sensors over a file system that a test writes."""

from pathlib import Path

import pytest

from edgegen.agent.telemetry.sensors import Heat, Sensors


def write(root: Path, files: dict[str, str]) -> Sensors:
    for name, words in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words + "\n")
    return Sensors(root, keep_s=0)


def zone(number: int, kind: str, milli: str) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": kind, f"{folder}/temp": milli}


def test_nothing_told_is_nothing_known(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read() == Heat(None, None)


def test_the_joint_zone_of_a_jetson_goes_before_the_others(tmp_path: Path) -> None:
    files = zone(0, "cpu-thermal", "51000") | zone(1, "gpu-thermal", "0") | zone(2, "tj-thermal", "54500")
    assert write(tmp_path, files).read().temperature_c == 54.5


@pytest.mark.parametrize("milli", ["0", "", "rubbish", "-273000", "999999"])
def test_impossible_temperatures_are_unknown(tmp_path: Path, milli: str) -> None:
    assert write(tmp_path, zone(0, "cpu-thermal", milli)).read().temperature_c is None


def test_a_frosty_processor_is_known(tmp_path: Path) -> None:
    assert write(tmp_path, zone(0, "soc-thermal", "-12500")).read().temperature_c == -12.5


@pytest.mark.parametrize(
    ("bits", "held"), [("0", False), ("0x0", False), ("4", True), ("0x50000", False), ("e0008", True), ("?", None)]
)
def test_the_bits_of_a_raspberry_pi(tmp_path: Path, bits: str, held: bool | None) -> None:
    files = {"sys/devices/platform/soc/soc:firmware/get_throttled": bits}
    assert write(tmp_path, files).read().throttled is held


def test_a_cooling_device_holds_the_processor(tmp_path: Path) -> None:
    folder = "sys/class/thermal/cooling_device0"
    sensors = write(tmp_path, {f"{folder}/type": "cpufreq-cpu0", f"{folder}/cur_state": "0"})
    assert sensors.read().throttled is False
    (tmp_path / folder / "cur_state").write_text("2\n")
    assert sensors.read().throttled is True


def test_throttlings_are_counted_from_the_first_reading_on(tmp_path: Path) -> None:
    name = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    sensors = write(tmp_path, {name: "7"})
    assert [sensors.read().throttled, sensors.read().throttled] == [None, False]
    (tmp_path / name).write_text("9")
    assert [sensors.read().throttled, sensors.read().throttled] == [True, False]
