"""Digests as labels, lineages and manifests."""

from __future__ import annotations

from functools import lru_cache

from edgegen.common.codec import decode_json
from edgegen.errors import ConfigError
from edgegen.fleet.transaction import Transaction
from edgegen.records.bundle import Manifest


def read_labels(tx: Transaction) -> dict[str, str]:
    """Digest of each published release → `name@version`."""
    return {
        row["digest"]: f"{row['name']}@{row['version']}"
        for row in tx.rows("SELECT digest, name, version FROM releases")
    }


def label_of(labels: dict[str, str], digest: str) -> str:
    """`name@version`, or the beginning of a digest that the fleet does not know; empty for none."""
    return labels.get(digest) or digest.removeprefix("sha256:")[:12]


def read_manifest(tx: Transaction, digest: str) -> Manifest | None:
    """A published release's manifest; None: the fleet does not know it, or a later version of edgegen wrote it."""
    rows = tx.rows("SELECT manifest FROM releases WHERE digest = ?", digest)
    return _parsed(rows[0]["manifest"]) if rows else None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Manifest | None:
    try:
        return decode_json(text.encode(), Manifest, where="manifest")
    except ConfigError:
        return None


def lineage_of(manifest: Manifest | None) -> str:
    """The id that goes from model to report; empty: none."""
    return manifest.provenance.lineage if manifest and manifest.provenance else ""
