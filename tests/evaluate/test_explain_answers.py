"""Attributions against what they are by hand, and a checkpoint beside its artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.evaluate.explain import _changed, _places, answer_ids, answer_nats, rank_agreement, words_of
from edgegen.evaluate.scorer import CheckpointScorer, continuation
from edgegen.records.explanation import EXPLANATION_FILE, Explanation
from tests.flows.command import run_cli
from tests.tiny_models import export_tiny

_PROMPT = "the cat walked over, the river"


def test_words_and_changes() -> None:
    spans = words_of(" turn  on (the) lamp!")
    assert len(spans) == 4
    text = "turn on (the) lamp!"
    spans = words_of(text)
    assert [_changed(text, spans, place, "") for place in (0, 2, 3)] == [
        "on (the) lamp!",
        "turn on lamp!",
        "turn on (the)",
    ]
    assert _changed(text, spans, 3, "fan") == "turn on (the) fan!"
    for prompt in ("", "  ", "x " * 201):
        with pytest.raises(ConfigError):
            words_of(prompt)
    assert rank_agreement([1, 2, 3], [2, 4, 9]) == pytest.approx(1) and rank_agreement([1, 1, 1], [1, 2, 3]) is None


def test_occlusion_is_what_a_word_adds_and_gradients_add_up(calm_llama: Path) -> None:
    pytest.importorskip("captum")
    found = edgegen.explain(
        str(calm_llama),
        prompt=_PROMPT,
        answer=" and the lamp",
        methods=("occlusion", "ablation", "integrated-gradients"),
        replacements={"river": "tree", "absent": "x"},
        max_tokens=4,
    )
    occlusion, ablation, gradients = found.model.attributions
    with CheckpointScorer(str(calm_llama)) as scorer:
        whole = answer_nats(scorer, _PROMPT, " and the lamp")
        without = answer_nats(scorer, "the cat walked over, the", " and the lamp")
        assert found.model.log_prob == pytest.approx(whole)
        assert occlusion.scores[-1] == pytest.approx(whole - without, abs=1e-4)
        assert gradients.gap is not None and abs(gradients.gap) < 0.05 * (1 + sum(map(abs, gradients.scores)))
        spans = words_of(_PROMPT)
        ids, owners = _places(scorer, _PROMPT, spans)
        for word in (0, 5):
            blanked = [scorer.eos_ids[0] if owner == word else i for i, owner in zip(ids, owners, strict=True)]
            nats = continuation(scorer, blanked, answer_ids(scorer, " and the lamp"))[0].sum()
            assert ablation.scores[word] == pytest.approx(whole - nats, abs=1e-3)
    assert sorted(set(owners)) == [0, 1, 2, 3, 4, 5]
    assert [edit.put for edit in found.model.edits] == [""] * 6 + ["tree"]
    assert any("absent" in note for note in found.notes)


def test_a_checkpoint_beside_its_artifact(calm_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    export_tiny(calm_llama, tmp_path)
    out = tmp_path / "explained"
    wish = ("explain", calm_llama, "--prompt", _PROMPT, "--max-tokens", "4", "--out", out, "--quiet")
    done = run_cli(*wish, "--against", tmp_path / "artifact", "--answer", " a lamp", "--replace", "cat=dog")
    assert done.code == 0 and "Spearman" in done.out and "cat → dog" in done.out, done.err
    found = load_json(out / EXPLANATION_FILE, Explanation)
    assert found.against is not None and found.against.judged.runtime == "llama.cpp"
    assert found.agreement is not None and found.agreement > 0.8
    mine, its = found.model.attributions[0].scores, found.against.attributions[0].scores
    assert its == pytest.approx(mine, abs=0.05)
    assert [a.method for a in found.model.attributions] == ["occlusion", "integrated-gradients"]
    assert [a.method for a in found.against.attributions] == ["occlusion"] and "no gradients" in found.notes[0]
    assert (out / "explanation.png").read_bytes().startswith(b"\x89PNG")
    done = run_cli(*wish, "--answer", " a", "--method", "occlusion", "--json")
    assert done.code == 0 and len(json.loads(done.out)["words"]) == 6

    with pytest.raises(UnsupportedError, match="cannot be had of an artifact"):
        edgegen.explain(str(tmp_path / "artifact"), prompt=_PROMPT, methods=("ablation",), answer=" a")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", ""), "no words"),
        (("--prompt", "a", "--method", "magic"), "unknown"),
        (("--prompt", "a", "--replace", "x"), "WORD=OTHER"),
        (("--prompt", "a", "--max-tokens", "0"), "--max-tokens"),
        (("--prompt", "the cat", "--answer", ""), "empty"),
    ],
)
def test_wrong_wishes(arguments: tuple[str, ...], says: str, tiny_llama: Path, tmp_path: Path) -> None:
    done = run_cli("explain", tiny_llama, "--quiet", "--out", tmp_path / "e", *arguments)
    assert done.code == 2 and says in done.err and "Traceback" not in done.err
    assert not (tmp_path / "e").exists()
