"""Tests of the smart-home example: its grammar, its shipped requests and its shipped teacher.

The example is the evidence that the project works on a real model, so the tests hold what it claims: the data
comes from one command, no held-out request can be trained on, and the teacher that ships answers correctly.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smart_home"
REQUESTS = EXAMPLE / "requests.jsonl"
TEACHER = EXAMPLE / "teacher"
TEACHER_LIMIT_BYTES = 8_000_000
REQUESTS_LIMIT_BYTES = 500_000


def _load_grammar() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smart_home_grammar", EXAMPLE / "grammar.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


grammar = _load_grammar()


def _request(row: Any) -> str:
    return str(row["messages"][0]["content"])


def _answer(row: Any) -> str:
    return str(row["messages"][1]["content"])


@pytest.fixture(scope="module")
def train_rows() -> list[Any]:
    return list(grammar.generate(3000, 11, "train"))


@pytest.fixture(scope="module")
def shipped_rows() -> list[Any]:
    return [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]


def test_equal_seeds_give_equal_rows() -> None:
    assert list(grammar.generate(200, 3, "train")) == list(grammar.generate(200, 3, "train"))
    assert list(grammar.generate(200, 3, "train")) != list(grammar.generate(200, 4, "train"))


def test_shipped_requests_come_from_the_documented_command(tmp_path: Path) -> None:
    copy = tmp_path / "requests.jsonl"
    command = ["--rows", "1500", "--seed", "7", "--split", "heldout", "--out", str(copy)]
    assert grammar.main(command) == 0
    assert copy.read_bytes() == REQUESTS.read_bytes()
    assert REQUESTS.stat().st_size < REQUESTS_LIMIT_BYTES


def test_splits_are_disjoint(train_rows: list[Any], shipped_rows: list[Any]) -> None:
    train = {grammar.normalise(_request(row)) for row in train_rows}
    heldout = {grammar.normalise(_request(row)) for row in shipped_rows}
    assert len(train) == len(train_rows) and len(heldout) == len(shipped_rows) == 1500
    assert not train & heldout
    assert {grammar.split_of(request) for request in train} == {"train"}
    assert {grammar.split_of(_request(row)) for row in shipped_rows} == {"heldout"}


def test_split_ignores_case_spacing_and_punctuation() -> None:
    wordings = ("turn on the kitchen light", "Turn  on the kitchen light!", " turn on the Kitchen light ? ")
    assert len({grammar.split_of(wording) for wording in wordings}) == 1


def test_every_answer_is_a_sentence_and_a_call(train_rows: list[Any], shipped_rows: list[Any]) -> None:
    for row in [*train_rows, *shipped_rows]:
        sentence, line = _answer(row).split("\n")
        call = json.loads(line)
        assert sentence.endswith(".") and line == json.dumps(call)
        assert call["name"] in grammar.FUNCTIONS
        assert list(call["arguments"]) == sorted(call["arguments"])
    names = {json.loads(_answer(row).split("\n")[1])["name"] for row in shipped_rows}
    assert names == set(grammar.FUNCTIONS)


def test_arguments_are_copied_from_the_request(train_rows: list[Any]) -> None:
    implied = {"all", "unsupported", "small_talk", 1}
    for row in train_rows:
        request = _request(row).lower()
        for value in json.loads(_answer(row).split("\n")[1])["arguments"].values():
            assert value in implied or str(value) in request


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--rows", "10", "--out", "/missing/folder/rows.jsonl"]])
def test_bad_arguments_end_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grammar.main(["--out", str(tmp_path / "rows.jsonl"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_unreadable_answers_give_no_call() -> None:
    assert grammar.parse_answer("Turning on the light.") is None
    assert grammar.parse_answer('Done.\n{"name": "light_turn_on"}') is None
    assert grammar.parse_answer("Done.\n[1, 2]") is None


def test_teacher_is_small_and_described() -> None:
    files = [path for path in TEACHER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= TEACHER_LIMIT_BYTES
    assert (TEACHER / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0\n")


def test_teacher_answers_heldout_requests(shipped_rows: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TEACHER, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(TEACHER, local_files_only=True, dtype=torch.float32)
    rows = shipped_rows[::300]
    prompts = [
        tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True) for row in rows
    ]
    assert {tokenizer(prompt)["input_ids"][0] for prompt in prompts} == {tokenizer.convert_tokens_to_ids("<|user|>")}
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    assert (new_tokens == model.config.eos_token_id).any(dim=1).all()
    answers = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    calls = [grammar.parse_answer(answer) for answer in answers]
    assert None not in calls
    expected = [grammar.parse_answer(_answer(row)) for row in rows]
    assert len(rows) == 5 and sum(call == right for call, right in zip(calls, expected, strict=True)) >= 4
