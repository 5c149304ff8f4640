"""Every change that an update makes to a file system, one method each.

The agent changes files through a `Disk` and in no other way, so that a test can put one in its place that counts the
operations, stops the agent at any of them and forgets what was not flushed (`tests/simulators/crashing_disk.py`).
Each method is one operation of the system; a sequence that must survive a power cut stands at its caller, flushes
included. Reading is done with `pathlib`: a stop while reading is a stop between two changes.

Links and renames need a POSIX file system (ext4, f2fs, btrfs, xfs, overlay on these), not FAT.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgegen.common.files import disk_errors
from edgegen.common.files import sync_folder as _sync_folder


class Disk:
    """The real file system.

    All methods raise `DeviceError` for a full, read-only or failing disk and `ConfigError` for missing rights.
    """

    def make_folder(self, path: Path) -> None:
        """Make one folder whose parent exists; nothing happens if it is there."""
        with disk_errors(path):
            path.mkdir(exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Make a file anew with these bytes. Not flushed."""
        with disk_errors(path):
            path.write_bytes(data)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """Overwrite or extend a file, which is made if it is not there. Not flushed.

        Past the file's end a gap of zeros is left.
        """
        with disk_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            try:
                view = memoryview(data)
                while view:
                    written = os.pwrite(handle, view, offset)
                    view, offset = view[written:], offset + written
            finally:
                os.close(handle)

    def truncate(self, path: Path, length: int) -> None:
        """Cut a file. Not flushed."""
        with disk_errors(path):
            os.truncate(path, length)

    def sync(self, path: Path) -> None:
        """Flush a file's bytes."""
        with disk_errors(path), path.open("rb+") as stream:
            os.fsync(stream.fileno())

    def sync_folder(self, path: Path) -> None:
        """Flush a folder's entries: what was made, renamed or removed in it."""
        with disk_errors(path):
            _sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file, link or folder another name, over a file or link that has it. Not flushed."""
        with disk_errors(target):
            source.replace(target)

    def symlink(self, path: Path, pointing_to: str) -> None:
        """Make a link. Not flushed."""
        with disk_errors(path):
            path.symlink_to(pointing_to)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name. Not flushed.

        Raises:
            OSError: this file system has no hard links.
        """
        target.hardlink_to(source)

    def remove(self, path: Path) -> None:
        """Remove a file or link; nothing happens if it is not there. Not flushed."""
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder. Not flushed."""
        with disk_errors(path):
            path.rmdir()

    def free_bytes(self, path: Path) -> int:
        """Bytes that this process may still write there."""
        return shutil.disk_usage(path).free


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Put a whole new file in a file's place, durably: at any moment the old one or the new one is there."""
    temporary = path.with_name(f".{path.name}.new")
    disk.write(temporary, data)
    disk.sync(temporary)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def replace_link(disk: Disk, path: Path, pointing_to: str) -> None:
    """Point a link elsewhere, durably: at any moment it points to the old or the new place."""
    temporary = path.with_name(f".{path.name}.new")
    disk.remove(temporary)
    disk.symlink(temporary, pointing_to)
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def make_folders(disk: Disk, path: Path) -> None:
    """Make a folder and what is missing above it, durably."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        if not folder.is_dir():
            disk.make_folder(folder)
            disk.sync_folder(folder.parent)


def remove_tree(disk: Disk, folder: Path) -> None:
    """Remove a folder with all that is in it, entry by entry; nothing happens if it is not there."""
    if folder.is_symlink() or not folder.is_dir():
        disk.remove(folder)
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(disk, entry)
        else:
            disk.remove(entry)
    disk.remove_folder(folder)


def sync_tree(disk: Disk, folder: Path) -> None:
    """Flush all files in a folder, and then the folders, the innermost first."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            sync_tree(disk, entry)
        elif not entry.is_symlink():
            disk.sync(entry)
    disk.sync_folder(folder)
