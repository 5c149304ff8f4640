"""Gates as a user meets them: `compress` evaluates, `pack` refuses, `deploy` judges what the bundle carries."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

import edgegen
from edgegen.bundle.pack import write_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError, VerificationError
from edgegen.records.evaluation import EVALUATION_FILE, Evaluation, GateLimits, Gates, Judged, Metric
from edgegen.records.report import Interval, Report
from edgegen.sdk.registry import evaluations
from tests.bundle.releases import sample_manifest
from tests.flows.command import LOOSE, run_cli

_KEPT = "[evaluate]\nlimit = 3\n[gates]\nmin_top1_agreement = 0.3\nmax_perplexity_ratio = 2\n"
_MISSED = "[evaluate]\nlimit = 3\n[gates]\nmin_top1_agreement = 0.3\n[metrics.bits_per_byte]\nmax = 0.01\n"


@pytest.mark.slow
def test_gates_stop_compress_and_pack_and_deploy(
    finished_copy: Path, calm_llama: Path, tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    gates = tmp_path / "gates.toml"
    gates.write_text(_MISSED)
    out = finished_copy
    compress = ("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE, "--quiet", "--gates", gates)
    done = run_cli(*compress)
    assert done.code == 5, done.err + done.out
    assert "✗ gate:metrics.bits_per_byte.max: bits_per_byte" in done.out and f"{out}/evaluation" in done.out
    report = load_json(out / "report.json", Report)
    said = {check.name: check.passed for check in report.checks if check.name.startswith("gate:")}
    assert said == {"gate:min_top1_agreement": True, "gate:metrics.bits_per_byte.max": False} and not report.passed
    assert (out / "artifact" / "model.gguf").is_file()
    assert "Gate metrics.bits_per_byte.max" in (out / "report.html").read_text()
    found = load_json(out / "evaluation" / EVALUATION_FILE, Evaluation)
    assert found.passed is False and found.model.source == str(out) and found.teacher is not None and found.rows == 3
    assert (out / "evaluation" / "evaluation.png").is_file()
    done = run_cli("verify", out, "--json")
    assert done.code == 5 and "gate:metrics.bits_per_byte.max" in done.out  # measuring again forgets no gate
    done = run_cli("pack", out, "--out", tmp_path / "none")
    assert done.code == 5 and "gate:metrics.bits_per_byte.max" in done.err and not (tmp_path / "none").exists()

    gates.write_text(_KEPT)
    done = run_cli(*compress)
    assert done.code == 0, done.err + done.out
    keys, bundle = tmp_path / "keys", tmp_path / "bundle"
    assert run_cli("keys", "init", keys).code == 0
    assert run_cli("pack", out, "--keys", keys, "--out", bundle, "--name", "calm").code == 0
    assert edgegen.require_bundle_gates(bundle, str(gates)).passed
    listed = edgegen.list_models(out, bundle)
    artifact = next(entry for entry in listed if entry.kind == "artifact")
    assert [entry.note for entry in evaluations(listed, artifact)] == ["passed, 3 rows"]
    shown = run_cli("models", "show", bundle, "--in", out, "--in", bundle).out
    assert "passed, 3 rows" in shown and shown.index("└ artifact") < shown.index("passed, 3 rows")
    gates.write_text(_MISSED)
    done = run_cli("deploy", bundle, "--to", "ssh://nobody@127.0.0.1:9", "--gates", gates)
    assert done.code == 5 and "metrics.bits_per_byte.max 0.01 is missed" in done.err
    done = run_cli("pack", bundle, "--replace", f"{EVALUATION_FILE}={gates}", "--out", tmp_path / "light")
    assert done.code == 2 and "cannot be changed" in done.err

    plain = edgegen.compress(
        str(calm_llama), profile="laptop-x86-16gb", data=str(tiny_data), out=out, max_kl=0.5, vocab="keep"
    )
    assert plain.passed and not (out / "evaluation").exists()
    assert not any(check.name.startswith("gate:") for check in plain.report.checks)


def test_what_gates_cannot_be_held_against(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    place = ("compress", calm_llama, "--out", tmp_path / "out", *LOOSE, "--gates", gates)
    done = run_cli(*place, "--data", tiny_data)
    assert done.code == 2 and "no such file" in done.err
    gates.write_text(_KEPT)
    done = run_cli(*place)
    assert done.code == 2 and "--data" in done.err
    gates.write_text(_KEPT.replace("[gates]", 'fairness = ["none.csv"]\n[gates]'))
    done = run_cli(*place, "--data", tiny_data)
    assert done.code == 2 and "none.csv" in done.err
    assert not (tmp_path / "out").exists()


def test_deploy_holds_what_a_bundle_carries(tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    (source / "model.gguf").write_bytes(b"weights")
    judged = Judged("build", "artifact", "llama.cpp", "1", "sha256:0", 1)
    exact = Metric("exact_match", "quality", "higher", 9, Interval(0.8, 0.7, 0.9))
    save_json(
        source / EVALUATION_FILE, Evaluation(1, "now", judged, None, "rows", "", 9, ("quality",), (exact,), passed=True)
    )

    def bundle(name: str, *paths: str) -> Path:
        files, _ = describe_folder(source, list(paths))
        manifest = sample_manifest(files=files, install_bytes=1000)
        write_bundle(tmp_path / name, manifest, {file.path: source / file.path for file in files})
        return tmp_path / name

    limits = Gates(gates=GateLimits(min_exact_match=0.75))
    carrying = bundle("carrying", "model.gguf", EVALUATION_FILE)
    assert edgegen.require_bundle_gates(carrying, limits).metrics == (exact,)
    with pytest.raises(VerificationError, match=r"min_exact_match 0\.85 is missed"):
        edgegen.require_bundle_gates(carrying, Gates(gates=GateLimits(min_exact_match=0.85)))
    with pytest.raises(VerificationError, match="never evaluated"):
        edgegen.require_bundle_gates(bundle("bare", "model.gguf"), limits)
    with pytest.raises(ConfigError, match="a bundle's folder"):
        edgegen.require_bundle_gates("lamp@1.0.0", limits)
    gates = tmp_path / "gates.toml"
    gates.write_text("[gates]\nmin_exact_match = 0.85\n")
    done = run_cli("deploy", carrying, "--fleet", tmp_path / "site", "--group", "all", "--gates", gates)
    assert done.code == 5 and "is missed by exact_match" in done.err and not (tmp_path / "site").exists()
    blob = next(path for path in carrying.rglob("*") if path.is_file() and b'"exact_match"' in path.read_bytes())
    altered = json.loads(blob.read_bytes())
    altered["metrics"][0]["model"]["value"] = 1.0
    blob.write_bytes(msgspec.json.encode(altered))
    with pytest.raises(ConfigError, match="was altered"):
        edgegen.require_bundle_gates(carrying, limits)
