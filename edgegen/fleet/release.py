"""Releases that the fleet knows: their signed manifests, by digest, and how a device is told of one."""

from __future__ import annotations

from edgegen.common.codec import decode_json
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError
from edgegen.fleet.audit import note
from edgegen.fleet.transaction import Transaction
from edgegen.records.bundle import Manifest
from edgegen.records.deployment import (
    DEADLINE_KEY,
    MANIFEST_PART,
    REASON_KEY,
    REPOSITORY_KEY,
    TARGET_KEY,
    ArtifactLink,
    Chunk,
    Hashes,
    Link,
    Metadata,
)

REPOSITORY = "/repository"
"""Path of the repository's files on the server."""


def add_release(tx: Transaction, now_s: float, who: str, *, manifest: bytes, target: str) -> str:
    """Make a published release known to the fleet. The same again changes nothing.

    Args:
        manifest: the signed bytes.
        target: its name among the repository's targets.

    Returns:
        The manifest's digest.

    Raises:
        ConfigError: not a manifest.
    """
    found = decode_json(manifest, Manifest, where=target)
    digest = digest_bytes(manifest)
    added = tx.run(
        "INSERT INTO releases (digest, name, version, target, manifest, published_s) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        *(digest, found.name, found.version, target, manifest.decode(), now_s),
    )
    if added:
        note(tx, now_s, who, "release added", f"release:{digest}", f"{found.name} {found.version}")
    return digest


def find_release(tx: Transaction, name: str) -> str:
    """Digest of the release called `name@version`, or whose digest begins with `name`.

    Raises:
        ConfigError: none, or several.
    """
    product, _, version = name.partition("@")
    rows = tx.rows("SELECT digest, name, version FROM releases ORDER BY published_s DESC")
    fits = [
        row["digest"]
        for row in rows
        if (version and (row["name"], row["version"]) == (product, version))
        or (len(name) >= 12 and row["digest"].removeprefix("sha256:").startswith(name.removeprefix("sha256:")))
    ]
    if len(fits) != 1:
        known = ", ".join(f"{row['name']}@{row['version']}" for row in rows[:20]) or "none"
        raise ConfigError(f"{len(fits) or 'no'} releases are called {name!r}", hint=f"Published: {known}.")
    return str(fits[0])


def describe_release(tx: Transaction, digest: str, *, base: str, reason: str, deadline_s: float) -> Chunk:
    """A release as a device is told of it.

    Args:
        base: URL of the server, without a slash at the end.
    """
    (row,) = tx.rows("SELECT * FROM releases WHERE digest = ?", digest)
    raw = row["manifest"].encode()
    manifest = decode_json(raw, Manifest, where=row["target"])
    root = base + REPOSITORY
    folder, _, filename = row["target"].rpartition("/")
    link = "download" if base.startswith("https:") else "download-http"
    sha256 = digest.removeprefix("sha256:")
    # Repositories with consistent snapshots put a target's digest before its file name.
    path = f"{root}/targets/{folder + '/' if folder else ''}{sha256}.{filename}"
    artifacts = [ArtifactLink(filename, Hashes(sha256), len(raw), {link: Link(path)})]
    for file in manifest.files:
        hexes = file.digest.removeprefix("sha256:")
        href = f"{root}/blobs/sha256/{hexes[:2]}/{hexes}"
        artifacts.append(ArtifactLink(file.path, Hashes(hexes), file.bytes, {link: Link(href)}))
    return Chunk(
        part=MANIFEST_PART,
        version=manifest.version,
        name=manifest.name,
        artifacts=tuple(artifacts),
        metadata=(
            Metadata(TARGET_KEY, row["target"]),
            Metadata(REPOSITORY_KEY, root),
            Metadata(REASON_KEY, reason),
            Metadata(DEADLINE_KEY, f"{deadline_s:g}"),
        ),
    )
