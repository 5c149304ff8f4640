"""Releases: who runs them, who vouches for them and until when, what a device of the fleet would have to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgegen.bundle.delta import transfer
from edgegen.bundle.layout import METADATA, ROLES
from edgegen.bundle.roles import Roles
from edgegen.errors import EdgegenError
from edgegen.fleet.monitoring.releases import lineage_of, read_manifest
from edgegen.fleet.transaction import Transaction
from edgegen.records.bundle import Manifest
from edgegen.records.monitor import Ask, BundleRow

_KEY_DIGITS = 8


def read_bundles(tx: Transaction, now_s: float, ask: Ask, site: Path | None) -> tuple[BundleRow, ...]:
    """Answer which releases there are, the latest first; devices are those of a group if one is named."""
    running = {
        row["running"]: int(row["n"])
        for row in tx.rows(
            "SELECT running, COUNT(*) AS n FROM devices WHERE revoked = 0 AND (? = '' OR grp = ?) GROUP BY running",
            *(ask.group, ask.group),
        )
    }
    releases = tx.rows(
        "SELECT digest, name, version, target, published_s FROM releases WHERE published_s <= ? "
        "ORDER BY published_s DESC, version DESC",
        1e18 if ask.until_s is None else ask.until_s,
    )
    known = {row["digest"]: read_manifest(tx, row["digest"]) for row in releases}
    common = max((digest for digest in known if running.get(digest)), key=lambda digest: running[digest], default="")
    installed = known.get(common)
    vouched = {folder: _vouched(site, role) for role, folder in ROLES.items()}
    found = []
    for row in releases:
        manifest = known[row["digest"]]
        signed_by, expires_s = vouched.get(row["target"].partition("/")[0], ("", None))
        on_device = [] if installed is None else [installed, *_base(known, installed.base)]
        found.append(
            BundleRow(
                digest=row["digest"],
                label=f"{row['name']}@{row['version']}",
                kind=manifest.kind if manifest else "",
                target=manifest.target if manifest else "",
                published_s=row["published_s"],
                install_bytes=manifest.install_bytes if manifest else 0,
                devices=running.get(row["digest"], 0),
                epoch=manifest.epoch if manifest else 0,
                signed_by=signed_by,
                expires_s=expires_s,
                lineage=lineage_of(manifest),
                transfer_bytes=transfer(manifest, on_device).fetched if manifest and on_device else None,
            )
        )
    return tuple(found)


def _base(known: Mapping[str, Manifest | None], digest: str) -> list[Manifest]:
    """What a light release stands on."""
    base = known.get(digest)
    return [base] if base is not None else []


def _vouched(site: Path | None, role: str) -> tuple[str, float | None]:
    """Beginnings of the keys that signed a role, and when it expires; unknown where the repository is not here."""
    if site is None:
        return "", None
    try:
        metadata = Roles(site / "repository" / METADATA, {}, {}).load(role)
    except (EdgegenError, ValueError):  # nothing published yet, or kept elsewhere
        return "", None
    keys = ", ".join(sorted(keyid[:_KEY_DIGITS] for keyid in metadata.signatures))
    return f"{role} ({keys})", metadata.signed.expires.timestamp()
