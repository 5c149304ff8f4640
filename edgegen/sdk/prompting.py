"""Try prompts on a handful of examples, and keep their versions: `edgegen.try_prompts(model, prompts=…, data=…)`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import digest_record, load_toml
from edgegen.common.files import digest_bytes, disk_errors, write_text
from edgegen.errors import ConfigError
from edgegen.evaluate.prompts import HOLE, chat_template, load_prompts, version_of
from edgegen.evaluate.prompts import try_prompts as run_trial
from edgegen.modeling.load import find_model, open_tokenizer
from edgegen.prepare.built import example_of, is_built, read_rows
from edgegen.prepare.sources import read_examples
from edgegen.records.base import Record
from edgegen.records.data import Example
from edgegen.records.prompts import PromptFile, PromptTrial, PromptUsed, prompt_mark
from edgegen.records.task import Task
from edgegen.sdk.artifacts import RECORD, find_artifact
from edgegen.sdk.judging import open_scorer
from edgegen.sdk.output import BAKEOFF_FILE

Told = Callable[[int, int, str], None]


def history_file(prompts: Path) -> Path:
    """Where a prompts' file has its history: beside it, `prompts.history.jsonl`."""
    return prompts.with_suffix(".history.jsonl")


def try_prompts(
    model: str,
    *,
    prompts: str | Path,
    data: str,
    limit: int | None = None,
    max_tokens: int = 96,
    target: str = "",
    runtime: str = "",
    told: Told | None = None,
) -> PromptTrial:
    """Score every candidate on the same rows, and add a line to the history.

    Args:
        model: a checkpoint or what `compress` wrote.
        data: a few rows with answers; of a built data set its validation split.
        limit: most rows.

    Raises:
        ConfigError, UnsupportedError, NetworkError, DeviceError: see `edgegen.errors`.
    """
    path = Path(prompts).expanduser()
    candidates = load_prompts(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    rows = few_rows(data)[:limit]
    if max_tokens < 1:
        raise ConfigError(f"--max-tokens must be at least 1, not {max_tokens}")
    scorer = open_scorer(model, target=target, runtime=runtime)
    try:
        best, decider, scores, asked = run_trial(scorer, candidates, rows, max_tokens=max_tokens, told=told)
    finally:
        scorer.close()
    notes = []
    if not getattr(scorer.tokenizer, "chat_template", None):
        notes.append("this model has no chat template: prompts are plain lines before the text that it continues")
    if asked < 30:
        notes.append(f"{asked} rows tell only large differences apart")
    trial = PromptTrial(
        schema=1,
        created=_now(),
        model=scorer.judged,
        data=data,
        data_digest=digest_record(rows),
        rows=asked,
        judged_by=decider,
        best=best,
        scores=tuple(scores),
        prompts=candidates,
        notes=tuple(notes),
    )
    _append(history_file(path), trial)
    return trial


def use_prompt(name: str, *, prompts: str | Path, model: str, out: str | Path, data: str = "") -> PromptUsed:
    """Write a candidate as the model's chat template, and add a line to the history.

    The template names the prompt's version in a comment, so that whatever carries the one carries the other; and the
    prompt chosen last seeds the teacher of `edgegen distill --few-shot`, see `read_task`.

    Args:
        model: whose template it becomes: a checkpoint or what `compress` wrote.
        out: the template's file, for `edgegen pack --replace chat_template.jinja=FILE`.
        data: where its examples come from, if it shows any: the same as was tried.

    Raises:
        ConfigError: no such candidate or model, or examples without data.
    """
    path = Path(prompts).expanduser()
    candidates = load_prompts(path)
    if name not in candidates:
        raise ConfigError(f"{path}: has no prompt {name!r}", hint="It has " + ", ".join(sorted(candidates)) + ".")
    prompt = candidates[name]
    shown = [row for row in few_rows(data) if row.completion] if data else []
    if len(shown) < prompt.shots:
        raise ConfigError(f"prompt {name!r} shows {prompt.shots} examples", hint="Name where they are with --data.")
    folder = Path(model).expanduser()
    if any((folder / mark).is_file() for mark in (RECORD, BAKEOFF_FILE, "plan.json")):
        folder = find_artifact(folder)
    else:
        folder = Path(find_model(model).path)
    version = version_of(prompt, shown)
    text = prompt_mark(name, version) + chat_template(prompt, shown, open_tokenizer(folder))
    place = Path(out).expanduser()
    write_text(place, text)
    used = PromptUsed(
        schema=1,
        created=_now(),
        name=name,
        version=version,
        prompt=prompt,
        model=model,
        template=str(place),
        template_digest=digest_bytes(text.encode()),
    )
    _append(history_file(path), used)
    return used


def read_task(path: str | Path) -> Task:
    """How a teacher is asked for more examples: a file of a task, or a prompts' file with `[task]`.

    Of the latter, the prompt that `use_prompt` chose last, as it was then, gives the instruction, its template stands
    around the request, and its shots are shown; where none was chosen the task is as it is written.

    Raises:
        ConfigError: no such file, an unknown key, no task in it, or a prompt that does not fit it.
    """
    place = Path(path).expanduser()
    if not {"prompts", "task"} & set(load_toml(place, dict[str, Any])):
        return load_toml(place, Task)
    task = load_toml(place, PromptFile).task
    if task is None:
        raise ConfigError(
            f"{place}: has no [task]", hint="Add one with schema, name and format: how the teacher is asked."
        )
    chosen = [entry for entry in read_history(place) if isinstance(entry, PromptUsed)]
    return seeded(task, chosen[-1]) if chosen else task


def seeded(task: Task, used: PromptUsed) -> Task:
    """A task with the prompt that was chosen.

    Raises:
        ConfigError: its template has several places for the request, or one for the answer.
    """
    prompt = used.prompt
    if prompt.template.count(HOLE) != 1 or "{answer}" in prompt.template:
        raise ConfigError(
            f"the template of prompt {used.name!r} cannot stand in a task", hint="It needs {prompt} once."
        )
    return msgspec.structs.replace(
        task,
        instruction=prompt.system or task.instruction,
        format=task.format.replace(HOLE, prompt.template),
        shots=prompt.shots or task.shots,
        prompt=f"{used.name} {used.version}",
    )


def few_rows(data: str) -> list[Example]:
    """All rows of a source; of a built data set its validation split.

    Raises:
        ConfigError, NetworkError: it cannot be read.
    """
    if is_built(data):
        return [example_of(row) for row in read_rows(data, "validation")]
    return read_examples(data)


def read_history(prompts: str | Path) -> list[PromptTrial | PromptUsed]:
    """Everything that was tried and used, oldest first; none if nothing was.

    Raises:
        ConfigError: no such prompts, or a history that was altered.
    """
    source = Path(prompts).expanduser()
    path = history_file(source)
    if not path.is_file():
        if not source.is_file():
            raise ConfigError(f"{source}: no such file", hint="Name the file of prompts.")
        return []
    found: list[PromptTrial | PromptUsed] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if b'"scores":' in line:
                found.append(msgspec.json.decode(line, type=PromptTrial))
            else:
                found.append(msgspec.json.decode(line, type=PromptUsed))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: line {number}: {error}", hint="Mend it, or move the file away.") from error
    return found


def _append(path: Path, record: Record) -> None:
    """Add a line, on the disk before this returns."""
    with disk_errors(path), path.open("ab") as stream:
        stream.write(msgspec.json.encode(record) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
