"""Rules from a file, their states over time and restarts, and the webhook over real HTTP."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.alerts import evaluate
from edgegen.fleet.monitoring.measures import Measures
from edgegen.fleet.monitoring.rollups import roll_up
from edgegen.fleet.monitoring.rules import DEFAULTS, METRICS, AlertRules, Rule, Webhook, load_rules
from edgegen.fleet.monitoring.webhook import due, send, settle
from edgegen.fleet.telemetry.schema import Flag
from tests.fleet.reports import Reports
from tests.fleet.site import Desk, post, serving

NOW = 1_000_000.0


@pytest.fixture
def reports(desk: Desk) -> Reports:
    return Reports(desk)


def _look(desk: Desk, *rules: Rule, webhook: Webhook | None = None) -> list[str]:
    found = AlertRules(rule=rules, webhook=webhook)
    return [told.text for told in desk.run(lambda tx: evaluate(tx, desk.now_s, found))]


def _states(desk: Desk) -> list[tuple[str, str, str]]:
    return [(alert.rule, alert.group, alert.state) for alert in desk.do("monitor-fleet").alerts]


def _seen(desk: Desk, device: str, seen_s: float) -> None:
    desk.run(lambda tx: tx.run("UPDATE devices SET seen_s = ? WHERE device = ?", seen_s, device))


OFFLINE = Rule("away", "offline_fraction", 0.3, group="*", for_s=60.0, min_n=2)


def test_pending_firing_resolved(desk: Desk, reports: Reports) -> None:
    for name in "ab":
        reports.device(name)
    reports.device("c", "hall")
    assert _look(desk, OFFLINE) == []
    assert _states(desk) == [("away", "hall", "no data")]
    _seen(desk, "a", NOW - 1000)
    assert _look(desk, OFFLINE) == []
    assert _states(desk)[0] == ("away", "kitchen", "pending")
    desk.now_s += 59
    assert _look(desk, OFFLINE) == []
    desk.now_s += 1
    assert _look(desk, OFFLINE) == [
        "away firing in kitchen: offline_fraction is 0.5 (n = 2), limit > 0.3",
    ]
    # A restart: nothing of this is in memory.
    desk.now_s += 3600
    _seen(desk, "b", desk.now_s)
    assert _look(desk, OFFLINE) == []
    (alert, quiet) = desk.do("monitor-fleet").alerts
    assert (alert.state, alert.value, alert.n, alert.since_s) == ("firing", 0.5, 2, NOW + 60)
    assert quiet.state == "no data"
    _seen(desk, "a", desk.now_s)
    assert _look(desk, OFFLINE) == ["away resolved in kitchen: offline_fraction is 0 (n = 2), limit > 0.3"]
    events = desk.do("monitor-events", group="kitchen")
    assert [(event.what, event.level) for event in events] == [("alert-firing", "warning"), ("alert-resolved", "info")]
    # The past shows what was then.
    desk.now_s += 100
    assert [alert.state for alert in desk.do("monitor-fleet", until_s=NOW + 30).alerts] == ["pending", "no data"]
    assert [alert.state for alert in desk.do("monitor-fleet", until_s=NOW + 90).alerts] == ["firing", "no data"]


def test_a_short_break_does_not_fire_and_an_unwatched_one_begins_anew(desk: Desk, reports: Reports) -> None:
    for name in "ab":
        reports.device(name, seen_s=NOW - 1000)
    _look(desk, OFFLINE)
    desk.now_s += 30
    _seen(desk, "a", desk.now_s)
    _seen(desk, "b", desk.now_s)
    assert _look(desk, OFFLINE) == [] and _states(desk) == []
    for name in "ab":
        _seen(desk, name, NOW - 1000)
    _look(desk, OFFLINE)
    desk.now_s += 3600  # nobody looked for an hour
    assert _look(desk, OFFLINE) == []
    desk.now_s += 60
    assert len(_look(desk, OFFLINE)) == 1


def test_too_few_neither_fire_nor_resolve(desk: Desk, reports: Reports) -> None:
    rule = Rule("errors", "error_fraction", 0.2, min_n=3, window_s=600)
    reports.device("a")
    for _ in range(2):
        reports.add("generations", "a", stop="error", flags=int(Flag.ERROR))
    desk.run(lambda tx: roll_up(tx, NOW))
    assert _look(desk, rule) == [] and _states(desk) == [("errors", "", "no data")]
    reports.add("generations", "a")
    desk.run(lambda tx: roll_up(tx, NOW))
    assert len(_look(desk, rule)) == 1
    desk.now_s += 5000  # the window is empty now
    assert _look(desk, rule) == []
    assert _states(desk) == [("errors", "", "firing")]
    assert _look(desk) == ["errors resolved in the whole fleet: the rule is no more"]


def test_every_metric_has_a_value_and_an_n(desk: Desk, reports: Reports) -> None:
    reports.device("a")
    reports.device("b")
    with reports.together():
        for place in range(20):
            reports.add("generations", "a", NOW - 30, ttft_s=float(place), tokens_per_s=5.0, flags=int(Flag.LEAK))
            reports.add("generations", "a", NOW - 20_000, tokens_per_s=10.0)
    down = reports.add("generations", "b", NOW - 30, stop="error", flags=int(Flag.ERROR), throttled=1)
    reports.add("feedback", "b", generation=down, rating=-1)
    reports.add("dropped", "b", count=5)
    desk.run(lambda tx: roll_up(tx, NOW))
    desk.run(lambda tx: tx.run("INSERT INTO faults (id, device, release, words, since_s) VALUES (1, 'a', 'r', 'w', 1)"))

    def take(metric: str, group: str = "kitchen", window_s: float = 600.0) -> Any:
        return desk.run(lambda tx: Measures(tx, NOW).take(metric, group, window_s))

    assert take("error_fraction") == take("error_fraction", "") == (pytest.approx(1 / 21), 21)
    assert take("leak_fraction") == (pytest.approx(20 / 21), 21) and take("throttled_fraction")[0] > 0
    assert take("ttft_p95_s") == (pytest.approx(18.0, abs=1), 20)
    assert take("tokens_per_s") == (5.0, 20)
    assert take("tokens_per_s_drop") == (pytest.approx(0.5), 20)
    assert take("thumbs_down_fraction") == (1.0, 1)
    assert take("dropped_reports") == (5.0, 2) and take("device_faults") == (1.0, 2)
    assert take("offline_fraction") == (0.0, 2)
    for metric in METRICS:
        value, n = take(metric, "nobody")
        assert value in (None, 0.0) and n == 0


def test_the_shipped_rules_hold_and_a_file_takes_their_place(tmp_path: Path) -> None:
    assert load_rules(None) is load_rules(tmp_path) is DEFAULTS
    assert {rule.metric for rule in DEFAULTS.rule} <= METRICS.keys()
    (tmp_path / "alerts.toml").write_text("")
    assert load_rules(tmp_path).rule == ()
    (tmp_path / "alerts.toml").write_text('[[rule]]\nname = "a"\nmetric = "ttft_p95_s"\nthreshold = 4\nop = ">="\n')
    assert load_rules(tmp_path).rule == (Rule("a", "ttft_p95_s", 4.0, ">="),)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[[rules]]\n", "unknown key 'rules'", "'rule'"),
        ('[[rule]]\nname="a"\nmetric="error_fractoin"\nthreshold=1\n', "unknown metric", "'error_fraction'"),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthresold=1\n', "thresold", "threshold"),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold="x"\n', "threshold", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=nan\n', "finite", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=1\nop="!"\n', "op", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=1\nfor_s=-1\n', "for_s", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=1\nwindow_s=5\n', "window_s", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=1\nmin_n=0\n', "min_n", ""),
        ('[[rule]]\nname=""\nmetric="error_fraction"\nthreshold=1\n', "name", ""),
        ('[[rule]]\nname="a"\nmetric="error_fraction"\nthreshold=1\n' * 2, "two rules", ""),
        ("schema = 2\n", "schema 2", ""),
        ("[webhook]\n", "either url or url_env", ""),
        ('[webhook]\nurl="ftp://x"\n', "no URL", ""),
        ('[webhook]\nurl="http://[x"\n', "no URL", ""),
        ('[webhook]\nurl_env="NOT_SET_AT_ALL"\n', "NOT_SET_AT_ALL is not set", "fleet serve"),
        ('[webhook]\nurl="http://x"\nsecret_env="NOT_SET_AT_ALL"\n', "NOT_SET_AT_ALL is not set", ""),
        ('[webhook]\nurl="http://x"\ntimeout_s=0\n', "timeout_s", ""),
        ("[[rule\n", "not valid TOML", ""),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str, hint: str) -> None:
    (tmp_path / "alerts.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_rules(tmp_path)
    assert "\n" not in str(raised.value) and hint in raised.value.hint


class _Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        server.got.append((dict(self.headers), body))
        self.send_response(server.answers.pop(0) if server.answers else 204)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_webhook_is_told_signed_and_again_until_it_takes_it(
    desk: Desk, reports: Reports, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    webhook = Webhook(url=hook.url, secret_env="HOOK_SECRET")
    rule = Rule("errors", "error_fraction", 0.2)
    reports.device("a")
    reports.add("generations", "a", stop="error", flags=int(Flag.ERROR))
    desk.run(lambda tx: roll_up(tx, NOW))
    assert _look(desk, rule, webhook=webhook) and not _look(desk, rule, webhook=webhook)

    def deliver() -> list[str]:
        failures = []
        for row in desk.run(lambda tx: due(tx, desk.now_s)):
            failures.append(send(webhook, row["body"]))
            desk.run(lambda tx, row=row, failure=failures[-1]: settle(tx, desk.now_s, row, failure))
        return failures

    hook.answers[:] = [500, 302]
    assert deliver() == ["HTTP 500"] and deliver() == []  # not at once
    desk.now_s += 5
    assert deliver() == ["HTTP 302"]  # nor elsewhere
    desk.now_s += 10
    assert deliver() == [""] and deliver() == []
    headers, body = hook.got[-1]
    assert headers["X-Edgegen-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    told = json.loads(body)
    assert (told["state"], told["rule"], told["value"], told["n"]) == ("firing", "errors", 1.0, 1)
    assert len({sent for _, sent in hook.got}) == 1  # the same each time


def test_a_webhook_that_is_never_there_is_given_up_with_an_event(desk: Desk) -> None:
    desk.run(
        lambda tx: tx.run("INSERT INTO outbox (id, body, tries, next_s, created_s) VALUES (1, '{}', 0, ?, ?)", NOW, NOW)
    )
    tries = 0
    for _ in range(1000):
        (row, *_) = desk.run(lambda tx: due(tx, desk.now_s)) or [None]
        if row is None:
            if not desk.run(lambda tx: tx.rows("SELECT id FROM outbox")):
                break
            desk.now_s += 600
            continue
        tries += 1
        desk.run(lambda tx, row=row: settle(tx, desk.now_s, row, "refused"))
    assert 20 < tries < 50
    (event,) = desk.do("monitor-events")
    assert (event.what, event.level, event.detail) == ("webhook-given-up", "error", "refused")


def test_a_webhook_that_hangs_is_left_in_time() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        begun_s = time.monotonic()
        assert "timed out" in send(Webhook(url=f"http://127.0.0.1:{port}/", timeout_s=0.2), "{}")
        assert time.monotonic() - begun_s < 20


@pytest.mark.slow
def test_a_server_fires_tells_and_answers(tmp_path: Path, hook: Any) -> None:
    site = tmp_path / "site"
    (site / "repository").mkdir(parents=True)
    desk = Desk(str(site / "fleet.db"), time.time())
    reports = Reports(desk)
    reports.device("a")
    reports.add("generations", "a", time.time() - 1, stop="error", flags=int(Flag.ERROR))
    token = desk.do("operator", name="kim")
    (site / "alerts.toml").write_text(
        f'[webhook]\nurl = "{hook.url}"\n[[rule]]\nname = "e"\nmetric = "error_fraction"\nthreshold = 0.5\n'
    )
    with serving(site) as (url, _):
        for _ in range(300):
            if hook.got:
                break
            time.sleep(0.1)
        assert json.loads(hook.got[0][1])["state"] == "firing"
        view = post(url, token, "monitor-fleet", {"window_s": 3600})
        assert [alert["state"] for alert in view["alerts"]] == ["firing"]
        assert view["devices"][0]["generations"] == 1
        assert post(url, token, "monitor-device", {"device": "a"})["row"]["device"] == "a"
    desk.database.close()
