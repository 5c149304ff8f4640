"""The agent's folder: releases side by side, and two links that say which of them serves.

    releases/<hex>/     a whole release: manifest.json and its files; only ever renamed into place
    incoming/<hex>/     a release that is being put together
    current → releases/<hex>, previous → releases/<hex>
    state.json          the journal
    trust/              the repository's metadata; never goes back with a release

A link is replaced by a rename, so at any moment `current` names one whole release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edgegen.agent.disk import Disk, make_folders, remove_tree, replace_link
from edgegen.common.files import digest_file
from edgegen.records.bundle import BundleFile, Manifest

MANIFEST = "manifest.json"
_TRASH = ".trash"


class Home:
    """The folders of one agent."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        """Make what is missing."""
        self.folder, self.disk = folder, disk
        self.releases = folder / "releases"
        self.incoming = folder / "incoming"
        self.state = folder / "state.json"
        self.trust = folder / "trust"
        for path in (self.releases, self.incoming, self.trust):
            make_folders(disk, path)

    def release(self, digest: str) -> Path:
        """Where a release lies when it is whole."""
        return self.releases / _hex(digest)

    def arriving(self, digest: str) -> Path:
        """Where a release is put together."""
        return self.incoming / _hex(digest)

    def current(self) -> str:
        """Digest of the release that serves; empty: none."""
        return self._pointed("current")

    def previous(self) -> str:
        """Digest of the release before it; empty: none."""
        return self._pointed("previous")

    def point(self, name: str, digest: str) -> None:
        """Let `current` or `previous` name a release, durably; an empty digest removes the link."""
        link = self.folder / name
        if self._pointed(name) == digest and link.is_symlink() == bool(digest):
            return
        if digest:
            replace_link(self.disk, link, f"releases/{_hex(digest)}")
        elif link.is_symlink():
            self.disk.remove(link)
            self.disk.sync_folder(self.folder)

    def installed(self) -> Iterator[tuple[Path, Manifest]]:
        """Releases and unfinished ones whose manifest can be read: where bytes may be reused from."""
        for root in (self.releases, self.incoming):
            for folder in sorted(root.iterdir()):
                manifest = read_manifest(folder)
                if manifest is not None:
                    yield folder, manifest

    def collect(self, keep: Iterable[str]) -> None:
        """Remove all releases and unfinished ones but these, `current`, `previous` and what those refer to.

        A base shares its bytes with the release that refers to it, so keeping it takes no space, and the next light
        release finds it.
        """
        named = [digest for digest in (*keep, self.current(), self.previous()) if digest]
        found = [read_manifest(self.release(digest)) for digest in named]
        kept = {_hex(digest) for digest in (*named, *(manifest.base for manifest in found if manifest)) if digest}
        for root in (self.releases, self.incoming):
            for folder in sorted(root.iterdir()):
                if folder.name not in kept:
                    self._drop(folder)

    def _drop(self, folder: Path) -> None:
        """A half-removed release must not look like one, so it gets another name first."""
        if folder.parent == self.releases:
            trash = self.incoming / f"{_TRASH}-{folder.name}"
            remove_tree(self.disk, trash)
            self.disk.rename(folder, trash)
            self.disk.sync_folder(self.releases)
            self.disk.sync_folder(self.incoming)
            folder = trash
        remove_tree(self.disk, folder)

    def _pointed(self, name: str) -> str:
        link = self.folder / name
        if not link.is_symlink() or not (link / MANIFEST).is_file():
            return ""
        return "sha256:" + link.readlink().name


def read_manifest(folder: Path) -> Manifest | None:
    """A stored manifest, None if there is none that can be read. Whether it was proven is not checked again."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def damaged_files(folder: Path, files: Iterable[BundleFile]) -> list[str]:
    """Files that are missing or not what a manifest says: every byte is read."""
    return [file.path for file in files if not _is_whole(folder / file.path, file)]


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there with so many bytes."""
    return path.is_file() and path.stat().st_size == size


def _is_whole(path: Path, file: BundleFile) -> bool:
    try:
        return has_size(path, file.bytes) and digest_file(path) == file.digest
    except OSError:  # a bad sector
        return False


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
