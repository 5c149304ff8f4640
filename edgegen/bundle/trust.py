"""The device's half of signing: which manifests may be believed.

python-tuf's client does the verification (roles, thresholds, expiry, rollback, mix-and-match, root rotation); around it
stand what a device needs and it does not have:

- **The root that the device was set up with is given on every start.** What is stored is state against rollback, never
  the anchor of trust, so a damaged state folder cannot lock a device out; it is written flushed and renamed.
- **Time floor.** A board without a clock battery starts in 1970 and would believe metadata that expired long ago. The
  newest signing time that was verified is kept, and time never counts as earlier. The floor belongs to the timestamp
  role's keys: when the root replaces them, it starts anew, as TUF's recovery from a stolen key asks.
- **Clocks that cannot judge.** Two are known: one before edgegen existed while there is no floor yet, which would
  believe what expired long ago; and one that no time server has set and that alone, not the floor, makes something
  expired. Both are refused as the clock's fault and not the repository's.
- **Older sources.** A bundle that is pushed may carry older metadata than the device has seen. With `allow_older` the
  device then judges by its own newer, verified metadata: still nothing is installed that is not listed there today.
- **Names for refusals.** Every refusal is a `TrustError` with a `Fault`, or a `NetworkError`.

Two private parts of python-tuf 7 are used: its reference time, which has no setting, and how it stores files, which is
not flushed. `tests/bundle/test_trust.py` would notice a change; the dependency is held below 8.

Not thread-safe, and one process at a time per state folder: the caller holds a lock.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgegen.bundle.layout import METADATA, target_file
from edgegen.bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest
from edgegen.bundle.sources import MissingError, Source
from edgegen.common.codec import encode_json
from edgegen.common.files import digest_bytes, disk_errors, write_bytes
from edgegen.errors import EdgegenError, Fault, NetworkError, TrustError
from edgegen.records.bundle import Manifest

SIGNED_AT = "x-edgegen-signed-at"
"""Key in the timestamp metadata: seconds since 1970 when it was signed."""

FLOOR = "time-floor.json"
_URL = "repository:///"
_EARLIEST_S = 1_735_689_600.0
"""2025-01-01: there was no edgegen before."""


class Floor(msgspec.Struct, frozen=True):
    """`time-floor.json`."""

    unix_s: float
    keys: tuple[str, ...]
    """Ids of the timestamp role's keys that the time was signed with."""


class Freshness(msgspec.Struct, frozen=True):
    """What a refresh found."""

    versions: dict[str, int]
    """Role → version."""
    expires: dict[str, float]
    """Role → seconds since 1970."""
    now_s: float
    """The time that expiry was judged by."""
    clock_behind_s: float
    """How far the device's clock is behind the newest time that was verified; 0: it is not."""


class Proven(msgspec.Struct, frozen=True):
    """A manifest that the repository's keys vouch for."""

    manifest: Manifest
    data: bytes
    """The exact bytes that were signed."""
    digest: str
    target: str


class Trust:
    """Verified access to one repository. Make a new one for each look at it."""

    def __init__(
        self,
        state: Path,
        root: bytes,
        source: Source,
        *,
        now: Callable[[], float],
        is_set: Callable[[], bool | None] = lambda: None,
        allow_older: bool = False,
        write: Callable[[Path, bytes], None] = write_bytes,
    ) -> None:
        """Begin with the root that the device was set up with.

        Args:
            state: folder for what was seen; made if it is not there.
            root: root metadata that is trusted from the start.
            now: the device's clock, seconds since 1970.
            is_set: whether a time server has set that clock; None: the device does not know.
            allow_older: whether a source with older metadata than was seen is read with the newer.
            write: puts a whole file in its place, durably.

        Raises:
            TrustError: the root is no root metadata or not signed as itself asks.
        """
        self._state, self._source, self._write = state, source, write
        self._clock_s, self._is_set = now(), is_set
        self._floor_s: float | None = None
        with disk_errors(state):
            state.mkdir(parents=True, exist_ok=True)
            (state / "root_history").mkdir(exist_ok=True)
        with _named("root.json"):
            self._updater = _Updater(state, root, _Fetcher(source, state, allow_older), write)
        self._set_time(self._clock_s)

    def refresh(self) -> Freshness:
        """Bring the metadata up to date.

        Raises:
            TrustError: refused; `fault` says why.
            NetworkError: the repository cannot be read now.
            DeviceError: the state cannot be written.
        """
        with _named("the repository's metadata", self._doubt), disk_errors(self._state):
            # The root first, so that the floor is judged by the keys that count now.
            floor = self._floor_s = self._floor()
            if max(self._clock_s, floor) < _EARLIEST_S:
                raise TrustError(
                    f"this device's clock says {_date(self._clock_s)}: what has expired cannot be judged by it",
                    hint="Set it once, by a time server or with `date -s`; later the device knows the least time.",
                    fault=Fault.CLOCK,
                )
            self._set_time(max(self._clock_s, floor))
            self._updater.refresh()
        trusted = self._updater.trusted
        signed_at = _signed_at(trusted.timestamp)
        keys = tuple(sorted(trusted.root.roles["timestamp"].keyids))
        # A key that was stolen can sign any time; what it signs for itself must not reach past its own expiry.
        signed_at = min(signed_at, trusted.timestamp.expires.timestamp())
        if signed_at > floor:
            self._write(self._state / FLOOR, encode_json(Floor(unix_s=signed_at, keys=keys)))
        seen = [role for role in ("root", "timestamp", "snapshot", "targets") if role in trusted]
        return Freshness(
            versions={role: trusted[role].version for role in seen},
            expires={role: trusted[role].expires.timestamp() for role in seen},
            now_s=max(self._clock_s, floor),
            clock_behind_s=max(0.0, max(floor, signed_at) - self._clock_s),
        )

    def manifest(self, target: str, *, digest: str = "") -> Proven:
        """A manifest that the keys vouch for; `refresh` comes first.

        Args:
            target: its name among the repository's targets.
            digest: the one that was asked for, `sha256:<hex>`; empty: whichever is listed.

        Raises:
            TrustError: not listed, another one, altered, or unsafe.
            NetworkError: it cannot be read now.
        """
        with _named(target, self._doubt), disk_errors(self._state):
            info = self._updater.get_targetinfo(target)
        if info is None:
            raise TrustError(
                f"{target}: not among the releases that the repository's keys vouch for",
                hint="It was never published here, or it was withdrawn.",
                fault=Fault.UNLISTED,
            )
        listed = f"sha256:{info.hashes.get('sha256', '')}"
        if digest and digest != listed:
            raise TrustError(
                f"{target}: {digest} is asked for, and {listed} is what the keys vouch for", fault=Fault.DIGEST
            )
        if info.length > MAX_MANIFEST_BYTES:
            raise TrustError(f"{target}: {info.length:,} bytes are too many for a manifest", fault=Fault.SIZE)
        data = self._source.read(target_file(target, listed), info.length)
        if len(data) != info.length or digest_bytes(data) != listed:
            raise TrustError(
                f"{target}: its bytes are not the signed ones",
                hint="It was altered or cut off; publish it again.",
                fault=Fault.DIGEST,
            )
        return Proven(parse_manifest(data, where=target), data, listed, target)

    def targets(self) -> dict[str, TargetFile]:
        """Every manifest that is listed now: name → length and digests. `refresh` comes first."""
        found: dict[str, TargetFile] = {}
        trusted = self._updater.trusted
        delegations = trusted.targets.delegations
        for role in delegations.roles if delegations and delegations.roles else ():
            with _named(role, self._doubt), disk_errors(self._state):
                listed: Targets = self._updater.load_role(role)
            found.update(
                (name, info) for name, info in listed.targets.items() if delegations.roles[role].is_delegated_path(name)
            )
        return found

    def _floor(self) -> float:
        try:
            floor = msgspec.json.decode((self._state / FLOOR).read_bytes(), type=Floor)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return 0.0
        self._updater.load_root()
        current = set(self._updater.trusted.root.roles["timestamp"].keyids)
        return floor.unix_s if current & set(floor.keys) else 0.0

    def _doubt(self) -> str:
        """Why this device's clock cannot be trusted to call something expired; empty: it can."""
        by_floor = self._floor_s is not None and self._clock_s <= self._floor_s
        if by_floor or self._is_set() is not False:
            return ""
        return f"by this device's clock ({_date(self._clock_s)}), which no time server has set"

    def _set_time(self, unix_s: float) -> None:
        moment = datetime.datetime.fromtimestamp(max(0.0, min(unix_s, 4e9)), datetime.UTC)
        self._updater.trusted.reference_time = moment


class _Updater(Updater):
    """python-tuf's client with storage that survives a power cut."""

    def __init__(self, state: Path, root: bytes, fetcher: _Fetcher, write: Callable[[Path, bytes], None]) -> None:
        self._write = write
        super().__init__(
            str(state),
            _URL + METADATA + "/",
            fetcher=fetcher,
            config=UpdaterConfig(max_root_rotations=256),
            bootstrap=root,
        )

    @property
    def trusted(self) -> Any:
        """What was verified so far."""
        return self._trusted_set

    def load_role(self, role: str) -> Targets:
        """A role that the top-level targets delegate to."""
        return self._load_targets(role, Targets.type)

    def load_root(self) -> None:
        """Follow root rotations; `refresh` does so again, which finds nothing new."""
        self._load_root()

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            self._write(path, data)

    def _update_root_symlink(self) -> None:
        """Left out: `root.json` would be read only if no root were given."""


class _Fetcher(FetcherInterface):
    """python-tuf's requests, answered by a source."""

    def __init__(self, source: Source, state: Path, allow_older: bool) -> None:
        self._source, self._state, self._allow_older = source, state, allow_older

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError("download_bytes does it all")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        path = url.removeprefix(_URL)
        try:
            data = self._source.read(path, max_length)
        except MissingError as error:
            raise exceptions.DownloadHTTPError(str(error), 404) from error
        if self._allow_older and path.endswith("/timestamp.json"):
            return self._newer(data)
        return data

    def _newer(self, data: bytes) -> bytes:
        """The stored timestamp metadata if it is newer; either is verified afterwards."""
        try:
            stored = (self._state / "timestamp.json").read_bytes()
            versions = [Metadata[Timestamp].from_bytes(one).signed.version for one in (stored, data)]
        except (OSError, exceptions.RepositoryError):
            return data
        return stored if versions[0] > versions[1] else data


class _named:  # noqa: N801  a context manager
    """Turn python-tuf's exceptions into ours."""

    def __init__(self, what: str, doubt: Callable[[], str] = lambda: "") -> None:
        self._what, self._doubt = what, doubt

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, EdgegenError | OSError):
            return
        if isinstance(error, exceptions.DownloadError):
            raise NetworkError(f"{self._what}: {error}", hint="Is this the address of a whole repository?") from error
        if isinstance(error, exceptions.RepositoryError | ValueError | KeyError | TypeError | RecursionError):
            fault = fault_of(error)
            doubt = self._doubt() if fault is Fault.EXPIRED else ""
            if doubt:
                raise TrustError(
                    f"{self._what}: {_WORDS[fault]} {doubt}: {error}", hint=_HINTS[Fault.CLOCK], fault=Fault.CLOCK
                ) from error
            raise TrustError(
                f"{self._what}: {_WORDS[fault]}: {error}", hint=_HINTS.get(fault, ""), fault=fault
            ) from error


_WORDS = {
    Fault.SIGNATURE: "not signed by enough of the keys that it needs",
    Fault.EXPIRED: "expired",
    Fault.ROLLBACK: "older than what was seen before",
    Fault.MIXED: "parts of different states of the repository",
    Fault.DIGEST: "altered",
    Fault.MALFORMED: "cannot be read",
}
_HINTS = {
    Fault.SIGNATURE: "Somebody else signed it, or a signature is missing: `edgegen keys show` says which.",
    Fault.EXPIRED: "Renew it with `edgegen keys renew`; if it should be fresh, look at this device's clock.",
    Fault.CLOCK: "Set the clock; if it is right, renew the metadata with `edgegen keys renew`.",
    Fault.ROLLBACK: "Somebody serves an old copy of the repository.",
    Fault.MIXED: "The repository was copied in part; publish it again.",
    Fault.DIGEST: "The repository was altered or copied in part; publish it again.",
}


def fault_of(error: Exception) -> Fault:
    """The name of what python-tuf refuses.

    Version numbers are refused with one exception, be they older than before or not those that the metadata above
    names; the sentences differ.
    """
    text = str(error)
    if isinstance(error, exceptions.ExpiredMetadataError):
        return Fault.EXPIRED
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return Fault.DIGEST
    if isinstance(error, exceptions.UnsignedMetadataError):
        return Fault.SIGNATURE
    if isinstance(error, exceptions.BadVersionNumberError):
        older = "must be >=" in text or ".json version" in text
        return Fault.ROLLBACK if older else Fault.MIXED
    if "missing info for" in text:
        return Fault.ROLLBACK
    if "part of snapshot" in text or "does not contain information" in text:
        return Fault.MIXED
    return Fault.MALFORMED


def check_root(data: bytes) -> Root:
    """Root metadata that is signed as itself asks.

    Raises:
        TrustError: it is not.
    """
    with _named("root.json"):
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise exceptions.RepositoryError(f"{metadata.signed.type} metadata, not root")
        metadata.verify_delegate(Root.type, metadata)
        return metadata.signed
    raise AssertionError("unreachable")


def _date(unix_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(max(0.0, min(unix_s, 4e9)), datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")


def _signed_at(timestamp: Timestamp) -> float:
    value = timestamp.unrecognized_fields.get(SIGNED_AT, 0)
    return float(value) if isinstance(value, int | float) and 0 <= value < 4e9 else 0.0
