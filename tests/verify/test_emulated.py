"""Emulated runs in the receipt.

The quick tests put a script in the emulator's place that runs the same worker on this machine's own processor, or dies
as the emulator was seen to; the slow one runs the real emulator where it is set up.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgegen.catalog import load_profile, load_target
from edgegen.common.codec import load_json, save_json
from edgegen.emulate import read_setup
from edgegen.emulate.place import EMULATOR, package_folder
from edgegen.records.emulation import Emulation
from edgegen.records.plan import Plan
from edgegen.records.profile import Device
from edgegen.records.report import Report
from edgegen.records.target import Fault, Target
from edgegen.verify.emulated import Findings, emulate_artifact
from tests.flows.command import run_cli

ROOT = Path(__file__).resolve().parents[2]
SIGN = "compiled with lse enabled"
FAULT = Fault(
    runtime="llama.cpp", lacks="lse", sign=SIGN, what="A library.", remedy="Remove it.", remove=("llama_cpp/bad.so",)
)
RUNS = f"""#!{sys.executable}
import os, sys, pathlib
places = os.environ["PYTHONPATH"].split(os.pathsep)
bad = any((pathlib.Path(place) / "llama_cpp" / "bad.so").exists() for place in places)
if DIES and bad:
    sys.stderr.write("INFO: x\\nFATAL ERROR: {SIGN}, but not available\\n\\0qemu: uncaught target signal 4\\n")
    sys.stderr.flush()
    os.kill(os.getpid(), 4)
os.environ["PYTHONPATH"] = {str(ROOT)!r}
os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index("-m"):]])
"""


def on_device(folder: Path, **changes: Any) -> Plan:
    """The output's plan as if made for a Raspberry Pi 4."""
    plan = load_json(folder / "plan.json", Plan)
    profile = load_profile("raspberry-pi-4-4gb")
    device = msgspec.structs.replace(profile.device, **changes)
    plan = msgspec.structs.replace(plan, profile=msgspec.structs.replace(profile, device=device))
    save_json(folder / "plan.json", plan)
    return plan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "emulate"
    place = package_folder(folder, "llama-cpp-python", "0.0") / "llama_cpp"
    place.mkdir(parents=True)
    (place / "bad.so").touch()
    record = Emulation(
        schema=1,
        emulator="10",
        system="Debian",
        python="3.13",
        processors=("cortex-a53", "cortex-a72", "cortex-a76"),
        packages={"llama-cpp-python": "0.0"},
        bytes=1,
    )
    save_json(folder / "setup.json", record)
    emulator(folder, dies=False)
    return folder


def emulator(folder: Path, *, dies: bool) -> None:
    (folder / EMULATOR).write_text(RUNS.replace("DIES", str(dies)))
    (folder / EMULATOR).chmod(0o755)


def emulate(folder: Path, plan: Plan, target: Target | None = None) -> Findings:
    target = target or load_target("gguf")
    return emulate_artifact(folder / "artifact", folder / "reference", plan, target, runtime="llama.cpp")


def test_a_run_is_compared_with_torch_and_with_this_machine(finished_copy: Path, cache: Path) -> None:
    found = emulate(finished_copy, on_device(finished_copy))
    (run,) = found.runs
    assert run.passed and run.host and run.planned and run.fault == run.remedy == run.change == ""
    assert (run.host.kl, run.host.top1_fraction) == (0.0, 1.0), "here the emulated processor is this machine's own"
    assert 0 < run.planned.kl < load_target("gguf").parity_max_kl
    assert run.host.greedy_prefix == run.host.greedy_tokens == 16
    assert run.planned.tokens == 128
    (check,) = found.checks
    assert (check.name, check.passed, check.measured) == ("runs_on_cortex-a72", True, run.planned.kl)
    assert found.notes == ()


def test_a_known_fault_is_named_and_its_remedy_tried(finished_copy: Path, cache: Path) -> None:
    emulator(cache, dies=True)
    target = msgspec.structs.replace(load_target("gguf"), faults=(FAULT,))
    found = emulate(finished_copy, on_device(finished_copy), target)
    stock, remedied = found.runs
    assert not stock.passed and stock.remedy == "Remove it." and stock.planned is None
    assert "signal 4" in stock.fault and SIGN in stock.fault and "qemu" not in stock.fault
    assert remedied.passed and remedied.change == "without llama_cpp/bad.so" and not remedied.fault
    assert found.checks[0].passed and "without llama_cpp/bad.so" in found.checks[0].detail


def test_an_unknown_fault_fails_the_check(finished_copy: Path, cache: Path) -> None:
    emulator(cache, dies=True)
    found = emulate(finished_copy, on_device(finished_copy))
    assert len(found.runs) == 1 and not found.checks[0].passed and found.checks[0].measured is None
    assert SIGN in found.checks[0].detail


def test_other_weights_than_planned_fail(finished_copy: Path, cache: Path) -> None:
    path = finished_copy / "reference" / "parity.npy"
    logits = np.load(path)
    np.save(path, logits + np.random.default_rng(0).normal(size=logits.shape, scale=0.5).astype(np.float32))
    (run,) = emulate(finished_copy, on_device(finished_copy)).runs
    assert not run.passed and run.host is not None and run.host.kl == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "x86_64"}, "has no ARM processor"),
        ({"cpu_model": ""}, "does not name its processor core"),
        ({"cpu_model": "apple-m4"}, "Not checked on apple-m4: the emulator knows no apple-m4"),
    ],
)
def test_what_cannot_be_emulated_is_a_note(
    finished_copy: Path, cache: Path, changes: dict[str, str], words: str
) -> None:
    found = emulate(finished_copy, on_device(finished_copy, **changes))
    assert found.runs == () and found.checks == () and words in found.notes[0]


def test_a_stand_in_is_noted(finished_copy: Path, cache: Path) -> None:
    found = emulate(finished_copy, on_device(finished_copy, cpu_model="cortex-a78ae"))
    assert found.runs[0].emulated_as == "cortex-a76" and "stood in" in found.notes[0]


def test_a_runtime_that_is_not_set_up_is_a_note(finished_copy: Path, cache: Path) -> None:
    record = read_setup()
    assert record is not None
    save_json(cache / "setup.json", msgspec.structs.replace(record, packages={}))
    found = emulate(finished_copy, on_device(finished_copy))
    assert "--with-llama" in found.notes[0] and found.checks == ()


def test_without_a_set_up_the_receipt_says_so_and_nothing_fails(
    finished_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEGEN_CACHE", str(tmp_path / "none"))
    on_device(finished_copy)
    done = run_cli("verify", finished_copy, "--emulate", "--quiet")
    report = load_json(finished_copy / "report.json", Report)
    assert "! Not checked on cortex-a72: run edgegen emulate setup." in done.out
    assert "Not checked on cortex-a72: run edgegen emulate setup." in (finished_copy / "report.html").read_text()
    assert report.emulated == () and not [c for c in report.checks if c.name.startswith("runs_on")]


@pytest.mark.slow
def test_both_receipts_show_the_run(finished_copy: Path, cache: Path) -> None:
    on_device(finished_copy)
    done = run_cli("verify", finished_copy, "--emulate", "--quiet")
    assert "Runs on cortex-a72" in done.out
    assert "✓ cortex-a72, emulated, llama.cpp" in done.out and "greedy text equal for 16 of 16" in done.out
    page = (finished_copy / "report.html").read_text()
    assert "Runs on cortex-a72" in page and "emulated.0.planned.kl" in page


@pytest.mark.parametrize(
    ("cpu_model", "isa", "lacks"),
    [
        ("cortex-a53", "neon-inorder", True),
        ("cortex-a55", "neon-inorder", False),
        ("cortex-a72", "neon", True),
        ("cortex-a76", "neon-dotprod", False),
        ("", "neon", True),
        ("", "neon-dotprod", False),
    ],
)
def test_which_cores_lack_atomic_instructions(cpu_model: str, isa: str, lacks: bool) -> None:
    device: Device = load_profile("raspberry-pi-4-4gb").device
    arm = msgspec.structs.replace(device, cpu_model=cpu_model, isa=isa)
    assert arm.lacks_lse is lacks and arm.meets(FAULT) is lacks
    assert not msgspec.structs.replace(arm, arch="x86_64").lacks_lse


def test_the_litert_target_knows_its_fault() -> None:
    (fault,) = load_target("litert").faults
    assert fault.runtime == "litert" and fault.lacks == "lse" and "litert-interpreter" in fault.remedy


@pytest.mark.slow
def test_an_encoder_is_compared_by_its_vectors(tmp_path: Path, cache: Path) -> None:
    from tests.tiny_models import make_tiny_encoder, sample_texts

    make_tiny_encoder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in sample_texts(96, words=10)))
    wishes = ("--profile", "raspberry-pi-4-4gb", "--target", "onnx", "--min-cosine", "0.9")
    out = tmp_path / "out"
    done = run_cli("compress", tmp_path / "model", *wishes, "--data", tmp_path / "rows.jsonl", "--out", out)
    assert (out / "plan.json").exists(), done.err
    record = read_setup()
    assert record is not None
    save_json(cache / "setup.json", msgspec.structs.replace(record, packages={"onnxruntime": "0.0"}))
    package_folder(cache, "onnxruntime", "0.0").mkdir()
    plan = load_json(out / "plan.json", Plan)
    target = load_target("onnx")
    found = emulate_artifact(out / "artifact", out / "reference", plan, target, runtime="onnxruntime")
    (run,) = found.runs
    assert run.passed and run.planned is None and run.host is None
    assert run.planned_vectors is not None and run.planned_vectors.distance <= target.parity_max_distance
    assert run.host_vectors is not None and run.host_vectors.max_abs_difference == 0.0
    assert found.checks[0].unit == "1 - cosine" and "texts" in found.checks[0].detail


@pytest.mark.slow
@pytest.mark.parametrize("cpu_model", ["cortex-a53", "cortex-a72", "cortex-a76"])
def test_the_real_emulator(finished_copy: Path, monkeypatch: pytest.MonkeyPatch, cpu_model: str) -> None:
    """LiteRT's own library is loaded, and dies where it must; then what is set up runs the artifact."""
    monkeypatch.delenv("EDGEGEN_HOME", raising=False)
    setup = read_setup()
    if setup is None or shutil.which("sh") is None:
        pytest.skip("emulation is not set up here: edgegen emulate setup")
    from edgegen.emulate import run_module

    if "ai-edge-litert" in setup.packages:
        (fault,) = load_target("litert").faults
        ended = run_module("edgegen.emulate.load", fault.remove, core=cpu_model)
        dies = cpu_model != "cortex-a76"
        assert (fault.sign in ended.stderr) is dies and (ended.signal != 0) is dies
    if "llama-cpp-python" not in setup.packages:
        pytest.skip("llama.cpp is not set up for emulation: edgegen emulate setup --with-llama")
    (run,) = emulate(finished_copy, on_device(finished_copy, cpu_model=cpu_model)).runs
    assert run.passed, run.fault
    assert run.emulated_as == cpu_model and os.name == "posix"
