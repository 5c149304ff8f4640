"""One model for three runtimes: three verified artifacts, compared, one of them recommended."""

import json
from pathlib import Path

import msgspec
import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.records.bakeoff import BakeOff
from edgegen.records.report import Report
from tests.flows.command import make_calm, run_cli

TARGETS = ("gguf", "onnx", "litert")
WIDE = ("--profile", "laptop-x86-16gb", "--max-kl", "0.5", "--vocab", "keep")


def compressed(model: Path, data: Path, out: Path, *more: object, targets: tuple[str, ...] = TARGETS) -> BakeOff:
    done = run_cli(
        "compress", model, "--data", data, "--target", ",".join(targets), "--out", out, *WIDE, *more, "--json"
    )
    assert done.code == 0, done.err + done.out
    found = msgspec.json.decode(done.out, type=BakeOff)
    assert found == load_json(out / "bakeoff.json", BakeOff)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gemma"])
def test_three_verified_artifacts(family: str, tmp_path: Path, tiny_data: Path) -> None:
    """Files that are torch's own model of the rounded weights, and runtimes whose arithmetic costs little."""
    found = compressed(make_calm(family, tmp_path / "model"), tiny_data, tmp_path / "out")
    assert [c.target for c in found.contenders] == list(TARGETS)
    assert all(c.passed for c in found.contenders), found.contenders
    assert found.recommended in TARGETS and found.recommended in found.why
    for pair in found.pairs:
        assert not pair.missing and pair.kl is not None
        if pair.first == "torch":
            assert pair.kl <= (1e-6 if pair.mode == "strict" else 2e-3), pair
        if pair.first == "torch" and pair.mode == "strict":
            assert pair.greedy_prefix == pair.greedy_tokens, pair


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, calm_llama: Path, tiny_data: Path) -> Path:
    """A comparison of the two targets that are made quickly."""
    out = tmp_path_factory.mktemp("two") / "out"
    compressed(calm_llama, tiny_data, out, targets=("gguf", "onnx"))
    return out


def test_each_target_is_an_ordinary_output(two: Path) -> None:
    assert {path.name for path in two.iterdir()} == {"bakeoff.json", "bakeoff.html", "gguf", "onnx"}
    for target in ("gguf", "onnx"):
        result = edgegen.read_result(two / target)
        assert result.passed and result.artifact.target == target and result.model_file.is_file()


def test_again_is_quick_and_says_the_same(two: Path, calm_llama: Path, tiny_data: Path) -> None:
    before = load_json(two / "bakeoff.json", BakeOff)
    events: list[str] = []
    again = edgegen.bake_off(
        str(calm_llama),
        profile="laptop-x86-16gb",
        targets=("gguf", "onnx"),
        data=str(tiny_data),
        out=two,
        max_kl=0.5,
        vocab="keep",
        notify=lambda stage, state, done, total: events.append(f"{stage} {state}"),
    )
    assert again.contenders == before.contenders and again.recommended == before.recommended
    assert not [event for event in events if event.endswith("started") and not event.startswith("compare")]


def test_verifying_verifies_all(two: Path) -> None:
    done = run_cli("verify", two, "--json")
    assert done.code == 0, done.err
    found = msgspec.json.decode(done.out, type=BakeOff)
    for contender in found.contenders:
        report = load_json(two / contender.target / "report.json", Report)
        assert report.command.startswith("edgegen verify") and contender.bytes == report.artifact_bytes


def test_a_target_that_fails_does_not_end_the_others(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Eight bits do not fit this budget on ONNX; GGUF's four do."""
    grids = ("--grids", "q4_0,u8_32", "--max-bytes", "90kB")
    done = run_cli(
        *("compress", calm_llama, "--data", tiny_data, "--target", "gguf,onnx", "--out", tmp_path / "out"),
        *(*WIDE, *grids, "--json"),
    )
    found = json.loads(done.out)
    gguf, onnx = found["contenders"]
    assert gguf["passed"] and not onnx["passed"] and onnx["exit_code"] == 4 and "--max-bytes" in onnx["failure"]
    assert done.code == 0 and found["recommended"] == "gguf"


def test_a_single_outputs_folder_is_not_overwritten(finished_copy: Path, calm_llama: Path, tiny_data: Path) -> None:
    done = run_cli(
        "compress", calm_llama, "--data", tiny_data, "--target", "gguf,onnx", "--out", finished_copy, *WIDE, "--quiet"
    )
    assert done.code == 2 and "not of a comparison of targets" in done.err
    edgegen.read_result(finished_copy)


def test_planning_looks_at_one_target(calm_llama: Path, tmp_path: Path) -> None:
    done = run_cli("plan", calm_llama, "--target", "gguf,onnx", "--out", tmp_path / "out", *WIDE)
    assert done.code == 2 and "one target at a time" in done.err
