"""What the device must remember over a power cut: the running action, the epoch, the bans.

One small JSON file, replaced whole at each change. Not a database: its writes then go through the same `Disk` as all
others, so the test that stops the agent at every operation covers the journal too. One agent writes it, under a lock.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgegen.agent.disk import Disk, replace_file
from edgegen.common.codec import decode_json, encode_json
from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.deployment import Phase, Reason

STATE_SCHEMA = 1
_REMEMBERED = 32
"""Finished actions, bans and notes that are kept, the latest last."""

TERMINAL = (Phase.CONFIRMED, Phase.ROLLED_BACK, Phase.FAILED)
"""Phases in which nothing is left to do but to report."""


BEFORE_SWITCH = (Phase.RESERVE, Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.SELF_TEST)
"""Phases in which an action may still be withdrawn as if it had never been."""


class Action(Record, frozen=True):
    """One update, from the order to its end."""

    id: str
    target: str
    """Path of the manifest among the repository's targets."""
    digest: str
    """Of the manifest, `sha256:<hex>`."""
    phase: Phase
    repository: str = ""
    """Where the order says that the release is; empty: the configured repository."""
    reason: Reason = Reason.NONE
    detail: str = ""
    """For people: one line."""
    old: str = ""
    """Digest of what served when the action began; empty: nothing did."""
    older: str = ""
    """Digest that `previous` pointed to then."""
    attempt: int = 0
    """Times that the release's model was started by this phase; counted before it starts."""
    restarts: int = 0
    """Times that the agent found this action unfinished in this phase when it started."""
    bytes_fetched: int = 0
    bytes_reused: int = 0
    reported: str = ""
    """The last phase that the server has been told of."""
    withdrawn: bool = False
    """Whether the server is done with it. Then it is told nothing more, and before the switch the action ends."""
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What names this action for good; see `action_key`."""
        return action_key(self.id, self.digest)


class State(Record, frozen=True):
    """`state.json`."""

    schema: int = STATE_SCHEMA
    action: Action | None = None
    epoch: int = 0
    """Highest of the releases that were confirmed here; a release below it is refused."""
    confirmed: str = ""
    """Digest of the release that was confirmed last."""
    banned: tuple[str, ...] = ()
    """Digests of releases that were worse here."""
    finished: dict[str, str] = {}
    """`action_key` of actions that are over → the phase that they ended in, the latest last. `idle`: withdrawn, so
    that it begins anew if it is ordered again."""
    notes: tuple[str, ...] = ()

    def ended(self, action_id: str, digest: str) -> Phase | None:
        """The phase that an action ended in; None: it is not over, or unknown here."""
        found = Phase(self.finished.get(action_key(action_id, digest), Phase.IDLE))
        return None if found is Phase.IDLE else found


def action_key(action_id: str, digest: str) -> str:
    """An action's name for good.

    A server numbers its actions, and one whose database was made anew begins again at 1: a number alone would let the
    device take a new order for an old one. Journals of earlier versions have bare numbers here. They say nothing: what
    is ordered again is proven again, and is confirmed at once where it serves.
    """
    return f"{action_id} {digest}"


class Journal:
    """The state on the disk and in memory."""

    def __init__(self, path: Path, disk: Disk) -> None:
        """Read the state; a device that has none starts with an empty one.

        A file that cannot be read is put aside and said in `State.notes`: the release that serves goes on serving.
        """
        self._path, self._disk = path, disk
        self.state = State()
        if not path.is_file():
            return
        try:
            self.state = decode_json(path.read_bytes(), State, where=str(path))
        except ConfigError as error:
            disk.rename(path, path.with_name(path.name + ".damaged"))
            self.state = State(notes=(f"the journal could not be read and was begun anew: {error}",))

    def save(self, state: State) -> None:
        """Make a state the one that a restart finds. Durable when it returns."""
        kept = msgspec.structs.replace(
            state,
            banned=state.banned[-_REMEMBERED:],
            finished=dict(list(state.finished.items())[-_REMEMBERED:]),
            notes=state.notes[-_REMEMBERED:],
        )
        replace_file(self._disk, self._path, encode_json(kept))
        self.state = kept

    def act(self, **changes: object) -> Action:
        """Change the running action."""
        assert self.state.action is not None
        action = msgspec.structs.replace(self.state.action, **changes)
        self.save(msgspec.structs.replace(self.state, action=action))
        return action
