"""Few-shot distillation: reading, judging and keeping what a teacher writes, and the four steps together."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgegen
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, VerificationError
from edgegen.records.task import Filters, SyntheticReport, Task
from edgegen.records.training import TRAINING_FILE, Training
from edgegen.tune.asking import filled, opening, read_pair, refusal_of, require_task, shown
from edgegen.tune.propose import Proposal, answer_confidence, answer_logs, propose
from edgegen.tune.synthesize import synthesize
from tests.flows.command import run, run_cli
from tests.tiny_models import make_tiny

_TASK = Task(schema=1, name="t", format="Q: {prompt}\nA: {answer}")
_WORDS = ("lamp", "door", "window", "kitchen", "garden", "river", "house", "light")


def test_examples_are_shown_and_read_back() -> None:
    text = shown(_TASK, [("turn it on", "on"), ("turn it off", "off")])
    assert text == "Q: turn it on\nA: on\n\nQ: turn it off\nA: off\n\n"
    assert read_pair(_TASK, " open the door\nA: open\n\nQ: next") == ("open the door", "open")
    assert read_pair(_TASK, " open the door\nA:  \n\n") is None
    assert read_pair(_TASK, " no answer here") is None
    assert read_pair(_TASK, "two\n\nparts\nA: x") is None
    more = Task(schema=1, name="t", instruction="Write one more.", format="[{prompt}] -> [{answer}]")
    assert shown(more, [("a", "b")]) == "Write one more.\n\n[a] -> [b]\n\n"
    assert read_pair(more, "c] -> [d]\n\n[e") == ("c", "d")


def test_requests_are_written_to_answers() -> None:
    task = msgspec.structs.replace(_TASK, answers=("on", "off"), write="A: {answer}\nQ: {prompt}.", instruction="More.")
    assert filled(task, ("go {answer}", "on")) == "A: on\nQ: go {answer}."
    assert shown(task, [("turn it on", "on")]) == "More.\n\nA: on\nQ: turn it on.\n\n"
    assert opening(task, [("x", "on")], "off") == "More.\n\nA: on\nQ: x.\n\nA: off\nQ:"
    assert opening(_TASK, [("x", "on")]) == "Q: x\nA: on\n\nQ:"
    assert read_pair(task, " stop it.\n\nA: on", "off") == ("stop it", "off")
    assert read_pair(task, " stop it", "off") is None and read_pair(task, " .\n\n", "off") is None


def test_answers_are_weighed_by_the_requests_that_they_lead_to(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    task = msgspec.structs.replace(_TASK, answers=("on", "off now"), write="A: {answer}\nQ: {prompt}")
    found = answer_logs(model, tokenizer, task, [("the door", "on")], "the lamp")
    sums = []
    for answer in task.answers:
        start = f"A: on\nQ: the door\n\nA: {answer}\nQ:"
        head, whole = tokenizer(start)["input_ids"], tokenizer(start + " the lamp\n\n")["input_ids"]
        first = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
        logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
        sums.append(sum(float(logs[i - 1, whole[i]]) for i in range(first, len(whole))))
    wanted = torch.log_softmax(torch.tensor(sums, dtype=torch.float64), dim=0)
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)
    said = answer_logs(model, tokenizer, msgspec.structs.replace(task, write=""), [], "the lamp")
    assert said.shape == (2,) and float(np.exp(said).sum()) == pytest.approx(1)


def test_a_batch_depends_on_its_number_alone(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    loose = Filters(min_confidence=-99, min_agreement=0, asks=1)
    task = Task(schema=1, name="t", format="{prompt}e{answer}", tries=40, max_new_tokens=16, filters=loose)
    seeds = [("the door", "on"), ("the lamp", "off"), ("the house", "on")]
    batches = [propose(model, tokenizer, seeds, task, 3, number) for number in (2, 0, 1)]
    assert [len(batch) for batch in batches] == [8, 16, 16] and batches[1] != batches[2]
    assert any(not made.why for made in batches[1])
    assert propose(model, tokenizer, seeds, task, 3, 2) == batches[0]


def test_what_is_kept() -> None:
    task = Task(schema=1, name="t", answers=("a", "b"), synthetic=4, filters=Filters(max_share=1.0))
    said = [("one two three four", "a"), ("One two three four", "a"), ("five six", "a"), ("more of it", "a")]
    batch = [Proposal(*pair, "", -0.5, 1.0, (0,)) for pair in said] + [Proposal("", "", "cannot be read")]
    batch += [Proposal(f"other {word}", "b", "", -0.1, 1.0, (1,)) for word in ("x", "y", "z")]
    asked: list[int] = []

    def ask(batches: int) -> Generator[list[Proposal]]:
        for number in range(batches):
            asked.append(number)
            yield batch

    kept, report = synthesize(ask, [("a seed", "a")], task, teacher="t", told=lambda *said: None)
    assert [made.prompt for made in kept] == ["one two three four", "five six", "other x", "other y"]
    assert asked == [0] and report.asked == 7 and report.counts == {"a": 2, "b": 2}
    assert report.dropped == {"like a seed or another": 1, "answer is frequent enough": 1, "cannot be read": 1}


def test_validators_say_why() -> None:
    closed = Task(schema=1, name="t", answers=("on", "off"))
    assert refusal_of(closed, ("x", "on")) == "" and refusal_of(closed, ("x", "up")) == "no such answer"
    assert refusal_of(closed, None) == "cannot be read"
    matched = Task(schema=1, name="t", pattern="[0-9]+")
    assert refusal_of(matched, ("x", "12")) == "" and refusal_of(matched, ("x", "12b")) == "answer does not match"
    called = Task(schema=1, name="t", json=True, required=("name",))
    assert refusal_of(called, ("x", '{"name": "a"}')) == ""
    assert refusal_of(called, ("x", "{name")) == "answer is no JSON"
    assert refusal_of(called, ("x", "[1]")) == refusal_of(called, ("x", "{}")) == "answer lacks keys"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task(schema=1, name="t", format="{prompt}"), "once each"),
        (Task(schema=1, name="t", format="{answer} {prompt}"), "comes before"),
        (Task(schema=1, name="t", pattern="("), "pattern"),
        (Task(schema=1, name="t", shots=0), "shots must be at least 1"),
        (Task(schema=1, name="t", top_p=0.0), "out of range"),
        (Task(schema=1, name="t", write="{prompt} {answer}", answers=("a",)), "in write {answer} comes before"),
        (Task(schema=1, name="t", write="{answer}", answers=("a",)), "write needs {answer} and"),
        (Task(schema=1, name="t", write="{answer} {prompt}"), "needs a list of answers"),
        (Task(schema=1, name="t", write="{answer} {prompt}", answers=("a",), shots=0), "shots must be at least 1"),
    ],
)
def test_a_task_that_cannot_be_followed_is_refused(task: Task, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_task(task)


def test_confidence_is_the_answers_mean_log_probability(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    seeds, pair = [("the lamp", "on")], ("the door", "off")
    found = answer_confidence(model, tokenizer, _TASK, seeds, pair)
    start = shown(_TASK, seeds) + "Q: the door\nA: "
    head, whole = tokenizer(start)["input_ids"], tokenizer(start + "off")["input_ids"]
    first = next(i for i, token in enumerate(whole) if i >= len(head) or head[i] != token)
    logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
    wanted = sum(float(logs[i - 1, whole[i]]) for i in range(first, len(whole))) / (len(whole) - first)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    make_tiny("llama", folder / "teacher", hidden=96, layers=2, ffn=192)
    rows = [{"prompt": f"turn the {word} {state}", "completion": state} for word in _WORDS for state in ("on", "off")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.toml").write_text(
        'schema = 1\nname = "switch"\nformat = "Q: {prompt}\\nA: {answer}"\nanswers = ["on", "off"]\nshots = 3\n'
        "synthetic = 6\ntries = 160\nmax_new_tokens = 24\nstudy_steps = 150\ntemperature = 1.2\nlast_steps = 3\n"
        "[filters]\nmin_confidence = -6.0\nasks = 1\nmin_agreement = 0.0\nmax_similarity = 0.99\nmax_share = 2.0\n"
    )
    return folder


@pytest.mark.slow
def test_workers_of_a_cluster_write_what_one_process_writes(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    task = tmp_path / "task.toml"
    text = (place / "task.toml").read_text().replace("shots = 3", 'shots = 0\nwrite = "A: {answer}\\nQ: {prompt}"')
    task.write_text(text.replace("study_steps = 150", "study_steps = 12"))
    made = {}
    for address in ("", "local"):
        out = tmp_path / f"s{address}"
        common = ("--student", "layers=1", "--few-shot", 8, "--task", task, "--steps", 2, "--batch", 4)
        where = ("--data", place / "rows.jsonl", "--out", out, "--quiet", *(("--ray", address) if address else ()))
        done = run("distill", place / "teacher", *common, *where)
        assert done.code == 0, done.err
        made[address] = (out / "synthetic.jsonl").read_bytes(), load_json(out / "synthetic.json", SyntheticReport)
    assert made[""][0] == made["local"][0] and made[""][1].counts == made["local"][1].counts
    assert made[""][1].kept and made["local"][1].asked == made[""][1].asked
    lost = run(
        "distill",
        place / "teacher",
        *common,
        "--data",
        place / "rows.jsonl",
        "--out",
        tmp_path / "x",
        "--ray",
        "127.0.0.1:9",
    )
    assert lost.code == 8 and "no Ray cluster at 127.0.0.1:9" in lost.err and "Traceback" not in lost.err


@pytest.mark.slow
def test_all_four_steps_from_the_command_line(place: Path, tmp_path: Path) -> None:
    arguments: list[Any] = ["--student", "layers=1", "--few-shot", 8, "--task", place / "task.toml"]
    arguments += [
        "--data",
        place / "rows.jsonl",
        "--steps",
        12,
        "--batch",
        4,
        "--max-tokens",
        64,
        "--out",
        tmp_path / "s",
    ]
    done = run_cli("distill", place / "teacher", *arguments, "--quiet")
    assert done.code == 0, done.err
    assert (
        "examples kept, from 8 seeds" in done.out
        and "prompt          the task's own" in done.out
        and "held-out loss" in done.out
    )
    report = load_json(tmp_path / "s" / "synthetic.json", SyntheticReport)
    training = load_json(tmp_path / "s" / TRAINING_FILE, Training)
    assert 0 < report.kept <= 6 and report.asked == report.kept + sum(report.dropped.values())
    rows = [json.loads(line) for line in (tmp_path / "s" / "synthetic.jsonl").read_text().splitlines()]
    assert len(rows) == report.kept and all(row["messages"][1][1] in ("on", "off") for row in rows)
    assert all(row["parents"] and "switch" in row["made_by"] for row in rows)
    assert training.method == "few-shot" and "synthetic examples" in training.notes[0]
    assert not list(tmp_path.glob("s.*"))
    again = run_cli("distill", place / "teacher", *arguments, "--quiet", "--json")
    assert again.code == 0 and json.loads(again.out)["created"] == training.created


def test_a_teacher_of_whom_nothing_stands_up_is_said(place: Path, tmp_path: Path) -> None:
    task = Task(schema=1, name="t", synthetic=4, tries=8, max_new_tokens=8, filters=Filters(asks=0))
    with pytest.raises(VerificationError, match="none of 8 examples") as caught:
        edgegen.distill_few(
            str(place / "teacher"),
            student="layers=1",
            data=str(place / "rows.jsonl"),
            task=task,
            few=6,
            out=tmp_path / "s",
        )
    assert "cannot be read" in str(caught.value) and not (tmp_path / "s").exists()
    refused = run_cli("distill", place / "teacher", "--student", "0.5x", "--data", "x", "--ray", "auto")
    assert refused.code == 2 and "--ray goes with --few-shot" in refused.err
    refused = run_cli("distill", place / "teacher", "--student", "0.5x", "--data", "x", "--few-shot", 4)
    assert refused.code == 2 and "go together" in refused.err
