"""One output folder, filled stage by stage, visible only when it is whole.

Work happens in `OUT.partial` beside the output. Each finished stage leaves a marker with a key over everything that
went into it; the same command again skips stages whose key is unchanged, whether they stand in the partial folder of
an interrupted run or in the finished output of an earlier one. At the end the partial folder takes the output's
place by renaming, so a kill at any moment leaves the old output or none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgegen.common.codec import digest_record, load_json, save_json
from edgegen.common.files import disk_errors, remove_tree, sync_folder
from edgegen.errors import ConfigError, EdgegenError
from edgegen.records.build import Build, StageMark

BUILD_FILE = "build.json"
LOCK_FILE = ".lock"


class Workspace:
    """The output folder of one command.

    Attributes:
        folder: where stages write while the command runs.
        out: where the result will be.
    """

    def __init__(self, out: Path) -> None:
        """Check the place before any work.

        Raises:
            ConfigError: `out`, or the folder beside it that work is done in, is a file, is not empty and no edgegen
                output, or cannot be written.
        """
        self.out = out.expanduser().resolve()  # a link's target is replaced, not the link
        if not self.out.name:
            raise ConfigError(f"{out}: is no place for an output", hint="Choose another folder with --out.")
        self.folder = self.out.with_name(self.out.name + ".partial")
        with disk_errors(self.out):
            _require_own(self.out, BUILD_FILE)
            _require_own(self.folder, BUILD_FILE, LOCK_FILE)
            _require_own(self._old, BUILD_FILE)
            if not self.out.exists() and self._old.exists():
                self._old.replace(self.out)  # killed between the two renames of `finish`
            self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise ConfigError(f"{self.folder}: not writable", hint="Choose another folder with --out.")
        self._marks = self._read_marks(self.folder)

    @property
    def _old(self) -> Path:
        return self.out.with_name(self.out.name + ".old")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time in one folder.

        Raises:
            ConfigError: another one is running.
        """
        lock = self.folder / LOCK_FILE
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(lock.open("w"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The other command may have finished since the file was opened, and taken it along.
                ours = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
            except (BlockingIOError, FileNotFoundError):
                ours = False
            if not ours:
                raise ConfigError(
                    f"{self.out}: another edgegen command is working there",
                    hint="Wait for it to end, or choose another folder with --out.",
                )
            for piece in self.folder.glob("*.tmp"):  # hidden ones too: what a killed command was writing
                self._remove(piece)
            self._marks = self._read_marks(self.folder)
            yield

    def stage(self, name: str, inputs: Any, outputs: tuple[str, ...], work: Callable[[], None]) -> bool:
        """Run a stage unless its result is there.

        Args:
            name: unique in the chain.
            inputs: everything that decides the result, as plain values; its digest is the key.
            outputs: names inside the folder that the stage writes.
            work: writes them.

        Returns:
            True if it was skipped.
        """
        key = digest_record(inputs)
        if self._reuse(name, key, outputs):
            return True
        for output in outputs:
            self._remove(self.folder / output)
        began, before = time.monotonic(), sum(os.times()[:4])
        work()
        spent, used = time.monotonic() - began, sum(os.times()[:4]) - before
        self._mark(StageMark(name=name, key=key, outputs=outputs, seconds=spent, cpu_seconds=used))
        return False

    def forget(self, name: str) -> None:
        """Let a stage run again next time although its outputs are kept."""
        self._marks.pop(name, None)

    def remove(self, *outputs: str) -> None:
        """Take away what an earlier run left in the folder and this one has no stage for."""
        for output in outputs:
            self._remove(self.folder / output)

    def finish(self, build: Build) -> None:
        """Put the finished folder into the output's place."""
        marks = tuple(self._marks.values())
        save_json(
            self.folder / BUILD_FILE,
            Build(schema=1, command=build.command, version=build.version, stages=marks),
        )
        old = self._old
        with disk_errors(self.out):
            _remove_own(old)
            if self.out.exists():
                self.out.replace(old)
            self.folder.replace(self.out)
            (self.out / LOCK_FILE).unlink(missing_ok=True)
            sync_folder(self.out.parent)
            _remove_own(old)

    def _reuse(self, name: str, key: str, outputs: tuple[str, ...]) -> bool:
        mark = self._marks.get(name)
        if mark and mark.key == key and all((self.folder / output).exists() for output in outputs):
            return True
        earlier = self._read_marks(self.out).get(name)
        if earlier is None or earlier.key != key or not all((self.out / output).exists() for output in outputs):
            return False
        for output in outputs:
            self._remove(self.folder / output)
            _link_or_copy(self.out / output, self.folder / output)
        self._mark(earlier)
        return True

    def _mark(self, mark: StageMark) -> None:
        self._marks[mark.name] = mark
        build = Build(schema=1, command="", version="", stages=tuple(self._marks.values()))
        save_json(self.folder / BUILD_FILE, build)

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)

    @staticmethod
    def _read_marks(folder: Path) -> dict[str, StageMark]:
        if not (folder / BUILD_FILE).exists():
            return {}
        try:
            return {mark.name: mark for mark in load_json(folder / BUILD_FILE, Build).stages}
        except EdgegenError:
            return {}  # from another version: everything is made again


def _require_own(folder: Path, *signs: str) -> None:
    """Refuse to fill or replace what someone else put there.

    Raises:
        ConfigError: `folder` is a file, or is not empty and holds none of the signs.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, not a folder", hint="Choose another folder with --out.")
    if any(folder.iterdir()) and not any((folder / sign).exists() for sign in signs):
        raise ConfigError(
            f"{folder}: is not empty and was not written by edgegen", hint="Choose another folder with --out."
        )


def _remove_own(folder: Path) -> None:
    """Remove an output; its mark goes last, so that a half removed one is still known as ours."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name != BUILD_FILE:
            Workspace._remove(path)
    remove_tree(folder)


def _link_or_copy(source: Path, place: Path) -> None:
    """Files of a finished output never change, so a hard link is as good as a copy."""
    if source.is_dir():
        shutil.copytree(source, place, copy_function=_link_file)
    else:
        _link_file(str(source), str(place))


def _link_file(source: str, place: str) -> str:
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
    return place
