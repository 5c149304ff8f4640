"""Fine-tuning: what is written is what was learnt, in each method, from Python and the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgegen
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.training import TRAINING_FILE, Training
from edgegen.tune.adapters import Adapter
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts

_RUN: dict[str, Any] = {"steps": 8, "batch": 4, "max_tokens": 64, "rate": 5e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("finetune") / "base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finetune") / "rows.jsonl"
    texts = sample_texts(40, words=10)
    path.write_text("".join(json.dumps({"prompt": t, "completion": "the lamp is on"}) + "\n" for t in texts))
    return path


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    ids = tokenizer("turn on the lamp in the kitchen", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_merged_and_adapter_agree(method: str, base: Path, rows: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    training = edgegen.finetune(str(base), data=str(rows), out=tmp_path / "t", method=method, **_RUN)
    assert training.heldout_after < training.heldout_before
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "t", dtype=torch.float32)
    beside = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "t" / "adapter"
    )
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    difference = (logits(merged, tokenizer) - logits(beside, tokenizer)).abs().max()
    assert difference < 1e-3 < (logits(merged, tokenizer) - logits(original, tokenizer)).abs().max()
    assert 0 < training.trained_parameters < training.parameters
    assert load_json(tmp_path / "t" / TRAINING_FILE, Training) == training
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_all_weights_of_other_families(family: str, rows: Path, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "base")
    training = edgegen.finetune(str(folder), data=str(rows), out=tmp_path / "t", method="full", **_RUN)
    assert training.trained_parameters == training.parameters
    assert training.heldout_after < training.heldout_before
    again = edgegen.finetune(str(tmp_path / "t"), data=str(rows), out=tmp_path / "u", method="lora", **_RUN)
    assert again.heldout_before == pytest.approx(training.heldout_after, abs=1e-3)


def test_packing_learns_too_and_soft_prompts_say_where_they_cannot_go(base: Path, rows: Path, tmp_path: Path) -> None:
    run = {**_RUN, "batch": 2}
    assert edgegen.finetune(str(base), data=str(rows), out=tmp_path / "t", packed=True, **run).heldout_after > 0
    soft = edgegen.finetune(
        str(base), data=str(rows), out=tmp_path / "s", method="prompt-tuning", adapter=Adapter(virtual_tokens=4), **_RUN
    )
    assert soft.trained_parameters == 4 * 64
    assert "no runtime here" in soft.notes[0]
    assert (tmp_path / "s" / "adapter" / "adapter_model.safetensors").is_file()


def test_what_cannot_be_is_one_line(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lorra' is unknown"):
        edgegen.finetune(str(base), data=str(rows), method="lorra", out=tmp_path / "t")
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="CUDA"):
            edgegen.finetune(str(base), data=str(rows), method="qlora", out=tmp_path / "t")
    with pytest.raises(ConfigError, match="a batch takes 99"):
        edgegen.finetune(str(base), data=str(rows), out=tmp_path / "t", **{**_RUN, "batch": 99})
    with pytest.raises(ConfigError, match="--batch must be at least 1"):
        edgegen.finetune(str(base), data=str(rows), out=tmp_path / "t", **{**_RUN, "batch": 0})
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no trained model"):
        edgegen.finetune(str(base), data=str(rows), out=full, **_RUN)
    assert (full / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "option",
    [
        ("--rank", "0"),
        ("--rank", "100000"),
        ("--alpha", "0"),
        ("--alpha", "nan"),
        ("--dropout", "1"),
        ("--dropout", "-0.1"),
        ("--method", "prompt-tuning", "--virtual-tokens", "0"),
        ("--method", "prompt-tuning", "--virtual-tokens", "100000"),
        ("--micro-batch", "-1"),
        ("--patience", "-1"),
        ("--seed", "-1"),
        ("--seed", "99999999999999999999"),
        ("--steps", "0"),
        ("--max-minutes", "-1"),
        ("--max-minutes", "nan"),
        ("--rate", "inf"),
        ("--epochs", "inf"),
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_is_one_line(option: tuple[str, ...], base: Path, rows: Path, tmp_path: Path) -> None:
    done = run_cli("finetune", base, "--data", rows, "--out", tmp_path / "t", *option)
    assert done.code == 2 and not done.out, done
    assert done.err.startswith(f"edgegen: {option[-2]}") and len(done.err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_the_command_shows_what_was_learnt(base: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ["--data", rows, "--out", tmp_path / "t", "--steps", 6, "--batch", 4, "--max-tokens", 64]
    done = run_cli("finetune", base, *arguments, "--rate", "5e-3")
    assert done.code == 0 and "held-out loss" in done.out and "edgegen compress" in done.out
    assert "Fine-tuning: 6 of 6" in done.err
    again = run_cli("finetune", base, *arguments, "--rate", "5e-3")
    assert again.out == done.out and "6 of 6" not in again.err  # it is done already
    wrong = run_cli("finetune", base, *arguments[:-2], "--method", "x")
    assert wrong.code == 2 and wrong.err.count("\n") <= 2


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_it_never_was(base: Path, rows: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgegen", "finetune", str(base), "--data", str(rows), "--steps", "60"]
    command += [
        "--batch",
        "4",
        "--max-tokens",
        "64",
        "--rate",
        "3e-3",
        "--patience",
        "0",
        "--quiet",
        "--dropout",
        "0.1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}

    def run(out: Path, *, kill_after_step: int = 0) -> None:
        process = subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL)
        state = out.with_name(out.name + ".training") / "checkpoint" / "state.json"
        end = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < end:
            # There is none before the first checkpoint, and while one takes another's place.
            with contextlib.suppress(FileNotFoundError):
                step = json.loads(state.read_bytes() or b"{}").get("step", 0)
                if kill_after_step and step >= kill_after_step:
                    process.send_signal(signal.SIGKILL)
                    assert process.wait() == -9
                    return
            time.sleep(0.01)
        assert process.wait(1) == 0

    run(tmp_path / "straight")
    run(tmp_path / "cut", kill_after_step=6)
    run(tmp_path / "cut", kill_after_step=30)
    run(tmp_path / "cut")
    straight, cut = (load_json(tmp_path / name / TRAINING_FILE, Training) for name in ("straight", "cut"))
    assert cut.resumed == 2 and straight.resumed == 0
    assert cut.losses == straight.losses
    name = "model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not (tmp_path / "cut.training").exists()
