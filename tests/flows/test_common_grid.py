"""`--common-grid`: one rounding in three runtimes' files, which then say the same."""

import itertools
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgegen
from edgegen import grids
from edgegen.common.codec import load_json
from edgegen.records.bakeoff import BakeOff
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Plan
from tests.flows.command import LOOSE, make_calm, run_cli
from tests.tiny_models import make_tiny_encoder, sample_texts

TARGETS = ("gguf", "onnx", "litert")


def compressed(model: Path, data: Path, out: Path, *more: object, targets: tuple[str, ...] = TARGETS) -> BakeOff:
    done = run_cli(
        *("compress", model, "--data", data, "--target", ",".join(targets), "--common-grid", "--out", out),
        *(more or LOOSE),
        "--json",
    )
    assert done.code == 0, done.err + done.out
    return msgspec.json.decode(done.out, type=BakeOff)


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    """Tensor → the numbers that its packed rows stand for."""
    record, raw = load_json(folder / "compressed.json", Compressed), (folder / "weights.bin").read_bytes()
    found = {}
    for tensor in record.tensors:
        rows = np.frombuffer(raw, np.uint8, tensor.bytes, tensor.offset).reshape(tensor.rows, -1)
        found[tensor.name] = grids.unpack(rows, tensor.grid, tensor.columns)
    return found


def require_same(found: BakeOff, out: Path, targets: tuple[str, ...] = TARGETS, *, gelu: bool = False) -> None:
    """Equal numbers in every folder, and artifacts that agree as far as float32 sums do.

    Args:
        gelu: whether the model has it; llama.cpp takes it out of a table in 16 bits.
    """
    first, *others = [weights_in(out / target / "compressed") for target in targets]
    for other in others:
        assert other.keys() == first.keys()
        for name, values in first.items():
            np.testing.assert_array_equal(other[name], values)
    same = found.same_weights
    assert same is not None and same.targets == targets and same.tensors == len(first)
    assert all(contender.passed for contender in found.contenders), found.contenders
    for pair in found.pairs:
        assert not pair.missing and pair.kl is not None
        if pair.mode == "strict":
            is_table = gelu and "gguf" in (pair.first, pair.second)
            assert pair.kl <= (1e-6 if is_table else 1e-9), pair
            assert pair.greedy_prefix == pair.greedy_tokens, pair
            if pair.first != "torch":
                assert pair.logit_difference is not None
                assert pair.logit_difference <= (2e-2 if is_table else 1e-4), pair


@pytest.mark.slow
@pytest.mark.parametrize(("family", "ffn"), [("llama", 100), ("qwen3", 96), ("gpt2", 90), ("gemma", 96)])
def test_three_artifacts_of_the_same_weights(family: str, ffn: int, tmp_path: Path, tiny_data: Path) -> None:
    """Widths that are no multiples of 32 are padded once, for all."""
    found = compressed(make_calm(family, tmp_path / "model", ffn=ffn), tiny_data, tmp_path / "out")
    require_same(found, tmp_path / "out", gelu=family in ("gpt2", "gemma"))
    plans = [load_json(tmp_path / "out" / target / "plan.json", Plan) for target in TARGETS]
    assert {plan.summary.ffn_size % 32 for plan in plans} == {0} and len({plan.summary.ffn_size for plan in plans}) == 1
    for plan in plans:
        assert any("Rounded once for gguf, onnx, litert" in note for note in plan.notes)
        assert any(choice.grid in ("q4_0", "s4_32", "i4_32") for choice in plan.tensors)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, calm_llama: Path, tiny_data: Path) -> Path:
    """The two targets that are made quickly, the stricter one not first, with a trimmed vocabulary allowed."""
    out = tmp_path_factory.mktemp("common") / "out"
    require_same(
        compressed(
            calm_llama, tiny_data, out, "--profile", "laptop-x86-16gb", "--max-kl", "0.5", targets=("onnx", "gguf")
        ),
        out,
        ("onnx", "gguf"),
    )
    return out


def test_each_is_an_ordinary_output(two: Path) -> None:
    for target in ("gguf", "onnx"):
        result = edgegen.read_result(two / target)
        assert result.passed and result.artifact.target == result.plan.target == target
        assert result.report.artifact_bytes == pytest.approx(result.plan.prediction.bytes, rel=0.05)
        assert result.artifact.lineage == result.plan.lineage
    first, second = (edgegen.read_result(two / target).plan for target in ("onnx", "gguf"))
    pairs = {(a.grid, b.grid) for a, b in zip(first.tensors, second.tensors, strict=True)}
    assert pairs <= {("s4_32", "q4_0"), ("s8_32", "q8_0"), ("f16", "f16"), ("f32", "f32")}
    assert [c.compensated for c in first.tensors] == [c.compensated for c in second.tensors]
    assert any(c.compensated for c in first.tensors)


def test_again_is_quick_and_says_the_same(two: Path, calm_llama: Path, tiny_data: Path) -> None:
    before = load_json(two / "bakeoff.json", BakeOff)
    events: list[str] = []
    again = edgegen.bake_off(
        str(calm_llama),
        profile="laptop-x86-16gb",
        targets=("onnx", "gguf"),
        data=str(tiny_data),
        out=two,
        max_kl=0.5,
        common_grid=True,
        notify=lambda stage, state, done, total: events.append(f"{stage} {state}"),
    )
    assert again.contenders == before.contenders and again.same_weights == before.same_weights
    assert not [event for event in events if event.endswith("started") and not event.startswith("compare")]


def test_verifying_keeps_what_is_known_of_the_weights(two: Path) -> None:
    done = run_cli("verify", two, "--json")
    assert done.code == 0, done.err
    found = msgspec.json.decode(done.out, type=BakeOff)
    assert found.same_weights == load_json(two / "bakeoff.json", BakeOff).same_weights is not None
    assert found.logit_difference is not None and found.logit_difference <= 1e-4


def test_a_size_is_kept_by_all(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    sizes = ("--profile", "laptop-x86-16gb", "--vocab", "keep", "--max-bytes")
    found = compressed(calm_llama, tiny_data, tmp_path / "out", *sizes, "110kB", targets=("gguf", "onnx"))
    assert all(c.bytes is not None and c.bytes <= 110_000 for c in found.contenders)
    done = run_cli(
        *("compress", calm_llama, "--data", tiny_data, "--target", "gguf,onnx", "--common-grid"),
        *("--out", tmp_path / "small", *sizes, "20kB", "--quiet"),
    )
    assert done.code == 4 and not done.out
    assert re.match(r"edgegen: gguf: no plan fits: short by .*--max-bytes is 20.0 kB.*Missed by onnx too\n", done.err)


def test_a_target_that_alone_cannot_keep_a_budget_is_named(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    least = 60_000_000  # ONNX Runtime's process alone takes more, llama.cpp's less
    done = run_cli(
        *("compress", calm_llama, "--data", tiny_data, "--target", "gguf,onnx", "--common-grid"),
        *("--out", tmp_path / "out", "--profile", "laptop-x86-16gb", "--max-rss", least, "--quiet"),
    )
    assert done.code == 4 and done.err.startswith("edgegen: onnx: no plan fits"), done.err
    assert "Missed by" not in done.err


@pytest.mark.parametrize("more", [(), ("--max-bytes", "90kB")])
def test_quality_that_none_reaches_is_refused(
    more: tuple[str, ...], calm_llama: Path, tiny_data: Path, tmp_path: Path
) -> None:
    done = run_cli(
        *("compress", calm_llama, "--data", tiny_data, "--target", "gguf,onnx", "--common-grid", "--quiet"),
        *("--out", tmp_path / "out", "--profile", "laptop-x86-16gb", "--max-kl", "1e-9", *more),
    )
    assert done.code == 4, done.err
    assert re.match(r"edgegen: (gguf|onnx): no plan fits.*--max-kl (is )?1e-09", done.err), done.err


@pytest.mark.slow
def test_an_encoder_too(tmp_path: Path) -> None:
    model = make_tiny_encoder(tmp_path / "model")
    rows = [json.dumps({"text": text}) for text in sample_texts(240, seed=2, words=10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    close = ("--profile", "raspberry-pi-4-4gb", "--min-cosine", "0.998")
    found = compressed(model, tmp_path / "rows.jsonl", tmp_path / "out", *close)
    first, *others = [weights_in(tmp_path / "out" / target / "compressed") for target in TARGETS]
    for other, name in itertools.product(others, first):
        np.testing.assert_array_equal(other[name], first[name])
    assert all(contender.passed for contender in found.contenders), found.contenders
    for pair in found.pairs:
        assert pair.mode == "shipped" or (pair.kl is not None and pair.kl <= 1e-5), pair


@pytest.mark.slow
def test_a_model_larger_than_memory_too(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    found = compressed(calm_llama, tiny_data, tmp_path / "out", *LOOSE, "--memory", "1MB", targets=("gguf", "onnx"))
    first, other = (weights_in(tmp_path / "out" / target / "compressed") for target in ("gguf", "onnx"))
    for name, values in first.items():
        np.testing.assert_array_equal(other[name], values)
    assert all(contender.passed for contender in found.contenders), found.contenders


BAD = {
    "one target": (("--target", "gguf"), "and one was named"),
    "grids": (("--target", "gguf,onnx", "--grids", "q4_0,s4_32"), "takes the grids that all targets hold"),
    "budget": (("--target", "gguf,onnx", "--budget", "1m"), "--common-grid gives all targets the same weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_had_is_refused(case: str, calm_llama: Path, tmp_path: Path) -> None:
    arguments, said = BAD[case]
    done = run_cli("compress", calm_llama, "--common-grid", *arguments, "--out", tmp_path / "out", *LOOSE, "--quiet")
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2
    assert not (tmp_path / "out").exists()
