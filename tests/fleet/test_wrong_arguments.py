"""What is wrong on the command line is one line and exit code 2, never a traceback."""

from pathlib import Path

import pytest

from edgegen.fleet.database import Database
from tests.fleet.site import Desk
from tests.fleet.test_rollouts import Devices
from tests.flows.command import run_cli

HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    "words",
    [
        ("token", "SITE", "--group", "g", "--hours", "nan"),
        ("token", "SITE", "--group", "g", "--uses", HUGE),
        ("audit", "SITE", "--limit", HUGE),
        ("audit", "SITE", "--limit", "-1"),
        ("devices", "SITE", "--device", "nobody"),
        ("devices", "SITE", "--group", "nowhere"),
        ("forget", "SITE", "nobody"),
        ("allow", "SITE", "nobody"),
        ("move", "SITE", "nobody", "attic"),
        ("close", "SITE", "../x"),
        ("close", "SITE", "nowhere"),
        ("rollouts", "SITE", "--group", "nowhere"),
        ("audit", "SITE", "--subject", "nonsense"),
        ("export", "SITE", "--out", "OUT", "--kind", ","),
        ("export", "SITE", "--out", "OUT", "--since", "2999-01-01"),
        ("export", "SITE", "--out", "."),
        ("pull", "SITE", "--out", "OUT", "--limit", "0"),
        ("pull", "SITE", "--out", "OUT", "--group", "nowhere"),
        ("pull", "SITE", "--out", "OUT", "--device", "nobody"),
        ("pull", "SITE", "--out", "OUT", "--release", "sha256:0"),
        ("devices", ""),
        ("devices", "http://"),
        ("operator", "SITE", "nobody", "--dismiss"),
        ("operator", "http://127.0.0.1:1", "alice"),
        ("devices", "ftp://127.0.0.1"),
        ("devices", "http://127.0.0.1:1", "--store", "x.db"),
        ("init", "SITE", "--keys", "EMPTY"),
        ("serve", "SITE", "--poll", "nan"),
        ("serve", "SITE", "--poll", "0"),
        ("serve", "SITE", "--public-url", "not a url"),
        ("serve", "SITE", "--public-url", "http://[::1"),
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
    places = {"SITE": tmp_path / "site", "EMPTY": tmp_path / "empty", "OUT": tmp_path / "out"}
    done = run_cli("fleet", *(places.get(word, word) for word in words))
    assert done.code == 2 and done.err.startswith("edgegen: ") and not done.out, done
    assert "no hard prompts" not in done.err and not places["OUT"].exists()


@pytest.mark.parametrize(
    "words",
    [
        ("SITE", "--profile", "raspberry-pi-5-8gb", "--min-reports", "0"),
        ("SITE", "--profile", "raspberry-pi-5-8gb", "--days", "inf"),
        ("SITE", "--profile", "raspberry-pi-5-8gb", "--group", "nowhere"),
        ("--url", "nonsense", "--profile", "raspberry-pi-5-8gb"),
        ("SITE", "--url", "http://x", "--profile", "raspberry-pi-5-8gb"),
        ("SITE", "--vocabulary", "--reset"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_of_learn(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "site" / "repository").mkdir(parents=True)
    Database(str(tmp_path / "site" / "fleet.db")).close()
    done = run_cli("learn", *(tmp_path / "site" if word == "SITE" else word for word in words))
    assert done.code == 2 and done.err.startswith("edgegen: ") and "usable reports" not in done.err, done.err


@pytest.mark.parametrize(
    "words",
    [
        ("--fleet", "SITE", "--group", "g", "--folder", "x"),
        ("--to", "ssh://nowhere", "--group", "g"),
        ("--to", "ssh://nowhere", "--max-drift", "0.2"),
        ("--fleet", "SITE", "--group", "g", "--deadline", "nan"),
        ("--fleet", "SITE", "--group", "g", "--abort-on", "nonsense"),
        ("--fleet", "SITE", "--group", "g", "--max-ttft-ratio", "0"),
        ("--fleet", "SITE", "--group", "g", "--require-telemetry"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument_of_deploy(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "site" / "repository").mkdir(parents=True)
    desk = Desk(str(tmp_path / "site" / "fleet.db"))
    desk.publish("1.0.0")
    Devices(desk, 1, "g")
    done = run_cli("deploy", "kitchen@1.0.0", *(tmp_path / "site" if word == "SITE" else word for word in words))
    assert done.code == 2 and done.err.count("Traceback") == 0 and not done.out, done
    assert not desk.do("rollouts")
    desk.database.close()


def test_a_token_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEGEN_FLEET_TOKEN", "a\nb")
    assert run_cli("fleet", "devices", "http://127.0.0.1:1").code == 2
