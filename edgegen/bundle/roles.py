"""The signed roles, and every change to them: publish, withdraw, renew, rotate keys.

    root       names the keys of all others; 2 of 3 keys, kept apart
    targets    only delegates: `bundles/*` to release, `dev/*` to dev
    release    signs the manifests of releases            dev     those for developers' devices
    snapshot   which versions of the above belong together
    timestamp  the newest snapshot; expires soon, so that a device notices when it is kept from news

Decisions:

- Metadata is written when it is signed by as many keys as its role asks for; before that it waits in `pending/`, and
  the next change to that role is refused. So what lies in `metadata/` can be published at any time.
- Versions of timestamp and snapshot are the time in seconds, or one more than before if that is larger. So a web
  server that renews its timestamp by itself and a packager elsewhere do not give the same number to different contents.
- The timestamp says when it was signed (`trust.SIGNED_AT`): devices without a clock learn the time from it.
- Lengths and digests of what they name stand in snapshot and timestamp, so parts of two states are told apart.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edgegen.bundle.layout import METADATA, ROLES
from edgegen.bundle.trust import SIGNED_AT, check_root
from edgegen.common.files import write_bytes
from edgegen.errors import ConfigError, Fault, TrustError

TOP = ("root", "targets", "snapshot", "timestamp")
ONLINE = ("snapshot", "timestamp")
_TYPES: dict[str, type[Any]] = {"root": Root, "snapshot": Snapshot, "timestamp": Timestamp}


class RoleState(msgspec.Struct, frozen=True):
    """One role, as `edgegen keys show` tells it."""

    role: str
    version: int
    expires: str
    """UTC, ISO 8601."""
    days_left: float
    threshold: int
    keyids: tuple[str, ...]
    here: tuple[str, ...]
    """Those whose private keys are at hand."""
    pending: int
    """Version that waits for more signatures; 0: none."""
    pending_signatures: int = 0


class Roles:
    """Metadata in a folder, with the keys that are at hand. Methods write; nothing is kept open."""

    def __init__(
        self,
        metadata: Path,
        signers: Mapping[str, Signer],
        days: Mapping[str, int],
        *,
        pending: Path | None = None,
        now: datetime.datetime | None = None,
    ) -> None:
        """Open what is there.

        Args:
            metadata: the folder `metadata/` of a key folder or a repository.
            signers: key id → signer.
            days: role → how long a new signature lasts.
            pending: where metadata waits for signatures; None: too few signatures are an error.
            now: instead of the clock.
        """
        self.folder, self._signers, self._days, self._pending = metadata, signers, days, pending
        self._now = (now or datetime.datetime.now(datetime.UTC)).replace(microsecond=0)

    # Reading

    def load(self, role: str) -> Metadata[Any]:
        """A role's newest published metadata.

        Raises:
            ConfigError: there is none.
            TrustError: it cannot be read.
        """
        path = self.folder / self.file_name(role, self.newest(role))
        try:
            return Metadata.from_bytes(path.read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file", hint="Is this a folder of keys or a repository?") from error
        except RepositoryError as error:
            raise TrustError(
                f"{path}: not metadata: {error}",
                hint="It is damaged: bring it back from a copy, or start with an empty folder.",
            ) from error

    def newest(self, role: str) -> int:
        """Version of a role's newest file; 0 if there is none, or for the timestamp, which has no number."""
        if role == "timestamp":
            return 0
        stems = (path.name.partition(".")[0] for path in self.folder.glob(f"*.{role}.json"))
        return max((int(stem) for stem in stems if stem.isdecimal()), default=0)

    def file_name(self, role: str, version: int) -> str:
        """A metadata file's name."""
        return "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"

    def states(self) -> tuple[RoleState, ...]:
        """All roles."""
        return tuple(self._state(role) for role in (*TOP, *ROLES))

    def listed(self, role: str) -> dict[str, TargetFile]:
        """The manifests that a role vouches for."""
        signed: Targets = self.load(role).signed
        return dict(signed.targets)

    # Changing

    def create(self, keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int]) -> None:
        """Write the first version of every role.

        Args:
            keys: role → its keys.
            thresholds: role → signatures that it needs, 1 where left out.
        """
        root = Root(expires=self._expiry("root"), consistent_snapshot=True)
        for role in TOP:
            for key in keys[role]:
                root.add_key(key, role)
            root.roles[role].threshold = thresholds.get(role, 1)
        targets = Targets(expires=self._expiry("targets"))
        targets.delegations = Delegations({}, {})
        assert targets.delegations.roles is not None
        for role, folder in ROLES.items():
            paths = [f"{folder}/*/*/*"]
            targets.delegations.roles[role] = DelegatedRole(role, [], thresholds.get(role, 1), True, paths=paths)
            for key in keys[role]:
                targets.add_key(key, role)
        self._put("root", Metadata(root))
        self._put("targets", Metadata(targets))
        for role in ROLES:
            self._put(role, Metadata(Targets(expires=self._expiry(role))))
        self.settle()

    def add_target(self, role: str, name: str, data: bytes) -> bool:
        """Let a role vouch for a manifest; returns whether that is signed by enough keys.

        Raises:
            ConfigError: another manifest has this name (versions are never reused), or the role waits for signatures.
        """
        metadata = self._editable(role)
        info = TargetFile.from_data(name, data, ["sha256"])
        known = metadata.signed.targets.get(name)
        if known is not None and known.hashes != info.hashes:
            raise ConfigError(
                f"{name}: another release of this name and version was signed", hint="Choose the next --version."
            )
        if known is None:
            metadata.signed.targets[name] = info
            if not self._bump(role, metadata):
                return False
        self.settle()
        return True

    def withdraw(self, role: str, name: str) -> bool:
        """Vouch for a manifest no longer; returns whether that is signed by enough keys.

        Raises:
            ConfigError: it is not listed.
        """
        metadata = self._editable(role)
        if name not in metadata.signed.targets:
            raise ConfigError(f"{name}: not listed", hint="`edgegen repo list` shows what is.")
        del metadata.signed.targets[name]
        if not self._bump(role, metadata):
            return False
        self.settle()
        return True

    def renew(self, roles: Iterable[str]) -> list[str]:
        """Sign roles anew; returns those that wait for more signatures."""
        waiting = []
        for role in roles:
            if role not in ONLINE and not self._bump(role, self._editable(role)):
                waiting.append(role)
        self.settle(renew=frozenset(roles))
        return waiting

    def rotate(self, role: str, keys: Sequence[Key], *, threshold: int, keep: Iterable[str] = ()) -> list[str]:
        """Give a role other keys; returns the roles that wait for more signatures.

        Args:
            keys: the new ones.
            threshold: signatures that the role needs from now on.
            keep: ids of present keys that stay.

        Raises:
            ConfigError: fewer keys than the threshold.
        """
        kept = [keyid for keyid in self._role(role).keyids if keyid in set(keep)]
        if not 1 <= threshold <= len(kept) + len(keys):
            raise ConfigError(f"{role}: {threshold} of {len(kept) + len(keys)} keys cannot be asked for")
        parent = "root" if role in TOP else "targets"
        metadata = self._editable(parent)
        signed: Root | Targets = metadata.signed
        for keyid in list(_role_of(signed, role).keyids):
            if keyid not in kept:
                signed.revoke_key(keyid, role)
        for key in keys:
            signed.add_key(key, role)
        _role_of(signed, role).threshold = threshold
        if not self._bump(parent, metadata):
            return [parent]
        return self.settle()

    def sign(self) -> list[str]:
        """Add the signatures of the keys at hand to what waits; returns what still waits."""
        for path in sorted(self._pending.glob("*.json")) if self._pending else ():
            metadata = Metadata.from_bytes(path.read_bytes())
            role = path.name.removesuffix(".json").partition(".")[2]
            self._sign(role, metadata)
            if self._enough(role, metadata):
                self._write(self.folder, role, metadata)
                path.unlink()
            else:
                self._write(path.parent, role, metadata)
        return self.settle()

    def settle(self, renew: frozenset[str] = frozenset()) -> list[str]:
        """Bring everything below the root in line with it: re-sign what its present keys did not, then snapshot and
        timestamp. Returns the roles that wait for signatures; while any does, snapshot and timestamp stay.
        """
        waiting = []
        for role in ("targets", *ROLES):
            metadata = self.load(role)
            if not self._enough(role, metadata) and (self._waits(role) or not self._bump(role, metadata)):
                waiting.append(role)
        if self._waits("root"):
            waiting.append("root")
        if not waiting:
            self._settle_snapshot(renew)
        return waiting

    def _settle_snapshot(self, renew: frozenset[str]) -> None:
        meta = {f"{role}.json": self._meta(role) for role in ("targets", *ROLES)}
        if not self.newest("snapshot"):
            snapshot = Metadata(Snapshot(expires=self._expiry("snapshot"), meta=meta))
        else:
            snapshot = self.load("snapshot")
        same = snapshot.signed.meta == meta and self._enough("snapshot", snapshot)
        if not same or "snapshot" in renew:
            snapshot.signed.meta = meta
            self._bump("snapshot", snapshot)
        named = self._meta("snapshot")
        path = self.folder / "timestamp.json"
        if not path.is_file():
            timestamp = Metadata(Timestamp(expires=self._expiry("timestamp"), snapshot_meta=named))
        else:
            timestamp = self.load("timestamp")
        same = timestamp.signed.snapshot_meta == named and self._enough("timestamp", timestamp)
        if not same or "timestamp" in renew:
            timestamp.signed.snapshot_meta = named
            self._bump("timestamp", timestamp)

    # Parts

    def _editable(self, role: str) -> Metadata[Any]:
        if self._waits(role):
            raise ConfigError(
                f"{role}: version {self._waits(role)} waits for more signatures",
                hint="Sign it with: edgegen keys sign KEYS",
            )
        return self.load(role)

    def _bump(self, role: str, metadata: Metadata[Any]) -> bool:
        """Give metadata its next version and expiry, sign and put it away."""
        signed = metadata.signed
        signed.version += 1
        if role in ONLINE:
            signed.version = max(signed.version, int(self._now.timestamp()))
        signed.expires = self._expiry(role)
        if role == "timestamp":
            signed.unrecognized_fields[SIGNED_AT] = int(self._now.timestamp())
        metadata.signatures.clear()
        return self._put(role, metadata)

    def _put(self, role: str, metadata: Metadata[Any]) -> bool:
        """Sign and write; False: it waits for more signatures."""
        self._sign(role, metadata)
        enough = self._enough(role, metadata)
        if not enough and (self._pending is None or not metadata.signatures or role in ONLINE):
            needed = self._role(role, metadata).threshold
            raise TrustError(
                f"{role}: {len(metadata.signatures)} of the {needed} keys that it needs are here",
                hint="Bring the key's file with --key, or put it into the folder's private/.",
                fault=Fault.SIGNATURE,
            )
        self._write(self.folder if enough or self._pending is None else self._pending, role, metadata)
        return enough

    def _sign(self, role: str, metadata: Metadata[Any]) -> None:
        wanted = set(self._role(role, metadata).keyids)
        if role == "root" and self.newest("root"):
            wanted |= set(self._role("root").keyids)  # the old keys hand over to the new ones
        for keyid, signer in self._signers.items():
            if keyid in wanted:
                metadata.sign(signer, append=True)

    def _enough(self, role: str, metadata: Metadata[Any]) -> bool:
        """Whether a device would accept the signatures."""
        parents: list[Root | Targets] = []
        if role == "root":
            parents.append(metadata.signed)
        if role in TOP and self.newest("root") and not (role == "root" and metadata.signed.version == 1):
            parents.append(self.load("root").signed)
        if role in ROLES:
            parents.append(self.load("targets").signed)
        try:
            for parent in parents:
                parent.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            return False
        return True

    def _role(self, role: str, metadata: Metadata[Any] | None = None) -> Role:
        """Keys and threshold of a role, by the newest metadata that names them, or by itself for the root."""
        if role == "root" and metadata is not None:
            return _role_of(metadata.signed, role)
        return _role_of(self.load("root" if role in TOP else "targets").signed, role)

    def _write(self, folder: Path, role: str, metadata: Metadata[Any]) -> None:
        data = metadata.to_bytes(JSONSerializer(compact=False))
        write_bytes(folder / self.file_name(role, metadata.signed.version), data)

    def _meta(self, role: str) -> MetaFile:
        """What snapshot or timestamp say of a role's newest file."""
        version = self.newest(role)
        data = (self.folder / self.file_name(role, version)).read_bytes()
        return MetaFile.from_data(version, data, ["sha256"])

    def _expiry(self, role: str) -> datetime.datetime:
        return self._now + datetime.timedelta(days=self._days[role])

    def _waits(self, role: str) -> int:
        """Version of a role's metadata that waits for signatures, 0 if there is none."""
        if self._pending is None:
            return 0
        names = (path.name.partition(".")[0] for path in self._pending.glob(f"*.{role}.json"))
        return max((int(name) for name in names), default=0)

    def _state(self, role: str) -> RoleState:
        metadata = self.load(role)
        named = self._role(role)
        waits = self._waits(role)
        signatures = 0
        if waits and self._pending:
            data = (self._pending / self.file_name(role, waits)).read_bytes()
            signatures = len(Metadata.from_bytes(data).signatures)
        expires = metadata.signed.expires
        return RoleState(
            role=role,
            version=metadata.signed.version,
            expires=expires.isoformat(),
            days_left=(expires - self._now).total_seconds() / 86400,
            threshold=named.threshold,
            keyids=tuple(named.keyids),
            here=tuple(keyid for keyid in named.keyids if keyid in self._signers),
            pending=waits,
            pending_signatures=signatures,
        )


def _role_of(signed: Root | Targets, role: str) -> Role:
    if isinstance(signed, Root):
        return signed.roles[role]
    assert signed.delegations is not None and signed.delegations.roles is not None
    return signed.delegations.roles[role]


def trusted_root(folder: Path) -> bytes:
    """The first root in a `metadata/` folder: what a device is set up with.

    Raises:
        ConfigError: there is none.
        TrustError: it is not signed as itself asks.
    """
    path = folder / METADATA / "1.root.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="Is this a repository or a signed bundle?")
    data = path.read_bytes()
    check_root(data)
    return data
