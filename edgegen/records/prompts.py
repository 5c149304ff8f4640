"""Prompts that are tried before any data is collected, and what each was worth."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from edgegen.records.base import Record
from edgegen.records.evaluation import Judged, Metric
from edgegen.records.task import Task

_MARK = re.compile(r"\{#- edgegen prompt (\S+) (\S+) -#\}")


class Prompt(Record, frozen=True):
    """One candidate, `[prompts.NAME]` in a prompts' file."""

    system: str = ""
    """Told before the conversation."""
    template: str = "{prompt}"
    """What the user's words are put into, at `{prompt}`."""
    shots: int = 0
    """Examples of the data that are shown first; these are not scored."""


class PromptFile(Record, frozen=True):
    """`prompts.toml`."""

    prompts: dict[str, Prompt] = {}
    task: Task | None = None
    """How a teacher is asked for more examples, with the prompt that was chosen, by `edgegen distill --few-shot`."""


class PromptScore(Record, frozen=True):
    """What one candidate was worth."""

    name: str
    version: str
    """The first 12 digits of the digest of its text and its examples."""
    metrics: tuple[Metric, ...]
    """`difference` is to the best candidate, on the same rows."""
    as_good: bool
    """The best, or one whose difference to it could be chance: its interval holds 0."""


class PromptTrial(Record, frozen=True):
    """One comparison; a line of `prompts.history.jsonl` beside the prompts' file."""

    schema: int
    created: str
    model: Judged
    data: str
    data_digest: str
    rows: int
    judged_by: str
    """The metric that decides."""
    best: str
    scores: tuple[PromptScore, ...]
    prompts: dict[str, Prompt]
    """As they were."""
    notes: tuple[str, ...] = ()


class PromptUsed(Record, frozen=True):
    """A candidate that was written as a chat template; also a line of the history."""

    schema: int
    created: str
    name: str
    version: str
    prompt: Prompt
    model: str
    template: str
    """The file."""
    template_digest: str


def prompt_mark(name: str, version: str) -> str:
    """What a chat template begins with that carries a prompt: a comment, which writes nothing."""
    return f"{{#- edgegen prompt {quote(name, safe='')} {version} -#}}"


def prompt_in(template: str) -> str:
    """Name and version of the prompt that a chat template carries; empty if it carries none."""
    found = _MARK.match(template)
    return f"{unquote(found[1])} {found[2]}" if found else ""
