"""The SDK gives the records that the command line writes; each stage runs alone."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import edgegen
from edgegen.catalog import load_target
from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.records.measured import Measured
from edgegen.records.plan import Infeasible, Plan
from edgegen.records.reference import Reference
from edgegen.records.report import Report
from edgegen.sdk.job import Job
from edgegen.sdk.output import measure_output
from edgegen.sdk.subject import Subject
from tests.flows.command import make_calm
from tests.tiny_models import sample_texts

PROFILE = "laptop-x86-16gb"


def test_the_finished_output_is_read_as_records(finished: Path) -> None:
    result = edgegen.read_result(finished)
    assert result.passed and result.report == load_json(finished / "report.json", Report)
    assert result.plan == load_json(finished / "plan.json", Plan)
    assert result.model_file == finished / "artifact" / "model.gguf" and result.model_file.is_file()


def test_compress_gives_what_the_command_line_wrote(finished_copy: Path, calm_llama: Path, tiny_data: Path) -> None:
    """The same wishes in Python's words: everything is done before, and the records are the files'."""
    events: list[tuple[str, str]] = []
    before = edgegen.read_result(finished_copy)
    result = edgegen.compress(
        str(calm_llama),
        profile=PROFILE,
        data=str(tiny_data),
        out=finished_copy,
        max_kl=0.5,
        vocab="keep",
        notify=lambda stage, state, done, total: events.append((stage, state)),
    )
    assert result == before
    assert events == [(s, "skipped") for s in ("measure", "plan", "compress", "export", "reference", "verify")]


def test_a_profile_may_be_a_record(calm_llama: Path, tiny_data: Path, finished_copy: Path) -> None:
    device = edgegen.load_profile(PROFILE)
    result = edgegen.compress(
        str(calm_llama), profile=device, data=str(tiny_data), out=finished_copy, max_kl=0.5, vocab="keep"
    )
    assert result.plan.profile == device


def test_an_infeasible_plan_is_a_value_and_an_infeasible_compress_an_error(
    calm_llama: Path, tiny_data: Path, finished_copy: Path
) -> None:
    more = {"profile": PROFILE, "data": str(tiny_data), "out": finished_copy, "max_kl": 0.5, "vocab": "keep"}
    found = edgegen.plan(str(calm_llama), max_bytes=1000, **more)
    assert isinstance(found, Infeasible) and found.binding == "max_bytes" and found.best > 1000
    with pytest.raises(edgegen.InfeasibleError) as caught:
        edgegen.compress(str(calm_llama), max_bytes=1000, **more)
    assert caught.value.exit_code == 4 and str(caught.value) == found.message


@pytest.mark.parametrize("name", ["max_bytes", "max_rss_bytes", "min_tokens_per_s", "max_ttft_ms", "max_kl"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_budgets_that_are_none(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(edgegen.ConfigError, match=rf"budget {name} is .*above 0"):
        edgegen.compress("model", profile=PROFILE, out=tmp_path / "out", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_preferring_size_needs_a_limit_on_quality(tmp_path: Path) -> None:
    device = edgegen.load_profile(PROFILE)
    free = msgspec.structs.replace(device, budgets=msgspec.structs.replace(device.budgets, max_kl=None))
    with pytest.raises(edgegen.ConfigError, match="preferring size needs a limit on quality") as caught:
        edgegen.compress("model", profile=free, out=tmp_path / "out", prefer="size")
    assert "--max-kl" in caught.value.hint


def test_importing_edgegen_imports_nothing_heavy() -> None:
    program = (
        "import sys, json, edgegen; dir(edgegen); edgegen.ConfigError;"
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy', 'typer', 'scipy') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_every_public_name_resolves() -> None:
    assert all(getattr(edgegen, name) is not None for name in edgegen.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = edgegen.nothing


@pytest.mark.slow
def test_each_stage_alone(tmp_path: Path) -> None:
    """Measure, plan, compress, export, reference, verify on a folder, with a trimmed vocabulary and answers."""
    model = make_calm("llama", tmp_path / "model", tied=True, chat_template=None)
    rows = [{"prompt": t[:60], "completion": '{"on": true} ' + t[60:90]} for t in sample_texts(40, seed=6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "work"
    folder.mkdir()
    device, stages = edgegen.load_profile(PROFILE), edgegen.stages
    job = Job(Subject(str(model), str(tmp_path / "rows.jsonl"), [load_target("gguf")]), device, load_target("gguf"))
    budgets = msgspec.structs.replace(device.budgets, max_kl=20.0)

    measured = stages.measure(job, folder, grids=("q8_0", "q4_0"), vocab="320")
    assert measured == load_json(folder / "measured.json", Measured)
    assert [choice.size for choice in measured.vocabularies] == [320]
    plan = stages.make_plan(job, folder, budgets=budgets, prefer="size", grids=("q8_0", "q4_0"))
    assert plan == load_json(folder / "plan.json", Plan)
    stages.compress(job, folder, plan)
    artifact = stages.export(job, folder, plan)
    assert artifact.vocab_size == 320
    assert (folder / "artifact" / "model.gguf").stat().st_size == plan.prediction.bytes
    stages.reference(job, folder, plan)
    reference = load_json(folder / "reference" / "reference.json", Reference)
    assert reference.trimmed and all(prompt.expected for prompt in reference.prompts)
    report = measure_output(folder, command="")
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.task is not None and report.task.call_fraction is not None
    assert report.quality is not None and report.quality.renormalised
    assert report.digests["artifact"] == digest_file(folder / "artifact" / "model.gguf")
