"""The registry: what lies in folders, what each was made from, and the same in MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError
from edgegen.evaluate.quality import Wanted
from edgegen.records.training import TRAINING_FILE, Training
from edgegen.sdk.registry import ancestry, descendants, evaluations, find_entry, list_models
from edgegen.sdk.tracking import track_entries
from tests.flows.command import run_cli
from tests.tiny_models import make_tiny, sample_texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher on it, a student of the teacher."""
    folder = tmp_path_factory.mktemp("registry")
    make_tiny("llama", folder / "base")
    rows = [{"prompt": text, "completion": text[:16]} for text in sample_texts(60, words=8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edgegen.build_data([str(folder / "rows.jsonl")], out=folder / "work" / "data")
    data, run = str(folder / "work" / "data"), {"steps": 2, "batch": 4, "max_tokens": 64}
    edgegen.finetune(str(folder / "base"), data=data, out=folder / "work" / "teacher", **run)
    edgegen.distill(
        str(folder / "work" / "teacher"), student="layers=1", data=data, out=folder / "work" / "student", **run
    )
    (folder / "work" / "student" / "plan.json").write_text('{"somebody": "else\'s"}')
    return folder


def test_a_student_is_traced_to_its_rows(place: Path) -> None:
    entries = list_models(place / "work")
    assert [entry.kind for entry in entries] == ["data", "model", "model"]
    student = find_entry(entries, str(place / "work" / "student"))
    names = [(depth, one if isinstance(one, str) else one.name) for depth, one in ancestry(entries, student)]
    assert names == [
        (0, "student"),
        (1, "teacher"),
        (2, f"model {place / 'base'}"),
        (2, "data"),
        (3, "source rows.jsonl"),
        (1, "data"),
        (2, "source rows.jsonl"),
    ]
    data = find_entry(entries, entries[0].id[:5])
    assert {entry.name for entry in descendants(entries, data)} == {"teacher", "student"}
    assert student.lineage == data.lineage and student.metrics["parameters"] > 0 and student.by
    card = (place / "work" / "student" / "README.md").read_text()
    assert "teacher" in card and "held-out loss" in card and data.digest[:19] in card


def test_a_moved_folder_takes_its_history_along(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "work" / "teacher", tmp_path / "elsewhere")
    entries = list_models(tmp_path, place / "work")
    assert len(entries) == 3  # the copy is the same thing
    record = load_json(tmp_path / "elsewhere" / TRAINING_FILE, Training)
    assert record.model_digest == next(e.digest for e in list_models(tmp_path))


def test_the_command(place: Path, tmp_path: Path) -> None:
    listed = run_cli("models", "--in", place / "work")
    assert listed.code == 0 and listed.out.count("model ") >= 2 and "edgegen models show" in listed.out
    shown = run_cli("models", "show", place / "work" / "student", "--in", place / "work")
    assert "made from" in shown.out and "└ model teacher" in shown.out and "(not here)" in shown.out
    tree = json.loads(run_cli("models", "show", place / "work" / "data", "--in", place / "work", "--json").out)
    assert {entry["name"] for entry in tree["made_into"]} == {"teacher", "student"}
    assert "nothing here yet" in run_cli("models", "--in", tmp_path).out
    for arguments in (
        ("models", "show", "ffff", "--in", place / "work"),
        ("models", "--in", place / "none"),
        ("models", "--in", place / "work", "--kind", "modle"),
    ):
        refused = run_cli(*arguments)
        assert refused.code == 2 and "Traceback" not in refused.err


def test_evaluations_stand_in_the_lineage(place: Path, tmp_path: Path) -> None:
    work, judged, gates = (
        shutil.copytree(place / "work", tmp_path / "work"),
        tmp_path / "judged",
        tmp_path / "gates.toml",
    )
    (work / "student" / "plan.json").unlink()
    gates.write_text("[gates]\nmin_top1_agreement = 0\nmin_exact_match = 2\n")
    found = edgegen.evaluate(
        str(work / "student"),
        against=str(work / "teacher"),
        data=str(work / "data"),
        out=judged,
        limit=2,
        wanted=Wanted(max_tokens=2, samples=1),
        gates=str(gates),
    )
    entries = list_models(work, judged)
    entry = next(entry for entry in entries if entry.kind == "evaluation")
    assert entry.name == "of student" and entry.note == "misses min_exact_match, 2 rows" and entry.by
    exact = found.find("exact_match")
    assert exact is not None and exact.model is not None and entry.metrics["exact_match"] == exact.model.value
    above = [one if isinstance(one, str) else one.name for depth, one in ancestry(entries, entry) if depth == 1]
    assert above == ["student", "teacher", "data"]
    student, teacher = (find_entry(entries, str(work / name)) for name in ("student", "teacher"))
    assert evaluations(entries, student) == [entry] and evaluations(entries, teacher) == []
    assert entry not in descendants(entries, student)
    where = ("--in", work, "--in", judged)
    listed = run_cli("models", "--kind", "evaluation", *where).out
    assert entry.id in listed and "misses min_exact_match" in listed
    shown = run_cli("models", "show", work / "student", *where).out
    assert "\njudged\n  · " in shown and entry.id in shown
    drawn = run_cli("models", "show", judged, *where)
    assert drawn.code == 0 and "└ model student" in drawn.out and "made from" in drawn.out
    tree = json.loads(run_cli("models", "show", work / "student", *where, "--json").out)
    assert [e["id"] for e in tree["evaluations"]] == [entry.id]


@pytest.mark.slow
def test_runs_are_written_to_mlflow_once(place: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    entries, store = list_models(place / "work"), f"file:{tmp_path / 'runs'}"
    assert track_entries(entries, store) == 3 and track_entries(entries, store) == 0
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("edgegen")
    runs = client.search_runs([experiment.experiment_id])
    found = {run.data.tags["edgegen.digest"]: run.data for run in runs}
    for entry in entries:
        assert found[entry.digest].metrics == pytest.approx(entry.metrics)
        assert found[entry.digest].tags["edgegen.parents"] == ",".join(entry.parents)
    with pytest.raises(ConfigError):
        track_entries(entries, "nonsense://store")
