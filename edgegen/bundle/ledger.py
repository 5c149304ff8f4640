"""What the owner of a folder of keys does with it: make it, sign a release, withdraw, renew, rotate, look."""

from __future__ import annotations

import datetime
from pathlib import Path

from edgegen.bundle.keys import (
    DAYS,
    OFFLINE_DAYS,
    PENDING,
    PRIVATE,
    ROOT,
    SETTINGS,
    free_name,
    load_key,
    load_settings,
    load_signers,
    make_key,
    save_settings,
    write_private,
)
from edgegen.bundle.layout import METADATA, ROLES
from edgegen.bundle.roles import TOP, Roles, RoleState
from edgegen.common.codec import did_you_mean
from edgegen.common.files import disk_errors, write_bytes
from edgegen.errors import ConfigError


def create_keys(
    folder: Path,
    *,
    root_keys: int = 3,
    root_threshold: int = 2,
    release_keys: int = 1,
    release_threshold: int = 1,
    offline: bool = False,
    now: datetime.datetime | None = None,
) -> tuple[RoleState, ...]:
    """Make a folder of keys with the first version of every role, and `root.json` for the devices.

    Args:
        offline: whether timestamps last a year instead of a week, for devices that nobody reaches every week.

    Raises:
        ConfigError: the folder holds something, or more signatures than keys are asked for.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: holds something already", hint="Keys are never overwritten; choose another folder."
        )
    for role, count, needed in (("root", root_keys, root_threshold), ("release", release_keys, release_threshold)):
        if not 1 <= needed <= count <= 100:
            raise ConfigError(f"{role}: {needed} of {count} keys cannot be asked for")
    counts = dict.fromkeys((*TOP, *ROLES), 1) | {"root": root_keys, "release": release_keys}
    folder.mkdir(parents=True, exist_ok=True)
    keys = {
        role: [make_key(folder, free_name(folder, role)).public_key for _ in range(count)]
        for role, count in counts.items()
    }
    roles = Roles(
        folder / METADATA, load_signers(folder), OFFLINE_DAYS if offline else DAYS, pending=folder / PENDING, now=now
    )
    roles.create(keys, {"root": root_threshold, "release": release_threshold})
    write_bytes(folder / ROOT, (folder / METADATA / "1.root.json").read_bytes())
    # Last, because it marks a whole folder.
    save_settings(folder, OFFLINE_DAYS if offline else DAYS)
    return roles.states()


def open_keys(folder: Path, *, more: tuple[Path, ...] = (), now: datetime.datetime | None = None) -> Roles:
    """The roles of a folder of keys.

    Args:
        more: private keys that lie elsewhere.

    Raises:
        ConfigError: not a folder of keys, or a key that cannot be opened.
    """
    settings = load_settings(folder)
    return Roles(folder / METADATA, load_signers(folder, more), settings.days, pending=folder / PENDING, now=now)


def rotate_keys(
    folder: Path,
    role: str,
    *,
    new: int | None = None,
    threshold: int | None = None,
    keep: tuple[str, ...] = (),
    more: tuple[Path, ...] = (),
    now: datetime.datetime | None = None,
) -> list[str]:
    """Make new keys for a role; the old ones count no longer, but for those kept. Returns what waits for signatures.

    Args:
        new: how many; None: as many as go.
        threshold: signatures from now on; None: as before, or as many as there are keys if those are fewer.
        keep: ids of present keys that stay.

    Raises:
        ConfigError: no such role, or fewer keys than signatures.
        TrustError: none of the keys that have to sign is here.
    """
    require_role(role)
    state = next(state for state in open_keys(folder, now=now).states() if state.role == role)
    kept = [keyid for keyid in state.keyids if keyid in keep]
    if set(keep) - set(kept):
        raise ConfigError(f"{role}: has no key {sorted(set(keep) - set(kept))[0]!r}")
    new = len(state.keyids) - len(kept) if new is None else new
    needed = threshold if threshold is not None else min(state.threshold, new + len(kept))
    if not 1 <= needed <= new + len(kept):
        raise ConfigError(f"{role}: {needed} of {new + len(kept)} keys cannot be asked for")
    names = []
    made = []
    for _ in range(new):
        names.append(free_name(folder, role))
        made.append(make_key(folder, names[-1]).public_key)
    try:
        return open_keys(folder, more=more, now=now).rotate(role, made, threshold=needed, keep=kept)
    except BaseException:
        for name in names:  # keys that nothing names would only confuse
            (folder / PRIVATE / f"{name}.pem").unlink(missing_ok=True)
        raise


def require_role(role: str) -> None:
    """Whether there is such a role.

    Raises:
        ConfigError: there is not.
    """
    if role not in (*TOP, *ROLES):
        raise ConfigError(f"no role {role!r}", hint=did_you_mean(role, [*TOP, *ROLES]))


def online_keys(folder: Path, out: Path) -> None:
    """Copy what a server needs to renew snapshot and timestamp by itself: those two roles' keys, no other.

    Raises:
        ConfigError: they are not here, or `out` holds something.
    """
    settings = load_settings(folder)
    states = {state.role: state for state in open_keys(folder).states()}
    wanted = {keyid for role in ("snapshot", "timestamp") for keyid in states[role].keyids}
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file", hint="Name a folder for the copies.")
    if out.exists() and any(out.iterdir()) and not (out / SETTINGS).is_file():
        raise ConfigError(f"{out}: holds something that is no folder of keys")
    chosen = [path for path in sorted((folder / PRIVATE).glob("*.pem")) if load_key(path).public_key.keyid in wanted]
    if len(chosen) < len(wanted):
        raise ConfigError(f"{folder}: the private keys of snapshot and timestamp are not here")
    with disk_errors(out):
        (out / PRIVATE).mkdir(parents=True, exist_ok=True)
        (out / PRIVATE).chmod(0o700)
    for path in chosen:
        target = out / PRIVATE / path.name
        with disk_errors(target):
            target.unlink(missing_ok=True)
        write_private(target, path.read_bytes())
    save_settings(out, settings.days)
