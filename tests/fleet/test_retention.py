"""What is over its time goes in slices; texts that are erased are gone from the files too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.operate import LocalFleet
from edgegen.fleet.operations import WhichDevice
from edgegen.fleet.telemetry.batches import read_batch
from edgegen.fleet.telemetry.ingest import take
from edgegen.fleet.telemetry.retention import expire, forget_reports, sweep
from edgegen.records.telemetry import Feedback, Happening, Health, Item, Privacy, Sample
from tests.fleet.site import Desk
from tests.simulators.reporting_device import RELEASE, batch_of, generation, report

DAY_S = 86400.0
SECRET = "Kennwort-Sesam-4711"


def _enrol(desk: Desk, device: str) -> None:
    desk.run(
        lambda tx: tx.run(
            "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, revoked) "
            "VALUES (?, 'kitchens', 'x', '{}', '', 0, 0)",
            device,
        )
    )


def _items(text: str) -> list[Item]:
    return [
        generation(1, missing={"ж": 1}),
        Sample("g", RELEASE, text, text * 300, Privacy.FULL, "sampled"),  # beyond a page
        Feedback("g", 1, text),
        Health(RELEASE, 1.0),
        Happening("info", "started"),
    ]


def _report(desk: Desk, device: str, items: list[Item], *, first: int = 1, stream: str = "s") -> Any:
    reports = [report(seq, item, stream=stream) for seq, item in enumerate(items, first)]
    incoming = read_batch(batch_of(reports, stream=stream))
    return desk.run(
        lambda tx: take(tx, desk.now_s, tx.rows("SELECT * FROM devices WHERE device = ?", device)[0], incoming)
    )


def _counts(desk: Desk) -> dict[str, int]:
    tables = ("generations", "samples", "feedback", "health", "events")
    return {table: desk.run(lambda tx, t=table: tx.rows(f"SELECT COUNT(*) AS n FROM {t}"))[0]["n"] for table in tables}


def _expire(desk: Desk) -> int:
    """Slices until nothing is left to do."""
    slices = 0
    while desk.run(lambda tx: expire(tx, desk.now_s))[0]:
        slices += 1
        assert slices < 100
    return slices


@pytest.fixture
def fleet(desk: Desk) -> Desk:
    desk.now_s = time.time()
    _enrol(desk, "pi-1")
    _enrol(desk, "pi-2")
    return desk


def test_each_kind_has_its_lifetime(fleet: Desk) -> None:
    _report(fleet, "pi-1", _items("x"))
    began_s = fleet.now_s
    for days, left in ((13, (1, 1, 1, 1, 1)), (15, (1, 0, 1, 1, 1)), (91, (0, 0, 0, 0, 1)), (366, (0, 0, 0, 0, 0))):
        fleet.now_s = began_s + days * DAY_S
        _expire(fleet)
        assert tuple(_counts(fleet).values()) == left, days
        if days == 15:  # a rating outlives its comment
            assert fleet.run(lambda tx: tx.rows("SELECT rating, comment FROM feedback")) == [
                {"rating": 1, "comment": ""}
            ]
    fleet.run(lambda tx: sweep(tx, fleet.now_s))
    for table in ("served", "streams"):
        assert fleet.run(lambda tx, t=table: tx.rows(f"SELECT id FROM {t}")) == []
    assert _report(fleet, "pi-1", _items("x"), stream="after").stored == 5


def test_many_rows_go_in_slices_and_new_ones_stay(fleet: Desk) -> None:
    for batch in range(5):
        _report(fleet, "pi-1", [Happening("info", "x")] * 1000, first=1 + batch * 1000)
    fleet.now_s += 400 * DAY_S
    _report(fleet, "pi-1", [Happening("info", "new")], first=9000)
    assert 3 <= _expire(fleet) <= 4
    assert [row["what"] for row in fleet.run(lambda tx: tx.rows("SELECT what FROM events"))] == ["new"]


def test_rows_of_a_wrong_future_do_not_hold_the_others(fleet: Desk) -> None:
    now_s = fleet.now_s
    fleet.now_s = now_s + 5000 * DAY_S
    _report(fleet, "pi-1", [Happening("info", "future")])
    fleet.now_s = now_s
    _report(fleet, "pi-1", [Happening("info", "past")], first=2)
    fleet.now_s = now_s + 400 * DAY_S
    _expire(fleet)
    assert [row["what"] for row in fleet.run(lambda tx: tx.rows("SELECT what FROM events"))] == ["future"]


def test_lifetimes_are_set_and_noted(fleet: Desk) -> None:
    assert fleet.do("retention").text_days == 14
    assert fleet.do("retention", text_days=0.5).numbers_days == 90
    assert (fleet.do("retention").text_days, fleet.do("audit")[-1].what) == (0.5, "retention changed")
    for wrong in (-1.0, float("nan"), float("inf"), 1e6):
        with pytest.raises(ConfigError, match="lifetime"):
            fleet.do("retention", events_days=wrong)
    _report(fleet, "pi-1", _items("x"))
    fleet.now_s += 0.6 * DAY_S
    _expire(fleet)
    assert _counts(fleet)["samples"] == 0


def test_a_devices_texts_are_erased_and_do_not_come_back(fleet: Desk) -> None:
    _report(fleet, "pi-1", _items(SECRET))
    _report(fleet, "pi-2", _items("other"))
    erased = fleet.do("forget-text", device="pi-1")
    assert (erased.samples, erased.comments, erased.characters) == (1, 1, 1)
    assert _report(fleet, "pi-1", _items(SECRET)).known == 5  # the device had missed the answer
    texts = fleet.run(lambda tx: tx.rows("SELECT device, prompt FROM samples ORDER BY device"))
    assert texts == [{"device": "pi-1", "prompt": ""}, {"device": "pi-2", "prompt": "other"}]
    assert _counts(fleet)["generations"] == 2
    assert fleet.do("audit")[-1].what == "texts erased"
    with pytest.raises(ConfigError, match="no device"):
        fleet.do("forget-text", device="nobody")


def test_erased_texts_are_in_no_file_any_more(tmp_path: Path) -> None:
    store = tmp_path / "fleet.db"
    desk = Desk(str(store), time.time())
    _enrol(desk, "pi-1")
    _report(desk, "pi-1", _items(SECRET))
    assert any(SECRET.encode() in path.read_bytes() for path in tmp_path.iterdir())
    LocalFleet(str(store)).do("forget-text", WhichDevice("pi-1"))
    assert not [path for path in tmp_path.iterdir() if SECRET.encode() in path.read_bytes()]
    desk.database.close()


def test_a_forgotten_devices_reports_go_and_its_successors_stay(fleet: Desk) -> None:
    _report(fleet, "pi-1", _items("old"))
    _report(fleet, "pi-2", _items("other"))
    fleet.run(lambda tx: forget_reports(tx, fleet.now_s, "pi-1"))
    fleet.now_s += 1
    _report(fleet, "pi-1", [Happening("info", "new")], stream="anew")
    _expire(fleet)
    assert tuple(_counts(fleet).values()) == (1, 1, 1, 1, 2)
    assert fleet.run(lambda tx: tx.rows("SELECT key FROM meta WHERE key = 'erase:pi-1'")) == []


def test_a_file_shrinks_when_much_has_gone(tmp_path: Path) -> None:
    store = tmp_path / "fleet.db"
    desk = Desk(str(store), time.time())
    _enrol(desk, "pi-1")
    for batch in range(15):
        items: list[Item] = [Sample("g", RELEASE, "x" * 1500, "", Privacy.FULL, "sampled")] * 200
        _report(desk, "pi-1", items, first=1 + batch * 200)
    assert desk.database.clear_log()
    full = store.stat().st_size
    desk.now_s += 20 * DAY_S
    for _ in range(20):
        desk.run(lambda tx: expire(tx, desk.now_s))
    assert desk.database.clear_log()
    assert store.stat().st_size < 0.6 * full
    desk.database.close()
