"""What every command of `edgegen` has in common: help, exit codes, JSON on stdout and talk on stderr."""

import json
from pathlib import Path

import pytest

import edgegen
from tests.flows.command import Done, run, run_cli

COMMANDS = (
    ("plan",),
    ("compress",),
    ("verify",),
    ("run",),
    ("bench",),
    ("doctor",),
    ("evaluate",),
    ("explain",),
    ("prompt", "try"),
    ("prompt", "use"),
    ("prompt", "history"),
    ("pack",),
    ("keys", "init"),
    ("keys", "show"),
    ("keys", "renew"),
    ("keys", "rotate"),
    ("keys", "sign"),
    ("keys", "online"),
    ("repo", "init"),
    ("repo", "add"),
    ("repo", "list"),
    ("repo", "check"),
    ("repo", "refresh"),
    ("repo", "withdraw"),
    ("profiles",),
    ("profiles", "show"),
    ("profiles", "probe"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    done = run_cli(*command, "--help")
    assert done.code == 0 and not done.err
    assert f"Usage: edgegen {' '.join(command)}" in done.out
    options = [line for line in done.out.splitlines() if line.lstrip().startswith("--")]
    assert options and all(len(line.split()) > 1 for line in options)


def test_help_names_every_command() -> None:
    done = run_cli("--help")
    assert done.code == 0
    assert all(command[0] in done.out for command in COMMANDS)


def test_version() -> None:
    assert run_cli("--version") == Done(0, f"edgegen {edgegen.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["compress"],
        ["compress", "model"],
        ["compress", "model", "--profile"],
        ["compress", "model", "--profile", "raspberry-pi-4-4gb", "--no-such-option"],
        ["verify"],
        ["profiles", "show"],
        ["verify", "one", "two"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2_and_leave_stdout_empty(arguments: list[str]) -> None:
    done = run_cli(*arguments)
    assert done.code == 2
    assert not done.out and "Error: " in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["profiles", "show", "raspberry-pi-4-4g"], "raspberry-pi-4-4gb"),
        (["compress", "model", "--profile", "raspbery-pi-4-4gb"], "raspberry-pi-4-4gb"),
        (["compress", "model", "--profile", "raspberry-pi-4-4gb", "--max-bytes", "many"], "--max-bytes"),
        (["plan", "model", "--profile", "raspberry-pi-4-4gb", "--max-kl", "-1"], "--max-kl"),
        (["compress", "no/such/folder", "--profile", "raspberry-pi-4-4gb"], "no/such/folder"),
        (["verify", "no/such/folder"], "no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_wrong_values_exit_2_with_a_message_that_names_them(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli(*arguments)
    assert done.code == 2 and not done.out
    assert done.err.startswith("edgegen: ") and named in done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["profiles", "--json"], ["profiles", "show", "raspberry-pi-4-4gb", "--json"], ["doctor", "--json"]],
    ids=" ".join,
)
def test_json_is_one_document_on_stdout(arguments: list[str]) -> None:
    done = run_cli(*arguments)
    assert done.code == 0
    assert json.loads(done.out)


def test_verify_prints_its_report_as_json(finished_copy: Path) -> None:
    done = run_cli("verify", finished_copy, "--json", "--quiet")
    assert done.code == 0 and not done.err
    assert json.loads(done.out) == json.loads((finished_copy / "report.json").read_bytes())


def test_doctor_tells_what_is_installed() -> None:
    done = run_cli("doctor")
    assert done.code == 0
    assert f"edgegen {edgegen.__version__}" in done.out and "gguf" in done.out and "memory" in done.out


def test_the_module_runs_as_the_command_does() -> None:
    assert run("--version").out == f"edgegen {edgegen.__version__}\n"
