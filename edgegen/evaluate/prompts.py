"""Compare prompts on a handful of examples, and write the best as a chat template.

Few examples decide little: candidates are compared on the same rows, and those whose difference to the best could be
chance are named with it. A chat template can carry a prompt, and bundles and light releases carry chat templates; the
template made here gives, for plain conversations, exactly the ids that were scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import digest_record, load_toml
from edgegen.errors import ConfigError
from edgegen.evaluate import answers as scores
from edgegen.evaluate.quality import Request, Told, Wanted, answers_of, counting
from edgegen.evaluate.scorer import Scorer, continuation
from edgegen.evaluate.statistics import Floats, mean_columns, measure
from edgegen.modeling.text import prompt_ids, render
from edgegen.records.data import Example
from edgegen.records.prompts import Prompt, PromptFile, PromptScore

HOLE = "{prompt}"
_DECIDERS = ("function_match", "exact_match", "answer_log_prob")


def load_prompts(path: Path) -> dict[str, Prompt]:
    """Candidates from a TOML file.

    Raises:
        ConfigError: no such file, an unknown key, none in it, or a template without its hole.
    """
    found = load_toml(path, PromptFile).prompts
    if not found:
        raise ConfigError(f"{path}: no prompts in it", hint="Add a table like [prompts.short].")
    for name, prompt in found.items():
        if HOLE not in prompt.template:
            raise ConfigError(f"{path}: the template of {name!r} lacks {HOLE}", hint="The user's words stand there.")
        if prompt.shots < 0:
            raise ConfigError(f"{path}: shots of {name!r} must be 0 or more, not {prompt.shots}")
    return found


def version_of(prompt: Prompt, shown: Sequence[Example]) -> str:
    """The first 12 digits of the digest of a prompt and the examples that it shows."""
    return digest_record([prompt, *shown[: prompt.shots]]).partition(":")[2][:12]


def with_prompt(prompt: Prompt, shown: Sequence[Example], example: Example) -> Example:
    """An example as the model sees it with a prompt.

    Args:
        shown: examples; the first `shots` of them go before.
    """
    before: list[tuple[str, str]] = [("system", prompt.system)] if prompt.system else []
    for shot in shown[: prompt.shots]:
        before += _filled(prompt, [turn for turn in shot.messages if turn[0] != "system"])
    turns = list(example.messages)
    if prompt.system:
        turns = [turn for turn in turns if turn[0] != "system"]
    return msgspec.structs.replace(example, messages=(*before, *_filled(prompt, turns)))


def _filled(prompt: Prompt, turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(role, prompt.template.replace(HOLE, content) if role == "user" else content) for role, content in turns]


def try_prompts(
    scorer: Scorer, prompts: dict[str, Prompt], rows: Sequence[Example], *, max_tokens: int, told: Told | None = None
) -> tuple[str, str, list[PromptScore], int]:
    """Score candidates.

    Args:
        rows: with answers. As many of the first as the largest `shots` are shown, not scored.

    Returns:
        The best's name, the metric that decided, every candidate's score, and how many rows were scored.

    Raises:
        ConfigError: too few rows with answers, or a chat template that refuses a prompt.
    """
    usable = [row for row in rows if row.completion]
    most = max(prompt.shots for prompt in prompts.values())
    shown, asked = usable[:most], usable[most:]
    if len(asked) < 2:
        raise ConfigError(
            f"{len(usable)} rows with answers, of which {most} are shown: at least 2 must be left to score",
            hint="Give more rows, or fewer shots.",
        )
    tell = told or (lambda done, of, words: None)
    table = {name: _score(scorer, prompt, shown, asked, max_tokens, name, tell) for name, prompt in prompts.items()}
    kept = [metric for metric in next(iter(table.values())) if any(side[metric][:, 1].any() for side in table.values())]
    decider = _decider(table, kept)
    means = {name: [_mean(side[key]) for key in (decider, "answer_log_prob")] for name, side in table.items()}
    best = max(means, key=lambda name: means[name])
    found = []
    for name, side in table.items():
        metrics = tuple(
            measure(key, "prompts", "higher", side[key], table[best][key] if name != best else None) for key in kept
        )
        gap = next(metric.difference for metric in metrics if metric.name == decider)
        as_good = name == best or (gap is not None and gap.low <= 0 <= gap.high)
        found.append(PromptScore(name, version_of(prompts[name], shown), metrics, as_good))
    return best, decider, found, len(asked)


def _score(
    scorer: Scorer,
    prompt: Prompt,
    shown: Sequence[Example],
    asked: Sequence[Example],
    max_tokens: int,
    name: str,
    tell: Told,
) -> dict[str, Floats]:
    """Columns of each metric."""
    examples = [with_prompt(prompt, shown, row) for row in asked]
    requests = [Request(place, example, example.messages[-1][1]) for place, example in enumerate(examples)]
    said = answers_of(
        scorer, requests, Wanted(max_tokens=max_tokens), told=counting(tell, len(requests), f"prompt {name}")
    )
    pairs = [(answer, request.expected or "") for answer, request in zip(said, requests, strict=True)]
    return {
        "exact_match": mean_columns([scores.exact_match(*pair) for pair in pairs]),
        "token_f1": mean_columns([scores.token_f1(*pair) for pair in pairs]),
        "json_valid": mean_columns([scores.json_valid(*pair) for pair in pairs]),
        "function_match": mean_columns([scores.function_match(*pair) for pair in pairs]),
        "answer_log_prob": mean_columns([answer_log_prob(scorer, example) for example in examples]),
    }


def answer_log_prob(scorer: Scorer, example: Example) -> float | None:
    """Mean log-probability per token of the right answer, nats; None where it has no token."""
    before, answer, special = render(scorer.tokenizer, example)
    start = prompt_ids(scorer.tokenizer, example)
    whole = [int(i) for i in scorer.tokenizer.encode(before + answer, add_special_tokens=not special)]
    found, _ = continuation(scorer, whole[: len(start)], whole[len(start) :])
    return float(found.mean()) if len(found) else None


def _decider(table: dict[str, dict[str, Floats]], kept: Sequence[str]) -> str:
    """The first metric that tells candidates apart at all."""
    for key in _DECIDERS:
        if key in kept and len({round(_mean(side[key]), 12) for side in table.values()}) > 1:
            return key
    return "answer_log_prob"


def _mean(columns: Floats) -> float:
    return float(columns[:, 0].sum() / max(1.0, columns[:, 1].sum()))


def chat_template(prompt: Prompt, shown: Sequence[Example], tokenizer: Any) -> str:
    """A chat template that puts a prompt around every conversation: the model's own after a few lines that rewrite
    `messages`. A system message that a caller brings stands instead of the prompt's own.

    Raises:
        ConfigError: the model has several templates by name.
    """
    base = getattr(tokenizer, "chat_template", None) or _plain_template(tokenizer)
    if not isinstance(base, str):
        raise ConfigError("this model has several chat templates by name", hint="Keep the one that is used.")
    before: list[tuple[str, str]] = []
    for shot in shown[: prompt.shots]:
        before += _filled(prompt, [turn for turn in shot.messages if turn[0] != "system"])
    start, _, end = prompt.template.partition(HOLE)
    if prompt.template.count(HOLE) != 1:
        raise ConfigError(f"a template with {prompt.template.count(HOLE)} holes cannot become a chat template")
    turns = ", ".join(f"{{'role': {_literal(role)}, 'content': {_literal(content)}}}" for role, content in before)
    system = f"[{{'role': 'system', 'content': {_literal(prompt.system)}}}]" if prompt.system else "[]"
    lines = [
        "{%- set told = namespace(system=" + system + ", turns=[" + turns + "]) -%}",
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'system' -%}",
        "{%- set told.system = [message] -%}",
        "{%- elif message['role'] == 'user' -%}",
        "{%- set told.turns = told.turns + [{'role': 'user', 'content': "
        + f"{_literal(start)} + message['content'] + {_literal(end)}"
        + "}] -%}",
        "{%- else -%}",
        "{%- set told.turns = told.turns + [message] -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- set messages = told.system + told.turns -%}",
    ]
    return "\n".join(lines) + "\n" + base


def _plain_template(tokenizer: Any) -> str:
    """Plain lines, as rows are written for a model without a template."""
    ids = tokenizer.encode("a")
    bos = "{{- bos_token -}}" if ids and ids[0] == tokenizer.bos_token_id else ""
    return bos + "{%- for message in messages -%}{{- message['content'] + '\\n' -}}{%- endfor -%}"


def _literal(text: str) -> str:
    """A Jinja string."""
    return json.dumps(text, ensure_ascii=False)
