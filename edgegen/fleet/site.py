"""A site: the folder that one fleet server keeps.

site/
  repository/     metadata/ targets/ blobs/: static files, signed; any web server may hold them
  fleet.db        devices, rollouts, audit log (unless the store is PostgreSQL)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgegen.bundle.layout import METADATA
from edgegen.bundle.roles import Roles, trusted_root
from edgegen.errors import ConfigError
from edgegen.fleet.database import Database, sqlite_path

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


def make_site(folder: Path, keys: Path, store: str | None = None) -> Site:
    """Start a site with an empty repository that a folder of keys vouches for. Cut off, it can be run again.

    Args:
        keys: folder of keys; its online keys are copied, the others stay where they are.
        store: another database than the site's own file.

    Raises:
        ConfigError: not a folder of keys, the site's repository is another's, or the store is.
        TrustError: the site's repository is damaged.
    """
    from edgegen.bundle.keys import load_settings
    from edgegen.bundle.ledger import online_keys
    from edgegen.bundle.repository import init_repository

    load_settings(keys)
    site = Site(folder, str(folder / "fleet.db") if store is None else store)
    if store is not None:
        _require_store(store, new=True)
    started = (site.repository / METADATA / "timestamp.json").is_file()
    if not started:
        init_repository(site.repository, keys)
    elif trusted_root(site.repository) != trusted_root(keys):
        raise ConfigError(f"{folder}: has a repository of other keys", hint="Choose another folder.")
    else:
        Roles(site.repository / METADATA, {}, {}).states()
    online_keys(keys, folder / "keys")
    Database(site.store).close()
    return site


def open_site(folder: Path, store: str | None = None, *, new_store: bool = False) -> Site:
    """Find a site.

    Args:
        store: another database than the site's own file, such as `postgresql://…`.
        new_store: whether a file of that name is made where there is none.

    Raises:
        ConfigError: no such folder, no site in it, or no such database.
    """
    if not (folder / "repository").is_dir():
        raise ConfigError(f"{folder}: no such site", hint=f"Make one with `edgegen fleet init {folder}`.")
    if store is not None:
        _require_store(store, new=new_store)
        return Site(folder, store)
    own = folder / "fleet.db"
    if not own.is_file() or not own.stat().st_size:
        raise ConfigError(
            f"{own}: {'is empty' if own.is_file() else 'no such file'}: the site's database is not there",
            hint=f"Bring it back, or name another with --store; `edgegen fleet init {folder}` starts a new one.",
        )
    return Site(folder, str(own))


def _require_store(store: str, *, new: bool) -> None:
    """Whether a database that was named is one, as far as its file tells: what it holds is looked at when it is opened.

    Raises:
        ConfigError: it is not. An empty file is none either: SQLite would take it for a new database, whoever's it is.
    """
    if not store:
        raise ConfigError("--store is empty", hint="Name a file or postgresql://…, or leave it out.")
    path = sqlite_path(store)
    if path is None:
        return
    if path.is_file() and not path.stat().st_size:
        raise ConfigError(f"{path}: an empty file, no fleet's database", hint="Name another place for a new one.")
    if not path.exists() and not new:
        raise ConfigError(f"{path}: no such database", hint="`edgegen fleet init SITE --store …` makes one.")
