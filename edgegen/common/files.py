"""Files that are either whole or not there.

Every result is written beside its place, flushed to the disk and renamed over it, so a kill at any moment
leaves the old file or none. A full disk surfaces as one `DeviceError` that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgegen.errors import ConfigError, DeviceError


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes as `sha256:<hex>`; reads 1 MiB at a time."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def digest_bytes(data: bytes) -> str:
    """SHA-256 as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's disk errors into one line that names the path.

    Raises:
        DeviceError: no space, quota, read-only file system, input/output error.
        ConfigError: no permission, or something else stands where a file or folder has to be.
    """
    try:
        yield
    except PermissionError as error:
        raise ConfigError(
            f"{path}: not writable", hint="Choose another folder with --out or mend its rights."
        ) from error
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConfigError(
            f"{error.filename or path}: {error.strerror}", hint="Choose another place with --out."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DeviceError(
                f"{path}: no space left on the disk", hint="Free some space and run the same command again."
            ) from error
        if error.errno in (errno.EROFS, errno.EIO):
            raise DeviceError(f"{path}: {error.strerror}", hint="Choose a writable, healthy disk.") from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success flush it and rename it onto `path`, else remove it."""
    if not path.name:
        raise ConfigError(f"'{path}' names no file", hint="Give the file a name.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, and a file has to be there", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of `folder`, else it is removed."""
    temporary = folder.with_name(folder.name + ".tmp")
    remove_tree(temporary)
    with disk_errors(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            remove_tree(folder)
            temporary.replace(folder)
        finally:
            remove_tree(temporary)
        sync_folder(folder.parent)


def require_place(out: Path, *, mark: str, what: str) -> None:
    """Refuse, before any work, a place that `building` would not replace.

    Raises:
        ConfigError: `out` holds something else, or names no folder of its own.
    """
    if out.name in ("", ".."):
        raise ConfigError(f"{out}: names no folder to make", hint="Give the result a folder of its own with --out.")
    with disk_errors(out):
        other = out.exists() and not (out / mark).is_file() and (not out.is_dir() or any(out.iterdir()))
    if other:
        raise ConfigError(f"{out}: exists and is no {what}", hint="Choose another folder with --out.")


@contextlib.contextmanager
def building(out: Path, *, mark: str, what: str) -> Iterator[Path]:
    """A folder to fill that takes `out`'s place when the block ends, and is gone if it fails; what was there goes last.

    Args:
        mark: file that every folder of this kind holds; another folder is not replaced unless it is empty.
        what: the kind, for the message.

    Raises:
        ConfigError: see `require_place`.
        DeviceError: no space on the disk.
    """
    require_place(out, mark=mark, what=what)
    place = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(place)
        place.mkdir(parents=True)
        try:
            yield place
            sync_folder(place)
            remove_tree(old)
            if out.exists():
                out.replace(old)
            place.replace(out)
            sync_folder(out.parent)
            remove_tree(old)
        finally:
            remove_tree(place)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def remove_tree(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def require_free_bytes(folder: Path, needed_bytes: int) -> None:
    """Fail early when a disk cannot take what is about to be written.

    Raises:
        DeviceError: less than `needed_bytes` free where `folder` is or will be.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise DeviceError(
            f"{folder}: {needed_bytes:,} bytes are needed on the disk and {free:,} are free",
            hint="Free some space or choose another folder with --out.",
        )
