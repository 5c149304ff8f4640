"""Limits: kept, missed, straddled, and not measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgegen.errors import ConfigError, VerificationError
from edgegen.evaluate.gates import judge, load_gates, require_gates, suites_of, with_gates
from edgegen.receipt import summary_lines
from edgegen.receipt.view import bound
from edgegen.records.evaluation import Evaluation, Gates, Judged, Metric
from edgegen.records.report import Check, Interval
from tests.receipt.sample_records import bare_report

_JUDGED = Judged("student", "checkpoint", "torch", "2", "sha256:0", 1)


def evaluation(*metrics: Metric, teacher: bool = True) -> Evaluation:
    return Evaluation(1, "now", _JUDGED, _JUDGED if teacher else None, "d", "", 9, ("quality",), metrics)


def write(tmp_path: Path, text: str) -> Gates:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    return load_gates(path)


_BIAS = Metric(
    "crows_pairs_bias",
    "fairness",
    "lower",
    90,
    Interval(0.1, 0.0, 0.2),
    Interval(0.02, 0.0, 0.1),
    Interval(0.08, 0.03, 0.12),
)
_MATCH = Metric(
    "exact_match",
    "quality",
    "higher",
    90,
    Interval(0.8, 0.7, 0.9),
    Interval(0.9, 0.8, 1),
    Interval(-0.1, -0.15, -0.05),
)


def test_kept_and_missed(tmp_path: Path) -> None:
    gates = write(tmp_path, "[gates]\nmax_bias_rise = 0.1\nmin_exact_match = 0.75\nmax_exact_match_drop = 0.05\n")
    found = judge(evaluation(_BIAS, _MATCH), gates)
    assert [(gate.name, gate.passed) for gate in found.gates] == [
        ("max_bias_rise", True),
        ("max_exact_match_drop", False),
        ("min_exact_match", True),
    ]
    assert found.passed is False and "more rows" in found.gates[0].detail
    with pytest.raises(VerificationError, match=r"max_exact_match_drop 0\.05 is missed by exact_match") as caught:
        require_gates(evaluation(_BIAS, _MATCH), gates)
    assert caught.value.exit_code == 5


def test_the_worse_end_of_the_interval(tmp_path: Path) -> None:
    gates = write(tmp_path, '[gates]\njudge = "interval"\nmax_bias_rise = 0.1\n[metrics.exact_match]\nmin = 0.6\n')
    assert [gate.passed for gate in judge(evaluation(_BIAS, _MATCH), gates).gates] == [False, True]


def test_what_was_not_measured_is_missed(tmp_path: Path) -> None:
    gates = write(tmp_path, "[gates]\nmax_bias_rise = 1.0\nmax_toxicity_rise = 1.0\nmax_perplexity_ratio = 2.0\n")
    alone = Metric("perplexity", "quality", "lower", 9, Interval(3, 2, 4))
    found = judge(evaluation(alone, teacher=False), gates)
    assert not any(gate.passed for gate in found.gates)
    assert "no teacher" in found.gates[-1].detail and found.gates[0].measured is None


def test_a_file_without_limits_or_with_wrong_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no limit"):
        write(tmp_path, "[gates]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'gates\.max_bias'"):
        write(tmp_path, "[gates]\nmax_bias = 1.0\n")


def test_gates_become_the_last_checks_of_a_receipt(tmp_path: Path) -> None:
    gates = write(tmp_path, "[gates]\nmax_bias_rise = 0.1\nmin_exact_match = 0.75\nmax_exact_match_drop = 0.05\n")
    other = msgspec.structs.replace(_BIAS, name="winobias_bias")
    judged = judge(evaluation(_BIAS, other, _MATCH), gates)
    loads = Check("loads", None, None, None, "", True)
    report = with_gates(msgspec.structs.replace(bare_report(), checks=(loads,)), judged)
    assert [(check.name, check.passed) for check in report.checks] == [
        ("loads", True),
        ("gate:max_bias_rise/crows_pairs_bias", True),
        ("gate:max_bias_rise/winobias_bias", True),
        ("gate:max_exact_match_drop", False),
        ("gate:min_exact_match", True),
    ]
    assert not report.passed and report.checks[-1].detail.startswith("exact_match 0.8")
    assert with_gates(report, judged) == report
    assert bound("gate:min_exact_match") == bound("gate:metrics.a.min") == "at least"
    assert bound("gate:max_bias_rise/x") == bound("gate:metrics.a.max_drop") == "at most"
    assert "Gate min_exact_match" in "\n".join(summary_lines(report, None))
    plain = with_gates(report, None)
    assert plain.checks == (loads,) and plain.passed


def test_what_has_to_be_measured(tmp_path: Path) -> None:
    assert suites_of(write(tmp_path, "[gates]\nmin_exact_match = 0.5\n")) == ("quality",)
    assert suites_of(write(tmp_path, "[gates]\nmax_toxicity_rise = 0.5\n")) == ("quality", "safety")
    (tmp_path / "pairs.csv").write_text("")
    found = write(tmp_path, '[evaluate]\nfairness = ["pairs.csv"]\ntasks = ["arc_easy"]\n[metrics.refusal]\nmin = 1\n')
    assert suites_of(found) == ("quality", "fairness", "safety", "tasks")
    assert found.evaluate.fairness == (str(tmp_path / "pairs.csv"),)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        write(tmp_path, "[evaluate]\nlimit = 0\n[gates]\nmin_exact_match = 0.5\n")
