"""Batches on their way in, whatever brought them: admitted, read beside the event loop, stored, answered.

Memory is bounded: only devices that the fleet knows get as far as a body, and when many come at once the others are
asked to come again (503), which they can, as they keep what is not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import msgspec

from edgegen.fleet.database import Writer
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.telemetry.batches import read_batch
from edgegen.fleet.telemetry.ingest import take
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.telemetry import Ack

Admission = Callable[[Transaction], Row]
"""Gives the device's row, or raises `RequestError`."""

_MOST_AT_ONCE = 256
"""Batches in memory."""
_MOST_IN_WORK = 8
"""Of them between their bytes and the database."""
_CALM = 32
_LONGEST_WAIT_S = 30.0


class Intake:
    """One server's."""

    def __init__(self, writer: Writer, clock: Callable[[], float]) -> None:
        self._writer, self._clock = writer, clock
        self._inside = 0
        self._gate = asyncio.Semaphore(_MOST_IN_WORK)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Room for one batch.

        Raises:
            RequestError: 503, there is none now.
        """
        if self._inside >= _MOST_AT_ONCE:
            raise RequestError(503, "too many batches at once; come again")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def admit(self, admission: Admission) -> None:
        """Look whether the device may speak, before its body is read."""
        await asyncio.wrap_future(self._writer.submit(admission))

    async def take(self, body: bytes, admission: Admission) -> Ack:
        """Store a batch that came now; the answer is given when it is committed.

        Raises:
            RequestError: the admission's, or the whole batch is unreadable (see `batches.read_batch`).
        """
        received_s = self._clock()
        async with self._gate:
            incoming = await asyncio.to_thread(read_batch, body)
            ack = await asyncio.wrap_future(
                self._writer.submit(lambda tx: take(tx, received_s, admission(tx), incoming))
            )
        return msgspec.structs.replace(ack, wait_s=self._wait_s())

    def _wait_s(self) -> float:
        """What a device is asked to leave between this batch and its next."""
        return min(_LONGEST_WAIT_S, max(0, self._inside - _CALM) / _MOST_IN_WORK)
