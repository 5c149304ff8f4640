"""How a teacher is asked for an example of a task, and how what it wrote is read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import msgspec

from edgegen.common.codec import digest_record
from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.records.task import Task

END = "\n\n"
"""After each example."""
_PROMPT, _ANSWER = "{prompt}", "{answer}"


def task_version(task: Task) -> str:
    """Twelve digits over everything that the task says."""
    return digest_record(msgspec.to_builtins(task)).removeprefix("sha256:")[:12]


def require_task(task: Task) -> None:
    """
    Raises:
        ConfigError: a format without its two places, a pattern that is none, numbers out of range.
    """
    if task.format.count(_PROMPT) != 1 or task.format.count(_ANSWER) != 1:
        raise ConfigError(f"task {task.name}: format needs {{prompt}} and {{answer}} once each")
    if task.format.index(_PROMPT) > task.format.index(_ANSWER):
        raise ConfigError(f"task {task.name}: in format {{prompt}} comes before {{answer}}")
    if task.write:
        if task.write.count(_PROMPT) != 1 or task.write.count(_ANSWER) != 1:
            raise ConfigError(f"task {task.name}: write needs {{answer}} and {{prompt}} once each")
        if task.write.index(_ANSWER) > task.write.index(_PROMPT):
            raise ConfigError(f"task {task.name}: in write {{answer}} comes before {{prompt}}")
        if not task.answers:
            raise ConfigError(f"task {task.name}: write needs a list of answers", hint='Like answers = ["on", "off"].')
    try:
        re.compile(task.pattern)
    except re.error as error:
        raise ConfigError(f"task {task.name}: pattern: {error}") from error
    for name, least in (("synthetic", 0), ("tries", 1), ("max_new_tokens", 1)):
        if getattr(task, name) < least:
            raise ConfigError(f"task {task.name}: {name} must be at least {least}")
    if task.shots < (0 if task.write and task.study_steps else 1):
        raise ConfigError(
            f"task {task.name}: shots must be at least 1", hint="0 goes with write and study_steps: it knows them then."
        )
    if task.filters.asks < 0 or not task.temperature > 0 or not 0 < task.top_p <= 1:
        raise ConfigError(f"task {task.name}: asks, temperature or top_p is out of range")


def pairs_of(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """(request, answer) of examples of one turn.

    Raises:
        ConfigError: there are none.
    """
    found = [
        (example.messages[0][1], example.messages[-1][1])
        for example in examples
        if example.completion and len(example.messages) >= 2
    ]
    if not found:
        raise ConfigError("no example has a request and an answer", hint="Few-shot needs such rows.")
    return found


def shown(task: Task, pairs: Sequence[tuple[str, str]]) -> str:
    """Examples as a teacher sees them, each followed by an empty line."""
    head = f"{task.instruction}\n\n" if task.instruction else ""
    return head + "".join(filled(task, pair) + END for pair in pairs)


def filled(task: Task, pair: tuple[str, str]) -> str:
    """One example in the form that the teacher writes."""
    form = task.write or task.format
    first, second = (_ANSWER, _PROMPT) if task.write else (_PROMPT, _ANSWER)
    before, _, rest = form.partition(first)
    between, _, after = rest.partition(second)
    values = {_PROMPT: pair[0], _ANSWER: pair[1]}
    return before + values[first] + between + values[second] + after


def opening(task: Task, pairs: Sequence[tuple[str, str]], answer: str = "") -> str:
    """What a teacher goes on from to write an example: after some others, up to where it begins.

    It does not end in a space: tokenizers put that before the next word, and a teacher that finds it alone is lost.

    Args:
        answer: that the request is written to, where the task has `write`.
    """
    before = (task.write or task.format).partition(_PROMPT)[0]
    return (shown(task, pairs) + (before.replace(_ANSWER, answer) if task.write else before)).rstrip(" ")


def read_pair(task: Task, text: str, answer: str = "") -> tuple[str, str] | None:
    """The example in a continuation that begins with its request; None if it does not come to its end.

    Args:
        answer: that the request was written to, where the task has `write`.
    """
    if task.write:
        prompt, end, _ = text.partition(task.write.partition(_PROMPT)[2] + END)
        return (prompt.strip(), answer) if end and prompt.strip() else None
    between = task.format.partition(_PROMPT)[2].partition(_ANSWER)[0]
    prompt, middle, rest = text.partition(between)
    said = rest.partition(END)[0].removesuffix(task.format.partition(_ANSWER)[2])
    if not middle or not prompt.strip() or not said.strip() or END in prompt:
        return None
    return prompt.strip(), said.strip()


def refusal_of(task: Task, pair: tuple[str, str] | None) -> str:
    """Why an example cannot be used whatever the teacher thinks; empty if it can."""
    if pair is None:
        return "cannot be read"
    answer = pair[1]
    if task.answers and answer not in task.answers:
        return "no such answer"
    if task.pattern and not re.fullmatch(task.pattern, answer):
        return "answer does not match"
    if task.json:
        try:
            said = json.loads(answer)
        except (ValueError, RecursionError):
            return "answer is no JSON"
        if not isinstance(said, dict) or any(key not in said for key in task.required):
            return "answer lacks keys"
    return ""
