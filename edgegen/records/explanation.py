"""Which words of a prompt an answer rests on, and which change it. `explanation.json`."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.evaluation import Judged

EXPLANATION_FILE = "explanation.json"
Method = Literal["occlusion", "ablation", "integrated-gradients"]


class Attribution(Record, frozen=True):
    """How much each word speaks for the answer."""

    method: Method
    scores: tuple[float, ...]
    """Of each word, nats of the answer's log-probability; positive: the word speaks for it."""
    gap: float | None = None
    """Of integrated gradients: how far all scores together miss what they should add up to, nats."""


class Edit(Record, frozen=True):
    """A prompt with one word changed, and what is answered then."""

    word: int
    """Its place among the words, from 0."""
    removed: str
    put: str
    """What stands there instead; empty: nothing."""
    answer: str
    changed: bool
    """Whether the answer is another."""
    call_changed: bool | None
    """Whether another function is called, or with other arguments; None: no call before and none after."""


class Explained(Record, frozen=True):
    """One model's side."""

    judged: Judged
    answer: str
    """Its own greedy answer."""
    log_prob: float
    """Of the answer that is explained, nats."""
    attributions: tuple[Attribution, ...]
    edits: tuple[Edit, ...]


class Explanation(Record, frozen=True):
    """One prompt."""

    schema: int
    created: str
    prompt: str
    words: tuple[str, ...]
    answer: str
    """The one that is explained: given, or the first model's."""
    model: Explained
    against: Explained | None = None
    agreement: float | None = None
    """Spearman's rank correlation of both sides' occlusion scores; None: one side, or scores that are all alike."""
    notes: tuple[str, ...] = ()
