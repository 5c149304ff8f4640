"""The loop: it learns, stops, resumes to the same weights, and keeps what was good."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.training.batches import Item, Order, encode
from edgegen.training.loop import fit, heldout_loss, rate_at
from edgegen.training.losses import cross_entropy
from edgegen.training.options import Options
from tests.tiny_models import make_tiny, sample_texts

_OPTIONS = Options(steps=12, batch=4, rate=3e-3, max_tokens=64, evaluate_every=4, save_every=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("training") / "model")


@pytest.fixture(scope="module")
def data(folder: Path) -> tuple[list[Item], list[Item]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [Example(text=text) for text in sample_texts(40, words=12)]
    return encode(tokenizer, texts[:32], max_tokens=64), encode(tokenizer, texts[32:], max_tokens=64)


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns_and_ends_with_the_best_weights(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    model, words = opened(folder), []
    told = lambda done, steps, text: words.append((done, steps, text))  # noqa: E731
    fitted = fit(model, items, heldout, _OPTIONS, tmp_path, identity="a", progress=told)
    assert fitted.heldout_after < fitted.heldout_before - 0.05
    assert heldout_loss(model, heldout) == pytest.approx(fitted.heldout_after, rel=1e-6)
    assert [entry.step for entry in fitted.losses] == [0, 4, 8, 12]
    assert fitted.tokens == sum(batch.tokens for step in range(12) for batch in _batch(items, step))
    assert fitted.tokens_per_s > 0
    assert words[-1][:2] == (12, 12) and "held out" in words[-1][2]


def test_micro_batches_change_no_sum(folder: Path, data: Any, tmp_path: Path) -> None:
    items, _ = data
    found = []
    for number, change in enumerate(({}, {"micro_batch": 1}, {"micro_batch": 3})):
        model = opened(folder)
        options = Options(**{**{f: getattr(_OPTIONS, f) for f in _OPTIONS.__struct_fields__}, **change})
        fit(model, items, [], options, tmp_path / str(number), identity="a")
        found.append(weights(model))
    assert torch.allclose(found[0], found[1], atol=2e-5) and torch.allclose(found[0], found[2], atol=2e-5)


def _batch(items: list[Item], step: int) -> list[Item]:
    batch, _ = Order(items, rows=_OPTIONS.batch, seed=_OPTIONS.seed).at(step)
    return [item for row in batch.items for item in row]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("judged", [True, False], ids=["judged", "nothing held out"])
@pytest.mark.parametrize("at", [1, 5, 11])
def test_killed_and_taken_up_is_as_never_killed(at: int, judged: bool, folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    heldout = heldout if judged else []
    whole = opened(folder)
    straight = fit(whole, items, heldout, _OPTIONS, tmp_path / "straight", identity="a")

    def kill(done: int, steps: int, words: str) -> None:
        if done == at:
            raise _KilledError

    with pytest.raises(_KilledError):
        fit(opened(folder), items, heldout, _OPTIONS, tmp_path / "cut", identity="a", progress=kill)
    again = opened(folder)
    resumed = fit(again, items, heldout, _OPTIONS, tmp_path / "cut", identity="a")
    assert resumed.resumed == (1 if at >= 3 else 0)
    assert torch.equal(weights(whole), weights(again))
    assert resumed.losses == straight.losses
    assert resumed.tokens == straight.tokens


def test_another_runs_checkpoint_is_not_taken_up(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    fit(opened(folder), items, heldout, _OPTIONS, tmp_path, identity="a")
    assert fit(opened(folder), items, heldout, _OPTIONS, tmp_path, identity="b").resumed == 0


def test_it_stops_early_and_keeps_the_best(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    options = Options(steps=60, batch=4, rate=0.05, max_tokens=64, evaluate_every=2, patience=2, warmup=0.01)
    model = opened(folder)
    fitted = fit(model, items, heldout, options, tmp_path, identity="a")
    assert fitted.stopped == "early stop" and fitted.steps < 60
    assert fitted.best_step < fitted.steps
    assert heldout_loss(model, heldout) == pytest.approx(min(e.heldout for e in fitted.losses), rel=1e-6)


def test_it_stops_where_it_has_become_much_worse(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    options = Options(steps=60, batch=4, rate=5.0, max_tokens=64, evaluate_every=2, worst=1.25, warmup=0.01)
    model = opened(folder)
    fitted = fit(model, items, heldout, options, tmp_path, identity="a")
    assert fitted.stopped == "worse" and fitted.steps == 2 and fitted.best_step == 0
    assert heldout_loss(model, heldout) == pytest.approx(fitted.heldout_before, rel=1e-6)


def test_a_loss_that_is_no_number_stops_and_names_the_step(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    calls = []

    def poisoned(model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return cross_entropy(model, batch) * (math.nan if len(calls) == 8 else 1.0)

    with pytest.raises(ConfigError, match="loss of step 8 is nan") as caught:
        fit(opened(folder), items, heldout, _OPTIONS, tmp_path, identity="a", loss=poisoned)
    assert "step 6 are kept" in caught.value.hint
    after = opened(folder)
    assert fit(after, items, heldout, _OPTIONS, tmp_path, identity="a").resumed == 1
    assert torch.isfinite(weights(after)).all()


def test_time_runs_out(folder: Path, data: Any, tmp_path: Path) -> None:
    items, heldout = data
    options = Options(steps=10_000, batch=4, max_tokens=64, max_seconds=0.5, evaluate_every=5000)
    fitted = fit(opened(folder), items, heldout, options, tmp_path, identity="a")
    assert fitted.stopped == "time" and 0 < fitted.steps < 10_000


def test_the_rate_rises_and_falls() -> None:
    options = Options(steps=100, rate=1.0, warmup=0.1, least_rate=0.05)
    rates = [rate_at(step, options) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates)
    assert rates[9:] == sorted(rates[9:], reverse=True) and 0.05 <= rates[-1] < 0.06


_TWO = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from edgegen.records.data import Example
from edgegen.training.batches import encode
from edgegen.training.loop import fit, make_accelerator
from edgegen.training.options import Options
from tests.tiny_models import sample_texts
folder, out, kill = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
options = Options(steps=12, batch=4, rate=3e-3, max_tokens=64, evaluate_every=4, save_every=3)
accelerator = make_accelerator(options, cpu=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = [Example(text=text) for text in sample_texts(40, words=12)]
items, heldout = (encode(tokenizer, part, max_tokens=64) for part in (texts[:32], texts[32:]))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
def progress(done, steps, words):
    if kill and done == kill:
        sys.stdout.flush()
        import os; os._exit(9)
fitted = fit(model, items, heldout, options, out, identity="a", accelerator=accelerator, progress=progress)
if accelerator.is_main_process:
    total = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    print(json.dumps({"processes": fitted.processes, "losses": [[e.step, e.train, e.heldout] for e in fitted.losses],
        "weights": total, "resumed": fitted.resumed, "tokens": fitted.tokens}))
"""


def _launch(processes: int, folder: Path, out: Path, kill: int = 0) -> dict[str, Any] | None:
    root = Path(__file__).resolve().parents[2]
    script = out.parent / "two.py"
    script.write_text(_TWO)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # `--multi_gpu` starts processes as torchrun does, on CPUs too; `--cpu` wants MPI for more than one.
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    done = subprocess.run(
        [*command, str(script), str(folder), str(out), str(kill)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if kill:
        assert done.returncode != 0
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.mark.slow
def test_two_processes_are_as_one(folder: Path, tmp_path: Path) -> None:
    one = _launch(1, folder, tmp_path / "one")
    two = _launch(2, folder, tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["tokens"] == one["tokens"]
    for (step, train, heldout), (again, other, found) in zip(one["losses"], two["losses"], strict=True):
        assert step == again and other == pytest.approx(train, rel=1e-4) and found == pytest.approx(heldout, rel=1e-4)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
    _launch(2, folder, tmp_path / "cut", kill=8)
    resumed = _launch(2, folder, tmp_path / "cut")
    assert resumed["resumed"] == 1 and resumed["losses"] == two["losses"] and resumed["weights"] == two["weights"]
