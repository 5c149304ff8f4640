"""lm-eval's own code judges our models, each in its runtime, on a tiny task that lies here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

from edgegen.errors import ConfigError, NetworkError
from edgegen.evaluate.harness import language_model, run_tasks
from edgegen.evaluate.scorer import ArtifactScorer, CheckpointScorer, continuation, text_continuation
from edgegen.export import exporter_for
from edgegen.records.plan import Settings
from tests.flows.command import run_cli
from tests.tiny_models import pack_uniform, sample_texts

_CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
_WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
_ROLL = """
task: tiny_roll
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": text, "choices": ["the cat", "a lamp", "two rivers"], "answer": n % 3}
        for n, text in enumerate(sample_texts(6, words=8))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", _CHOICE), ("write", _WRITE), ("roll", _ROLL)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "rows.jsonl"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_a_runtime_scores_as_torch_does(target: str, calm_llama: Path, tasks: Path, tmp_path: Path) -> None:
    compressed = pack_uniform(calm_llama, tmp_path / "compressed", "f32" if target == "gguf" else "f16")
    settings = Settings(context_tokens=128, ubatch_tokens=48, threads=1, kv_type="f16" if target == "gguf" else "f32")
    exporter_for(target).export(compressed, tmp_path / "artifact", settings, prove_texts=sample_texts(4, seed=5))
    names = ("tiny_choice", "tiny_write", "tiny_roll")
    with ArtifactScorer(tmp_path / "artifact") as model, CheckpointScorer(str(calm_llama)) as teacher:
        metrics, notes = run_tasks(model, teacher, names, folder=str(tasks), limit=4)
        by_hand = []
        for line in (tasks / "rows.jsonl").read_text().splitlines()[:4]:
            row = json.loads(line)
            sums = [text_continuation(teacher, row["question"], " " + c)[0].sum() for c in row["choices"]]
            by_hand.append(float(sums.index(max(sums)) == row["answer"]))
    found = {metric.name: metric for metric in metrics}
    accuracy, rolled = found["tiny_choice/acc"], found["tiny_roll/bits_per_byte"]
    assert accuracy.teacher is not None and accuracy.teacher.value == pytest.approx(sum(by_hand) / 4)
    assert accuracy.count == 4 and accuracy.difference is not None and "tiny_choice/acc_norm" in found
    assert rolled.better == "lower" and rolled.model is not None and rolled.teacher is not None
    assert rolled.model.value == pytest.approx(rolled.teacher.value, abs=0.01)
    assert found["tiny_write/exact_match"].model is not None and "not comparable" in notes[0]


def test_the_interface_agrees_with_the_scorer(calm_llama: Path) -> None:
    with CheckpointScorer(str(calm_llama)) as scorer:
        lm = language_model(scorer)
        text = " ".join(sample_texts(3, words=120))
        ids = scorer.encode(text)
        assert len(ids) > scorer.context_tokens
        [rolled] = lm.loglikelihood_rolling([SimpleNamespace(args=(text,))])
        first = continuation(scorer, [lm.prefix_token_id], ids[: scorer.context_tokens - 1])[0].sum()
        second, at = 0.0, scorer.context_tokens - 1
        while at < len(ids):
            part = ids[at : at + scorer.context_tokens - 1]
            second += continuation(scorer, ids[:at], part)[0].sum()
            at += len(part)
        assert rolled == pytest.approx(first + second, abs=1e-3)
        asked = [SimpleNamespace(args=("the cat", " walked home")), SimpleNamespace(args=("", "the cat"))]
        (value, greedy), (alone, _) = lm.loglikelihood(asked, disable_tqdm=True)
        assert value == pytest.approx(text_continuation(scorer, "the cat", " walked home")[0].sum()) and not greedy
        assert alone == pytest.approx(text_continuation(scorer, "", "the cat")[0].sum())
        [answer] = lm.generate_until([SimpleNamespace(args=("the cat", {"until": "e", "max_gen_toks": 20}))])
        assert "e" not in answer


@pytest.mark.slow
def test_from_the_command_line(calm_llama: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    wish = ("evaluate", calm_llama, "--out", out, "--task-folder", tasks, "--quiet")
    done = run_cli(*wish, "--tasks", "tiny_choice")
    assert done.code == 0 and "tiny_choice/acc" in done.out, done.err
    done = run_cli(*wish, "--tasks", "tiny_chioce")
    assert done.code == 2 and "tiny_chioce" in done.err and "Traceback" not in done.err


def test_a_broken_task_is_one_line(calm_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(_CHOICE.format(file=tmp_path / "none.jsonl"))
    with (
        CheckpointScorer(str(calm_llama)) as scorer,
        pytest.raises((ConfigError, NetworkError), match="lm-eval") as caught,
    ):
        run_tasks(scorer, None, ["tiny_choice"], folder=str(tmp_path))
    assert "\n" not in str(caught.value)
