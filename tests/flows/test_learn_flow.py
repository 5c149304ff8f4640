"""The loop closed: plan → devices report → learn → the next plan.

What devices report is simulated here from true coefficients, by the cost model; the slow test at the end runs a real
artifact on this machine instead.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgegen
from edgegen.catalog import load_profile, load_target, save_user_profile
from edgegen.common.codec import load_json
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.planner.cost import device_of, token_parts, token_s_of
from edgegen.records.bundle import Manifest, Provenance
from edgegen.records.learning import Restore
from edgegen.records.plan import Plan
from edgegen.records.profile import Number, Profile
from edgegen.records.report import Report
from tests.fleet.reported import site_store
from tests.fleet.site import manifest_bytes, serving
from tests.flows.command import make_calm, run_cli

BOARD = "slow-board"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "home"


def board(bandwidth_bytes_per_s: float) -> Profile:
    """A device whose memory is so slow that even the tests' model is bound by it."""
    base = load_profile("laptop-x86-16gb")
    device = msgspec.structs.replace(
        base.device, bandwidth_bytes_per_s=Number(bandwidth_bytes_per_s, "assumed", "for the test")
    )
    return msgspec.structs.replace(base, name=BOARD, title="Slow board", device=device)


def speed_on(profile: Profile, plan: Plan) -> float:
    """Tokens a second of a plan's artifact, by the cost model with a profile's coefficients."""
    assert plan.terms is not None
    device = device_of(profile, load_target(plan.target), plan.settings)
    return 1 / token_s_of(token_parts(plan.terms, device, prompt_tokens=1))


def manifest_of(plan: Plan, version: str = "1.0.0") -> Manifest:
    """What `pack` writes about a plan."""
    origin = Provenance(
        model=plan.model.source,
        model_digest=plan.model.digest,
        data_digest=plan.data.digest,
        plan_digest="sha256:" + "0" * 64,
        lineage=plan.lineage,
        profile=plan.profile.name,
        terms=plan.terms,
    )
    return msgspec.json.decode(
        manifest_bytes(version, provenance=origin, settings=plan.settings, target=plan.target), type=Manifest
    )


def fill(site: Path, plan: Plan, speeds: list[float], **attributes: str) -> str:
    """Reports of one device: the given speeds, five throttled answers and three that failed."""
    now = time.time()
    with site_store(site) as store:
        release = store.release(manifest_of(plan))
        store.device("pi-1", running=release, **attributes)
        for number, speed in enumerate(speeds):
            store.generation(
                "pi-1", release, now - 600 + number, tokens_per_s=speed, threads=plan.settings.threads, ttft_s=None
            )
        for _ in range(5):
            store.generation("pi-1", release, now - 50, tokens_per_s=0.3, throttled=1, threads=plan.settings.threads)
        for _ in range(3):
            store.generation("pi-1", release, now - 50, tokens_per_s=0.3, error="no memory", stop="error")
    return str(release)


@pytest.fixture
def planned(calm_llama: Path, tiny_data: Path, finished_copy: Path, home: Path) -> Any:
    """A plan with the user's profile, as a function; measuring is done before."""

    def make() -> Plan:
        found = edgegen.plan(
            str(calm_llama), profile=BOARD, data=str(tiny_data), out=finished_copy, max_kl=0.5, vocab="keep"
        )
        assert isinstance(found, Plan)
        return found

    return make


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_planted_bandwidth_is_corrected_and_the_next_plan_is_right(
    factor: float, planned: Any, tmp_path: Path, calm_llama: Path, tiny_data: Path, finished_copy: Path
) -> None:
    """50 reports, simulated from the true coefficients with 5 % noise and a tenth of them far off."""
    true = board(2e7)
    save_user_profile(board(2e7 * factor))
    before = planned()
    right = speed_on(true, before)
    assert abs(before.prediction.decode_tokens_per_s / right - 1) > 0.3
    dice = random.Random(5)
    speeds = [right * dice.lognormvariate(0, 0.05) * (0.2 if n % 10 == 9 else 1.0) for n in range(50)]
    fill(tmp_path / "site", before, speeds, profile=BOARD)

    looked = run_cli("learn", tmp_path / "site", "--profile", BOARD, "--dry-run")
    assert looked.code == 0 and "nothing was written" in looked.err
    assert load_profile(BOARD) == board(2e7 * factor)
    done = run_cli("learn", tmp_path / "site", "--profile", BOARD, "--picture", tmp_path / "fit.svg")
    assert done.code == 0, done.err
    assert "slow-board from 50 reports of 1 device" in done.out and "5 answers of throttled" in done.out
    assert (tmp_path / "fit.svg").read_text().count("<svg") == 1
    assert load_profile(BOARD).device.bandwidth_bytes_per_s.source == "learned"

    again = run_cli(
        *("plan", calm_llama, "--profile", BOARD, "--data", tiny_data, "--out", finished_copy),
        *("--max-kl", "0.5", "--vocab", "keep", "--json"),
    )
    assert again.code == 0, again.err
    line = f"coefficients of {BOARD} from 50 reports of 1 device: tok/s error"
    assert line in again.err
    after = msgspec.json.decode(again.out, type=Plan)
    assert any(line in note for note in after.notes)
    assert after.prediction.decode_tokens_per_s == pytest.approx(speed_on(true, after), rel=0.15)
    assert after.lineage and after.lineage != before.lineage

    shown = run_cli("profiles", "show", BOARD)
    assert "[learned] from 50 reports of 1 device" in shown.out and line in shown.out
    assert run_cli("learn", "--reset", "--profile", BOARD).code == 0
    assert load_profile(BOARD) == board(2e7 * factor)


def test_words_and_exit_codes_of_learn(tmp_path: Path, finished: Path) -> None:
    save_user_profile(board(2e7))
    plan = load_json(finished / "plan.json", Plan)
    fill(tmp_path / "site", plan, [100.0] * 7, profile=BOARD)
    few = run_cli("learn", tmp_path / "site", "--profile", BOARD)
    assert few.code == 2 and "7 usable reports, and 20 are the fewest" in few.err and "5 throttled" in few.err
    found = run_cli("learn", tmp_path / "site", "--profile", BOARD, "--min-reports", "5", "--json")
    assert found.code == 0 and json.loads(found.out)["reports"] == 7
    for words, said in (
        (["learn"], "name either a site's folder or --url"),
        (["learn", tmp_path / "site"], "--profile says what"),
        (["learn", tmp_path / "nowhere", "--profile", BOARD], "no such site"),
        (["learn", tmp_path / "site", "--profile", "slow-bord"], "Did you mean 'slow-board'?"),
        (["learn", tmp_path / "site", "--profile", BOARD, "--picture", "x.gif"], "no picture is written like this"),
        (["learn", tmp_path / "site", "--profile", BOARD, "--days", "-1"], "must be a number above 0"),
        (["learn", "--reset", "--profile", "laptop-x86-16gb"], "nothing was learned"),
        (["learn", tmp_path / "site", "--vocabulary"], "no device tells which characters"),
    ):
        done = run_cli(*words)
        assert (done.code, said in done.err) == (2, True), (words, done)
    # A device that says nothing counts for the profile that its release was planned for.
    other = run_cli("learn", tmp_path / "site", "--profile", "laptop-x86-16gb", "--min-reports", "1")
    assert other.code == 2 and f"7 of another profile, {BOARD}" in other.err


def test_one_lineage_from_the_plan_to_the_receipt(finished: Path) -> None:
    result = edgegen.read_result(finished)
    lineage = result.plan.lineage
    assert lineage.startswith("sha256:") and result.artifact.lineage == lineage
    assert result.report.digests["lineage"] == lineage
    assert lineage in (finished / "report.html").read_text()
    assert load_json(finished / "report.json", Report).digests["lineage"] == lineage
    terms = result.plan.terms
    assert terms is not None and terms.model_bytes == result.plan.prediction.bytes
    assert int(terms.rss_bytes) == result.plan.prediction.rss_bytes


@pytest.mark.slow
def test_over_http_with_an_operators_token(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_user_profile(board(2e7))
    plan = load_json(finished / "plan.json", Plan)
    site = tmp_path / "site"
    for part in ("metadata", "targets", "blobs"):
        (site / "repository" / part).mkdir(parents=True)
    release = fill(site, plan, [100.0] * 30, profile=BOARD)
    token = run_cli("fleet", "operator", site, "alice").out.strip()
    with serving(site) as (url, _):
        refused = run_cli("learn", "--url", url, "--profile", BOARD)
        assert refused.code == 2 and "an operator's token is needed" in refused.err
        monkeypatch.setenv("EDGEGEN_FLEET_TOKEN", token)
        here = run_cli("learn", site, "--profile", BOARD, "--dry-run", "--json")
        there = run_cli("learn", "--url", url, "--profile", BOARD, "--dry-run", "--json")
        assert there.code == 0, there.err
        assert json.loads(there.out) == json.loads(here.out)
        traced = run_cli("fleet", "trace", url, "pi-1")
        assert traced.code == 0, traced.err
        for told in (plan.lineage, plan.model.source, plan.model.digest, release, "kitchen@1.0.0", "38 reported"):
            assert told in traced.out


@pytest.mark.slow
def test_what_the_trimmed_vocabulary_lacks_is_kept_next_time(tmp_path: Path, calm_llama: Path, finished: Path) -> None:
    """Users write letters and digits; the data that the vocabulary was trimmed for has neither after a space."""
    plan = load_json(finished / "plan.json", Plan)
    vocabulary, tokenizer = Vocabulary(calm_llama / "tokenizer.json"), open_tokenizer(calm_llama)
    merged = [
        character
        for character in "abcdefghijklmnopqrstuvwxyz"
        if len(tokenizer.encode(f" {character}", add_special_tokens=False)) == 1
    ]
    assert len(merged) >= 5, "the tests' tokenizer joins a space with letters"
    now = time.time()
    with site_store(tmp_path / "site") as store:
        release = store.release(manifest_of(plan))
        store.device("pi-1")
        for _ in range(3):
            missing = json.dumps(dict.fromkeys(merged, 2))
            store.generation("pi-1", release, now - 9, byte_fraction=0.5, missing=missing)
    out = tmp_path / "restore.json"
    done = run_cli("learn", tmp_path / "site", "--vocabulary", "--out", out)
    assert done.code == 0, done.err
    assert f"{len(merged)} characters are written byte by byte; 50 % of prompts' tokens are bytes" in done.out
    restored = load_json(out, Restore)
    ids = {tokenizer.convert_tokens_to_ids(token) for token in restored.tokens}
    assert ids == {tokenizer.encode(f" {c}", add_special_tokens=False)[0] for c in merged} - vocabulary.always
    assert edgegen.restore_vocabulary(str(tmp_path / "site")) == restored
    other = run_cli("learn", tmp_path / "site", "--vocabulary", "--model", tmp_path, "--out", out)
    assert other.code == 2 and "no config.json" in other.err

    digits = tmp_path / "digits.jsonl"
    digits.write_text("".join(json.dumps({"text": f"({n}{n}):{n * 7}%;" * 4}) + "\n" for n in range(40)))
    trimmed = ("--profile", "laptop-x86-16gb", "--max-kl", "50", "--vocab", "288", "--data", digits)
    kept = {}
    for name, more in (("without", ()), ("with", ("--keep-tokens", out))):
        made = run_cli("plan", calm_llama, "--out", tmp_path / name, *trimmed, *more)
        assert made.code == 0, made.err
        with np.load((tmp_path / f"{name}.partial") / "vocabularies.npz") as stored:
            kept[name] = set(stored[stored.files[0]].tolist())
    assert ids - kept["without"] and ids <= kept["with"]


REAL_GRID = "q8_0"


@pytest.mark.slow
def test_real_measurements_on_this_machine_correct_a_planted_profile(tmp_path: Path, tiny_data: Path) -> None:
    """An artifact runs here 50 times; bandwidth and kernels of this machine's profile are planted twice too slow.

    They are planted against what was measured, and the next plan is held against the same measurements: a machine that
    other tests load meanwhile is another device a minute later.
    """
    pytest.importorskip("llama_cpp")
    from edgegen.runtime.probe import probe_machine
    from edgegen.runtime.registry import runtime_for

    probed = probe_machine(name=BOARD, grids=(REAL_GRID, "f32"), bandwidth_bytes=64 << 20)
    probed = msgspec.structs.replace(
        probed,
        targets=("gguf",),
        workload=msgspec.structs.replace(probed.workload, context_tokens=256, threads=1),
    )
    save_user_profile(probed)
    model = make_calm("llama", tmp_path / "model", hidden=512, layers=6, heads=8, ffn=1536, tied=True)
    wishes: dict[str, Any] = {"profile": BOARD, "data": str(tiny_data), "out": tmp_path / "out", "max_kl": 5.0}
    wishes |= {"grids": (REAL_GRID,), "vocab": "keep", "min_tokens_per_s": 1.0, "max_ttft_ms": 60_000.0}
    made = edgegen.compress(str(model), **wishes)
    with runtime_for("gguf").open(made.model_file, made.plan.settings) as session:
        session.measure([1, 2, 3, 4], decode_tokens=16)
        timings = [session.measure([1, 2, 3, 4], decode_tokens=24) for _ in range(50)]
    speeds = [timing.decoded_tokens / timing.decode_s for timing in timings]
    measured = statistics.median(speeds)
    save_user_profile(planted(probed, 2 * speed_on(probed, made.plan) / measured))
    before = edgegen.plan(str(model), **wishes)
    assert isinstance(before, Plan) and before.terms == made.plan.terms
    assert before.prediction.decode_tokens_per_s < 0.7 * measured
    fill(tmp_path / "site", before, speeds)
    assert edgegen.learn(str(tmp_path / "site"), profile=BOARD).reports == 50
    after = edgegen.plan(str(model), **wishes)
    assert isinstance(after, Plan) and after.terms == made.plan.terms
    print(
        f"measured {measured:.1f} tok/s; predicted {speed_on(probed, made.plan):.1f} as probed, "
        f"{before.prediction.decode_tokens_per_s:.1f} with the planted numbers, "
        f"{after.prediction.decode_tokens_per_s:.1f} with those learned"
    )
    assert after.prediction.decode_tokens_per_s == pytest.approx(measured, rel=0.15)


def planted(profile: Profile, factor: float) -> Profile:
    """With bandwidth and kernels so many times slower, and still called measured."""
    own = profile.device.bandwidth_bytes_per_s.value
    return msgspec.structs.replace(
        profile,
        device=msgspec.structs.replace(
            profile.device, bandwidth_bytes_per_s=Number(own / factor, "measured", "planted")
        ),
        kernel_ns_per_weight={
            grid: Number(factor * number.value, "measured", "planted")
            for grid, number in profile.kernel_ns_per_weight.items()
        },
    )
