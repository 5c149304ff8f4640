"""`edgegen bench`: fresh processes, side by side, here and over SSH."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError, NetworkError
from edgegen.receipt.bench import bench_lines, write_drawing
from edgegen.records.artifact import Artifact
from edgegen.records.bench import Bench
from edgegen.sdk.bench import bench
from edgegen.sdk.remote import Host, parse_host
from edgegen.verify.bench import BenchRequest, Case, run_bench
from edgegen.verify.trial import fitting
from tests.cli.test_run import bake
from tests.flows.command import Done, run_cli
from tests.tiny_models import export_tiny, make_tiny

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--repeats", "2", "--prompt", "8,24", "--decode", "5")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    export_tiny(make_tiny("llama", folder / "hf", tied=True), folder)
    return folder / "artifact"


@pytest.fixture
def both(artifact: Path, tmp_path: Path) -> Path:
    """A bake-off of two targets, of which the second one's file is damaged."""
    folder = bake(tmp_path / "both", artifact, "gguf", "gguf", "litert")
    other = folder / "litert" / "artifact"
    record = load_json(other / "artifact.json", Artifact)
    save_json(other / "artifact.json", msgspec.structs.replace(record, target="gguf"))
    (other / "model.gguf").write_bytes(b"noise")
    return folder


def test_the_record_holds_what_was_measured(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    done = run_cli("bench", copy, *QUICK, "--threads", "1,2", "--json", "--quiet")
    assert done.code == 0 and not done.err
    found = msgspec.json.decode(done.out, type=Bench)
    assert found == load_json(copy / "bench.json", Bench)
    assert (copy / "bench.svg").read_text().startswith("<?xml")
    assert [row.threads for row in found.rows] == [1, 2]
    for row in found.rows:
        assert (row.name, row.target, row.runtime, row.repeats, row.error) == ("gguf", "gguf", "llama.cpp", 2, "")
        assert row.bytes == (copy / "model.gguf").stat().st_size
        assert [prompt.tokens for prompt in row.prompts] == [8, 24] and row.decode_tokens == 5
        spreads = [row.load_ms, row.start_ms, row.decode_tokens_per_s, row.peak_rss_bytes]
        spreads += [spread for prompt in row.prompts for spread in (prompt.ttft_ms, prompt.tokens_per_s)]
        for spread in spreads:
            assert spread is not None and 0 < spread.low <= spread.median <= spread.high
        assert row.load_ms and row.start_ms and row.start_ms.median > row.load_ms.median
        assert row.peak_rss_bytes and 20e6 < row.peak_rss_bytes.median < 500e6
    assert found.machine.cores and found.version and found.command.startswith("edgegen bench ")
    assert found.where == "" and not found.notes


def test_a_table_and_nothing_else_on_stdout(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = run_cli("bench", artifact, *QUICK, "--threads", "1", "--out", out)
    assert done.code == 0 and "Measuring speed" in done.err
    heads, row = done.out.splitlines()[2:]
    assert "first token (24)" in heads and "ratio" not in heads and row.startswith("gguf ")
    assert out.exists() and out.with_suffix(".svg").exists() and not (artifact / "bench.json").exists()


def test_a_broken_artifact_is_a_line_and_the_others_are_measured(both: Path) -> None:
    done = run_cli("bench", both, *QUICK, "--threads", "1")
    assert done.code == 7
    good, bad = load_json(both / "bench.json", Bench).rows
    assert good.decode_tokens_per_s is not None and "refuses this file" in bad.error
    assert "✗ litert, 1 thread: " in done.out and "ratio" not in done.out


def test_targets_and_builds_side_by_side(both: Path, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    found = bench([both], targets=["gguf"], threads=[1], repeats=1, prompt_tokens=[4], decode_tokens=2, out=out)
    assert [row.name for row in found.rows] == ["gguf"]
    found = bench([artifact, artifact], threads=[1], repeats=1, prompt_tokens=[4], decode_tokens=2, out=out)
    assert [row.name for row in found.rows] == ["1:artifact/gguf", "2:artifact/gguf"]
    lines = bench_lines(found)
    assert lines[2].endswith("ratio") and lines[3].endswith("1.00×")


def test_what_the_context_cannot_hold_is_cut_and_said(artifact: Path) -> None:
    request = BenchRequest(
        cases=(Case(name="tiny", artifact=str(artifact), runtime=""),),
        threads=(64,),
        prompt_tokens=(64, 512),
        decode_tokens=128,
        repeats=1,
        command="",
    )
    steps: list[tuple[int, int]] = []
    found = run_bench(request, lambda *step: steps.append(step))
    assert [prompt.tokens for prompt in found.rows[0].prompts] == [64, 128] and found.rows[0].decode_tokens == 64
    assert "128 tokens" in found.notes[0] and "64 threads share" in found.notes[1]
    assert steps == [(1, 1)]


@pytest.mark.parametrize(
    ("prompts", "decode", "context", "expected"),
    [
        ((64, 512), 128, 2048, ((64, 512), 128)),
        ((64, 512), 128, 512, ((64, 512), 128)),
        ((64, 512), 128, 128, ((64, 128), 64)),
        ((64, 512), 128, 100, ((50, 100), 50)),
        ((64,), 128, 192, ((64,), 128)),
        ((64, 80, 512), 4, 70, ((64, 70), 4)),
        ((1,), 1, 1, ((1,), 0)),
        ((8, 9), 2, 3, ((2, 3), 1)),
    ],
)
def test_lengths_that_fit(
    prompts: tuple[int, ...], decode: int, context: int, expected: tuple[tuple[int, ...], int]
) -> None:
    assert fitting(prompts, decode, context) == expected


def test_default_threads_are_the_artifacts_own_and_one(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    record = load_json(copy / "artifact.json", Artifact)
    settings = msgspec.structs.replace(record.settings, threads=999)
    save_json(copy / "artifact.json", msgspec.structs.replace(record, settings=settings))
    found = bench([copy], repeats=1, prompt_tokens=[4], decode_tokens=2)
    assert [row.threads for row in found.rows] == sorted({1, len(os.sched_getaffinity(0))})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "--threads"),
        (["--threads", "one"], "--threads"),
        (["--prompt", ""], "1 or more"),
        (["--repeats", "0"], "1 or more"),
        (["--target", "onnx"], "onnx"),
        (["--runtime", "onnxruntime"], "llama.cpp"),
        (["--on", "host"], "ssh://"),
        (["--on", "ssh://-oProxyCommand=x/y"], "ssh://"),
        (["--out", "/no/such/folder/b.json"], "cannot be written"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_said_in_a_line(options: list[str], said: str, artifact: Path) -> None:
    done = run_cli("bench", artifact, *options, "--quiet")
    assert done.code == 2 and not done.out
    assert said in done.err and len(done.err.splitlines()) <= 2


def test_a_drawing_is_the_same_for_the_same_record(artifact: Path, tmp_path: Path) -> None:
    found = bench([artifact], threads=[1], repeats=1, prompt_tokens=[4], decode_tokens=2, out=tmp_path / "b.json")
    write_drawing(tmp_path / "again.svg", found)
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    failed = msgspec.structs.replace(found, rows=(msgspec.structs.replace(found.rows[0], error="no"),))
    write_drawing(tmp_path / "none.svg", failed)
    assert not (tmp_path / "none.svg").exists()


# Over SSH


def test_addresses() -> None:
    assert parse_host("ssh://pi@board.local:2222/srv/bench") == Host("pi@board.local", 2222, "/srv/bench")
    assert parse_host("ssh://board") == Host("board", None, ".cache/edgegen-bench") == parse_host("ssh://board/~/")
    assert parse_host("ssh://board/~/b").path == "b"
    assert parse_host("ssh://me@[fe80::1]:22/b").name == "me@fe80::1"
    for wrong in ("http://board/b", "ssh://", "ssh://a b/c", "ssh://-x/c", "ssh://a@-x/c", "ssh://b:x/c", "board:/b"):
        with pytest.raises(ConfigError):
            parse_host(wrong)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A real SSH server on this machine: its address, how to start ssh for it, its log."""
    sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if not sshd or not shutil.which("ssh-keygen"):
        pytest.skip("no sshd on this machine")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile {folder}/pid\n"
    )
    log = folder / "log"
    process = subprocess.Popen([sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)])
    ssh = f"ssh -F none -i {folder}/user -o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new"
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        for _ in range(50):
            with contextlib.closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        tried = subprocess.run(
            [*ssh.split(), "-o", "BatchMode=yes", "-p", str(port), f"{user}@127.0.0.1", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            pytest.skip(f"this machine's sshd lets nobody in: {tried.stderr.strip()}")
        yield f"ssh://{user}@127.0.0.1:{port}", ssh, log
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other machine's interpreter: this one with this edgegen."""
    path = tmp_path_factory.mktemp("there") / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def _there(server: tuple[str, str, Path], folder: Path, artifact: Path, *more: object) -> Done:
    address, ssh, _ = server
    return run_cli("bench", artifact, *QUICK, "--threads", "1", "--on", f"{address}{folder}", "--ssh", ssh, *more)


def test_another_machine_measures(server: tuple[str, str, Path], python: Path, artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    done = _there(server, tmp_path / "there", copy, "--python", python, "--json")
    assert done.code == 0, done.err
    found = msgspec.json.decode(done.out, type=Bench)
    assert found.where.endswith("@127.0.0.1") and found.machine.cores
    assert found.rows[0].name == "gguf" and found.rows[0].decode_tokens_per_s is not None
    assert load_json(copy / "bench-127.0.0.1.json", Bench) == found and not (copy / "bench.json").exists()
    sent = [path for path in (tmp_path / "there").iterdir() if path.is_dir()]
    assert len(sent) == 1
    assert {p.name for p in sent[0].iterdir()} == {p.name for p in artifact.iterdir()}
    # The second time nothing is sent: what lies there is used.
    marker = sent[0] / "model.gguf"
    before = marker.stat().st_mtime_ns
    os.utime(marker, ns=(before + 10**9, before + 10**9))
    assert _there(server, tmp_path / "there", copy, "--python", python).code == 0
    assert marker.stat().st_mtime_ns == before + 10**9


@pytest.mark.slow
def test_a_cut_off_sending_is_sent_again(
    server: tuple[str, str, Path], python: Path, artifact: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    assert _there(server, tmp_path / "there", copy, "--python", python).code == 0
    sent = next(path for path in (tmp_path / "there").iterdir() if path.is_dir())
    (sent / "artifact.json").unlink()
    (sent / "model.gguf").write_bytes(b"half")
    done = _there(server, tmp_path / "there", copy, "--python", python, "--json", "--quiet")
    assert done.code == 0 and not json.loads(done.out)["rows"][0]["error"]


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("/no/such/python", 3, "--python"),
        ("import", 3, "edgegen is not installed"),
        ("crash", 7, "out of luck"),
        ("mute", 7, "without a result"),
    ],
)
def test_what_is_wrong_there_is_said(
    server: tuple[str, str, Path], artifact: Path, tmp_path: Path, program: str, code: int, said: str
) -> None:
    scripts = {
        "import": f'cd / && exec "{sys.executable}" -S -E "$@"',
        "crash": "echo out of luck >&2; exit 1",
        "mute": "exit 0",
    }
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{scripts.get(program, '')}\n")
    path.chmod(0o755)
    chosen = path if program in scripts else program
    done = _there(server, tmp_path / "there", artifact, "--python", chosen, "--out", tmp_path / "r.json", "--quiet")
    assert done.code == code and said in done.err and len(done.err.splitlines()) <= 2
    assert not (tmp_path / "r.json").exists()


def test_an_unreachable_machine_is_a_network_error(artifact: Path, tmp_path: Path) -> None:
    if not shutil.which("ssh"):
        pytest.skip("no ssh on this machine")
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1") as caught:
        bench([artifact], on=f"ssh://127.0.0.1:{_free_port()}/x", ssh="ssh -F none", out=tmp_path / "r.json")
    assert caught.value.retryable


def test_measuring_needs_neither_torch_nor_typer() -> None:
    code = "import edgegen.verify.bench, edgegen.verify.trial, edgegen.sdk.bench, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "typer", "matplotlib", "onnx", "scipy", "rich"}
