"""Everything that a user can get wrong: one line that names it, one that says what to do, the exit code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgegen.common import files
from edgegen.modeling import tasks
from tests.flows.command import Done, run_cli
from tests.tiny_models import sample_texts

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
Place = Callable[[Path], list[object]]
"""Makes what is wrong in a folder that holds `model`, `rows.jsonl` and no `out`; returns more arguments."""


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def weights(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(root / "model" / "model.safetensors")
    change(state)
    save_file(state, root / "model" / "model.safetensors")


def config(root: Path, **values: object) -> None:
    path = root / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def data(content: bytes, name: str = "bad.jsonl") -> Place:
    def place(root: Path) -> list[object]:
        (root / name).write_bytes(content)
        return ["--data", root / name]

    return place


def profile(old: str, new: str) -> Place:
    def place(root: Path) -> list[object]:
        path = root / "laptop-x86-16gb.toml"
        shutil.copy(PROFILES / path.name, path)
        edit(path, old, new)
        return ["--profile", path]

    return place


def given(*arguments: object) -> Place:
    return lambda root: list(arguments)


def done(change: Callable[[Path], object]) -> Place:
    def place(root: Path) -> list[object]:
        change(root)
        return []

    return place


def truncate(root: Path) -> None:
    path = root / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def spoil(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")


def file_at_out(root: Path) -> None:
    (root / "out").write_text("precious")


def full_folder_at_out(root: Path) -> None:
    (root / "out").mkdir()
    (root / "out" / "thesis.tex").write_text("precious")


ONE = json.dumps({"text": sample_texts(1)[0]}).encode() + b"\n"
CASES: dict[str, tuple[Place, int, str]] = {
    "no model folder": (given("MODEL:nowhere"), 2, r"nowhere: no such folder"),
    "hub id offline": (given("MODEL:org/Name-1.5B"), 8, r"org/Name-1.5B: not a folder here"),
    "no weights": (done(lambda r: (r / "model/model.safetensors").unlink()), 2, r"no model\.safetensors"),
    "truncated weights": (done(truncate), 2, r"model\.safetensors: .*truncated"),
    "NaN weights": (done(lambda r: weights(r, spoil)), 2, r"'model.layers.1.mlp.up_proj.weight' holds 1 values"),
    "missing tensor": (done(lambda r: weights(r, lambda s: s.pop("model.norm.weight"))), 2, r"'model\.norm\.weight'"),
    "no tokenizer": (done(lambda r: (r / "model/tokenizer.json").unlink()), 2, r"no tokenizer\.json"),
    "small embedding": (
        done(
            lambda r: (
                config(r, vocab_size=300),
                weights(r, lambda s: s.update({k: v[:300].clone() for k, v in s.items() if v.shape[0] == 400})),
            )
        ),
        2,
        r"ids up to 399 but the embedding has 300 rows",
    ),
    "broken config": (done(lambda r: (r / "model/config.json").write_text("{")), 2, r"config\.json"),
    "unknown family": (done(lambda r: config(r, model_type="mamba")), 3, r"'mamba'.*gguf[^\0]*Known: llama, mistral"),
    "broken generation settings": (
        done(lambda r: (r / "model/generation_config.json").write_text("[")),
        2,
        r"generation_config\.json: not a JSON object",
    ),
    "no data file": (given("--data", "./nowhere.jsonl"), 2, r"nowhere\.jsonl: no such data file"),
    "empty data": (data(b""), 2, r"bad\.jsonl: the file is empty"),
    "blank data": (data(b"\n\n"), 2, r"bad\.jsonl"),
    "one row": (data(ONE), 2, r"bad\.jsonl: 1 usable rows .*8 are needed"),
    "one row many times": (data(ONE * 20), 2, r"1 usable rows \(0 empty, 19 duplicates\)"),
    "not UTF-8": (data(ONE + b'{"text": "caf\xe9"}\n'), 2, r"bad\.jsonl: line 2 is not UTF-8[^\0]*iconv"),
    "not JSON": (data(ONE + b"{text}\n"), 2, r"bad\.jsonl: line 2 is not JSON"),
    "no usable column": (data(b'{"a": 1}\n' * 9), 2, r"no usable column among a"),
    "unknown format": (data(b"x", "bad.docx"), 2, r"unknown data format '\.docx'"),
    "unknown profile": (given("--profile", "raspberry-pi-5-8g"), 2, r"Did you mean 'raspberry-pi-5-8gb'"),
    "no profile file": (given("--profile", "./mine.toml"), 2, r"mine\.toml: no such file"),
    "unknown key": (profile("max_kl =", "max_kll ="), 2, r"'budgets\.max_kll'[^\0]*Did you mean 'max_kl'"),
    "budget of 0 in a profile": (profile("max_kl = 0.05", "max_kl = 0.0"), 2, r"budgets\.max_kl: 0\.0"),
    "--max-bytes 0": (given("--max-bytes", "0"), 2, r"--max-bytes: '0'"),
    "--max-bytes much": (given("--max-bytes", "much"), 2, r"--max-bytes: 'much' is not a size[^\0]*60MB"),
    "--max-rss -1": (given("--max-rss", "-1"), 2, r"--max-rss: '-1'"),
    "--min-tok-s 0": (given("--min-tok-s", "0"), 2, r"--min-tok-s: '0' must be a number above 0"),
    "--max-ttft nan": (given("--max-ttft", "nan"), 2, r"--max-ttft: 'nan'"),
    "--max-kl -1": (given("--max-kl", "-1"), 2, r"--max-kl: '-1'"),
    "target of another device": (
        given("--profile", "home-gateway-512mb", "--target", "onnx"),
        3,
        r"does not run target onnx",
    ),
    "unknown target": (given("--target", "tflite"), 3, r"tflite"),
    "unknown grid": (given("--grids", "q8_0,q9_9"), 2, r"--grids: gguf has no grid 'q9_9'[^\0]*q8_0"),
    "no grid": (given("--grids", ","), 2, r"--grids"),
    "--vocab few": (given("--vocab", "few"), 2, r"--vocab: 'few'"),
    "--vocab 0": (given("--vocab", "0"), 2, r"--vocab: '0'"),
    "--vocab ²": (given("--vocab", "²"), 2, r"--vocab: '²'"),
    "--prefer fun": (given("--prefer", "fun"), 2, r"prefer: 'fun' is not one of auto, quality, size, speed"),
    "out is a file": (done(file_at_out), 2, r"out: is a file"),
    "out is not empty": (done(full_folder_at_out), 2, r"out: is not empty"),
    "out below a file": (given("--out", "rows.jsonl/out"), 2, r"rows\.jsonl"),
}


@pytest.fixture
def root(tiny_llama: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    shutil.copy(tiny_data, tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    # Nothing of this may come as far as loading a model for its sensitivities.
    causal = msgspec.structs.replace(tasks._TASKS["causal"], statistics=lambda *_, **__: pytest.fail("work began"))
    monkeypatch.setitem(tasks._TASKS, "causal", causal)
    return tmp_path


def compress(root: Path, more: list[object]) -> Done:
    """Later options win, so a case overrides what is right."""
    model: object = root / "model"
    if more and str(more[0]).startswith("MODEL:"):
        model, more = str(more[0]).removeprefix("MODEL:"), more[1:]
    right = ["--data", root / "rows.jsonl", "--profile", "laptop-x86-16gb", "--out", root / "out", "--quiet"]
    return run_cli("compress", model, *right, *more)


def looks_right(found: Done, code: int, pattern: str) -> None:
    import re

    assert found.code == code, found.err
    assert found.out == ""
    assert re.search(pattern, found.err), found.err
    lines = found.err.splitlines()
    assert lines[0].startswith("edgegen: ") and len(lines) <= 2, found.err
    assert "Traceback" not in found.err and "Error(" not in found.err


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_its_exit_code(case: str, root: Path) -> None:
    place, code, pattern = CASES[case]
    more = place(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    found = compress(root, more)
    looks_right(found, code, pattern)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before, "nothing is left, nothing changed"


@pytest.mark.parametrize("case", ["NaN weights", "unknown grid", "--vocab few", "empty data", "unknown profile"])
def test_planning_says_the_same(case: str, root: Path) -> None:
    place, code, pattern = CASES[case]
    more = place(root)
    right = ["--data", root / "rows.jsonl", "--profile", "laptop-x86-16gb", "--out", root / "out", "--quiet"]
    looks_right(run_cli("plan", root / "model", *right, *more), code, pattern)
    assert not (root / "out.partial").exists()


def test_too_little_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=10_000_000)
    monkeypatch.setattr("edgegen.modeling.load.psutil.virtual_memory", lambda: memory)
    found = compress(root, [])
    looks_right(found, 7, r"calibrating needs about 0\.5 GB of memory and 0\.0 GB are free")
    assert not (root / "out.partial").exists()


def test_full_disk(finished_copy: Path, calm_llama: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the plan on: the old output stays whole."""
    before = {p: files.digest_file(p) for p in finished_copy.rglob("*") if p.is_file()}
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    more = ["--profile", "laptop-x86-16gb", "--max-kl", "0.4", "--vocab", "keep", "--out", finished_copy, "--quiet"]
    found = run_cli("compress", calm_llama, "--data", tiny_data, *more)
    looks_right(found, 7, r"[\d,]+ bytes are needed on the disk and 1,000 are free")
    assert {p: files.digest_file(p) for p in before} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_is_not_writable(root: Path) -> None:
    (root / "closed").mkdir(mode=0o555)
    looks_right(compress(root, ["--out", root / "closed" / "out"]), 2, r"closed.*not writable")


def test_out_refused_by_the_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for root."""
    real = Path.mkdir

    def refuse(self: Path, *arguments: object, **more: object) -> None:
        if self.name == "out.partial":
            raise PermissionError(13, "Permission denied")
        real(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    looks_right(compress(root, []), 2, r"out.*not writable")


@pytest.mark.parametrize("folder", ["nowhere", "model"])
def test_verify_needs_an_output(root: Path, folder: str) -> None:
    looks_right(run_cli("verify", root / folder), 2, rf"{folder}: no edgegen output in it\n  Make one with: edgegen")


@pytest.mark.parametrize("command", ["verify", "bench", "run", "pack"])
def test_the_current_folder_is_no_output(root: Path, command: str) -> None:
    looks_right(run_cli(command, ".", *(["x"] if command == "run" else [])), 2, r"\.: no edgegen output in it")


@pytest.mark.parametrize(("option", "pattern"), [("--grids", "names none"), ("--data", "source is empty")])
def test_an_option_without_a_value_is_no_default(root: Path, option: str, pattern: str) -> None:
    looks_right(compress(root, [option, ""]), 2, pattern)


def test_a_profile_is_asked_for(root: Path) -> None:
    found = run_cli("compress", root / "model")
    assert found.code == 2 and "--profile" in found.err and "Traceback" not in found.err
