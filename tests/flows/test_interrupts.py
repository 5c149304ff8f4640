"""Stop a run at any moment: what was there stays, and the same command ends where an undisturbed one does."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgegen.common.files import digest_file
from tests.flows.command import LOOSE, run_cli, start

pytestmark = pytest.mark.slow
STAGES = ["measure", "plan", "compress", "export", "reference"]


def marks(partial: Path) -> set[str]:
    path = partial / "build.json"
    return {mark["name"] for mark in json.loads(path.read_bytes())["stages"]} if path.exists() else set()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest_file(path) for path in folder.rglob("*") if path.is_file()}


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Poll until it holds; a run that ended first is a failure of the test."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    return err


@pytest.mark.parametrize(
    ("after", "number"),
    [("measure", signal.SIGINT), ("reference", signal.SIGINT), *((stage, signal.SIGKILL) for stage in STAGES)],
)
def test_stopped_after_a_stage(
    after: str, number: signal.Signals, calm_llama: Path, tiny_data: Path, finished: Path, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = ("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE)
    process = start(*command)
    wait_for(process, lambda: after in marks(partial))
    err = stop(process, number)
    assert not out.exists() and after in marks(partial)
    if number is signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    done = run_cli(*command)
    assert done.code == 0, done.err
    assert [line.endswith("(done before)") for line in done.err.splitlines()][: STAGES.index(after) + 1] == [True] * (
        STAGES.index(after) + 1
    )
    assert digest_file(out / "artifact/model.gguf") == digest_file(finished / "artifact/model.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in finished.iterdir()), "no stray pieces"


@pytest.mark.parametrize("started", ["compressed.tmp", "reference.tmp"])
def test_killed_inside_a_stage_leaves_the_old_output(
    started: str, calm_llama: Path, tiny_data: Path, finished_copy: Path
) -> None:
    """A second run with another budget, killed while it writes."""
    before = contents(finished_copy)
    partial = finished_copy.with_name(finished_copy.name + ".partial")
    command = ("compress", calm_llama, "--data", tiny_data, "--out", finished_copy, *LOOSE, "--grids", "q8_0")
    process = start(*command)
    wait_for(process, lambda: (partial / started).exists())
    stop(process, signal.SIGKILL)
    assert contents(finished_copy) == before
    done = run_cli(*command)
    assert done.code == 0, done.err
    assert not [p for p in finished_copy.rglob("*") if p.name.endswith(".tmp")]
    assert not partial.exists()


def test_pieces_of_a_killed_run_do_not_travel(
    calm_llama: Path, tiny_data: Path, finished: Path, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    shutil.copytree(finished, partial)
    (partial / ".artifact.123.tmp").mkdir()
    (partial / ".artifact.123.tmp" / "model.gguf").write_bytes(b"half")
    (partial / "compressed.tmp").mkdir()
    (partial / ".plan.json.123.tmp").write_bytes(b"half")
    done = run_cli("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE)
    assert done.code == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in finished.iterdir())


def test_two_at_once_in_one_folder(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = ("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE)
    process = start(*command)
    try:
        wait_for(process, lambda: "measure" in marks(partial))
        second = run_cli(*command)
        assert second.code == 2 and "another edgegen command is working there" in second.err
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()
    assert (out / "report.json").exists() and not partial.exists()
