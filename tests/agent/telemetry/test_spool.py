"""The spool: what is kept, what goes first, what goes when there is no room, and damage."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.agent.telemetry.spool import Entry, Parcel, Spool, Stamp, file_bytes, stamp
from edgegen.agent.telemetry.writer import Writer
from edgegen.errors import DeviceError
from edgegen.records.telemetry import (
    MOST_BATCH_BYTES,
    MOST_REPORT_BYTES,
    Batch,
    Dropped,
    Happening,
    Lane,
    Privacy,
    Report,
    Said,
    Sample,
)

DAY = 86400.0


def word(text: str = "x") -> Happening:
    return Happening(level="info", what=text)


def text(size: int) -> Sample:
    return Sample("g", "r", "p" * (size // 2), "a" * (size // 2), Privacy.REDACTED, "sampled")


def entry(item: Said, lane: Lane = Lane.NUMBERS, at: Stamp | None = None) -> Entry:
    return Entry(lane, item, at or stamp())


def opened(path: Path, **more: Any) -> Spool:
    return Spool(path / "spool.db", **{"quota_bytes": 8 << 20} | more)


def reports(parcel: Parcel | None) -> list[Report]:
    assert parcel is not None
    return [msgspec.json.decode(line, type=Report) for line in parcel.lines]


def test_lanes_go_in_order_and_lines_are_reports(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.add([entry(text(10), Lane.TEXT), entry(word("n")), entry(word("d"), Lane.DEPLOY)])
        spool.add([entry(word("e"), Lane.ERRORS), entry(word("m"))])
        parcel = spool.take(MOST_BATCH_BYTES)
        found = reports(parcel)
        assert parcel is not None and [report.lane for report in found] == [0, 1, 2, 2, 3]
        assert [report.seq for report in found] == [3, 4, 2, 5, 1]
        assert {report.stream for report in found} == {spool.stream}
        head, *lines = parcel.body(stamp()).splitlines()
        assert msgspec.json.decode(head, type=Batch).reports == 5 == len(lines)


def test_a_batch_keeps_to_its_bytes_and_settles_exactly_what_it_held(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.add([entry(text(30_000), Lane.TEXT) for _ in range(40)])
        first = spool.take(MOST_BATCH_BYTES)
        assert first is not None
        assert MOST_BATCH_BYTES // 2 < len(first.body(stamp())) <= MOST_BATCH_BYTES
        spool.add([entry(word("late"), Lane.DEPLOY)])
        spool.settle(first)
        rest = spool.take(10 * MOST_BATCH_BYTES)
        assert rest is not None and rest.seqs[0] == 41
        assert sorted((*first.seqs, *rest.seqs)) == list(range(1, 42))


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    for _ in range(3):
        with opened(tmp_path) as spool:
            numbers = spool.add([entry(word()), entry(word())])
            parcel = spool.take(MOST_BATCH_BYTES)
            assert parcel is not None and list(parcel.seqs) == numbers
            spool.settle(parcel)
            stream = spool.stream
    with opened(tmp_path) as spool:
        assert spool.stream == stream
        assert spool.add([entry(word())]) == [7]
        assert spool.depth().next_seq == 8


def test_the_quota_takes_the_oldest_of_the_lowest_lane_and_says_so(tmp_path: Path) -> None:
    quota = 2 << 20
    with opened(tmp_path, quota_bytes=quota) as spool:
        spool.add([entry(word("keep"), Lane.DEPLOY) for _ in range(20)])
        spool.add([entry(word("keep")) for _ in range(500)])
        added = []
        for _ in range(40):
            added += spool.add([entry(text(9_000), Lane.TEXT) for _ in range(10)])
            assert file_bytes(tmp_path / "spool.db") <= quota
        lanes = {lane.lane: lane.reports for lane in spool.depth().lanes}
        assert lanes[0] == 20 and lanes[2] == 500 and 0 < lanes[3] < 400
        (gone,) = spool.depth().gone
        assert (gone.lane, gone.why, gone.count) == (3, "quota", 400 - lanes[3])
        found = reports(spool.take(1 << 30, most=10_000))
        (dropped,) = [report.item for report in found if isinstance(report.item, Dropped)]
        kept = [report.seq for report in found if report.lane == 3]
        assert kept == added[-lanes[3] :]  # the newest
        assert dropped == Dropped(lane=3, count=gone.count, first_seq=added[0], last_seq=kept[0] - 1, why="quota")


def test_what_waits_too_long_is_given_up(tmp_path: Path) -> None:
    now = [Stamp(1.8e9, 100.0, "b1")]
    with opened(tmp_path, retention_s={2: DAY}, now=lambda: now[0]) as spool:
        spool.add([entry(word("old"), at=now[0]), entry(word("stays"), Lane.DEPLOY, now[0])])
        spool.add([entry(word("no clock"), at=Stamp(100.0, 50.0, "b0"))])
        now[0] = Stamp(1.8e9 + 2 * DAY, 200.0, "b2")
        found = [report.item for report in reports(spool.take(MOST_BATCH_BYTES))]
        assert word("stays") in found and word("no clock") in found
        assert Dropped(2, 1, 1, 1, "expired") in found


def test_a_clock_that_is_set_makes_nothing_old(tmp_path: Path) -> None:
    with opened(tmp_path, retention_s={2: DAY}, now=lambda: Stamp(1.8e9, 160.0, "b")) as spool:
        spool.add([entry(word("fresh"), at=Stamp(1.75e9, 100.0, "b"))])
        assert [report.item for report in reports(spool.take(MOST_BATCH_BYTES))] == [word("fresh")]


def test_refused_reports_are_counted_once_and_a_refused_count_makes_no_other(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.add([entry(word()), entry(word())])
        parcel = spool.take(MOST_BATCH_BYTES)
        assert parcel is not None
        spool.settle(parcel, refused=[2])
        parcel = spool.take(MOST_BATCH_BYTES)
        assert [report.item for report in reports(parcel)] == [Dropped(2, 1, 2, 2, "refused")]
        assert parcel is not None
        spool.settle(parcel, refused=parcel.seqs)
        assert spool.take(MOST_BATCH_BYTES) is None
        assert [(gone.lane, gone.count) for gone in spool.depth().gone] == [(1, 1), (2, 1)]


def test_what_no_line_can_hold_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        assert spool.add([entry(text(MOST_REPORT_BYTES)), entry(word("\ud800")), entry(word())]) == [0, 0, 3]
        found = {type(report.item): report for report in reports(spool.take(MOST_BATCH_BYTES))}
        assert set(found) == {Dropped, Happening}
        assert {(gone.why, gone.count) for gone in spool.depth().gone} == {("refused", 1), ("failed", 1)}


def test_forgetting_deletes_texts_from_the_disk(tmp_path: Path) -> None:
    secret = "correct horse battery staple"
    with opened(tmp_path) as spool, opened(tmp_path) as other:
        for number in range(50):
            other.add([entry(Sample("g", "r", secret, str(number), Privacy.FULL, "sampled"), Lane.TEXT)])
        spool.add([entry(word("numbers"))])
        assert _holds(tmp_path, secret)
        assert spool.forget([Lane.TEXT, Lane.DEBUG]) == 50
        assert not _holds(tmp_path, secret)
        assert [report.item for report in reports(other.take(MOST_BATCH_BYTES))] == [word("numbers")]


def _holds(folder: Path, secret: str) -> bool:
    return any(secret.encode() in path.read_bytes() for path in folder.glob("spool.db*"))


@pytest.mark.parametrize("harm", ["rubbish", "middle", "newer"])
def test_a_damaged_file_is_put_aside(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "spool.db"
    with opened(tmp_path) as spool:
        spool.add([entry(text(2000)) for _ in range(200)])
        before = spool.stream
    if harm == "rubbish":
        path.write_bytes(b"no database" * 1000)
    elif harm == "middle":
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(data)
    else:
        link = sqlite3.connect(path)
        link.execute("PRAGMA user_version = 99")
        link.close()
    with opened(tmp_path) as spool:
        spool.add([entry(word("after"))])
        assert spool.stream != before
        found = [report.item for report in reports(spool.take(MOST_BATCH_BYTES))]
        assert [item.what for item in found if isinstance(item, Happening)] == ["spool-damaged", "after"]
    assert (tmp_path / "spool.db.damaged").exists()


def test_the_other_process_follows_to_the_new_file(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.add([entry(word())])
        two.add([entry(word())])
        one._put_aside("for the test")
        two.add([entry(word("two"))])
        assert one.stream == two.stream
        found = [report.item for report in reports(one.take(MOST_BATCH_BYTES))]
        assert [item.what for item in found if isinstance(item, Happening)] == ["spool-damaged", "two"]
        # Both see damage at once: the second must not put the new file aside.
        two._inode = -1
        two._put_aside("late")
        assert two.add([entry(word())]) and one.stream == two.stream


def test_the_log_does_not_grow(tmp_path: Path) -> None:
    with opened(tmp_path) as spool, opened(tmp_path) as reader:
        for number in range(600):
            spool.add([entry(text(4000))])
            if number % 50 == 0:
                reader.depth()
        assert (tmp_path / "spool.db-wal").stat().st_size <= 2 << 20


def test_a_full_disk_raises_one_error_and_later_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.add([entry(word("before"))])
        assert spool._link is not None
        pages = spool._link.execute("PRAGMA page_count").fetchone()[0]
        spool._link.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DeviceError, match="full"):
            spool.add([entry(text(30_000), Lane.TEXT)])
        spool._link.execute("PRAGMA max_page_count = 1000000")
        spool.add([entry(word("after"))])
        found = [report.item for report in reports(spool.take(MOST_BATCH_BYTES))]
        assert found == [word("before"), word("after")]


def test_answers_are_known_for_a_while(tmp_path: Path) -> None:
    with opened(tmp_path, quota_bytes=1 << 20) as spool:
        for number in range(0, 1200, 100):
            spool.add([Entry(Lane.NUMBERS, word(), stamp(), f"a{number + n}") for n in range(100)])
        assert spool.knows_answer("a1199") and not spool.knows_answer("a0") and not spool.knows_answer("b")


def test_a_writer_counts_what_a_broken_disk_does_not_take(tmp_path: Path) -> None:
    broken, said = [True], list[str]()

    def open_spool() -> Spool:
        if broken[0]:
            raise DeviceError("no disk")
        return opened(tmp_path)

    writer = Writer(open_spool, tell=said.append, again_s=0)
    for _ in range(3):
        writer.record(Lane.NUMBERS, word("lost"))
    assert writer.flush()
    assert len(said) == 1 and "no disk" in said[0]
    broken[0] = False
    writer.record(Lane.NUMBERS, word("kept"))
    writer.close()
    with opened(tmp_path) as spool:
        found = [report.item for report in reports(spool.take(MOST_BATCH_BYTES))]
        assert word("kept") in found
        assert [item.count for item in found if isinstance(item, Dropped)] == [3]
        assert spool.depth().gone[0].why == "disk"


def test_a_full_queue_is_counted_and_nobody_waits(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow() -> list[tuple[Lane, Said]]:
        assert gate.wait(60)
        return [(Lane.NUMBERS, word("slow"))]

    writer = Writer(lambda: opened(tmp_path), tell=lambda _: None, most_waiting=4)
    writer.record_later(Lane.NUMBERS, slow)
    for _ in range(50):
        writer.record(Lane.NUMBERS, word("more"))
    gate.set()
    assert writer.flush()
    writer.record_later(Lane.NUMBERS, lambda: [][1])
    writer.record(Lane.NUMBERS, word("end"))
    writer.close()
    with opened(tmp_path) as spool:
        found = [report.item for report in reports(spool.take(MOST_BATCH_BYTES))]
        lost = {item.why: item for item in found if isinstance(item, Dropped)}
        kept = [item for item in found if isinstance(item, Happening)]
        assert len(kept) + lost["full"].count == 52 and lost["full"].count >= 40
        assert lost["failed"].count == 1
        # Every number is either kept or accounted for.
        assert spool.depth().next_seq - 1 == len(found) + lost["full"].count + 1
