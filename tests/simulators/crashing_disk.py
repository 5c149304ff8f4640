"""A file system that stops at its n-th operation and then forgets what was not flushed.

The real folder is changed as asked, so that readers see it; beside it a model keeps what a disk would still hold after
a power cut. It is stricter than ext4: a file's flush says nothing about its name, and names of other folders wait for
the flush of those. A rename between two folders is one change, as every journaling file system makes it.

`after` says what a stop leaves:

    killed     the process ends, the machine goes on: everything that was done, and half of a write that was under way
    power      the power goes: only what was flushed
    no data    the power goes: all names survive, bytes that were not flushed are gone
    mixed      the power goes: of each change that was not flushed, a die says whether it survives; bytes may be zeros
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from edgegen.agent.disk import Disk

MODES = ("killed", "power", "no data", "mixed")


class Killed(BaseException):
    """The agent is gone; nothing of it may catch this."""


@dataclass(eq=False)
class File:
    live: bytes = b""
    kept: bytes = b""


@dataclass(eq=False)
class Link:
    target: str


@dataclass(eq=False)
class Folder:
    live: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)


Node = File | Link | Folder


class CrashingDisk(Disk):
    """Counts operations; raises `Killed` at one of them."""

    def __init__(self, root: Path, *, stop_at: int | None = None, after: str = "killed", seed: int = 0) -> None:
        """Everything under `root` counts as flushed.

        Args:
            stop_at: number of the operation, from 1; None: never.
        """
        self.root, self.after, self.operations = root, after, 0
        self._stop_at, self._dice = stop_at, random.Random(f"{seed} {stop_at}")
        self._tree = _read(root)
        self._pending: list[list[tuple[Folder, str, Node | None]]] = []
        self.trace: list[str] = []

    def operate(self, what: str) -> bool:
        """Count one operation; whether it is the last."""
        self.operations += 1
        self.trace.append(what)
        return self.operations == self._stop_at

    def halt(self, what: str) -> None:
        """An operation that is no change of a file, such as starting the model."""
        if self.operate(what):
            self.crash()

    def crash(self) -> None:
        """Leave the folder as the stop leaves it."""
        if self.after != "killed":
            self._forget()
            for entry in self.root.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            self._write(self.root, self._tree)
        raise Killed

    def make_folder(self, path: Path) -> None:
        self._begin(f"make folder {path.name}")
        if not path.is_dir():
            super().make_folder(path)
            self._change([(path, Folder())])

    def write(self, path: Path, data: bytes) -> None:
        last = self.operate(f"write {path.name}")
        data = data[: len(data) // 2] if last else data
        super().write(path, data)
        self._file(path).live = data
        if last:
            self.crash()

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        last = self.operate(f"write at {offset} {path.name}")
        data = data[: len(data) // 2] if last else data
        super().write_at(path, offset, data)
        self._file(path).live = path.read_bytes()
        if last:
            self.crash()

    def truncate(self, path: Path, length: int) -> None:
        self._begin(f"truncate {path.name}")
        super().truncate(path, length)
        self._file(path).live = path.read_bytes()

    def sync(self, path: Path) -> None:
        self._begin(f"sync {path.name}")
        assert path.is_file()
        node = self._file(path)
        node.kept = node.live

    def sync_folder(self, path: Path) -> None:
        self._begin(f"sync folder {path.name}")
        folder = self._find(path)
        assert isinstance(folder, Folder)
        waiting = []
        for change in self._pending:
            if any(where is folder for where, _, _ in change):
                _apply(change, "kept")
            else:
                waiting.append(change)
        self._pending = waiting

    def rename(self, source: Path, target: Path) -> None:
        self._begin(f"rename {source.name} to {target.name}")
        super().rename(source, target)
        node = self._find(source)
        self._change([(source, None), (target, node)])

    def symlink(self, path: Path, pointing_to: str) -> None:
        self._begin(f"symlink {path.name}")
        super().symlink(path, pointing_to)
        self._change([(path, Link(pointing_to))])

    def link(self, source: Path, target: Path) -> None:
        self._begin(f"link {target.name}")
        super().link(source, target)
        self._change([(target, self._find(source))])

    def remove(self, path: Path) -> None:
        self._begin(f"remove {path.name}")
        if path.exists() or path.is_symlink():
            super().remove(path)
            self._change([(path, None)])

    def remove_folder(self, path: Path) -> None:
        self._begin(f"remove folder {path.name}")
        super().remove_folder(path)
        self._change([(path, None)])

    def _begin(self, what: str) -> None:
        if self.operate(what):
            self.crash()

    def _change(self, entries: list[tuple[Path, Node | None]]) -> None:
        change = []
        for path, node in entries:
            folder = self._find(path.parent)
            assert isinstance(folder, Folder)
            change.append((folder, path.name, node))
        _apply(change, "live")
        self._pending.append(change)

    def _file(self, path: Path) -> File:
        folder = self._find(path.parent)
        assert isinstance(folder, Folder)
        node = folder.live.get(path.name)
        if node is None:
            node = File()
            self._change([(path, node)])
        assert isinstance(node, File)
        return node

    def _find(self, path: Path) -> Node:
        node: Node = self._tree
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.live[name]
        return node

    def _forget(self) -> None:
        """Make `kept` what the stop leaves."""
        for change in self._pending:
            if self.after == "no data" or (self.after == "mixed" and self._dice.random() < 0.5):
                _apply(change, "kept")

    def _write(self, place: Path, folder: Folder) -> None:
        place.mkdir(exist_ok=True)
        for name, node in folder.kept.items():
            path = place / name
            if isinstance(node, Folder):
                self._write(path, node)
            elif isinstance(node, Link):
                path.symlink_to(node.target)
            else:
                path.write_bytes(self._bytes(node))

    def _bytes(self, node: File) -> bytes:
        if self.after == "mixed" and node.kept != node.live:
            survivors = [node.kept, node.live, bytes(len(node.live)), node.live[: len(node.live) // 2]]
            return self._dice.choice(survivors)
        return node.kept


def _apply(change: list[tuple[Folder, str, Node | None]], side: str) -> None:
    for folder, name, node in change:
        entries: dict[str, Node] = getattr(folder, side)
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _read(path: Path) -> Folder:
    entries: dict[str, Node] = {}
    for entry in path.iterdir():
        if entry.is_symlink():
            entries[entry.name] = Link(str(entry.readlink()))
        elif entry.is_dir():
            entries[entry.name] = _read(entry)
        else:
            data = entry.read_bytes()
            entries[entry.name] = File(data, data)
    return Folder(dict(entries), dict(entries))
