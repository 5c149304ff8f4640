"""More batches at once than there is room for: the others are asked to come again, and the rest to take their time."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from edgegen.fleet.database import Writer
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.telemetry.intake import Intake
from edgegen.fleet.transaction import Row, Transaction
from tests.fleet.site import Desk
from tests.simulators.reporting_device import batch_of, generation, report


def _admission(tx: Transaction) -> Row:
    return tx.rows("SELECT * FROM devices")[0]


def test_memory_is_bounded_and_a_crowd_is_slowed_down(store: str) -> None:
    desk = Desk(store)
    desk.run(
        lambda tx: tx.run(
            "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, revoked) "
            "VALUES ('pi-1', 'kitchens', 'x', '{}', '', 0, 0)"
        )
    )
    writer = Writer(store)

    async def crowd() -> None:
        intake = Intake(writer, time.time)
        body = batch_of([report(1, generation(1), stream="s")], stream="s")
        with intake.place():
            assert (await intake.take(body, _admission)).wait_s == 0
        with contextlib.ExitStack() as places:
            with pytest.raises(RequestError) as caught:
                for _ in range(10_000):
                    places.enter_context(intake.place())
            assert caught.value.status == 503
            assert 0 < (await intake.take(body, _admission)).wait_s <= 60
        with intake.place():
            acks = await asyncio.gather(*(intake.take(body, _admission) for _ in range(20)))
        assert [ack.known for ack in acks] == [1] * 20

    asyncio.run(crowd())
    writer.close()
    desk.database.close()
