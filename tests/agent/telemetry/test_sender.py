"""From the spool to a server that commits, refuses, is slow, is gone and comes back."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgegen.agent.config import AgentConfig, Fleet
from edgegen.agent.controller import Controller, Credential
from edgegen.agent.disk import Disk
from edgegen.agent.telemetry.http import http_post, retry_after_s
from edgegen.agent.telemetry.sender import Later, Post, Reply, Sender, Taken, Unwanted, settled
from edgegen.agent.telemetry.spool import Entry, Parcel, Spool, stamp
from edgegen.common.codec import save_json
from edgegen.records.telemetry import Ack, Dropped, Feedback, Happening, Lane, Refused, Report
from tests.agent.telemetry.ingest import Store, ingesting


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", quota_bytes=8 << 20) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "server.db")
    yield opened
    opened.close()


def controller(folder: Path, url: str) -> Controller:
    save_json(
        folder / "credential.json", Credential(device="kitchen 1", token="t", url=url, controller=url + "/controller")
    )
    return Controller(AgentConfig(home=str(folder), fleet=Fleet(url=url)), folder, Disk())


def sender(spool: Spool, post: Post, said: list[str] | None = None) -> Sender:
    tell = said.append if said is not None else (lambda _: None)
    return Sender(spool, post, idle_s=7.0, tell=tell, dice=random.Random(1))


def add(spool: Spool, count: int, lane: Lane = Lane.NUMBERS) -> list[int]:
    return spool.add([Entry(lane, Feedback(str(number), 1), stamp()) for number in range(count)])


def run(sending: Sender, most: int = 2000) -> list[float]:
    """Step until it is idle."""
    waits = list[float]()
    for _ in range(most):
        waits.append(sending.step())
        if waits[-1] == 7.0:
            return waits
    raise AssertionError("it does not come to rest")


def test_everything_arrives_once_over_http(tmp_path: Path, spool: Spool, store: Store) -> None:
    add(spool, 3000)
    lost = iter([True, False, True, False])
    paths = list[str]()

    def fault(when: str) -> tuple[int, dict[str, str]] | None:
        return (0, {}) if when == "after" and next(lost, False) else None

    with ingesting(store, fault=fault) as url:
        sending = sender(spool, http_post(controller(tmp_path, url)), paths)
        waits = run(sending)
    assert sum(wait > 0 for wait in waits[:-1]) == 2  # two answers were lost after the commit
    assert sorted(report.seq for report in store.reports()) == list(range(1, 3001))
    assert spool.take(1 << 20) is None
    assert spool.depth().acked_s is not None


def test_a_server_that_is_away_is_waited_for_with_jitter(tmp_path: Path, spool: Spool, store: Store) -> None:
    add(spool, 5)
    said = list[str]()
    with ingesting(store) as url:
        port = int(url.rpartition(":")[2])
    sending = sender(spool, http_post(controller(tmp_path, url)), said)
    waits = [sending.step() for _ in range(12)]
    assert all(0.5 <= wait <= 900 for wait in waits)
    assert max(waits[6:]) > 20 and len(set(waits)) > 6
    assert len(said) == 1  # the same words once
    with ingesting(store, port=port):
        run(sending)
    assert len(store.reports()) == 5


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(tmp_path: Path, spool: Spool, store: Store, status: int) -> None:
    add(spool, 1)
    with ingesting(store, fault=lambda when: (status, {"Retry-After": "120"}) if when == "before" else None) as url:
        assert 120 <= sender(spool, http_post(controller(tmp_path, url))).step() <= 132
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412400.0) == 80.0
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 2e9) == 0.0
    assert retry_after_s("soon", 0) is None


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_does_not_know_us_is_left_alone_and_nothing_is_lost(
    tmp_path: Path, spool: Spool, store: Store, status: int
) -> None:
    add(spool, 3)
    with ingesting(store, fault=lambda when: (status, {}) if when == "before" else None) as url:
        assert sender(spool, http_post(controller(tmp_path, url))).step() >= 900
    assert spool.depth().lanes[0].reports == 3


def test_a_device_that_is_not_enrolled_waits(tmp_path: Path, spool: Spool) -> None:
    add(spool, 1)
    post = http_post(Controller(AgentConfig(home=str(tmp_path), fleet=Fleet(url="http://x")), tmp_path, Disk()))
    said = list[str]()
    assert sender(spool, post, said).step() > 0
    assert "not enrolled" in said[0]


def test_refused_reports_are_given_up_and_counted(tmp_path: Path, spool: Spool, store: Store) -> None:
    add(spool, 10)

    def refuses(report: Report) -> bool:
        return isinstance(report.item, Feedback) and report.seq % 5 == 0

    with ingesting(store, refuses=refuses) as url:
        run(sender(spool, http_post(controller(tmp_path, url))))
    found = store.reports()
    assert [report.seq for report in found] == [1, 2, 3, 4, 6, 7, 8, 9, 11]
    assert found[-1].item == Dropped(2, 2, 5, 10, "refused")


def answering(poison: Callable[[int], bool]) -> tuple[Post, list[tuple[int, ...]], list[int]]:
    """A server that refuses whole batches which hold a poison; what it was given, what it has."""
    given, has = list[tuple[int, ...]](), list[int]()

    def post(_: bytes, parcel: Parcel) -> Reply:
        given.append(parcel.seqs)
        if any(map(poison, parcel.seqs)):
            return Unwanted("400")
        has.extend(parcel.seqs)
        return Taken(Ack(parcel.stream, len(parcel.seqs), 0))

    return post, given, has


def test_a_poisoned_batch_is_halved_until_only_the_poison_is_left(spool: Spool) -> None:
    add(spool, 1000)
    post, given, has = answering(lambda seq: seq in (17, 640))
    run(sender(spool, post))
    assert sorted(seq for seq in has if seq <= 1000) == [seq for seq in range(1, 1001) if seq not in (17, 640)]
    assert len(given) < 80
    assert [gone.count for gone in spool.depth().gone] == [2]


def test_a_server_that_refuses_everything_takes_nothing_from_the_device(spool: Spool) -> None:
    add(spool, 50)
    post, given, _ = answering(lambda _: True)
    sending = sender(spool, post)
    waits = [sending.step() for _ in range(100)]
    assert sum(wait > 0 for wait in waits) >= 5
    assert spool.depth().lanes[0].reports == 50 and not spool.depth().gone
    assert len(given) == 100


def test_a_lone_poison_waits_for_another_report_to_be_taken(spool: Spool) -> None:
    add(spool, 1)
    post, _, has = answering(lambda seq: seq == 1)
    sending = sender(spool, post)
    assert [sending.step() > 0 for _ in range(4)] == [False, True, False, True]
    add(spool, 1)
    run(sending)
    assert 2 in has and 1 not in has
    assert [gone.count for gone in spool.depth().gone] == [1]


@pytest.mark.parametrize(
    "ack",
    [
        Ack("another", 3, 0),
        Ack("", 2, 0),
        Ack("", 2, 0, (Refused(9, "x"),)),
        Ack("", 1, 0, (Refused(1, "x"), Refused(1, "x"))),
    ],
)
def test_an_acknowledgement_of_something_else_deletes_nothing(spool: Spool, ack: Ack) -> None:
    add(spool, 3)
    answer = msgspec.structs.replace(ack, stream=ack.stream or spool.stream)
    assert sender(spool, lambda _, __: Taken(answer)).step() > 0
    assert spool.depth().lanes[0].reports == 3


def test_which_acknowledgement_is_of_a_parcel(spool: Spool) -> None:
    add(spool, 3)
    parcel = spool.take(1 << 20)
    assert parcel is not None
    all_refused = tuple(Refused(line, "x") for line in (1, 2, 3))
    good = [Ack(spool.stream, 3, 0, (), 1, 3), Ack(spool.stream, 0, 0, all_refused)]
    good.append(Ack(spool.stream, 1, 1, (Refused(1, "x"),), 2, 3))  # ends of what was not refused
    assert all(settled(parcel, ack) for ack in good)
    other = [Ack("s", 3, 0, (), 1, 3), Ack(spool.stream, 3, 0, (), 4, 6), Ack(spool.stream, 2, 0, (), 1, 3)]
    assert not any(settled(parcel, ack) for ack in other)


def test_the_server_says_how_long_to_wait(spool: Spool) -> None:
    add(spool, 1)
    post: Post = lambda _, parcel: Taken(Ack(parcel.stream, 1, 0, wait_s=33.0))  # noqa: E731
    assert sender(spool, post).step() == 33.0
    add(spool, 1)
    assert 5.0 <= sender(spool, lambda _, __: Later("busy", 5.0)).step() <= 5.5


def test_what_is_urgent_overtakes(spool: Spool) -> None:
    add(spool, 5000)
    post, given, _ = answering(lambda _: False)
    sending = sender(spool, post)
    sending.step()
    spool.add([Entry(Lane.DEPLOY, Happening("info", "x"), stamp())])
    sending.step()
    assert given[1][0] == 5001


def test_one_process_writes_while_another_sends(tmp_path: Path, spool: Spool, store: Store) -> None:
    done = threading.Event()

    def write() -> None:
        with Spool(tmp_path / "spool.db", quota_bytes=8 << 20) as own:
            for _ in range(100):
                add(own, 3)
        done.set()

    writing = threading.Thread(target=write)
    with ingesting(store) as url:
        sending = sender(spool, http_post(controller(tmp_path, url)))
        writing.start()
        until = time.monotonic() + 60
        while not done.is_set() and time.monotonic() < until:
            sending.step()
        writing.join()
        run(sending)
    assert sorted(report.seq for report in store.reports()) == list(range(1, 301))
