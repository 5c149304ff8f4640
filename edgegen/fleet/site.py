"""A site: the folder that one fleet server keeps.

site/
  repository/     metadata/ targets/ blobs/: static files, signed; any web server may hold them
  fleet.db        devices, rollouts, audit log (unless the store is PostgreSQL)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgegen.bundle.roles import trusted_root
from edgegen.errors import ConfigError
from edgegen.fleet.database import Database

PARTS = ("metadata", "targets", "blobs")
"""What of the repository is served. Nothing else of the site ever is."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a fleet's files are."""

    folder: Path
    store: str
    """File or URL of the database."""

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def keys(self) -> Path | None:
        """Folder of the online keys, None where they are kept elsewhere and somebody else renews the timestamp."""
        folder = self.folder / "keys"
        return folder if folder.is_dir() else None


def make_site(folder: Path, keys: Path) -> Site:
    """Start a site with an empty repository that a folder of keys vouches for. Cut off, it can be run again.

    Args:
        keys: folder of keys; its online keys are copied, the others stay where they are.

    Raises:
        ConfigError: not a folder of keys, or the site's repository is another's.
    """
    from edgegen.bundle.ledger import online_keys
    from edgegen.bundle.repository import init_repository

    site = Site(folder, str(folder / "fleet.db"))
    started = (site.repository / "metadata" / "timestamp.json").is_file()
    if not started:
        init_repository(site.repository, keys)
    elif trusted_root(site.repository) != trusted_root(keys):
        raise ConfigError(f"{folder}: has a repository of other keys", hint="Choose another folder.")
    online_keys(keys, folder / "keys")
    Database(site.store).close()
    return site


def open_site(folder: Path, store: str | None = None) -> Site:
    """Find a site.

    Args:
        store: another database than the site's own file, such as `postgresql://…`.

    Raises:
        ConfigError: no such folder, or no site in it.
    """
    if not (folder / "repository").is_dir():
        raise ConfigError(f"{folder}: no such site", hint=f"Make one with `edgegen fleet init {folder}`.")
    return Site(folder, store or str(folder / "fleet.db"))
