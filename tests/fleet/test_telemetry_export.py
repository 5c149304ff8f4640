"""Telemetry as files: what stands in them, what is left out, and that they are whole or not there."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.telemetry.batches import read_batch
from edgegen.fleet.telemetry.export import export
from edgegen.fleet.telemetry.ingest import take
from edgegen.fleet.telemetry.schema import REPORTS
from edgegen.fleet.telemetry.store import Span, add_event
from edgegen.records.telemetry import Feedback, Happening, Health, Privacy, Sample
from tests.fleet.site import Desk
from tests.flows.command import run_cli
from tests.simulators.reporting_device import RELEASE, batch_of, generation, report

FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1", "@x", "\tx", " =1", "＝1")


@pytest.fixture
def fleet(desk: Desk) -> Desk:
    """A fleet with an old answer, a new one and what hurts in a table."""
    desk.now_s = time.time()
    desk.run(
        lambda tx: tx.run(
            "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, revoked) "
            "VALUES ('pi-1', 'kitchens', 'x', '{}', '', 0, 0)"
        )
    )
    items: list[Any] = [
        generation(1, missing={"ж": 1}),
        generation(2, ttft_s=None, error="\x1b[31mred"),
        Health(RELEASE, 5.0),
        Feedback("g", 1, "secret"),
        *(Sample("g", RELEASE, text, "secret\nline", Privacy.FULL, "sampled") for text in FORMULAS),
        *(Happening("info", "x", text) for text in FORMULAS),
    ]
    reports = [report(seq, item, stream="s", age_s=7200 if seq == 1 else 0) for seq, item in enumerate(items, 1)]
    incoming = read_batch(batch_of(reports, stream="s"))
    desk.run(lambda tx: take(tx, desk.now_s, tx.rows("SELECT * FROM devices")[0], incoming))
    desk.run(lambda tx: add_event(tx, desk.now_s, level="warning", what="alert", group="garages"))
    return desk


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv(fleet: Desk, tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    done = export(fleet.database.url, tmp_path / "out", format="csv", progress=lambda kind, n: seen.update({kind: n}))
    assert done.rows["generations"] == seen["generations"] == 2 and done.rows["canaries"] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{kind}.csv" for kind in REPORTS} | {"export.json"}
    first, second = _read_csv(tmp_path / "out" / "generations.csv")
    assert (first["device"], first["group"], first["release"], first["template"]) == (
        *("pi-1", "kitchens"),
        *(RELEASE, "0123456789ab"),
    )
    assert float(first["at_s"]) == pytest.approx(fleet.now_s - 7200, abs=60) and first["late"] == "1"
    assert (second["ttft_s"], second["error"]) == ("", "\N{REPLACEMENT CHARACTER}[31mred")  # unknown is not 0
    events = _read_csv(tmp_path / "out" / "events.csv")
    assert [row["detail"] for row in events[:-1]] == ["'" + text for text in FORMULAS]
    assert (events[-1]["device"], events[-1]["group"], events[-1]["stream"]) == ("", "garages", "")
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert not {"missing", "served"} & set(first)


def test_texts_only_where_they_are_asked_for(fleet: Desk, tmp_path: Path) -> None:
    export(fleet.database.url, tmp_path / "out", format="csv", kinds=("samples", "feedback"), texts=True)
    assert [row["prompt"] for row in _read_csv(tmp_path / "out" / "samples.csv")] == ["'" + text for text in FORMULAS]
    assert _read_csv(tmp_path / "out" / "samples.csv")[0]["answer"] == "secret\nline"
    assert not (tmp_path / "out" / "generations.csv").exists()


def test_parquet_keeps_types_and_strings(fleet: Desk, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    export(fleet.database.url, tmp_path / "out", texts=True)
    table = parquet.read_table(tmp_path / "out" / "generations.parquet")
    first, second = table.to_pylist()
    assert (str(table.schema.field("at_s").type), str(table.schema.field("seq").type)) == ("double", "int64")
    assert (first["seq"], second["ttft_s"], second["error"]) == (1, None, "\x1b[31mred")
    prompts = parquet.read_table(tmp_path / "out" / "samples.parquet")["prompt"].to_pylist()
    assert prompts == list(FORMULAS)
    assert parquet.read_table(tmp_path / "out" / "canaries.parquet").num_rows == 0


def test_a_span_by_when_things_happened(fleet: Desk, tmp_path: Path) -> None:
    for span, rows in (
        (Span(fleet.now_s - 3600), 1),
        (Span(None, fleet.now_s - 3600), 1),
        (Span(fleet.now_s - 9000, fleet.now_s + 60), 2),
    ):
        assert export(fleet.database.url, tmp_path / "out", format="csv", span=span).rows["generations"] == rows


def test_an_export_is_whole_or_not_there(fleet: Desk, tmp_path: Path) -> None:
    def stop(kind: str, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(fleet.database.url, tmp_path / "out", format="csv", progress=stop)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no export"):
        export(fleet.database.url, tmp_path / "out", format="csv")
    for wrong in ({"format": "xls"}, {"kinds": ("devices",)}, {"span": Span(5.0, 5.0)}):
        with pytest.raises(ConfigError):
            export(fleet.database.url, tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_from_the_command_line(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "repository").mkdir(parents=True)
    desk = Desk(str(site / "fleet.db"))
    desk.run(lambda tx: add_event(tx, time.time() - 3 * 86400, level="info", what="started"))
    desk.database.close()
    out = tmp_path / "out"
    done = run_cli(
        "fleet", "export", site, "--out", out, "--format", "csv", "--since", "2d", "--kind", "events", "--json"
    )
    assert done.code == 0 and json.loads(done.out)["rows"] == {"events": 0}, done.err
    done = run_cli(
        "fleet", "export", site, "--out", out, "--format", "csv", "--since", "2020-01-01", "--kind", "events"
    )
    assert done.out == "events.csv: 1 rows\n"
    for words in (
        ("export", site, "--out", out, "--since", "yesterday"),
        ("export", "http://fleet", "--out", out),
        ("export", site, "--out", out, "--kind", "audit"),
        ("retention", site, "--text", "-1"),
        ("retention", site, "--text", "nan"),
        ("forget-text", site, "nobody"),
        ("serve", site, "--mqtt", "broker"),
        ("serve", site, "--otlp", "collector"),
    ):
        done = run_cli("fleet", *words)
        assert done.code == 2 and done.err.startswith("edgegen: "), (words, done.err)
    done = run_cli("fleet", "retention", site, "--text", "7")
    assert done.out == "numbers 90 d, text 7 d, events 365 d\n"
