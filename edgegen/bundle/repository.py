"""A repository: static files that any web server or bucket can hold. Publish into it, keep it fresh, look into it.

A bundle that was signed has the same shape, so publishing is: verify it as a device would, then copy it, the timestamp
last. A device that reads meanwhile sees the old state or the new one.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Timestamp

from edgegen.bundle.layout import BUNDLE, METADATA, ROLES, blob_file, target_file
from edgegen.bundle.manifest import parse_manifest
from edgegen.bundle.roles import ONLINE, Roles, trusted_root
from edgegen.bundle.sources import FolderSource
from edgegen.bundle.trust import Freshness, Proven, Trust
from edgegen.common.codec import load_json
from edgegen.common.files import digest_file, replacing, require_free_bytes, write_bytes
from edgegen.errors import ConfigError, Fault, TrustError
from edgegen.records.bundle import Bundle


class Published(msgspec.Struct, frozen=True):
    """What publishing did."""

    target: str
    digest: str
    bytes_copied: int
    """Of blobs that the repository did not have."""
    bytes_shared: int
    """Of blobs that it had."""


class Listed(msgspec.Struct, frozen=True):
    """A release in a repository."""

    target: str
    digest: str
    name: str
    version: str
    epoch: int
    kind: str
    """Empty, as epoch and bytes are 0, if it is vouched for but its manifest is not here: signed, not published yet."""
    bytes: int


def init_repository(repository: Path, keys: Path) -> None:
    """Start an empty repository with the metadata of a folder of keys. Cut off, it can be run again.

    Raises:
        ConfigError: the repository has metadata already, or not a folder of keys.
    """
    from edgegen.bundle.keys import load_settings

    load_settings(keys)
    trusted_root(keys)
    begun = [path for path in (repository / METADATA).glob("*") if not path.name.startswith(".")]
    if begun and not _is_cut_off(begun, keys / METADATA):
        raise ConfigError(f"{repository}: is a repository already", hint="Publish into it with: edgegen repo add")
    copy_metadata(keys / METADATA, repository / METADATA)


def read_bundle(bundle: Path) -> Bundle:
    """What a bundle is about.

    Raises:
        ConfigError: not a bundle.
    """
    if not (bundle / BUNDLE).is_file():
        raise ConfigError(f"{bundle}: no bundle in it", hint="Make one with: edgegen pack BUILD --keys KEYS")
    return load_json(bundle / BUNDLE, Bundle)


def prove_bundle(bundle: Path, root: bytes, *, now: Callable[[], float] = time.time) -> Proven:
    """Verify a bundle as a device would, every byte of it.

    Args:
        root: what devices were set up with.

    Raises:
        ConfigError: not a bundle, or not signed.
        TrustError: refused; `fault` says why.
    """
    about = read_bundle(bundle)
    if not (bundle / METADATA / "timestamp.json").is_file():
        raise ConfigError(f"{bundle}: not signed", hint=f"Sign it with: edgegen keys sign KEYS --bundle {bundle}")
    with tempfile.TemporaryDirectory(prefix="edgegen-") as state:
        trust = Trust(Path(state), root, FolderSource(bundle), now=now)
        trust.refresh()
        proven = trust.manifest(about.target, digest=about.digest)
    for file in proven.manifest.files:
        path = bundle / blob_file(file.digest)
        if not path.is_file() or path.stat().st_size != file.bytes or digest_file(path) != file.digest:
            raise TrustError(
                f"{file.path}: the bundle's file is missing or altered", hint="Pack it again.", fault=Fault.DIGEST
            )
    return proven


def publish(
    repository: Path, bundle: Path, *, keys: Path | None = None, now: Callable[[], float] = time.time
) -> Published:
    """Add a signed bundle to a repository. The same again changes nothing.

    Args:
        keys: folder with the timestamp's key, needed where the server renewed its timestamp since the bundle was
            signed.

    Raises:
        ConfigError: not a signed bundle.
        TrustError: the bundle is refused, or older than what the repository has.
        DeviceError: no space.
    """
    first = not (repository / METADATA / "timestamp.json").is_file()
    proven = prove_bundle(bundle, trusted_root(bundle if first else repository), now=now)
    older = not first and _is_older(bundle, repository)
    if older and proven.target not in _listed(repository, now):
        raise TrustError(
            f"{bundle}: signed before what {repository} has, and not listed there",
            hint="Publish bundles in the order in which they were packed, or pack this one again.",
            fault=Fault.ROLLBACK,
        )
    missing = [file for file in proven.manifest.files if not (repository / blob_file(file.digest)).is_file()]
    needed = sum({file.digest: file.bytes for file in missing}.values())
    require_free_bytes(repository, needed)
    for file in missing:
        _copy(bundle / blob_file(file.digest), repository / blob_file(file.digest))
    write_bytes(repository / target_file(proven.target, proven.digest), proven.data)
    if first:
        copy_metadata(bundle / METADATA, repository / METADATA)
    elif not older:
        _advance(repository, bundle, keys, now)
    return Published(
        target=proven.target,
        digest=proven.digest,
        bytes_copied=needed,
        bytes_shared=sum(file.bytes for file in proven.manifest.files) - needed,
    )


def refresh(
    repository: Path, keys: Path, *, within_days: float | None = None, now: datetime.datetime | None = None
) -> list[str]:
    """Sign timestamp, and snapshot if its key is there, anew; what a server does every few hours.

    Where `keys` is the whole folder of keys, what was signed there since (rotated keys, withdrawn releases) comes
    along.

    Args:
        within_days: only those that expire within so many days; None: all.

    Returns:
        The roles that were signed.

    Raises:
        ConfigError, TrustError: the keys are not there.
    """
    if (keys / METADATA / "timestamp.json").is_file() and not _is_older(keys, repository):
        moment = (now or datetime.datetime.now(datetime.UTC)).timestamp()
        _advance(repository, keys, keys, lambda: moment)
    roles = _roles(repository, keys, now=now)
    states = {state.role: state for state in roles.states()}
    due = {
        role
        for role in ONLINE
        if len(states[role].here) >= states[role].threshold
        and (within_days is None or states[role].days_left < within_days)
    }
    if within_days is None and "timestamp" not in due:
        raise TrustError(
            f"{keys}: the timestamp's key is not there",
            hint="Copy it with: edgegen keys online KEYS OUT",
            fault=Fault.SIGNATURE,
        )
    if due:
        # A new snapshot needs a new timestamp.
        roles.renew(due | {"timestamp"})
    return sorted(due | ({"timestamp"} if due else set()))


def check(
    repository: Path, root: bytes, *, now: Callable[[], float] = time.time, absent_ok: bool = False
) -> tuple[Freshness, list[Listed]]:
    """Look at a repository as a device would that sees it for the first time.

    Args:
        absent_ok: list also what the keys vouch for and nobody published here yet.

    Raises:
        TrustError: refused; `fault` says why.
        ConfigError: no repository.
        NetworkError: a manifest is not there.
    """
    if not (repository / METADATA).is_dir():
        raise ConfigError(f"{repository}: no repository in it", hint="Start one with: edgegen repo init")
    with tempfile.TemporaryDirectory(prefix="edgegen-") as state:
        trust = Trust(Path(state), root, FolderSource(repository), now=now)
        fresh = trust.refresh()
        found = []
        for target, info in sorted(trust.targets().items()):
            digest = f"sha256:{info.hashes['sha256']}"
            if absent_ok and not (repository / target_file(target, digest)).is_file():
                _, name, version, _ = target.split("/")
                found.append(Listed(target, digest, name, version, epoch=0, kind="", bytes=0))
                continue
            manifest = trust.manifest(target).manifest
            found.append(
                Listed(
                    target=target,
                    digest=digest,
                    name=manifest.name,
                    version=manifest.version,
                    epoch=manifest.epoch,
                    kind=manifest.kind,
                    bytes=sum(file.bytes for file in manifest.files),
                )
            )
    return fresh, found


def check_whole(repository: Path, root: bytes, *, now: Callable[[], float] = time.time) -> tuple[int, int]:
    """Look at a repository as a new device would, every byte of every release; (releases, bytes of distinct blobs).

    Raises:
        TrustError: refused; `fault` says why.
        ConfigError: no repository.
    """
    _, found = check(repository, root, now=now)
    seen: dict[str, int] = {}
    for item in found:
        data = (repository / target_file(item.target, item.digest)).read_bytes()
        for file in parse_manifest(data, where=item.target).files:
            path = repository / blob_file(file.digest)
            if file.digest in seen:
                continue
            if not path.is_file() or path.stat().st_size != file.bytes or digest_file(path) != file.digest:
                raise TrustError(
                    f"{path}: missing or altered ({file.path} of {item.target})",
                    hint="Publish its bundle again.",
                    fault=Fault.DIGEST,
                )
            seen[file.digest] = file.bytes
    return len(found), sum(seen.values())


def withdraw(repository: Path, keys: Path, target: str, *, now: datetime.datetime | None = None) -> str:
    """Vouch for a release no longer; returns the role that waits for more signatures, or nothing.

    Its blobs stay: other releases may use them, and devices that run it may repair themselves.

    Raises:
        ConfigError: it is not listed.
        TrustError: the role's keys are not here, or the repository has later metadata than the keys' folder.
    """
    from edgegen.bundle.ledger import open_keys

    role = next((role for role, folder in ROLES.items() if target.startswith(f"{folder}/")), "")
    if not role:
        raise ConfigError(f"{target}: no release's name", hint="`edgegen repo list` shows them.")
    if not open_keys(keys, now=now).withdraw(role, target):
        return role
    _advance(repository, keys, keys, now.timestamp if now else time.time)
    return ""


def copy_metadata(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> None:
    """Copy published metadata, the timestamp last; numbered files that are there stay as they are.

    Args:
        without: roles that are left out.
    """
    for path in sorted(source.glob("*.*.json")):
        if path.name.split(".")[1] not in without and not (target / path.name).is_file():
            write_bytes(target / path.name, path.read_bytes())
    if "timestamp" not in without and (source / "timestamp.json").is_file():
        write_bytes(target / "timestamp.json", (source / "timestamp.json").read_bytes())


def _advance(repository: Path, bundle: Path, keys: Path | None, now: Callable[[], float]) -> None:
    """Take the bundle's metadata; where the server's own snapshot or timestamp is later, sign a new one."""
    ours, theirs = _timestamp(repository), _timestamp(bundle)
    newer = theirs.snapshot_meta.version > ours.snapshot_meta.version
    if newer and theirs.version > ours.version:
        copy_metadata(bundle / METADATA, repository / METADATA)
        return
    copy_metadata(bundle / METADATA, repository / METADATA, without=ONLINE if not newer else ("timestamp",))
    if ours.snapshot_meta == theirs.snapshot_meta:
        return
    if keys is None:
        raise TrustError(
            f"{repository}: its timestamp was renewed after the bundle was signed",
            hint="Give the folder with the timestamp's key: --keys",
            fault=Fault.ROLLBACK,
        )
    _roles(repository, keys, now=datetime.datetime.fromtimestamp(now(), datetime.UTC)).settle()


def _is_cut_off(copied: list[Path], source: Path) -> bool:
    """Whether files are what `copy_metadata` leaves when it is cut off: some of the source's, and not the timestamp."""
    return all(
        path.name != "timestamp.json"
        and (source / path.name).is_file()
        and path.read_bytes() == (source / path.name).read_bytes()
        for path in copied
    )


def _is_older(bundle: Path, repository: Path) -> bool:
    """Whether a bundle has an earlier version of a role than a repository."""
    ours, theirs = (Roles(folder / METADATA, {}, {}) for folder in (repository, bundle))
    return any(theirs.newest(role) < ours.newest(role) for role in ("root", "targets", *ROLES))


def _roles(repository: Path, keys: Path, *, now: datetime.datetime | None) -> Roles:
    from edgegen.bundle.keys import load_settings, load_signers

    return Roles(repository / METADATA, load_signers(keys), load_settings(keys).days, now=now)


def _listed(repository: Path, now: Callable[[], float]) -> set[str]:
    with tempfile.TemporaryDirectory(prefix="edgegen-") as state:
        trust = Trust(Path(state), trusted_root(repository), FolderSource(repository), now=now)
        trust.refresh()
        return set(trust.targets())


def _timestamp(folder: Path) -> Timestamp:
    path = folder / METADATA / "timestamp.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="Is this a repository or a signed bundle?")
    try:
        return Metadata[Timestamp].from_bytes(path.read_bytes()).signed
    except RepositoryError as error:
        raise TrustError(f"{path}: not metadata: {error}") from error


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
