"""What an emulated program is shown, with a small stand-in for the emulator that runs on this machine."""

import json
import os
import sys
from pathlib import Path

import pytest

from edgegen.emulate import Finished, emulated_core, run_module
from edgegen.emulate.place import EMULATOR, PYTHON, package_folder
from edgegen.errors import ConfigError, UnsupportedError
from tests.emulate.test_emulate_setup import set_up

PACKAGES = {"numpy": "2", "runtime": "1"}

SHOW = f"""#!{sys.executable}
import json, os, pathlib, sys
places = os.environ["PYTHONPATH"].split(os.pathsep)
seen = sorted(str(f.relative_to(p)) for p in map(pathlib.Path, places) for f in p.rglob("*") if not f.is_dir())
first = os.listdir(places[0])
said = dict(arguments=sys.argv[1:], variables=dict(os.environ), seen=seen, first=first, home=os.environ["HOME"])
sys.stderr.write(json.dumps(said))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set-up whose emulator tells what it was given."""
    monkeypatch.setenv("EDGEGEN_CACHE", str(tmp_path / "cache"))
    found = tmp_path / "cache" / "emulate"
    set_up(found, PACKAGES)
    for name, version in PACKAGES.items():
        place = package_folder(found, name, version) / name
        place.mkdir(parents=True)
        (place / "code.py").touch()
        (place / "bad.so").write_text(name)
    write(found, SHOW)
    return found


def write(folder: Path, program: str) -> None:
    (folder / EMULATOR).write_text(program)
    (folder / EMULATOR).chmod(0o755)


def test_core_system_python_and_module_are_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    (package_folder(folder, "runtime", "1") / "cores" / "cortex-a76").mkdir(parents=True)
    done = run_module("some.module", ["a", "b"], core="cortex-a76")
    said = json.loads(done.stderr)
    arguments = said["arguments"]
    assert arguments[:4] == ["-cpu", "cortex-a76", "-L", str(folder / "root")]
    assert arguments[-5:] == [str(folder / "root" / "usr" / "bin" / f"python{PYTHON}"), "-m", "some.module", "a", "b"]
    assert str(package_folder(folder, "runtime", "1") / "cores" / "cortex-a76") in arguments[5]
    assert "SECRET" not in said["variables"] and said["variables"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert (done.code, done.signal, done.reason) == (0, 0, "")


def test_of_this_machines_packages_only_edgegen_is_shown(folder: Path) -> None:
    said = json.loads(run_module("m", [], core="cortex-a76").stderr)
    assert "edgegen" in said["first"] and "typer" not in said["first"] and "tests" not in said["first"]
    assert not Path(said["home"]).exists(), "what a run keeps goes with it"


def test_a_file_can_be_left_out_without_touching_the_package(folder: Path) -> None:
    said = json.loads(run_module("m", [], core="cortex-a76", without=["runtime/bad.so"]).stderr)
    assert "runtime/bad.so" not in said["seen"] and {"runtime/code.py", "numpy/bad.so"} <= set(said["seen"])
    assert (package_folder(folder, "runtime", "1") / "runtime" / "bad.so").read_text() == "runtime"
    assert not list(folder.glob("run-*"))
    with pytest.raises(ConfigError, match=r"other/gone\.so"):
        run_module("m", [], core="cortex-a76", without=["other/gone.so"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("kill -ILL $$", "Illegal instruction, signal 4"),
        ("echo words >&2; exit 3", "exit code 3"),
        ("exec sleep 60", "stopped after 1 s"),
    ],
)
def test_how_it_ended(folder: Path, program: str, reason: str) -> None:
    write(folder, f"#!/bin/sh\n{program}\n")
    assert run_module("m", [], core="cortex-a76", timeout_s=1.0).reason == reason


def test_no_set_up_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEGEN_CACHE", str(tmp_path))
    with pytest.raises(UnsupportedError) as caught:
        run_module("m", [], core="cortex-a76")
    assert "edgegen emulate setup" in caught.value.hint


def test_the_nearest_core_stands_in(folder: Path) -> None:
    setup = set_up(folder, {})
    assert emulated_core("cortex-a72", setup) == "cortex-a72"
    assert emulated_core("cortex-a78ae", setup) == "cortex-a76"
    with pytest.raises(UnsupportedError, match="apple-m4"):
        emulated_core("apple-m4", setup)


def test_loading_a_library(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgegen.emulate import load

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load.main(["x/none.so"]) == 1 and "x/none.so" in capsys.readouterr().err
    (tmp_path / "noise.so").write_bytes(b"noise")
    with pytest.raises(OSError):
        load.main(["noise.so"])
    assert load.main([os.path.relpath(__import__("_ctypes").__file__, tmp_path)]) == 0


def test_success_has_no_reason() -> None:
    assert Finished(code=0, signal=0, timed_out=False, stderr="", seconds=1.0).reason == ""
