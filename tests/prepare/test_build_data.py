"""Building a data set: each step, the whole, and what must never happen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgegen
from edgegen.common.codec import load_json
from edgegen.common.words import jaccard, shingles
from edgegen.errors import ConfigError
from edgegen.prepare.bias import Membership, balance_weights, check_bias
from edgegen.prepare.build import split_rows
from edgegen.prepare.built import open_dataset, read_rows
from edgegen.prepare.clean import clean_rows, normalise
from edgegen.prepare.duplicates import drop_contaminated, drop_duplicates
from edgegen.prepare.label import kappa, label_rows
from edgegen.prepare.redact import Redactor, redact_rows
from edgegen.prepare.split import prepare_data
from edgegen.prepare.stage import text_of
from edgegen.records.dataset import Dataset, Label, Row
from edgegen.records.recipe import Balance, Bias, Clean, LabelRule, Labels, Recipe, Redact, Source, SplitSizes
from tests.flows.command import run_cli


def row(text: str, **more: object) -> Row:
    return Row(id=str(abs(hash(text))), text=text, **more)  # type: ignore[arg-type]


SENTENCES = [
    f"{who} {does} the {what} in the {place}"
    for who in ("she", "he", "the child", "my friend")
    for does in ("opened", "painted", "lost", "repaired", "sold")
    for what in ("door", "lamp", "bicycle", "radio")
    for place in ("kitchen", "garden")
]


# Steps


def test_text_is_normalised() -> None:
    assert normalise("e\u0301  a\u00a0b \r\n\r\n\r\n\r\nc\x00\u200b ") == "\u00e9 a b\n\nc"


def test_rows_are_dropped_for_a_reason() -> None:
    rows = [
        row("good enough"),
        row(" \n "),
        row("x" * 300),
        row("a"),
        Row(id="1", messages=(("user", "hi"), ("assistant", " ")), completion=True),
    ]
    stage = clean_rows(rows, Clean(min_characters=2, max_characters=200))
    assert [text_of(r) for r in stage.rows] == ["good enough"]
    assert stage.dropped == {"empty": 1, "too long": 1, "too short": 1, "no answer": 1}


def test_other_languages_go_and_unsure_ones_stay() -> None:
    rows = [
        row("Could you please turn on the light in the kitchen for me this evening?"),
        row("K\u00f6nntest du bitte heute Abend das Licht in der K\u00fcche f\u00fcr mich einschalten?"),
        row("ok"),
    ]
    stage = clean_rows(rows, Clean(languages=("en",)))
    assert [r.text for r in stage.rows] == [rows[0].text, "ok"] and stage.dropped == {"another language": 1}
    with pytest.raises(ConfigError, match="'xx' is unknown"):
        clean_rows(rows, Clean(languages=("xx",)))


def test_near_duplicates_are_those_of_brute_force() -> None:
    dice = np.random.default_rng(0)
    rows = []
    for text in SENTENCES[:60]:
        words = (text + " and then went home to sleep for a very long time until the morning came").split()
        rows.append(row(" ".join(words)))
        words[int(dice.integers(len(words)))] = "suddenly"
        rows.append(row(" ".join(words)))
    kept: list[Row] = []
    for entry in rows:
        if all(jaccard(shingles(entry.text), shingles(other.text)) < 0.6 for other in kept):
            kept.append(entry)
    found = drop_duplicates([*rows, rows[0]], 0.6)
    assert [r.text for r in found.rows] == [r.text for r in kept]
    assert found.dropped["equal"] >= 1
    assert len(drop_duplicates(rows, None).rows) == len({r.text for r in rows})


def test_evaluation_texts_do_not_stay_in_training() -> None:
    evaluation = ["The quick brown fox jumps over the lazy dog every single day", "what time is it"]
    rows = [
        row("He said: the QUICK brown fox, jumps over the lazy dog!"),
        row("The quick brown fox sleeps."),
        row("What time is it?"),
        row("what time is it in Rome"),
    ]
    stage = drop_contaminated(rows, evaluation, 8)
    assert [r.text for r in stage.rows] == [rows[1].text, rows[3].text]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.example.org please", "EMAIL_ADDRESS"),
        ("call +44 20 7946 0958 after six", "PHONE_NUMBER"),
        ("the card 4012-8888-8888-1881 was used", "CREDIT_CARD"),
        ("pay to GB82 WEST 1234 5698 7654 32 today", "IBAN_CODE"),
        ("the host 192.168.17.4 is down", "IP_ADDRESS"),
    ],
)
def test_personal_data_is_blotted(text: str, kind: str) -> None:
    blotted, counts = Redactor(Redact()).blot(text)
    assert f"[{kind}]" in blotted and counts[kind] == 1
    assert not any(ch.isdigit() for ch in blotted) and "@" not in blotted


def test_numbers_that_are_nobodys_stay_and_own_rules_are_followed(tmp_path: Path) -> None:
    assert Redactor(Redact()).blot("set it to 21.5 degrees at 7:30 in room 4012")[1] == {}
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "BADGE"\npattern = "B-[0-9]{4}"\n')
    stage, counts = redact_rows([row("badge B-1234"), row("none")], Redact(rules=str(rules)))
    assert [r.text for r in stage.rows] == ["badge [BADGE]", "none"] and counts == {"BADGE": 1}
    assert stage.rows[0].touched == ("redact",) and stage.changed == 1
    rules.write_text('[[rule]]\nname = "BAD"\npattern = "("\n')
    with pytest.raises(ConfigError, match="'BAD'"):
        Redactor(Redact(rules=str(rules)))
    with pytest.raises(ConfigError, match="'SHOE_SIZE' is unknown"):
        Redactor(Redact(entities=("SHOE_SIZE",)))


def test_labels_are_voted_and_functions_judged(tmp_path: Path) -> None:
    code = tmp_path / "labels.py"
    code.write_text(
        "def short(text):\n    return 'light' if len(text) < 12 else None\n\ndef broken(text):\n    return 1 / 0\n"
    )
    rules = (LabelRule("lamp", "light", "lamp|light"), LabelRule("warm", "heating", "warm|heat"))
    wanted = Labels(rules=rules, functions=(f"{code}:short",))
    rows = [
        row("lamp on"),
        row("make the living room warm"),
        row("warm light"),
        row("nothing that is known"),
        row("turn the lamp on now", labels={"label": Label("light", "ann")}),
        row("heat up the lamp quickly", labels={"label": Label("heating", "ben")}),
    ]
    stage, report = label_rows(rows, wanted)
    values = [r.labels["label"].value if r.labels else None for r in stage.rows]
    assert values == ["light", "heating", "light", None, "light", "heating"]
    assert stage.rows[4].labels["label"].by == "ann"
    lamp = next(f for f in report.functions if f.name == "lamp")
    assert (lamp.coverage, lamp.accuracy, lamp.judged) == (4 / 6, 0.5, 2)
    assert report.unlabelled == 1
    with pytest.raises(ConfigError, match="'broken' failed on row"):
        label_rows(rows, Labels(functions=(f"{code}:broken",)))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        label_rows(rows, Labels(functions=("labels.py:none",)))


def test_kappa() -> None:
    assert kappa([("a", "a"), ("b", "b")]) == 1.0
    assert kappa([("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]) == 0.0
    assert kappa([("a", "a")]) is None and kappa([]) is None
    pairs = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert kappa(pairs) == pytest.approx(0.4)  # Cohen's own kind of example: (0.7 - 0.5) / 0.5


def test_planted_bias_is_found_and_balance_evens_it_out() -> None:
    rows = [row(f"she is a terrible awful driver number {n}") for n in range(30)]
    rows += [row(f"he is a wonderful excellent driver number {n}") for n in range(100)]
    report, belongs = check_bias(rows, Bias(topics=2), "label")
    flags = {g.group: g.flags for g in report.groups}
    assert flags["women"] == ("under-represented", "spoken of less kindly")
    assert flags["men"] == ("spoken of more kindly",)
    weights = balance_weights(belongs, Balance(by="group"))
    assert sum(weights[:30]) == pytest.approx(sum(weights[30:]), rel=1e-6)
    assert np.mean(weights) == pytest.approx(1.0)
    capped = balance_weights(Membership([()] * 101, ["a"] * 100 + ["b"]), Balance(by="topic", limit=3.0))
    assert capped[-1] / capped[0] == pytest.approx(3.0 / (50.5 / 100))
    fair, _ = check_bias([row(t) for t in SENTENCES], Bias(topics=2), "label")
    assert not any(g.flags for g in fair.groups if g.category == "gender")


def test_splits_follow_from_content_alone() -> None:
    rows = [row(text) for text in SENTENCES]
    parts = split_rows(rows, SplitSizes(0.2, 0.1))
    assert sorted(r.text for part in parts.values() for r in part) == sorted(SENTENCES)
    fewer = split_rows(rows[: len(rows) // 2][::-1], SplitSizes(0.2, 0.1))
    for name, part in fewer.items():
        assert {r.text for r in part} <= {r.text for r in parts[name]}


# The whole


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    lines = [json.dumps({"text": text, "label": "home", "annotator": "ann"}) for text in SENTENCES]
    lines += [json.dumps({"text": SENTENCES[3]}), json.dumps({"text": "  "}), json.dumps({"text": None})]
    lines.append(json.dumps({"prompt": "write to bob@example.com about the radio", "completion": "done"}))
    lines.append(json.dumps({"text": "y" * 1_000_000}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_data_set_is_built_twice_alike_and_knows_where_rows_come_from(raw: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="home", source=(Source(str(raw), license="CC0"),))
    one = edgegen.build_data(recipe=recipe, out=tmp_path / "one")
    two = edgegen.build_data(recipe=recipe, out=tmp_path / "two")
    assert one.dataset.digest == two.dataset.digest
    for split in one.dataset.splits:
        assert (tmp_path / "one" / split.file).read_bytes() == (tmp_path / "two" / split.file).read_bytes()
    assert load_json(tmp_path / "one" / "dataset.json", Dataset) == one.dataset
    assert one.redacted == {"EMAIL_ADDRESS": 1}
    rows = [r for split in one.dataset.splits for r in read_rows(tmp_path / "one", split.name)]
    assert len({r.id for r in rows}) == len(rows)
    mailed = next(r for r in rows if r.completion)
    assert mailed.source == f"raw.jsonl#{len(SENTENCES) + 4}" and mailed.touched == ("redact",)
    assert next(r for r in rows if r.text == SENTENCES[0]).labels["label"] == Label("home", "ann")
    card = (tmp_path / "one" / "card.md").read_text()
    assert "CC0" in card and "1 too long" in card and "2 empty" in card
    assert (tmp_path / "one" / "bias.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_what_compress_and_finetune_read(raw: Path, tmp_path: Path) -> None:
    edgegen.build_data([str(raw)], out=tmp_path / "d")
    split = prepare_data(str(tmp_path / "d"))
    sizes = {part.name: part.rows for part in open_dataset(tmp_path / "d").splits}
    assert len(split.calibration) == sizes["train"] and len(split.heldout) == sizes["validation"] + sizes["test"]
    train = tmp_path / "d" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"door", b"wall"))
    with pytest.raises(ConfigError, match="is not what was built"):
        prepare_data(str(tmp_path / "d"))


def test_balanced_by_resampling_each_label_counts_alike(tmp_path: Path) -> None:
    path = tmp_path / "raw.csv"
    rows = [f'"{text}",{"rare" if n % 8 == 0 else "common"}' for n, text in enumerate(SENTENCES)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    recipe = Recipe(balance=Balance(by="label", how="resample"))
    built = edgegen.build_data([str(path)], recipe=recipe, out=tmp_path / "d")
    values = [r.labels["label"].value for r in read_rows(tmp_path / "d", "train")]
    assert 0.6 < values.count("rare") / values.count("common") < 1.6
    assert built.dataset.steps[-1].name == "balance"


def test_the_command(raw: Path, tmp_path: Path) -> None:
    done = run_cli("data", "build", raw, "--out", tmp_path / "d", "--balance", "topic", "--quiet")
    assert done.code == 0 and "EMAIL_ADDRESS" in done.out and "edgegen finetune" in done.out
    assert "too long" in run_cli("data", "show", tmp_path / "d").out
    found = run_cli("data", "where", tmp_path / "d", "about the radio")
    assert found.code == 0 and "raw.jsonl#" in found.out and "redact" in found.out
    assert json.loads(run_cli("data", "where", tmp_path / "d", "about the radio", "--json").out)["touched"]
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "one row only"}\n')
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for arguments, words in (
        ([few], "1 rows are left of 1"),
        ([], "no source"),
        ([tmp_path / "none.jsonl"], "no such data file"),
        ([raw, "--balance", "luck"], "Invalid"),
        ([raw, "--near", "7"], "does not lie between"),
        ([raw, "--validation", "0.6", "--test", "0.5"], "together below"),
        ([raw, "--out", taken], "is no data set"),
    ):
        refused = run_cli(
            "data", "build", *arguments, *([] if "--out" in arguments else ["--out", tmp_path / "e"]), "--quiet"
        )
        assert refused.code == 2 and words in refused.err and "Traceback" not in refused.err, refused.err
    assert not (tmp_path / "e").exists() and (taken / "mine.txt").read_text() == "mine"
    assert run_cli("data", "where", tmp_path / "d", "in the").code == 2


def test_what_cannot_be_built_is_said_before_any_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegen.prepare.build.read_numbered", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "empty.toml").write_text("# nothing\n")
    (tmp_path / "rows.jsonl").write_text("mine")
    for words, says in (
        (("--recipe", tmp_path / "empty.toml"), "empty.toml: it says nothing"),
        (("--validation", "nan"), "split: "),
        (("--max-characters", "0"), "clean: "),
        (("--near", "nan"), "duplicates.near"),
        (("--out", "."), "names no folder to make"),
        (("--out", tmp_path / "rows.jsonl"), "exists and is no data set"),
    ):
        done = run_cli("data", "build", tmp_path / "rows.jsonl", "--out", tmp_path / "data", "--quiet", *words)
        assert done.code == 2 and says in done.err and not done.out, done
