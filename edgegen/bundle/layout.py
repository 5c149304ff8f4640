"""Where things lie in a repository and in a bundle, which has the same shape so that either can be served.

    metadata/N.root.json  timestamp.json  N.snapshot.json  N.targets.json  N.release.json  N.dev.json
    targets/bundles/<name>/<version>/<sha256>.manifest.json
    blobs/sha256/ab/<sha256>            whole files, never changed, fit for Range requests
    bundle.json                         only in a bundle: which target it is about

The manifest is a TUF target under `bundles/` (role `release`) or `dev/` (role `dev`). Its name in the metadata is
`bundles/<name>/<version>/manifest.json`; the digest before the file's name is TUF's consistent snapshot.
"""

from __future__ import annotations

from edgegen.records.bundle import Manifest

METADATA = "metadata"
TARGETS = "targets"
BLOBS = "blobs"
BUNDLE = "bundle.json"
ROLES = {"release": "bundles", "dev": "dev"}
"""Signing role → first part of the names of its manifests."""


def target_path(manifest: Manifest, role: str = "release") -> str:
    """A manifest's name among the repository's targets."""
    return f"{ROLES[role]}/{manifest.name}/{manifest.version}/manifest.json"


def target_file(target: str, digest: str) -> str:
    """Where a target lies in a repository.

    Args:
        digest: of its bytes, `sha256:<hex>`.
    """
    folder, _, name = target.rpartition("/")
    return f"{TARGETS}/{folder}/{_hex(digest)}.{name}"


def blob_file(digest: str) -> str:
    """Where a file of a release lies in a repository."""
    return f"{BLOBS}/sha256/{_hex(digest)[:2]}/{_hex(digest)}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
