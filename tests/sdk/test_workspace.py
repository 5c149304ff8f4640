"""An output folder is the old one, the new one or none, at whatever moment the command dies."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, DeviceError
from edgegen.records.build import Build
from edgegen.sdk.workspace import BUILD_FILE, LOCK_FILE, Workspace

DONE = Build(schema=1, command="edgegen compress", version="0", stages=())


def compress(out: Path, key: str = "a", *, ran: list[str] | None = None, fail: str = "") -> None:
    """Two stages, a file and a folder, as a command runs them."""
    ran = [] if ran is None else ran
    workspace = Workspace(out)

    def plan() -> None:
        ran.append("plan")
        (workspace.folder / "plan.json").write_text(key)

    def export() -> None:
        ran.append("export")
        folder = workspace.folder / "artifact"
        folder.mkdir()
        (folder / "model.gguf").write_text(key)
        if fail:
            raise RuntimeError(fail)
        (folder / "tokenizer.json").write_text(key)

    with workspace.locked():
        workspace.stage("plan", {"key": key}, ("plan.json",), plan)
        workspace.stage("export", {"key": key}, ("artifact",), export)
        workspace.finish(DONE)


def contents(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): path.read_text()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (BUILD_FILE, LOCK_FILE)
    }


def whole(key: str) -> dict[str, str]:
    return {"artifact/model.gguf": key, "artifact/tokenizer.json": key, "plan.json": key}


def test_a_finished_output_stands_alone(tmp_path: Path) -> None:
    compress(tmp_path / "deep" / "out")
    assert contents(tmp_path / "deep" / "out") == whole("a")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert not (tmp_path / "deep" / "out" / LOCK_FILE).exists()


def test_stages_with_the_same_key_are_reused_from_the_finished_output(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    compress(out, ran=ran)
    compress(out, ran=ran)
    assert ran == ["plan", "export"]
    assert contents(out) == whole("a")


def test_stages_with_another_key_are_done_again(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    compress(out, ran=ran)
    compress(out, "b", ran=ran)
    assert ran == ["plan", "export"] * 2
    assert contents(out) == whole("b")


def test_a_stage_whose_result_was_deleted_is_done_again(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    compress(out, ran=ran)
    (out / "plan.json").unlink()
    compress(out, ran=ran)
    assert ran == ["plan", "export", "plan"]
    assert contents(out) == whole("a")


def test_an_exception_leaves_no_mark_and_the_next_run_goes_on_there(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    with pytest.raises(RuntimeError, match="no power"):
        compress(out, ran=ran, fail="no power")
    assert not out.exists()
    compress(out, ran=ran)
    assert ran == ["plan", "export", "export"]
    assert contents(out) == whole("a")


def test_a_failing_run_leaves_the_old_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(out)
    with pytest.raises(RuntimeError):
        compress(out, "b", fail="no power")
    assert contents(out) == whole("a")
    compress(out, "b")
    assert contents(out) == whole("b")


def test_marks_of_another_version_count_for_nothing(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    compress(out, ran=ran)
    (out / BUILD_FILE).write_text('{"schema": 1, "surprise": true}')
    compress(out, ran=ran)
    assert ran == ["plan", "export"] * 2


_STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "open")


def killed_at(step: int, out: Path, key: str) -> bool:
    """Run the command in a child that dies just before its nth change to the disk; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = step

        def die(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            writing = event != "open" or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))
            if event in _STEPS and writing:
                left -= 1
                if left == 0:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            compress(out, key)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "the command itself works"
    return code == 9


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "again"])
def test_a_kill_at_any_step_leaves_the_old_output_or_none(tmp_path: Path, earlier: bool) -> None:
    gaps = 0
    for step in range(1, 100):
        out = tmp_path / str(step) / "out"
        out.parent.mkdir()
        if earlier:
            compress(out, "old")
        died = killed_at(step, out, "new")
        if out.exists():
            assert contents(out) in (whole("old"), whole("new"))
            assert earlier or contents(out) == whole("new")
        else:
            gaps += earlier
        compress(out, "new")
        assert contents(out) == whole("new")
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if not died:
            break
    assert 10 < step < 99
    assert gaps <= 1, "only between the two renames there is none"


def test_killed_between_the_renames_the_old_output_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress(out, "old")
    out.replace(tmp_path / "out.old")
    Workspace(out)
    assert contents(out) == whole("old")


@pytest.mark.parametrize("name", ["out", "out.partial", "out.old"])
def test_what_someone_else_put_there_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="not written by edgegen") as caught:
        Workspace(tmp_path / "out")
    assert name in str(caught.value) and "--out" in caught.value.hint
    assert (tmp_path / name / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("name", ["out", "out.partial", "out.old"])
def test_a_file_in_the_place_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("years")
    with pytest.raises(ConfigError, match="is a file"):
        Workspace(tmp_path / "out")
    assert (tmp_path / name).read_text() == "years"


def test_a_file_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file") as caught:
        Workspace(tmp_path / "file" / "out")
    assert caught.value.hint


def test_the_root_is_no_place() -> None:
    with pytest.raises(ConfigError, match="/"):
        Workspace(Path("/"))


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    compress(tmp_path / "out")
    assert contents(tmp_path / "out") == whole("a")


def test_relative_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    compress(Path("../out"))
    assert contents(tmp_path / "out") == whole("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "out"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big-disk" / "out")
    compress(tmp_path / "out")
    compress(tmp_path / "out", "b")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "big-disk" / "out") == whole("b")


def test_a_parent_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        with pytest.raises(ConfigError, match="not writable") as caught:
            Workspace(tmp_path / "out")
    assert "--out" in caught.value.hint
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ConfigError, match="not writable"):
        Workspace(tmp_path / "out")


def test_a_full_disk_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    compress(out, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DeviceError, match="no space"):
            compress(out, "new")
    assert contents(out) == whole("old")
    compress(out, "new")
    assert contents(out) == whole("new")


def test_a_second_command_is_refused_while_one_works(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Workspace(out).locked():
        second = Workspace(out)
        with pytest.raises(ConfigError, match="another edgegen command") as caught, second.locked():
            raise AssertionError("both would write")
        assert caught.value.hint
    with second.locked():
        pass


def test_a_second_command_sees_what_the_first_finished_meanwhile(tmp_path: Path) -> None:
    out, ran = tmp_path / "out", []  # type: ignore[var-annotated]
    second = Workspace(out)
    compress(out, ran=ran)
    with pytest.raises(ConfigError, match="another edgegen command"), second.locked():
        raise AssertionError("its folder is gone")
    assert contents(out) == whole("a")


def test_a_lock_that_was_taken_along_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    second = Workspace(out)
    real = fcntl.flock

    def slow(stream: object, how: int) -> None:
        """The first command finishes between our opening of the file and our locking of it."""
        monkeypatch.setattr(fcntl, "flock", real)
        compress(out)
        Workspace(out)
        real(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(ConfigError, match="another edgegen command"), second.locked():
        raise AssertionError("the folder is someone else's")


def test_each_stage_is_timed_once_with_the_processes_that_it_started(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
        (folder / "made").write_text("")

    marks = []
    for _ in range(2):
        workspace = Workspace(tmp_path / "out")
        with workspace.locked():
            workspace.stage("make", "inputs", ("made",), functools.partial(work, workspace.folder))
            workspace.finish(DONE)
        marks.append(load_json(tmp_path / "out" / BUILD_FILE, Build).stages)
    assert marks[0] == marks[1], "what was reused keeps its time"
    assert marks[0][0].seconds >= 0.2 and marks[0][0].cpu_seconds >= 0.25
