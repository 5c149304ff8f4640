"""A file is whole or not there, whatever stops the writer."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from edgegen.common import files
from edgegen.common.files import (
    digest_bytes,
    digest_file,
    disk_errors,
    remove_tree,
    replacing,
    require_free_bytes,
    require_place,
    write_bytes,
    write_text,
)
from edgegen.errors import ConfigError, DeviceError


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "note.txt"
    write_text(place, "ünï\n")
    assert place.read_bytes() == "ünï\n".encode()
    write_bytes(place, b"new")
    assert place.read_bytes() == b"new"
    assert [p.name for p in place.parent.iterdir()] == ["note.txt"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    place = tmp_path / "note.txt"
    write_text(place, "old")
    with pytest.raises(RuntimeError), replacing(place) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("step", ["body", "fsync", "replace"])
def test_a_kill_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    place = tmp_path / "note.txt"
    write_text(place, "old")
    child = os.fork()
    if child == 0:
        if step != "body":
            owner = os if step == "fsync" else Path
            setattr(owner, step, lambda *args: os._exit(9))
        with replacing(place) as temporary:
            temporary.write_text("half")
            if step == "body":
                os._exit(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert place.read_text() == "old"
    write_text(place, "new")
    assert place.read_text() == "new"


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, DeviceError, "no space"),
        (errno.EDQUOT, DeviceError, "no space"),
        (errno.EROFS, DeviceError, "ead-only"),
        (errno.EIO, DeviceError, "nput/output"),
        (errno.EACCES, ConfigError, "not writable"),
        (errno.EPERM, ConfigError, "not writable"),
        (errno.ENOTDIR, ConfigError, "ot a directory"),
        (errno.EEXIST, ConfigError, "exists"),
    ],
)
def test_disk_errors_name_the_file_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[ConfigError], words: str
) -> None:
    place = tmp_path / "note.txt"
    write_text(place, "old")

    def failing(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(kind, match=words) as caught:
        write_text(place, "new")
    assert "note.txt" in str(caught.value)
    assert caught.value.hint
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_other_system_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, disk_errors(tmp_path):
        raise OSError(errno.EINVAL, "odd")
    assert caught.value.errno == errno.EINVAL


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file"):
        write_text(tmp_path / "file" / "note.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder: is a folder, and a file has to be there"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(ConfigError, match="names no file"):
        write_text(Path(), "x")


def test_a_place_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    require_place(tmp_path / "new", mark="mark.json", what="bundle")
    require_place(tmp_path, mark="mark.json", what="bundle")  # it is empty
    (tmp_path / "note.txt").write_text("mine")
    for other in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(ConfigError, match="exists and is no bundle"):
            require_place(other, mark="mark.json", what="bundle")
    for none in (".", "..", "/"):
        with pytest.raises(ConfigError, match="names no folder to make"):
            require_place(Path(none), mark="mark.json", what="bundle")
    (tmp_path / "mark.json").touch()
    require_place(tmp_path, mark="mark.json", what="bundle")


def test_digests(tmp_path: Path) -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_bytes(b"") == empty
    (tmp_path / "a").write_bytes(b"")
    assert digest_file(tmp_path / "a") == empty


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    write_text(tmp_path / "tree" / "a", "1")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_free_space_is_asked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_free_bytes(tmp_path / "not" / "yet", 1)
    with pytest.raises(DeviceError, match="not/yet") as caught:
        require_free_bytes(tmp_path / "not" / "yet", 2 * free + 10**15)
    assert caught.value.hint
