"""The examples run as their docstrings say, and leave the records that they promise."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.fleet.operate import open_fleet
from edgegen.fleet.operations import WhichDevices

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _plan(folder: Path) -> None:
    plan = load_json(folder / "plan.json", edgegen.Plan)
    assert plan.prediction.bytes <= 800_000 and len(plan.front) > 1
    assert load_json(folder / "infeasible.json", edgegen.Infeasible).binding == "max_bytes"


def _compress(folder: Path) -> None:
    result = edgegen.read_result(folder / "out")
    assert result.passed and result.model_file.stat().st_size <= 1_000_000
    assert (folder / "out" / "report.html").stat().st_size > 10_000


def _verify(folder: Path) -> None:
    report = edgegen.read_result(folder / "out").report
    assert not report.passed
    assert next(check for check in report.checks if check.name == "intact").passed is False


def _custom_profile(folder: Path) -> None:
    plan = load_json(folder / "plan.json", edgegen.Plan)
    assert plan.profile.name == "door-camera"
    assert plan.prediction.bytes <= 1_000_000


def _deliver(folder: Path) -> None:
    """Every device serves its first release, though one was offered another."""
    devices = open_fleet(str(folder / "site")).do("devices", WhichDevices())
    assert {device.group for device in devices} == {"gguf", "onnx", "litert"}
    assert all(device.attributes["model"].endswith("-1.0.0") for device in devices)
    outcomes = {device.group: device.action for device in devices if device.action}
    assert (outcomes["gguf"].state, outcomes["gguf"].reason) == ("failed", "too-slow")
    assert outcomes["onnx"].state == outcomes["litert"].state == "confirmed"


def _own_technique(folder: Path) -> None:
    plan = load_json(folder / "plan.json", edgegen.Plan)
    assert [one.technique for one in plan.considered] == ["late_values", "local_search", "refinement"]


def _demo(folder: Path) -> None:
    result = edgegen.read_result(folder)
    assert result.passed and result.artifact.target == "gguf"
    assert result.model_file.stat().st_size <= 2_000_000
    assert result.report.task is not None and result.report.task.exact_fraction.value > 0.8
    assert list((folder / "device" / "home" / "releases").iterdir())


SHARED = ("local_agent", "tiny_checkpoint")
"""What the examples share."""
LEFT: dict[str, Callable[[Path], None]] = {
    "01_plan": _plan,
    "02_compress": _compress,
    "03_verify": _verify,
    "04_custom_profile": _custom_profile,
    "05_deliver": _deliver,
    "06_own_technique": _own_technique,
    "demo": _demo,
}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in SHARED)


def test_every_example_is_known_here() -> None:
    assert list(LEFT) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_and_leaves_its_records(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path / "made")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout and "Traceback" not in done.stderr
    LEFT[name](tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
