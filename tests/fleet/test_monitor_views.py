"""The questions of the screens: what they answer of now, and of the past."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.monitoring import drift
from edgegen.fleet.monitoring.presence import Life, note_life, read_life
from edgegen.fleet.operations import OPERATIONS
from edgegen.fleet.telemetry.schema import Flag
from edgegen.records.bundle import BundleFile, Golden, Provenance, Segment
from edgegen.records.monitor import Ask, DriftCell, FleetView, State, Verdict
from tests.fleet.reports import Reports
from tests.fleet.site import Desk, manifest_bytes, target_of

NOW = 1_000_000.0


@pytest.fixture
def reports(desk: Desk) -> Reports:
    return Reports(desk)


def _publish(desk: Desk, version: str, **changes: Any) -> str:
    text = manifest_bytes(version, **changes).decode()
    return str(desk.do("publish", manifest=text, target=target_of(version)))


def _row(desk: Desk, device: str, **asked: Any) -> Any:
    view: FleetView = desk.do("monitor-fleet", **asked)
    return next(row for row in view.devices if row.device == device)


def test_an_empty_fleet_has_nothing_but_says_so(desk: Desk) -> None:
    view = desk.do("monitor-fleet")
    assert (view.devices, view.tokens_per_s, view.error_fraction, view.rollout) == ((), None, None, "")
    for name in ("monitor-outputs", "monitor-events", "monitor-bundles", "monitor-drift", "monitor-hard"):
        assert desk.do(name) == ()
    assert desk.do("monitor-withheld") == {}


def test_a_fleet_in_figures(desk: Desk, reports: Reports) -> None:
    digest = _publish(desk, "1.0.0")
    reports.device("a", release=digest, arch="aarch64", ram_bytes="4000000000")
    reports.state(
        "a", release=digest, rss_bytes=5, temperature_c=51.5, privacy="p2", spool_reports=3, clock_skew_s=90.0
    )
    reports.device("b", "hall")
    ids = [
        reports.add("generations", "a", NOW - 10 * place, release=digest, tokens_per_s=float(place), ttft_s=0.1 * place)
        for place in range(1, 10)
    ]
    reports.add("generations", "a", NOW - 5, release=digest, stop="error", error="boom", flags=int(Flag.ERROR))
    reports.add("feedback", "a", generation=ids[0], rating=1)
    reports.add("feedback", "a", generation=ids[0], rating=-1)  # the last counts
    reports.add("feedback", "a", generation=ids[1], rating=1)
    view = desk.do("monitor-fleet")
    row = view.devices[0]
    assert (row.device, row.kind, row.label, row.generations) == ("a", "aarch64 4 GiB", "kitchen@1.0.0", 10)
    assert row.tokens_per_s == 5.0 and row.ttft_p95_s == pytest.approx(0.9)
    assert row.error_fraction == pytest.approx(0.1) and row.state is State.DEGRADED
    assert row.why == "1 of 10 answers failed"
    assert (row.thumbs_up, row.thumbs_down) == (1, 1)
    assert (row.rss_bytes, row.temperature_c, row.throttled, row.free_bytes) == (5, 51.5, None, None)
    assert (view.skewed, view.privacy) == (1, "p2")
    assert view.error_fraction == pytest.approx(0.1) and view.tokens_per_s is not None
    assert view.devices[1].tokens_per_s is None and view.devices[1].state is State.ONLINE
    assert [row.device for row in desk.do("monitor-fleet", group="hall").devices] == ["b"]
    with pytest.raises(ConfigError, match="no group") as raised:
        desk.do("monitor-fleet", group="hal")
    assert "hall" in raised.value.hint
    # What travels over HTTP is the same.
    assert msgspec.json.decode(msgspec.json.encode(view), type=FleetView) == view


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_window_that_is_none(desk: Desk, window_s: float) -> None:
    with pytest.raises(ConfigError, match="window_s"):
        desk.do("monitor-fleet", window_s=window_s)
    with pytest.raises(ConfigError, match="until_s"):
        desk.do("monitor-events", until_s=float("nan"))


def test_states(desk: Desk, reports: Reports) -> None:
    reports.device("silent", seen_s=NOW - 181)
    reports.device("there", seen_s=NOW - 179)
    reports.device("new", seen_s=None)
    reports.device("stolen")
    reports.device("hot")
    reports.state("hot", throttled=1, free_bytes=100_000_000)
    reports.device("talks", seen_s=NOW - 4000)
    reports.state("talks")  # its reports come, its polls do not
    reports.device("loses")
    reports.add("dropped", "loses", count=7)
    desk.do("revoke", device="stolen")
    states = {row.device: (row.state, row.why) for row in desk.do("monitor-fleet").devices}
    assert states == {
        "silent": (State.OFFLINE, ""),
        "there": (State.ONLINE, ""),
        "new": (State.NEVER, ""),
        "stolen": (State.REVOKED, ""),
        "hot": (State.DEGRADED, "throttled; 100 MB of storage left"),
        "talks": (State.ONLINE, ""),
        "loses": (State.DEGRADED, "gave up 7 reports"),
    }


def test_silence_while_the_server_was_away_is_nobodys_fault(desk: Desk, reports: Reports) -> None:
    reports.device("a", seen_s=NOW)

    def tick(tx: Any) -> None:
        note_life(tx, desk.now_s, 1.0, 100.0)
        tx.run(
            "INSERT INTO meta (key, value) VALUES ('alive_s', ?) ON CONFLICT (key) DO UPDATE SET "
            "value = excluded.value",
            repr(desk.now_s),
        )

    desk.run(tick)
    desk.now_s = NOW + 50_000
    desk.run(tick)
    assert desk.run(read_life) == Life(100.0, NOW + 50_000, (NOW, NOW + 50_000))
    assert _row(desk, "a").state is State.ONLINE
    desk.now_s += 301
    assert _row(desk, "a").state is State.OFFLINE


def test_a_failed_release_degrades_until_another_succeeds(desk: Desk, reports: Reports) -> None:
    digest = _publish(desk, "1.0.0")
    reports.device("a")
    rollout = desk.do("begin", release=digest, group="kitchen", waves=(1.0,))
    desk.run(lambda tx: tx.run("UPDATE actions SET offered_s = ?, state = 'running', phase = 'fetch'", NOW))
    row = _row(desk, "a")
    assert (row.state, row.phase) == (State.ONLINE, "fetch")
    assert desk.do("monitor-fleet").rollout.startswith(
        f"rollout {rollout.id}, kitchen@1.0.0 to kitchen: running, wave 1"
    )
    desk.run(lambda tx: tx.run("UPDATE actions SET state = 'failed', reason = 'golden', finished_s = ?", NOW + 1))
    desk.now_s += 2
    row = _row(desk, "a")
    assert (row.state, row.why, row.phase) == (State.DEGRADED, "kitchen@1.0.0 failed: golden", "")
    desk.run(lambda tx: tx.run("UPDATE actions SET state = 'confirmed'"))
    assert _row(desk, "a").state is State.ONLINE


def test_the_past_is_shown_as_it_was(desk: Desk, reports: Reports) -> None:
    old, new = _publish(desk, "1.0.0"), _publish(desk, "2.0.0")
    reports.device("a", release=new)
    reports.state("a", release=new, rss_bytes=200)
    reports.add("health", "a", NOW - 7300, release=old, rss_bytes=100, temperature_c=40.0, privacy="p1")
    reports.add("health", "a", NOW - 60, release=new, rss_bytes=200)
    for place in range(5):
        reports.add("generations", "a", NOW - 7400 + place, release=old, tokens_per_s=3.0)
        reports.add("generations", "a", NOW - 20 - place, release=new, tokens_per_s=9.0)
    desk.do("revoke", device="a")
    now, then = _row(desk, "a"), _row(desk, "a", until_s=NOW - 7200)
    assert (now.state, now.label, now.rss_bytes, now.tokens_per_s) == (State.REVOKED, "kitchen@2.0.0", 200, 9.0)
    assert (then.state, then.label, then.rss_bytes, then.tokens_per_s) == (State.ONLINE, "kitchen@1.0.0", 100, 3.0)
    assert (then.temperature_c, then.privacy, then.seen_s) == (40.0, "p1", NOW - 7300)
    assert _row(desk, "a", until_s=NOW - 4000).state is State.OFFLINE
    assert _row(desk, "a", until_s=NOW - 9000).state is State.NEVER
    assert desk.do("monitor-fleet", until_s=NOW - 86400 * 6).devices == ()


def test_answers_with_texts_where_they_may_be_told(desk: Desk, reports: Reports) -> None:
    digest = _publish(desk, "1.0.0")
    reports.device("a")
    reports.device("b", "hall")
    first = reports.add("generations", "a", release=digest, flags=int(Flag.REFUSE | Flag.LOW), missing="")
    second = reports.add("generations", "b", late=1, stop="error", error="\x1b[2Jboom", flags=int(Flag.ERROR))
    third = reports.add("generations", "a", release=digest)
    reports.add("samples", "a", generation=first, prompt="why?", answer="no", level="p2")
    reports.add("samples", "a", generation=third, prompt="", answer="", level="")  # erased
    reports.add("feedback", "b", generation=second, rating=-1, comment="bad")
    rows = desk.do("monitor-outputs")
    assert [row.generation for row in rows] == [first, second, third]
    assert rows[0].flags == ("REFUSE", "LOW") and rows[0].label == "kitchen@1.0.0"
    assert (rows[0].prompt, rows[0].answer, rows[0].level) == ("why?", "no", "p2")
    assert (rows[1].rating, rows[1].comment, rows[1].late, rows[1].error) == (-1, "bad", True, "\x1b[2Jboom")
    assert (rows[2].prompt, rows[2].answer, rows[2].level) == ("", "", "")
    assert desk.do("monitor-outputs", after=rows[0].cursor, limit=1) == rows[1:2]
    assert desk.do("monitor-outputs", limit=1) == rows[2:]
    assert desk.do("monitor-outputs", flag="low") == rows[:1]
    assert desk.do("monitor-outputs", group="hall") == rows[1:2]
    assert desk.do("monitor-outputs", release=digest) == (rows[0], rows[2])
    with pytest.raises(ConfigError, match="no flag") as raised:
        desk.do("monitor-outputs", flag="refsue")
    assert "REFUSE" in raised.value.hint


def test_a_tail_of_events_misses_nothing_of_either_table(desk: Desk, reports: Reports) -> None:
    reports.device("a")
    reports.device("b", "hall")
    desk.do("move", device="a", group="kitchen")
    reports.add("events", "a", NOW + 1, what="rolled-back", level="error", detail="golden")
    last = desk.do("monitor-events")[-1].cursor
    seen = []
    for place in range(6):
        desk.now_s += 1
        desk.do("move", device="b", group=f"hall{place}")
        # Times say nothing of the order in which rows came.
        reports.add("events", "a", NOW - 1000 * place, what=f"e{place}")
        while page := desk.do("monitor-events", after=last, limit=1):
            seen += page
            last = page[-1].cursor
    assert [row.what for row in seen if row.device == "a"] == [f"e{place}" for place in range(6)]
    assert [row.detail.partition(",")[0] for row in seen if row.device == "b"] == [f"group=hall{n}" for n in range(6)]
    every = desk.do("monitor-events", limit=500)
    assert len(every) == 14 and [row.at_s for row in every] == sorted(row.at_s for row in every)
    assert len({row.cursor for row in every}) == 14
    (event,) = desk.do("monitor-events", level="error")
    assert (event.what, event.device, event.group, event.detail) == ("rolled-back", "a", "kitchen", "golden")
    assert {row.device for row in desk.do("monitor-events", device="b")} == {"b"}
    assert {row.group for row in desk.do("monitor-events", group="kitchen")} == {"kitchen"}
    with pytest.raises(ConfigError, match="no level"):
        desk.do("monitor-events", level="loud")


def test_one_device(desk: Desk, reports: Reports) -> None:
    old, new = _publish(desk, "1.0.0"), _publish(desk, "2.0.0")
    reports.device("a", release=new, arch="aarch64", previous=old)
    reports.state("a", release=new)
    for place in range(60):
        reports.add("generations", "a", NOW - 60 * place - 1, release=new, tokens_per_s=float(place), ttft_s=1.0)
        reports.add("health", "a", NOW - 60 * place - 1, release=new, rss_bytes=1000 + place)
    reports.add("canaries", "a", NOW - 5, release=new, agreed=3, log_prob_drop=0.5, ids="[7, 8]")
    detail = desk.do("monitor-device", device="a")
    assert (detail.row.device, detail.attributes["arch"], detail.previous_label) == ("a", "aarch64", "kitchen@1.0.0")
    series = {one.metric: one for one in detail.series}
    assert set(series) >= {"tokens_per_s", "ttft", "answers", "errors", "rss", "temperature"}
    assert all(len(one.values) == len(one.at_s) == 60 for one in detail.series)
    assert series["tokens_per_s"].values[-1] == 0.0 and series["tokens_per_s"].values[0] == 59.0
    assert series["rss"].values[-1] == 1000.0 and set(series["temperature"].values) == {None}
    (canary,) = detail.canaries
    assert (canary.agreed, canary.text) == (3, "7 8")  # no tokenizer is here
    week = desk.do("monitor-device", device="a", window_s=7 * 86400.0)
    answers = next(one for one in week.series if one.metric == "answers")
    assert sum(value or 0 for value in answers.values) == 60
    for device in ("", "nobody"):
        with pytest.raises(ConfigError, match="device"):
            desk.do("monitor-device", device=device)


def test_two_releases_side_by_side_in_words(desk: Desk, reports: Reports, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(("one", "two", "three"))}, "one"))
    digest = "sha256:" + "cd" * 32
    place = tmp_path / "repository" / "blobs" / "sha256" / "cd" / ("cd" * 32)
    place.parent.mkdir(parents=True)
    tokenizer.save(str(place))
    files = (BundleFile("model.gguf", 11, "sha256:" + "ab" * 32), BundleFile("tokenizer.json", 5, digest))
    golden = (Golden((1,), (0, 1, 2), -1.0),)
    old, new = (_publish(desk, version, files=files, golden=golden) for version in ("1.0.0", "2.0.0"))
    reports.device("a", release=new, previous=old)
    reports.add("canaries", "a", NOW - 500, release=old, agreed=3, expected=3)
    reports.add("canaries", "a", NOW - 400, release=new, agreed=3, expected=3)
    reports.add("canaries", "a", NOW - 300, release=new, agreed=1, expected=3, ids="[0, 2, 2]")
    desk.site = tmp_path
    found = desk.do("monitor-compare", device="a")
    assert [(row.release, row.prompt, row.text) for row in found] == [
        (old, 0, "one two three"),
        (new, 0, "one three three"),
    ]
    with pytest.raises(ConfigError, match="no device"):
        desk.do("monitor-compare", device="x")
    reports.device("fresh")
    with pytest.raises(ConfigError, match="no two releases"):
        desk.do("monitor-compare", device="fresh")


def test_releases_and_what_they_cost(desk: Desk, reports: Reports) -> None:
    def file(*digests: str) -> tuple[BundleFile, ...]:
        segments = tuple(Segment(10, f"sha256:{digest * 32}") for digest in digests)
        return (BundleFile("model.gguf", 10 * len(segments), "sha256:" + "".join(digests), segments),)

    lineage = Provenance("m", "d", "d", "p", lineage="line-1")
    common = _publish(desk, "1.0.0", files=file("aa", "bb"))
    desk.now_s += 1
    _publish(desk, "2.0.0", files=file("aa", "cc"), provenance=lineage, epoch=4)
    (newest, oldest) = desk.do("monitor-bundles")
    assert (newest.transfer_bytes, oldest.transfer_bytes) == (None, None)  # nobody runs anything
    for name in "abc":
        reports.device(name, "kitchen", release=common)
    (newest, oldest) = desk.do("monitor-bundles")
    assert (newest.label, newest.devices, newest.epoch, newest.lineage) == ("kitchen@2.0.0", 0, 4, "line-1")
    assert (newest.transfer_bytes, oldest.transfer_bytes) == (10, 0)
    assert (oldest.devices, oldest.signed_by, oldest.expires_s) == (3, "", None)  # no repository is here
    assert [row.label for row in desk.do("monitor-bundles", until_s=NOW + 0.5)] == ["kitchen@1.0.0"]


def test_hard_prompts_as_far_as_privacy_goes(desk: Desk, reports: Reports) -> None:
    digest = _publish(desk, "1.0.0", provenance=Provenance("m", "d", "d", "p", lineage="line-1"))
    reports.device("a")
    reports.device("b")

    def answer(device: str, text: str, **columns: Any) -> str:
        generation = reports.add("generations", device, NOW - 100, release=digest, **columns)
        if text:
            reports.add("samples", device, generation=generation, prompt=text, answer="x", level="p2")
        return generation

    answer("a", "low", flags=int(Flag.LOW))
    answer("a", "low", flags=int(Flag.LOW))  # the same again
    answer("b", "", flags=int(Flag.LOW))
    answer("a", "failed", stop="error", error="e", flags=int(Flag.ERROR))
    down = answer("a", "down")
    reports.add("feedback", "a", generation=down, rating=-1)
    up = answer("a", "up")
    reports.add("feedback", "a", generation=up, rating=-1)
    reports.add("feedback", "a", generation=up, rating=1)
    answer("a", "fine")
    texts = desk.do("monitor-hard")
    assert sorted((text.prompt, text.why) for text in texts) == [
        ("down", "thumbs down"),
        ("failed", "error"),
        ("low", "low confidence"),
    ]
    assert {(text.lineage, text.release, text.level) for text in texts} == {("line-1", digest, "p2")}
    assert desk.do("monitor-withheld") == {"low confidence": 1}
    assert [text.prompt for text in desk.do("monitor-hard", why="error")] == ["failed"]
    assert desk.do("monitor-hard", device="b") == () and desk.do("monitor-hard", until_s=NOW - 200) == ()
    with pytest.raises(ConfigError, match="no reason") as raised:
        desk.do("monitor-hard", why="low confidense")
    assert "low confidence" in raised.value.hint


def _seen(desk: Desk, device: str) -> None:
    desk.run(lambda tx: tx.run("UPDATE devices SET seen_s = ? WHERE device = ?", desk.now_s, device))


class _Drift:
    """What the package of drift gives, from a test."""

    def __init__(self, *cells: DriftCell) -> None:
        self.cells = cells

    def drift_cells(self, tx: Any, ask: Ask, now_s: float) -> tuple[DriftCell, ...]:
        return tuple(cell for cell in self.cells if ask.group in ("", cell.group))

    def device_fault(self, tx: Any, device: str, ask: Ask, now_s: float) -> str:
        return "data: prompts moved"


def _cell(release: str, verdict: Verdict, metric: str = "prompt_tokens") -> DriftCell:
    return DriftCell(
        *(metric, "kitchen", release, "kitchen@1.0.0", 300, 0.5, 0.1, 1.0, 0.1, verdict),
        edges=(50.0, 100.0),
        reference=(80, 10, 10),
        current=(10, 10, 80),
    )


def test_drift_degrades_those_that_run_the_release_and_marks_answers(
    desk: Desk, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = _publish(desk, "1.0.0")
    found = _Drift(_cell(digest, Verdict.DRIFT), _cell(digest, Verdict.OK, "answer_tokens"))
    monkeypatch.setattr(drift, "drift_cells", found.drift_cells)
    monkeypatch.setattr(drift, "device_fault", found.device_fault)
    reports.device("a", release=digest)
    reports.state("a", release=digest)
    reports.add("health", "a", release=digest)
    reports.device("b", release="sha256:other")
    rows = {row.device: (row.state, row.why, row.drift) for row in desk.do("monitor-fleet").devices}
    assert rows == {"a": (State.DEGRADED, "drift", Verdict.DRIFT), "b": (State.ONLINE, "", None)}
    found.cells = ()
    desk.now_s += 299
    assert _row(desk, "a").drift is Verdict.DRIFT  # it is looked at every five minutes
    desk.now_s += 1
    _seen(desk, "a")
    assert (_row(desk, "a").drift, _row(desk, "a").state) == (None, State.ONLINE)
    assert _row(desk, "a", until_s=NOW + 200).drift is Verdict.DRIFT
    events = desk.do("monitor-events", group="kitchen")
    words = [(event.what, event.detail) for event in events if event.what.startswith("drift")]
    assert words == [("drift", "kitchen@1.0.0: prompt_tokens"), ("drift-over", "kitchen@1.0.0: prompt_tokens")]
    found.cells = (_cell(digest, Verdict.DRIFT), _cell(digest, Verdict.OK, "answer_tokens"))
    desk.now_s += 300
    assert len(desk.do("monitor-drift", group="kitchen")) == 2 and desk.do("monitor-drift", group="hall") == ()
    detail = desk.do("monitor-device", device="a")
    assert detail.fault == "data: prompts moved" and detail.row.drift is Verdict.DRIFT
    for prompt, tokens in (("long", 400), ("short", 10)):
        generation = reports.add("generations", "a", release=digest, prompt_tokens=tokens)
        reports.add("samples", "a", generation=generation, prompt=prompt)
    assert [(text.prompt, text.why) for text in desk.do("monitor-hard")] == [("long", "drifted")]


def test_golden_answers_that_change_are_a_fault_of_the_device_until_they_are_back(
    desk: Desk, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(runs: Any) -> str:
        changed = [prompt for prompt, both in runs.items() if both[-1].agreed != both[0].agreed]
        assert all(len(both) <= 2 for both in runs.values())
        return f"device: golden prompt {changed[0]} changed" if changed else ""

    monkeypatch.setattr("edgegen.fleet.monitoring.canaries.canary_fault", fault)
    reports.device("a")
    for at_s, agreed in ((NOW - 300, 8), (NOW - 200, 8), (NOW - 100, 2)):
        reports.add("canaries", "a", at_s, release="sha256:r", prompt=4, agreed=agreed)
    row = _row(desk, "a")
    assert (row.state, row.why) == (State.DEGRADED, "device: golden prompt 4 changed")
    reports.add("canaries", "a", NOW + 1, release="sha256:r", prompt=4, agreed=8)
    desk.now_s += 10
    assert _row(desk, "a").state is State.ONLINE
    assert _row(desk, "a", until_s=NOW + 1).why == "device: golden prompt 4 changed"
    assert [event.what for event in desk.do("monitor-events", device="a")] == ["device-fault", "device-fault-over"]


def test_every_question_may_be_asked_over_http() -> None:
    questions = {name: found for name, found in OPERATIONS.items() if name.startswith("monitor-")}
    assert len(questions) == 9 and not any(found.local for found in questions.values())
    for found in questions.values():
        msgspec.json.decode(b'{"device": "x"}', type=found.asks)
        msgspec.json.Decoder(found.gives)


@pytest.mark.slow
def test_ten_thousand_devices_are_answered_in_about_a_second_and_again_in_a_fraction(tmp_path: Path) -> None:
    from edgegen.fleet.monitoring.rollups import EIGHTH_HOUR
    from edgegen.fleet.monitoring.schema import COUNTS
    from edgegen.fleet.monitoring.sketches import add_values

    desk = Desk(str(tmp_path / "fleet.db"), NOW)
    devices, sketch = [f"pi-{number:05}" for number in range(10_000)], add_values(None, [3.0, 4.0, 5.0, 6.0])

    def fill(tx: Any) -> None:
        for device in devices:
            tx.run(
                "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, seen_s, revoked) "
                "VALUES (?, 'g', '', '{}', '', 0, ?, 0)",
                *(device, NOW),
            )
            for place in range(9):
                tx.run(
                    f"INSERT INTO rollups (step, start_s, subject, served, changed, {', '.join(COUNTS)}, ttft, speed, "
                    f"median_speed) VALUES (?, ?, ?, 1, ?, {', '.join('4' for _ in COUNTS)}, ?, ?, 4.0)",
                    *(EIGHTH_HOUR, int(NOW - 3600) // 450 * 450 + 450 * place, device, 1, sketch, sketch),
                )

    desk.run(fill)
    seconds = []
    for _ in range(2):
        begun_s = time.process_time()
        view = desk.do("monitor-fleet")
        seconds.append(time.process_time() - begun_s)
    desk.database.close()
    assert len(view.devices) == 10_000 and view.devices[77].generations == 36
    # About 1 and 0.15 s of processor time here; the limits leave room for slow machines.
    assert seconds[0] < 5 and seconds[1] < 1.5, seconds
