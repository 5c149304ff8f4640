"""Batches into the store of each kind of database: once each, in their time, and what is wrong is said."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from edgegen.fleet.request_error import RequestError
from edgegen.fleet.telemetry.batches import read_batch
from edgegen.fleet.telemetry.ingest import low_log_prob, take
from edgegen.fleet.telemetry.schema import REPORTS, Flag
from edgegen.records.bundle import ReferenceProfile
from edgegen.records.telemetry import (
    Ack,
    Canary,
    Dropped,
    Embedding,
    Feedback,
    Happening,
    Health,
    Item,
    Privacy,
    Report,
    Sample,
)
from tests.fleet.site import Desk
from tests.simulators.reporting_device import RELEASE, batch_of, generation, report

STREAM = "stream-1"


@pytest.fixture
def fleet(desk: Desk) -> Desk:
    """With two devices, and the true time."""
    desk.now_s = time.time()
    for device in ("pi-1", "pi-2"):
        desk.run(
            lambda tx, device=device: tx.run(
                "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, revoked) "
                "VALUES (?, 'kitchens', 'x', '{}', '', 0, 0)",
                device,
            )
        )
    return desk


def _take(desk: Desk, *reports: Report | bytes, device: str = "pi-1", stream: str = STREAM, **changes: Any) -> Ack:
    incoming = read_batch(batch_of(reports, stream=stream, **changes))
    return desk.run(
        lambda tx: take(tx, desk.now_s, tx.rows("SELECT * FROM devices WHERE device = ?", device)[0], incoming)
    )


def _rows(desk: Desk, sql: str, *values: Any) -> list[dict[str, Any]]:
    return desk.run(lambda tx: tx.rows(sql, *values))


def _say(seq: int, item: Item | None = None, **changes: Any) -> Report:
    return report(seq, item or generation(seq), stream=STREAM, **changes)


def _items() -> list[Item]:
    """One of each kind."""
    return [
        generation(1, missing={"ж": 3}),
        Sample("chatcmpl-1", RELEASE, "Why?", "Because.", Privacy.REDACTED, "sampled"),
        Feedback("chatcmpl-1", -1, "no"),
        Embedding(RELEASE, "answers", 40, (0.5, -0.25), (1.0, 2.0)),
        Canary(RELEASE, 0, 7, 8, 0.01, ids=(1, 2, 3)),
        Health(RELEASE, 3600.0, free_bytes=5, privacy=Privacy.REDACTED, throttled=False),
        Happening("warning", "rolled-back", "golden"),
        Dropped(3, 12, 5, 30, "quota"),
    ]


def test_every_kind_is_kept_once(fleet: Desk) -> None:
    reports = [_say(seq, item) for seq, item in enumerate(_items(), 1)]
    first = _take(fleet, *reports)
    assert (first.stored, first.known, first.refused) == (8, 0, ())
    assert (first.stream, first.first_seq, first.last_seq) == (STREAM, 1, 8)
    again = _take(fleet, *reports, _say(9), reports[0])
    assert (again.stored, again.known) == (1, 9)
    for table in REPORTS:
        assert len(_rows(fleet, f"SELECT cursor FROM {table}")) == (2 if table == "generations" else 1), table
    totals = {
        row["name"]: row["value"] for row in _rows(fleet, "SELECT name, SUM(value) AS value FROM totals GROUP BY name")
    }
    assert (totals["generations"], totals["dropped"], totals["thumbs_down"], totals["known"]) == (2, 12, 1, 9)
    (state,) = _rows(fleet, "SELECT * FROM device_state")
    assert (state["stored"], state["known"], state["dropped"], state["uptime_s"]) == (9, 9, 12, 3600.0)
    assert (state["throttled"], state["temperature_c"], state["privacy"]) == (0, None, "p2")


def test_names_are_of_a_device_and_its_stream(fleet: Desk) -> None:
    assert _take(fleet, _say(1)).stored == 1
    assert _take(fleet, _say(1), device="pi-2").stored == 1
    other = msgspec.structs.replace(_say(1), stream="stream-2")
    assert _take(fleet, other, stream="stream-2").stored == 1
    assert len({row["stream"] for row in _rows(fleet, "SELECT stream FROM generations")}) == 3


def test_numbers_far_apart_and_out_of_order(fleet: Desk) -> None:
    seqs = [2**53 - 1, 5, 1000, 7, 0]
    assert _take(fleet, *map(_say, seqs)).stored == 5
    assert _take(fleet, *map(_say, [6, *seqs])).known == 5


def test_a_wrong_line_is_refused_alone(fleet: Desk) -> None:
    good = msgspec.json.encode(_say(1))
    wrong = {
        "json": [b'{"stream":', b"\xff\xfe", good.replace(b'"seq":1', b'"seq":NaN'), b'{"x":' + b"[" * 5000, b"x"],
        "kind": [good.replace(b'"kind":"generation"', b'"kind":"from the future"'), good.replace(b'"kind":', b'"k":')],
        "type": [good.replace(b'"seq":1', b'"seq":"1"'), b"{}", b"[]", good.replace(b'"stop":"stop",', b"")],
        "range": [
            good.replace(b'"seq":1', b'"seq":-1'),
            good.replace(b'"seq":1', b'"seq":1e400'),
            good.replace(b'"threads":4', b'"threads":123456789012345678901234567890'),
            good.replace(b'"at_s":', b'"at_s":9'),
            msgspec.json.encode(_say(2, generation(2, tokens_per_s=1e12))),
            msgspec.json.encode(_say(2, generation(2, prompt_tokens=-1))),
            msgspec.json.encode(_say(2, Sample("g", RELEASE, "", "", Privacy.FULL, "w" * 99))),
        ],
        "size": [msgspec.json.encode(_say(2, Happening("info", "x", "y" * 70_000)))],
        "stream": [good.replace(STREAM.encode(), b"another")],
    }
    lines = [line for some in wrong.values() for line in some]
    ack = _take(fleet, _say(100), *lines, _say(101))
    assert (ack.stored, len(ack.refused)) == (2, len(lines))
    assert [line.line for line in ack.refused] == list(range(2, 2 + len(lines)))
    assert all(0 < len(line.reason) <= 200 and line.reason.isprintable() for line in ack.refused)
    counted = {row["fault"]: row["count"] for row in _rows(fleet, "SELECT fault, count FROM refused")}
    assert counted == {fault: len(some) for fault, some in wrong.items()}
    assert _rows(fleet, "SELECT refused FROM device_state")[0]["refused"] == len(lines)


def test_a_field_that_is_too_long_is_refused(fleet: Desk) -> None:
    long = _say(1, Happening("info", "w" * 65))
    assert "length" in _take(fleet, long).refused[0].reason
    assert "length" in _take(fleet, _say(2, Canary(RELEASE, 0, 0, 0, 0.0, ids=tuple(range(5000))))).refused[0].reason


def test_hostile_texts_are_kept_as_they_are(fleet: Desk) -> None:
    hostile = "\x1b[2J[red]<b>=cmd()\u202e\r\n😀'; DROP TABLE samples; --%s?"
    _take(fleet, _say(1, Sample("g", RELEASE, hostile, "\0nul", Privacy.FULL, "sampled")))
    (row,) = _rows(fleet, "SELECT prompt, answer FROM samples")
    assert row == {"prompt": hostile, "answer": "\N{REPLACEMENT CHARACTER}nul"}
    nul = generation(2, release="a\0b")
    assert _take(fleet, _say(2, nul), _say(3, nul)).stored == 2
    assert len(_rows(fleet, "SELECT id FROM served WHERE release = 'a\N{REPLACEMENT CHARACTER}b'")) == 1


def test_time_is_the_servers_whatever_the_devices_clock_says(fleet: Desk) -> None:
    now_s, mono_s = fleet.now_s, 50_000.0
    clocks = {"sent_s": 1000.0, "mono_s": mono_s}  # 1970
    _take(
        fleet,
        _say(1, at_s=990.0, mono_s=mono_s - 10),
        _say(2, at_s=900_000_000.0, mono_s=mono_s - 7200),  # set in between
        _say(3, at_s=400.0, mono_s=7.0, boot="before"),  # as wrong then as it is now
        _say(4, at_s=1_900_000_000.0, mono_s=7.0, boot="before"),  # nobody knows
        _say(5, at_s=990.0, mono_s=mono_s + 5000),  # cannot be of this boot
        **clocks,
    )
    placed = {row["seq"]: (row["at_s"] - now_s, row["late"]) for row in _rows(fleet, "SELECT * FROM generations")}
    expected = {1: (-10.0, 0), 2: (-7200.0, 1), 3: (-600.0, 0), 4: (0.0, 1), 5: (-10.0, 0)}
    for seq, (age_s, late) in expected.items():
        assert placed[seq][0] == pytest.approx(age_s, abs=1e-3) and placed[seq][1] == late, seq
    (state,) = _rows(fleet, "SELECT clock_skew_s FROM device_state")
    assert state["clock_skew_s"] == pytest.approx(1000.0 - now_s)


def test_old_health_does_not_replace_newer(fleet: Desk) -> None:
    _take(fleet, _say(1, Health(RELEASE, 100.0), age_s=5), _say(2, Health(RELEASE, 50.0), age_s=60))
    _take(fleet, _say(3, Health(RELEASE, 10.0), age_s=100))
    (state,) = _rows(fleet, "SELECT uptime_s, generation_s FROM device_state")
    assert state == {"uptime_s": 100.0, "generation_s": None}


def test_cursors_grow_with_the_order_of_commits(fleet: Desk) -> None:
    _take(fleet, _say(1, age_s=1), _say(2, age_s=500))
    (top,) = _rows(fleet, "SELECT MAX(cursor) AS top FROM generations")
    _take(fleet, _say(1), _say(3, age_s=9000), device="pi-2")
    later = _rows(fleet, "SELECT device, seq FROM generations WHERE cursor > ? ORDER BY cursor", top["top"])
    assert [(row["device"], row["seq"]) for row in later] == [("pi-2", 1), ("pi-2", 3)]


def test_flags(fleet: Desk) -> None:
    features = generation(1).features
    assert features is not None
    spoilt = msgspec.structs.replace(features, refusal=True, leaked=True, empty=True, repetition=0.9, json_valid=False)
    _take(
        fleet,
        _say(1),
        _say(2, generation(2, features=spoilt, stop="length", error="x", mean_log_prob=-5.0)),
        _say(3, generation(3, features=None, mean_log_prob=None, stop="error")),
    )
    flags = [row["flags"] for row in _rows(fleet, "SELECT flags FROM generations ORDER BY seq")]
    assert flags == [0, int(sum(Flag)), int(Flag.ERROR)]


def test_low_is_what_hardly_an_answer_was_when_it_was_packed() -> None:
    reference = ReferenceProfile({"mean_log_prob": (-3.0, -2.0, -1.0)}, {"mean_log_prob": (0, 1, 9, 90)})
    assert low_log_prob(reference) == -2.0
    assert low_log_prob(ReferenceProfile()) == low_log_prob(
        ReferenceProfile({"mean_log_prob": (-1.0,)}, {"mean_log_prob": (1, 2)})
    )


def test_what_is_no_batch_fails_whole(fleet: Desk) -> None:
    good = batch_of([_say(1)], stream=STREAM, packed=False)
    packed = batch_of([_say(1)], stream=STREAM)
    for body, status in (
        (b"", 400),
        (b"{}", 400),
        (good.split(b"\n", 1)[1], 400),
        (good.replace(b'"reports":1', b'"reports":2'), 400),
        (batch_of([_say(1)], stream="a\0b"), 400),
        (batch_of([], stream=""), 400),
        (packed[:-3], 400),
        (packed + packed, 400),
        (b"\x1f\x8b" + b"x" * 50, 400),
        (good + b" " * 600_000, 413),
        (batch_of([b" " * 600_000], stream=STREAM), 413),
        (good + b"\n" * 30_000, 413),
    ):
        with pytest.raises(RequestError) as caught:
            read_batch(body)
        assert caught.value.status == status, body[:60]
    assert _take(fleet, stream="quiet").stored == 0


def test_a_batch_is_whole_or_not_there(fleet: Desk) -> None:
    with pytest.raises(ZeroDivisionError):
        with fleet.database.transaction() as tx:
            incoming = read_batch(batch_of([_say(1)], stream=STREAM))
            take(tx, fleet.now_s, tx.rows("SELECT * FROM devices LIMIT 1")[0], incoming)
            raise ZeroDivisionError
    assert not _rows(fleet, "SELECT cursor FROM generations")
    assert _take(fleet, _say(1)).stored == 1
