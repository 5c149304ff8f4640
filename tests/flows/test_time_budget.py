"""With time, grids are exchanged and rounded weights tuned: the artifact that ships is the tuned one, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Plan
from edgegen.records.structure import Search
from tests.flows.command import make_calm, run_cli
from tests.tiny_models import sample_texts

PROFILE = "laptop-x86-16gb"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_calm("llama", tmp_path_factory.mktemp("timed") / "llama", share=0.3, tied=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough that some rows are left to learn from."""
    path = tmp_path_factory.mktemp("timed-data") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sample_texts(600, seed=9)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gguf", "onnx", "litert"])
def test_the_tuned_weights_ship(target: str, model: Path, data: Path, tmp_path: Path) -> None:
    wishes = {"profile": PROFILE, "data": str(data), "target": target, "vocab": "keep"}
    size = edgegen.plan(str(model), out=tmp_path / "sized", max_kl=0.2, prefer="size", **wishes).prediction.bytes
    events: list[tuple[str, str]] = []
    asked = {**wishes, "max_bytes": int(1.02 * size), "budget": 20, "techniques": ("local_search", "refinement")}
    out = tmp_path / "out"
    made = edgegen.compress(str(model), out=out, notify=lambda stage, state, *_: events.append((stage, state)), **asked)
    # How far tuning comes in its time differs, and a random model's two likeliest tokens are often all but equal.
    assert {check.name for check in made.report.checks if not check.passed} <= {"parity_top1"}
    refined = made.plan.refinement
    assert refined is not None and refined.kept and refined.steps > 0 and refined.kl_after < refined.kl_before
    assert made.plan.prediction.kl == refined.kl_after
    assert made.report.quality is not None and made.report.quality.kl.value < refined.kl_before
    assert made.artifact.lineage == made.plan.lineage
    considered = {one.technique: one for one in made.plan.considered}
    assert considered["refinement"].taken and "exchanges measured" in considered["local_search"].why
    assert "no time budget" in considered["depth"].why
    assert any(
        "tuned as a whole" in step for step in load_json(out / "compressed" / "compressed.json", Compressed).steps
    )
    assert ("refine", "finished") in events
    events.clear()
    assert (
        edgegen.compress(str(model), out=out, notify=lambda stage, state, *_: events.append((stage, state)), **asked)
        == made
    )
    assert {state for _, state in events} == {"skipped"}


@pytest.mark.slow
def test_time_that_structures_have_no_use_for_goes_to_tuning(model: Path, data: Path, tmp_path: Path) -> None:
    """Half of a two-block model is not to be had at this quality, so it is not healed either."""
    wishes = {"profile": PROFILE, "data": str(data), "target": "gguf", "vocab": "keep"}
    size = edgegen.plan(str(model), out=tmp_path / "sized", max_kl=0.02, prefer="size", **wishes).prediction.bytes
    asked = {**wishes, "max_bytes": int(1.02 * size), "budget": 40, "techniques": ("depth", "refinement")}
    made = edgegen.compress(str(model), out=tmp_path / "out", **asked)
    search = load_json(tmp_path / "out" / "structures.json", Search)
    assert search.tried and not any(tried.healed_tokens or tried.finalist for tried in search.tried)
    assert "None can be expected to be better" in search.more
    assert search.unspent_s > 5
    assert made.plan.refinement is not None and made.plan.refinement.steps > 0
    assert not {one.technique: one for one in made.plan.considered}["depth"].taken
    states: set[str] = set()
    again = edgegen.compress(
        str(model), out=tmp_path / "out", notify=lambda stage, state, *_: states.add(state), **asked
    )
    assert again == made and states == {"skipped"}


@pytest.mark.slow
def test_a_larger_model_than_memory_and_one_that_speed_is_preferred_of_say_what_they_cannot(
    model: Path, data: Path, tmp_path: Path
) -> None:
    asked = ("compress", model, "--data", data, "--profile", PROFILE, "--out", tmp_path / "out", "--quiet")
    streamed = run_cli(*asked, "--budget", "10s", "--memory", "1MB", "--max-kl", "0.5")
    assert streamed.code == 2 and "--budget" in streamed.err and len(streamed.err.splitlines()) == 2
    faster = run_cli(*asked, "--budget", "10s", "--techniques", "local_search", "--max-kl", "0.5", "--prefer", "speed")
    assert faster.code == 2 and "local_search looks for quality" in faster.err
    unknown = run_cli(*asked, "--budget", "10s", "--techniques", "magic")
    assert unknown.code == 2 and "refinement" in unknown.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_rows_to_learn_from_nothing_is_tuned_and_the_plan_says_so(
    model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run_cli(
        *("compress", model, "--data", tiny_data, "--profile", PROFILE, "--out", out, "--max-kl", "0.5", "--quiet"),
        *("--budget", "5s", "--techniques", "refinement,local_search", "--vocab", "keep", "--prefer", "quality"),
    )
    assert done.code == 0, done.err
    plan = load_json(out / "plan.json", Plan)
    assert plan.refinement is not None and not plan.refinement.kept
    assert {one.technique: one.why for one in plan.considered}["local_search"] == "there is too little text for it"
