"""What is wrong on the command line is one line and exit code 2, never a traceback."""

from pathlib import Path

import pytest

from edgegen.fleet.database import Database
from tests.flows.command import run_cli

HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    "words",
    [
        ("token", "SITE", "--group", "g", "--hours", "nan"),
        ("token", "SITE", "--group", "g", "--uses", HUGE),
        ("audit", "SITE", "--limit", HUGE),
        ("rollout", "SITE", HUGE),
        ("devices", "http://[::1"),
        ("serve", "SITE", "--port", "99999"),
        ("serve", "SITE", "--tls-cert", "EMPTY", "--tls-key", "EMPTY"),
        ("devices", "EMPTY"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEGEN_FLEET_TOKEN", "x")
    (tmp_path / "site" / "repository").mkdir(parents=True)
    Database(str(tmp_path / "site" / "fleet.db")).close()
    (tmp_path / "empty").touch()
    places = {"SITE": tmp_path / "site", "EMPTY": tmp_path / "empty"}
    done = run_cli("fleet", *(places.get(word, word) for word in words))
    assert done.code == 2 and done.err.startswith("edgegen: "), done.err


def test_a_token_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEGEN_FLEET_TOKEN", "a\nb")
    assert run_cli("fleet", "devices", "http://127.0.0.1:1").code == 2
