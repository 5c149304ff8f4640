"""A pipeline's file, from raw rows to an artifact: killed on the way, changed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgegen.common.codec import load_json
from edgegen.records.chain import CHAIN_FILE, ChainState
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts

_CHAIN = """
schema = 1
name = "tiny"
model = "base"
out = "work"
[data]
source = [{ path = "rows.jsonl" }]
redact = { enabled = false }
[teacher]
steps = 12
batch = 4
max_tokens = 64
rate = 0.005
[student]
student = "layers=1"
steps = 12
batch = 4
max_tokens = 64
[compress]
profile = "raspberry-pi-5-8gb"
max_kl = 10.0
vocab = "keep"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_tiny("llama", tmp_path / "base")
    rows = [{"prompt": text, "completion": text[:24]} for text in sample_texts(80, words=10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pipeline.toml").write_text(_CHAIN)
    return tmp_path


def test_what_would_be_done_is_shown_and_nothing_written(place: Path) -> None:
    done = run_cli("run", place / "pipeline.toml", "--dry-run")
    assert done.code == 0
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["·", "data"],
        ["·", "teacher"],
        ["·", "student"],
        ["·", "build"],
    ]
    assert not (place / "work").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("schema = 1", "schema = 9"), "schema 9 is not supported"),
        (("[teacher]", "[teecher]"), "unknown key 'teecher'"),
        (("steps = 12", "stops = 12"), "unknown key 'teacher.stops'"),
        (('[data]\nsource = [{ path = "rows.jsonl" }]\nredact = { enabled = false }', ""), "need data"),
        (("rows.jsonl", "none.jsonl"), "no such data file"),
        (('"layers=1"', '"layers=7"'), "does not lie between 1 and the teacher's 2"),
        (('model = "base"', 'model = "nowhere"'), "no such folder"),
        (("rate = 0.005", "rank = 0"), "[teacher]: --rank must be at least 1"),
        (('"layers=1"', '"layers=1"\nloss = "x"'), "[student]: --loss 'x' is unknown"),
        (('"raspberry-pi-5-8gb"', '"raspberry-pi-5-8g"'), "[compress]: no profile is called"),
        (("max_kl = 10.0", "max_kl = -1.0"), "[compress]: budget max_kl"),
        (('vocab = "keep"', '[pack]\nkeys = "nowhere"'), "[pack]: "),
        (('vocab = "keep"', "[gates]\nmax_heldout_loss = 0.0"), "[gates]: max_heldout_loss"),
        (('vocab = "keep"', 'vocab = "keep"\ngates = "none.toml"'), "none.toml: no such file"),
    ],
)
def test_mistakes_are_one_line(change: tuple[str, str], words: str, place: Path) -> None:
    text = _CHAIN.replace(*change)
    if "student" in change[0] or "layers" in change[0]:
        text = text.replace("[teacher]\nsteps = 12\nbatch = 4\nmax_tokens = 64\nrate = 0.005\n", "")
    (place / "pipeline.toml").write_text(text)
    done = run_cli("run", place / "pipeline.toml", "--quiet")
    assert done.code == 2 and words in done.err and "Traceback" not in done.err, done.err


def test_the_last_step_is_looked_at_before_the_first_begins(place: Path) -> None:
    (place / "pipeline.toml").write_text(_CHAIN.replace("max_kl = 10.0", "max_kl = -1.0"))
    for more in ((), ("--dry-run",)):
        assert run_cli("run", place / "pipeline.toml", "--quiet", *more).code == 2
    assert not (place / "work").exists()


def test_a_gate_stops_the_chain(place: Path) -> None:
    (place / "pipeline.toml").write_text(_CHAIN + "[gates]\nmax_heldout_loss = 0.001\n")
    done = run_cli("run", place / "pipeline.toml", "--quiet")
    assert done.code == 5 and "teacher does not pass its gate" in done.err
    assert [step.name for step in load_json(place / "work" / CHAIN_FILE, ChainState).steps] == ["data", "teacher"]


@pytest.mark.slow
def test_killed_twice_it_ends_and_only_what_changed_is_made_again(place: Path) -> None:
    command = [sys.executable, "-m", "edgegen", "run", str(place / "pipeline.toml"), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    for sign in (place / "work" / "teacher.training", place / "work" / "build.partial" / "build.json"):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while not sign.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert sign.exists()
        process.kill()
        process.wait()
    done = run_cli("run", place / "pipeline.toml", "--quiet")
    assert done.code == 0, done.err
    first = load_json(place / "work" / CHAIN_FILE, ChainState)
    assert [step.name for step in first.steps] == ["data", "teacher", "student", "build"] and first.lineage
    assert (place / "work" / "build" / "artifact" / "artifact.json").is_file()
    again = run_cli("run", place / "pipeline.toml")
    assert again.code == 0 and again.err.count("(done before)") == 4
    assert load_json(place / "work" / CHAIN_FILE, ChainState) == first
    (place / "pipeline.toml").write_text(_CHAIN.replace('"layers=1"\nsteps = 12', '"layers=1"\nsteps = 13'))
    shown = run_cli("run", place / "pipeline.toml", "--dry-run").out
    assert [line[0] for line in shown.splitlines()] == ["✓", "✓", "·", "·"]
    assert run_cli("run", place / "pipeline.toml", "--quiet").code == 0
    second = load_json(place / "work" / CHAIN_FILE, ChainState)
    assert second.steps[:2] == first.steps[:2] and second.steps[2] != first.steps[2]
    assert second.lineage == first.lineage
