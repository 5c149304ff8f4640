"""`edgegen monitor --once`, `edgegen fleet pull` and the same from Python, on a site's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgegen
from edgegen.bundle.ledger import create_keys
from edgegen.errors import ConfigError
from edgegen.fleet.site import make_site
from edgegen.fleet.telemetry.schema import Flag
from edgegen.prepare.sources import read_examples
from edgegen.sdk.deploying import deploy_bundle
from tests.fleet.reports import Reports
from tests.fleet.site import Desk
from tests.fleet.test_deploy import make_bundle
from tests.flows.command import run_cli


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site" / "repository").mkdir(parents=True)
    return tmp_path / "site"


@pytest.fixture
def reports(site: Path) -> Iterator[Reports]:
    desk = Desk(str(site / "fleet.db"), time.time())
    yield Reports(desk)
    desk.database.close()


def test_what_is_wrong_comes_first(site: Path, reports: Reports) -> None:
    now_s = reports.desk.now_s
    reports.device("fine")
    reports.device("gone", seen_s=now_s - 4000)
    reports.device("bad")
    for place in range(10):
        failed = place < 2
        reports.add(
            *("generations", "bad", now_s - 10),
            stop="error" if failed else "stop",
            flags=int(Flag.ERROR) if failed else 0,
            tokens_per_s=5.0,
        )
    reports.device("nasty\x1b[2J\nx")
    done = run_cli("monitor", site, "--once")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("last 1 h: 4 devices: 1 degraded, 1 offline, 2 online; 0.0")
    assert lines[0].endswith("tokens/s; 20.0% errors")
    table = lines[lines.index("") + 1 :]
    assert [line.split()[:2] for line in table[1:3]] == [["degraded", "bad"], ["offline", "gone"]]
    assert table[1].endswith("2 of 10 answers failed") and "20.0%" in table[1]
    assert "\x1b" not in done.out and len(table) == 5
    assert run_cli("monitor", site, "--once", "--group", "kitchn").code == 2


def test_a_firing_alert_is_the_exit_code(site: Path, reports: Reports) -> None:
    reports.device("a")
    reports.add("generations", "a", stop="error", flags=int(Flag.ERROR))
    (site / "alerts.toml").write_text('[[rule]]\nname = "e"\nmetric = "error_fraction"\nthreshold = 0.5\n')
    done = run_cli("monitor", site, "--once")
    assert done.code == 9
    assert "FIRING" in done.out and "e in the whole fleet: error_fraction is 1 (n = 1), limit 0.5" in done.out
    done = run_cli("monitor", site, "--once", "--json")
    assert done.code == 9 and json.loads(done.out)["alerts"][0]["state"] == "firing"
    with (site / "alerts.toml").open("a") as file:
        file.write('[webhook]\nurl_env = "ONLY_THE_SERVER_HAS_IT"\n')
    reports.desk.run(lambda tx: tx.run("DELETE FROM meta WHERE key = 'alerts_s'"))
    assert run_cli("monitor", site, "--once").code == 9
    done = run_cli("fleet", "serve", site, "--port", "0")
    assert done.code == 2 and "ONLY_THE_SERVER_HAS_IT is not set" in done.err
    (site / "alerts.toml").write_text("[[rule]]\n")
    reports.desk.run(lambda tx: tx.run("DELETE FROM meta WHERE key = 'alerts_s'"))
    done = run_cli("monitor", site, "--once")
    assert done.code == 2 and done.err.startswith("edgegen: ") and "alerts.toml" in done.err


def test_long_fleets_are_cut_and_say_so(site: Path, reports: Reports) -> None:
    for number in range(70):
        reports.device(f"d{number:03}", seen_s=None if number == 60 else -1)
    out = run_cli("monitor", site, "--once").out
    assert "… and 20 more; --all shows them" in out and "d060" in out and "d069" not in out
    assert "d069" in run_cli("monitor", site, "--once", "--all").out


@pytest.mark.parametrize(
    "words",
    [
        ("--once",),
        ("SITE", "--url", "http://x", "--once"),
        ("SITE", "--json"),
        ("SITE", "--once", "--write"),
        ("SITE", "--once", "--window", "soon"),
        ("SITE", "--once", "--window", "0h"),
        ("SITE", "--once", "--window", "999d"),
        ("--mock", "-1", "--once"),
        ("--mock", "0", "--once"),
        ("--url", "nonsense", "--once"),
        ("/nowhere", "--once"),
        ("--url", "http://127.0.0.1:1", "--once"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_one_line(site: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEGEN_FLEET_TOKEN", raising=False)
    done = run_cli("monitor", *(site if word == "SITE" else word for word in words))
    assert done.code == 2 and done.err.startswith("edgegen: ") and "Traceback" not in done.err, done.err


def test_what_to_give_instead_is_said() -> None:
    assert "--mock must be at least 1, not 0" in run_cli("monitor", "--mock", "0").err
    assert "begins with http:// or https://" in run_cli("monitor", "--url", "site").err


def test_without_the_sketches_the_extra_is_named(site: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from edgegen.fleet.monitoring import sketches

    sketches._library.cache_clear()
    monkeypatch.setitem(sys.modules, "datasketches", None)
    done = run_cli("monitor", site, "--once")
    sketches._library.cache_clear()
    assert done.code == 3 and "edgegen[server]" in done.err


def test_hard_prompts_become_a_data_set_without_doubtful_answers(site: Path, reports: Reports, tmp_path: Path) -> None:
    reports.device("a")
    out = tmp_path / "hard.jsonl"
    done = run_cli("fleet", "pull", site, "--out", out)
    assert done.code == 2 and "no hard prompts in this window" in done.err and not out.exists()
    for place in range(12):
        generation = reports.add("generations", "a", flags=int(Flag.LOW))
        if place < 9:
            reports.add("samples", "a", generation=generation, prompt=f"question {place}", answer="doubtful")
    done = run_cli("fleet", "pull", site, "--out", out, "--limit", 8)
    assert done.code == 0, done.err
    assert done.out == f"{out}: 8 prompts (8 low confidence); 3 withheld by devices' privacy\n"
    examples = read_examples(str(out))
    assert len(examples) == 8 and examples[0].messages == (("user", "question 8"),) and not examples[0].completion
    row = json.loads(out.read_text().splitlines()[0])
    assert (row["device_answer"], row["why"], row["device"]) == ("doubtful", "low confidence", "a")
    assert row["release"] == "sha256:r" and row["generation"]
    done = run_cli("fleet", "pull", site, "--out", out, "--why", "low confidense")
    assert done.code == 2 and "low confidence" in done.err
    assert json.loads(run_cli("fleet", "pull", site, "--out", out, "--json").out)["withheld"] == {"low confidence": 3}


def test_only_withheld_texts_are_said(site: Path, reports: Reports, tmp_path: Path) -> None:
    reports.device("a")
    reports.add("generations", "a", flags=int(Flag.LOW))
    with pytest.raises(ConfigError, match="1 answers' texts are withheld") as raised:
        edgegen.pull_hard_prompts(str(site), tmp_path / "x.jsonl")
    assert "p2" in raised.value.hint


def test_the_same_from_python(site: Path, reports: Reports) -> None:
    reports.device("a")
    reports.add("generations", "a", tokens_per_s=4.0, missing='{"é": 2}')
    where = str(site)
    assert edgegen.monitor_fleet(where, window_s=300).devices[0].tokens_per_s == 4.0
    assert edgegen.monitor_device(where, "a").row.device == "a"
    assert [row.device for row in edgegen.monitor_outputs(where, device="a")] == ["a"]
    for function in (edgegen.monitor_drift, edgegen.monitor_bundles, edgegen.hard_prompts):
        assert function(where) == ()
    assert isinstance(edgegen.monitor_events(where), tuple)
    with pytest.raises(ConfigError):
        edgegen.monitor_compare(where, "a")


def test_a_release_says_who_vouches_for_it_and_until_when(tmp_path: Path) -> None:
    from edgegen.bundle.sign import sign_bundle

    keys = tmp_path / "keys"
    create_keys(keys)
    place = make_site(tmp_path / "site", keys).folder
    desk = Desk(str(place / "fleet.db"), time.time())
    Reports(desk).device("a")
    desk.database.close()
    bundle = make_bundle(tmp_path, "1.0.0").folder
    sign_bundle(bundle, keys)
    deploy_bundle(str(bundle), str(place), group="kitchen")
    (row,) = edgegen.monitor_bundles(str(place))
    assert row.signed_by.startswith("release (") and row.label == "kitchen@1.0.0"
    assert row.expires_s is not None and row.expires_s > time.time() + 86400
