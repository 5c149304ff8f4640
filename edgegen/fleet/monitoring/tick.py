"""Everything that a server does of monitoring by itself, in its tick.

Each part is a transaction of its own, so that a fault in one holds up nothing else, and none takes long: the server's
one writer also answers devices. Where the sketches' library is not installed that is said once, and reports wait in
the store until it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.fleet.monitoring.alerts import evaluate, prune_alerts
from edgegen.fleet.monitoring.canaries import judge_new_canaries
from edgegen.fleet.monitoring.presence import read_life
from edgegen.fleet.monitoring.rollups import prune, roll_up
from edgegen.fleet.monitoring.rules import DEFAULTS, FILE, AlertRules, load_rules
from edgegen.fleet.monitoring.verdicts import judge_next_group, prune_verdicts
from edgegen.fleet.monitoring.webhook import due, send, settle
from edgegen.fleet.transaction import Row, Transaction

EVALUATE_S = 10.0
PRUNE_S = 600.0
_MOST_ROUNDS = 20
"""Of one tick, so that rollouts move on while a backlog is worked off."""
_SERVED_S = 60.0
"""A site whose server lived so lately is served."""
_log = logging.getLogger("edgegen.fleet")

Do = Callable[[Callable[[Transaction], Any]], Awaitable[Any]]


class Watch:
    """The state of a server's monitoring that is not in the database: what it has said, and when it looked."""

    def __init__(self, site: Path, clock: Callable[[], float]) -> None:
        """
        Raises:
            ConfigError: `alerts.toml` is wrong.
        """
        self._site, self._clock = site, clock
        self.rules: AlertRules = load_rules(site)
        self._stamp = self._file_stamp()
        self._evaluated_s = self._pruned_s = float("-inf")
        self._said = ""

    async def tick(self, do: Do) -> None:
        """Roll up, judge golden answers and drift, look at the rules, throw away."""
        for job, rounds in ((roll_up, _MOST_ROUNDS), (judge_new_canaries, _MOST_ROUNDS), (judge_next_group, 1)):
            try:
                for _ in range(rounds):
                    if not await do(partial(_at, job, self._clock())):
                        break
                self._said = ""
            except UnsupportedError as error:
                self._say_once(f"figures are not made: {error}; {error.hint}")
                return
        now_s = self._clock()
        if not 0 <= now_s - self._evaluated_s < EVALUATE_S:
            self._reload()
            await do(lambda tx: evaluate(tx, now_s, self.rules))
            self._evaluated_s = now_s
        if not 0 <= now_s - self._pruned_s < PRUNE_S:
            await do(lambda tx: (prune(tx, now_s), prune_alerts(tx, now_s), prune_verdicts(tx, now_s)))
            self._pruned_s = now_s

    async def deliver(self, do: Do, elsewhere: Callable[..., Awaitable[str]]) -> None:
        """Send what the outbox holds.

        Args:
            elsewhere: runs a function away from this thread.
        """
        webhook = self.rules.webhook
        for row in await do(lambda tx: due(tx, self._clock())):
            if webhook is None:
                failure = "there is no webhook any more"
            else:
                try:
                    failure = await elsewhere(send, webhook, row["body"])
                except ConfigError as error:
                    failure = str(error)
            await do(partial(_settle, self._clock(), row, failure))

    def _reload(self) -> None:
        """Take changed rules; wrong ones are said once, and the ones before stay."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.rules = load_rules(self._site)
            _log.info("%s: %d rules", FILE, len(self.rules.rule))
        except ConfigError as error:
            _log.error("%s; the rules before stay%s", error, f" ({error.hint})" if error.hint else "")

    def _file_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self._site / FILE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _say_once(self, words: str) -> None:
        if self._said != words:
            self._said = words
            _log.error("%s", words)


def _at(job: Callable[[Transaction, float], bool], now_s: float, tx: Transaction) -> bool:
    return job(tx, now_s)


def _settle(now_s: float, row: Row, failure: str, tx: Transaction) -> None:
    settle(tx, now_s, row, failure)


def catch_up(tx: Transaction, now_s: float) -> None:
    """Roll up and judge what came, at most `_MOST_ROUNDS` times as much as one step of a tick takes.

    Raises:
        UnsupportedError: the sketches' library is not installed.
    """
    jobs: list[Callable[[Transaction, float], bool]] = [roll_up, judge_new_canaries]
    alive_s = read_life(tx).alive_s
    if alive_s is None or not 0 <= now_s - alive_s < _SERVED_S:
        jobs.append(judge_next_group)  # takes long: where there is a server, that does it
    for job in jobs:
        for _ in range(_MOST_ROUNDS):
            if not job(tx, now_s):
                break


def evaluate_if_nobody_did(tx: Transaction, now_s: float, site: Path | None) -> None:
    """Look at the rules where no server has done so of late: a question to a site that nobody serves is answered too.

    Raises:
        ConfigError: `alerts.toml` is wrong.
    """
    rows = tx.rows("SELECT value FROM meta WHERE key = 'alerts_s'")
    if rows and 0 <= now_s - float(rows[0]["value"]) < 3 * EVALUATE_S:
        return
    if site is None and rows:
        return
    evaluate(tx, now_s, load_rules(site, sends=False) if site else DEFAULTS)
