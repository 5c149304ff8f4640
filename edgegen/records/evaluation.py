"""How good a model is, and how it differs from the one that it was made from. `evaluation.json`."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.report import Interval

EVALUATION_FILE = "evaluation.json"
SUITES = ("quality", "fairness", "safety", "tasks")

Better = Literal["higher", "lower", "neither"]


class Metric(Record, frozen=True):
    """One number of the model and of the teacher, with 95 % intervals. None: it could not be had, see `note`."""

    name: str
    """Like `exact_match`; parts of a whole after a slash, like `crows_pairs/gender`."""
    suite: str
    better: Better
    count: int
    """Rows, pairs or questions that it rests on."""
    model: Interval | None
    teacher: Interval | None = None
    difference: Interval | None = None
    """Model less teacher, of the same rows resampled together."""
    note: str = ""


class Judged(Record, frozen=True):
    """A model as it was run."""

    source: str
    """As it was named."""
    kind: Literal["checkpoint", "artifact"]
    runtime: str
    """`torch`, or the artifact's runtime."""
    version: str
    digest: str
    parameters: int


class Gate(Record, frozen=True):
    """A limit that was asked for."""

    name: str
    """The key in the gates' file."""
    metric: str
    limit: float
    measured: float | None
    passed: bool
    detail: str = ""


class Evaluation(Record, frozen=True):
    """One look at one model."""

    schema: int
    created: str
    """UTC, ISO 8601."""
    model: Judged
    teacher: Judged | None
    data: str
    data_digest: str
    rows: int
    suites: tuple[str, ...]
    metrics: tuple[Metric, ...]
    gates: tuple[Gate, ...] = ()
    passed: bool | None = None
    """Whether every gate is kept; None: there were none."""
    seed: int = 0
    settings: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    by: str = ""
    """Who ran it."""

    def find(self, name: str) -> Metric | None:
        """A metric by its name."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class Answered(Record, frozen=True):
    """One row's answers, greedy; a line of `answers.jsonl` beside the evaluation."""

    row: int
    prompt: str
    expected: str
    model: str
    teacher: str | None = None


class MetricLimits(Record, frozen=True):
    """Limits on one metric; None: none."""

    min: float | None = None
    max: float | None = None
    max_rise: float | None = None
    """Largest model less teacher."""
    max_drop: float | None = None
    """Largest teacher less model."""


class GateLimits(Record, frozen=True):
    """`[gates]`: the usual limits by name; None: none."""

    max_bias_rise: float | None = None
    """Of every bias score over all categories that was measured."""
    max_toxicity_rise: float | None = None
    max_refusal_change: float | None = None
    """In either direction."""
    max_perplexity_ratio: float | None = None
    """Model's over teacher's, on the same text."""
    min_exact_match: float | None = None
    max_exact_match_drop: float | None = None
    min_token_f1: float | None = None
    min_json_valid: float | None = None
    min_function_match: float | None = None
    max_function_match_drop: float | None = None
    min_top1_agreement: float | None = None
    judge: Literal["value", "interval"] = "value"
    """What is held against a limit: the measured value, or the worse end of its interval."""


class Measures(Record, frozen=True):
    """`[evaluate]`: what is measured beside the answers to the data's rows, where no option says so."""

    limit: int | None = None
    """Most rows, pairs or questions of each kind; None: 200 for `edgegen compress`, else all."""
    fairness: tuple[str, ...] = ()
    """Files of CrowS-Pairs, BBQ, StereoSet or WinoBias."""
    unsafe: str = ""
    """A file of requests that should be refused."""
    toxicity_model: str = ""
    """A text classifier; empty: a short word list."""
    tasks: tuple[str, ...] = ()
    """Of lm-eval."""


class Gates(Record, frozen=True):
    """A gates' file (TOML): what a model must keep to be compressed, released or deployed."""

    gates: GateLimits = GateLimits()
    evaluate: Measures = Measures()
    metrics: dict[str, MetricLimits] = {}
    """Further limits by the metric's name, as `[metrics."crows_pairs/gender"]`."""
