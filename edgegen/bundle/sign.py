"""Sign a bundle with a folder of keys: its manifest becomes a target, and the metadata of that moment goes with it."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from edgegen.bundle.layout import BUNDLE, METADATA, ROLES, target_file
from edgegen.bundle.ledger import open_keys
from edgegen.bundle.manifest import parse_manifest
from edgegen.bundle.repository import copy_metadata, read_bundle
from edgegen.common.codec import read_bytes, save_json
from edgegen.common.files import digest_bytes, remove_tree, write_bytes
from edgegen.errors import ConfigError
from edgegen.records.bundle import Bundle, Manifest


def sign_bundle(
    bundle: Path, keys: Path, *, more: tuple[Path, ...] = (), now: datetime.datetime | None = None
) -> Bundle:
    """Vouch for a bundle's manifest. Done again, it adds the signatures of the keys that are here now.

    Args:
        more: private keys that lie elsewhere.

    Returns:
        What the bundle says of itself; `signed` is False while its role waits for more signatures.

    Raises:
        ConfigError: not a bundle, or another release of its name and version was signed before.
        TrustError: no key of its role is here.
    """
    about = read_bundle(bundle)
    path = bundle / target_file(about.target, about.digest)
    data = read_bytes(path)
    if digest_bytes(data) != about.digest:
        raise ConfigError(f"{path}: altered since it was packed", hint="Pack it again.")
    parse_manifest(data, where=str(path))
    roles = open_keys(keys, more=more, now=now)
    waiting = roles.sign()
    complete = not waiting and roles.add_target(about.role, about.target, data)
    about = msgspec.structs.replace(about, signed=complete)
    if complete:
        # The folder of keys remembers what it vouched for, so that the next release can be compared with it.
        write_bytes(keys / target_file(about.target, about.digest), data)
        remove_tree(bundle / METADATA)
        copy_metadata(keys / METADATA, bundle / METADATA)
    save_json(bundle / BUNDLE, about)
    return about


def released(keys: Path, name: str, role: str = "release") -> list[tuple[str, Manifest]]:
    """(digest, manifest) of each release of a product that a folder of keys vouches for, the newest first.

    By time of packing. Those whose manifest is not kept there are left out.
    """
    found = []
    for target, info in open_keys(keys).listed(role).items():
        digest = f"sha256:{info.hashes['sha256']}"
        path = keys / target_file(target, digest)
        if target.startswith(f"{ROLES[role]}/{name}/") and path.is_file():
            found.append((digest, parse_manifest(path.read_bytes(), where=target)))
    return sorted(found, key=lambda entry: datetime.datetime.fromisoformat(entry[1].created), reverse=True)
