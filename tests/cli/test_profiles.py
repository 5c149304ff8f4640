"""`edgegen profiles`: results on stdout, talk on stderr, JSON where asked."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from edgegen.catalog import list_profiles, load_profile
from edgegen.cli.profiles import app
from edgegen.errors import ConfigError
from edgegen.records.profile import Number, Profile
from edgegen.runtime import probe

runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGEN_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that answers at once."""

    def answer(progress: object = None, *, name: str = "this-machine") -> Profile:
        cost = {"q8_0": Number(0.04, "measured")}
        return msgspec.structs.replace(
            load_profile("raspberry-pi-5-8gb"),
            name=name,
            kernel_ns_per_weight=cost,
            prefill_ns_per_weight=cost,
            overhead_s_per_layer_token={"gguf": Number(7e-6, "measured")},
        )

    monkeypatch.setattr(probe, "probe_machine", answer)


def test_list_names_every_profile() -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 0
    for profile in list_profiles():
        assert profile.name in result.stdout


def test_list_as_json_is_the_records() -> None:
    result = runner.invoke(app, ["--json"])
    assert msgspec.convert(json.loads(result.stdout), type=tuple[Profile, ...]) == list_profiles()


def test_show_gives_each_number_with_its_source() -> None:
    result = runner.invoke(app, ["show", "raspberry-pi-5-8gb"])
    assert result.exit_code == 0
    assert "11.6 GB/s" in result.stdout and "[measured]" in result.stdout and "[datasheet]" in result.stdout
    assert "at least 8 tokens/s" in result.stdout


def test_show_as_json() -> None:
    result = runner.invoke(app, ["show", "pixel-8", "--json"])
    assert msgspec.convert(json.loads(result.stdout), type=Profile) == load_profile("pixel-8")


def test_unknown_profile_is_raised_for_the_main_program_to_report() -> None:
    result = runner.invoke(app, ["show", "pixel-9"])
    assert isinstance(result.exception, ConfigError)
    assert "pixel-8" in result.exception.hint


@pytest.mark.usefixtures("measured")
def test_probe_saves_and_prints(home: Path) -> None:
    result = runner.invoke(app, ["probe"])
    assert result.exit_code == 0
    assert "0.0400 / 0.0400" in result.stdout and "7 us per block" in result.stdout
    assert "Saved as" in result.stderr and "Saved as" not in result.stdout
    assert (home / "profiles" / "this-machine.toml").exists()
    assert load_profile("this-machine").kernel_ns_per_weight["q8_0"].value == 0.04


@pytest.mark.usefixtures("measured")
def test_probe_as_json_without_saving(home: Path) -> None:
    result = runner.invoke(app, ["probe", "--json", "--no-save", "--name", "bench"])
    assert json.loads(result.stdout)["name"] == "bench"
    assert not (home / "profiles").exists()


def test_import_is_light() -> None:
    code = (
        "import sys, edgegen.cli.profiles as p; print([m for m in ('numpy', 'llama_cpp', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
