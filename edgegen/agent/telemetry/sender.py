"""From the spool to a server: batch after batch, each deleted when the server says that it has it, and not before.

The way is a function that gives a batch and brings back one of three replies (`http`, `mqtt`). Waiting is full jitter
(Brooker 2015) unless the server says how long. A server that refuses a whole batch is given its halves, down to the one
report that it does not take. That one waits until the server has taken another: then the report is at fault and is
given up, counted. A server that takes nothing at all is at fault itself, and nothing is given up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from edgegen.agent.telemetry.spool import Parcel, Spool, Stamp, stamp
from edgegen.records.telemetry import MOST_BATCH_BYTES, Ack

_FIRST_WAIT_S = 2.0
_LONGEST_WAIT_S = 900.0
_LONGEST_ASKED_S = 86400.0
"""What a server may ask for."""
_MOST_TOGETHER = 2000
_MOST_SUSPECTS = 8
"""Reports refused on their own before the server itself is suspected."""


class Taken(NamedTuple):
    """The server has committed a batch."""

    ack: Ack


class Unwanted(NamedTuple):
    """The server will not take this batch as it is."""

    reason: str


class Later(NamedTuple):
    """Nobody has it."""

    reason: str
    wait_s: float | None = None
    """As the server asks; None: as we think."""


Reply = Taken | Unwanted | Later
Post = Callable[[bytes, Parcel], Reply]


class Sender:
    """Empties one spool. `step` does one thing and says when to do the next."""

    def __init__(
        self,
        spool: Spool,
        post: Post,
        *,
        idle_s: float,
        tell: Callable[[str], None],
        now: Callable[[], Stamp] = stamp,
        dice: random.Random | None = None,
    ) -> None:
        """Prepare.

        Args:
            spool: of this device.
            post: gives a batch to the server; must not raise.
            idle_s: until an empty spool is looked at again.
            tell: a line for the log.
            now: the clocks, for the batch's first line.
            dice: for the jitter.
        """
        self._spool, self._post, self._idle_s, self._tell = spool, post, idle_s, tell
        self._now, self._dice = now, dice or random.Random()
        self._most = _MOST_TOGETHER
        self._suspects: list[int] = []
        self._stream = ""
        self._failures = 0
        self._quiet = ""

    def step(self) -> float:
        """Send a batch, if there is one; seconds to wait before the next call.

        Raises:
            DeviceError: the spool cannot be read or written.
        """
        if self._stream != self._spool.stream:
            self._stream, self._suspects = self._spool.stream, []
        parcel = self._spool.take(MOST_BATCH_BYTES, most=self._most, without=frozenset(self._suspects))
        if parcel is None:
            return self._reconsider() if self._suspects else self._idle_s
        reply = self._post(parcel.body(self._now()), parcel)
        if isinstance(reply, Taken):
            return self._taken(parcel, reply.ack)
        if isinstance(reply, Unwanted):
            return self._unwanted(parcel, reply.reason)
        return self._later(reply.reason, reply.wait_s)

    def _taken(self, parcel: Parcel, ack: Ack) -> float:
        refused = [one.line for one in ack.refused]
        wrong = ack.stream != parcel.stream or ack.stored + ack.known + len(refused) != len(parcel.seqs)
        if wrong or not all(1 <= line <= len(parcel.seqs) for line in refused) or len(set(refused)) != len(refused):
            return self._later("the server's answer is of another batch")
        self._spool.settle(parcel, [parcel.seqs[line - 1] for line in refused])
        for one in ack.refused[:1]:
            self._say(f"the server refuses {len(refused)} reports, such as: {one.reason[:200]}")
        if len(refused) < len(parcel.seqs):
            self._drop_suspects(parcel)
        if not refused:
            self._quiet = ""
        self._failures = 0
        self._most = min(_MOST_TOGETHER, self._most * 2)
        return max(0.0, min(ack.wait_s, _LONGEST_ASKED_S))

    def _unwanted(self, parcel: Parcel, reason: str) -> float:
        if len(parcel.seqs) > 1:
            self._most = max(1, len(parcel.seqs) // 2)
            self._say(f"the server refuses a batch ({reason}); halving it")
            return 0.0
        self._suspects.append(parcel.seqs[0])
        if len(self._suspects) < _MOST_SUSPECTS:
            return 0.0
        self._suspects = []
        return self._later(f"the server refuses every report: {reason}")

    def _reconsider(self) -> float:
        """Only suspects are left, and nothing to tell by whether they or the server are at fault."""
        self._suspects = []
        return self._later("the server refuses every report")

    def _drop_suspects(self, taken: Parcel) -> None:
        if self._suspects:
            self._spool.drop(taken, self._suspects)
            self._say(f"given up: {len(self._suspects)} reports that the server does not take")
            self._suspects = []

    def _later(self, reason: str, wait_s: float | None = None) -> float:
        self._say(f"reports wait: {reason}")
        self._failures += 1
        if wait_s is not None:
            return max(1.0, min(wait_s, _LONGEST_ASKED_S)) * self._dice.uniform(1.0, 1.1)
        most = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 12))
        return max(0.5, self._dice.uniform(0, most))

    def _say(self, words: str) -> None:
        """The same words once in a row."""
        if words != self._quiet:
            self._quiet = words
            self._tell(words)


def settled(parcel: Parcel, ack: Ack) -> bool:
    """Whether an acknowledgement can be of this parcel. Its ends may leave out reports that were refused."""
    count = ack.stored + ack.known + len(ack.refused)
    ends = {ack.first_seq, ack.last_seq} - {0}
    return ack.stream == parcel.stream and count == len(parcel.seqs) and ends <= set(parcel.seqs)
