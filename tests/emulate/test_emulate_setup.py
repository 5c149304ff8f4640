"""What setting up asks of the machine and says first; nothing is fetched here."""

import subprocess
from pathlib import Path

import pytest

from edgegen.common.codec import save_json
from edgegen.emulate import archive, llama, place, setup, wheels
from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
from edgegen.records.emulation import Emulation
from tests.flows.command import run_cli


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("EDGEGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "emulate"


def set_up(folder: Path, packages: dict[str, str]) -> Emulation:
    record = Emulation(
        schema=1,
        emulator="10.0",
        system="Debian trixie",
        python="3.13",
        processors=("cortex-a53", "cortex-a72", "cortex-a76"),
        packages=packages,
        bytes=1,
    )
    save_json(folder / "setup.json", record)
    return record


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sources.list",
            "# deb http://no/debian x main\ndeb http://a.example/debian/ bookworm main\n",
            "a.example/debian",
        ),
        (
            "sources.list.d/x.list",
            "deb [arch=amd64 signed-by=/k] https://b.example/debian sid main\n",
            "b.example/debian",
        ),
        (
            "sources.list.d/x.sources",
            "Types: deb\n# URIs: http://no/debian\nURIs: http://c.example/debian\n",
            "c.example",
        ),
        ("sources.list.d/x.sources", "URIs:\n http://d.example/ubuntu\n http://e.example/debian\n", "e.example/debian"),
        ("sources.list", "deb http://f.example/ubuntu noble main\n", "deb.debian.org"),
        ("sources.list.d/x.list.save", "deb http://g.example/debian sid main\n", "deb.debian.org"),
    ],
)
def test_the_machines_own_mirror_of_debian_is_taken(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert expected in archive.mirror(tmp_path)


def test_without_any_sources_debians_public_name(tmp_path: Path) -> None:
    assert archive.mirror(tmp_path) == "http://deb.debian.org/debian"


def test_no_keyring_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        archive.keyring(tmp_path)
    assert "debian-archive-keyring" in caught.value.hint


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="apt-get and dpkg-deb"):
        archive.Archive(tmp_path / "a", "arm64")
    with pytest.raises(UnsupportedError) as caught:
        llama.packages()
    assert "g++-aarch64-linux-gnu" in caught.value.hint


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.platform, "system", lambda: "Darwin")
    with pytest.raises(UnsupportedError, match="needs Linux"):
        setup.intent()


def program(folder: Path, name: str, script: str) -> None:
    """A small program of this name, first on the path."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("E: Failed to fetch http://x/InRelease  Could not resolve 'x'", NetworkError),
        ("W: Something\nE: The repository is not signed", DeviceError),
    ],
)
def test_apts_failures_are_told_apart(
    said: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tmp_path, "apt-get", f"cat >&2 <<'END'\n{said}\nEND\nexit 100")
    program(tmp_path, "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(archive, "keyring", lambda: Path("/keys"))
    with pytest.raises(kind) as caught:
        archive.Archive(tmp_path / "a", "arm64").update()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching distribution",
            NetworkError,
            "does not answer",
        ),
        ("ERROR: No matching distribution found for x==1", UnsupportedError, "No matching distribution"),
        ("/usr/bin/python: No module named pip", UnsupportedError, "needs pip"),
    ],
)
def test_pips_failures_are_told_apart(
    said: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(kind, match=words):
        wheels.fetch_package("x", "1", tmp_path / "d", tmp_path)
    assert not (tmp_path / "packages").exists()


def test_the_intent_names_parts_and_sizes(cache: Path) -> None:
    wanted = setup.intent()
    names = [part.name for part in wanted.missing]
    assert names[:3] == ["emulator", "system", "numpy"]
    assert 1e8 < wanted.download_bytes < 3e8 < wanted.disk_bytes + 1e8
    assert not cache.exists()


def test_what_is_there_is_not_fetched_again(cache: Path) -> None:
    (cache / "root").mkdir(parents=True)
    (cache / place.EMULATOR).touch()
    wanted = setup.intent()
    for name, version in wanted.packages.items():
        place.package_folder(cache, name, version).mkdir(parents=True)
    assert setup.intent().missing == ()
    name, version = next(iter(wanted.packages.items()))
    place.package_folder(cache, name, version).rename(place.package_folder(cache, name, version + ".old"))
    assert [part.name for part in setup.intent().missing] == [name]


def test_llama_cpp_is_kept_once_built(cache: Path) -> None:
    set_up(cache, {llama.NAME: "0.1", "diskcache": "1"})
    assert setup.intent().packages[llama.NAME] == "0.1"


def test_one_set_up_at_a_time(cache: Path) -> None:
    cache.mkdir(parents=True)
    with setup._locked(cache), pytest.raises(ConfigError, match="another edgegen"), setup._locked(cache):
        pass


def test_nobody_to_agree_is_a_clear_line(cache: Path) -> None:
    done = run_cli("emulate", "setup")
    assert done.code == 2
    assert "MB to fetch" in done.err and "the emulator" in done.err and "--yes" in done.err


def test_the_command_says_what_is_set_up(cache: Path) -> None:
    assert "not set up" in run_cli("emulate").out
    assert run_cli("emulate", "--json").out.strip() == "null"
    set_up(cache, {"numpy": "2.0"})
    assert "numpy 2.0" in run_cli("emulate").out


def test_a_program_is_taken_out_of_a_package(tmp_path: Path) -> None:
    if archive.shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not on the path")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "usr" / "bin" / "tool").write_text("content")
    control = "Package: tool\nVersion: 1:2.3\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    package = tmp_path / "tool.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, capture_output=True)
    assert archive.version_of(package) == "1:2.3"
    archive.unpack_program(package, "usr/bin/tool", tmp_path / "tool")
    assert (tmp_path / "tool").read_text() == "content" and (tmp_path / "tool").stat().st_mode & 0o100
    with pytest.raises(DeviceError, match="holds no"):
        archive.unpack_program(package, "usr/bin/other", tmp_path / "other")
    (tmp_path / "noise.deb").write_bytes(b"noise" * 100)
    with pytest.raises(DeviceError):
        archive.version_of(tmp_path / "noise.deb")
