"""Ask a teacher for more examples of a task, and keep those that stand up.

A few real examples, the seeds, are shown; the teacher writes one more. An example is kept if it can be read, passes
the task's validators, is like no seed and no other example, the teacher is sure of its answer, and gives the same
answer again when it is shown other seeds (self-consistency, Wang et al. 2023; filtering as in Self-Instruct, Wang et
al. 2023).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.common.codec import digest_record
from edgegen.common.words import jaccard, shingles, words_of
from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.records.task import SyntheticReport, Task

Told = Callable[[int, int, str], None]
_TOGETHER = 16
"""Examples that are generated at once."""


class Made(msgspec.Struct, frozen=True):
    """One example of the teacher."""

    prompt: str
    answer: str
    confidence: float
    agreement: float
    shown: tuple[int, ...]
    """Seeds that it was shown."""


class _Found(msgspec.Struct):
    kept: list[Made]
    dropped: Counter[str]
    asked: int = 0


def task_version(task: Task) -> str:
    """Twelve digits over everything that the task says."""
    return digest_record(msgspec.to_builtins(task)).removeprefix("sha256:")[:12]


def require_task(task: Task) -> None:
    """
    Raises:
        ConfigError: a format without its two places, a pattern that is none, numbers out of range.
    """
    if task.format.count("{prompt}") != 1 or task.format.count("{answer}") != 1:
        raise ConfigError(f"task {task.name}: format needs {{prompt}} and {{answer}} once each")
    if task.format.index("{prompt}") > task.format.index("{answer}"):
        raise ConfigError(f"task {task.name}: in format {{prompt}} comes before {{answer}}")
    try:
        re.compile(task.pattern)
    except re.error as error:
        raise ConfigError(f"task {task.name}: pattern: {error}") from error
    for name in ("shots", "synthetic", "tries", "max_new_tokens"):
        if getattr(task, name) < 1:
            raise ConfigError(f"task {task.name}: {name} must be at least 1")
    if task.filters.asks < 0 or not task.temperature > 0 or not 0 < task.top_p <= 1:
        raise ConfigError(f"task {task.name}: asks, temperature or top_p is out of range")


def shown(task: Task, pairs: Sequence[tuple[str, str]]) -> str:
    """Examples as a teacher sees them, each followed by an empty line."""
    head = f"{task.instruction}\n\n" if task.instruction else ""
    body = [task.format.replace("{prompt}", prompt).replace("{answer}", answer) for prompt, answer in pairs]
    return head + "".join(f"{text}\n\n" for text in body)


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


def synthesize(
    model: Any, tokenizer: Any, seeds: Sequence[tuple[str, str]], task: Task, *, teacher: str, seed: int, told: Told
) -> tuple[list[Made], SyntheticReport]:
    """Examples that a teacher writes.

    Args:
        model: the teacher, in memory.
        seeds: real (request, answer) pairs.

    Raises:
        ConfigError: fewer than 2 seeds, or the task cannot be followed.
    """
    require_task(task)
    if len(seeds) < 2:
        raise ConfigError(f"{len(seeds)} examples to start from; 2 are needed at least")
    dice = np.random.default_rng(seed)
    torch.manual_seed(seed)
    known = [shingles(prompt) for prompt, _ in seeds]
    texts = {prompt.strip().lower() for prompt, _ in seeds}
    found = _Found(kept=[], dropped=Counter())
    counts: Counter[str] = Counter()
    room = (
        max(1, round(task.filters.max_share * task.synthetic / len(task.answers))) if task.answers else task.synthetic
    )
    while len(found.kept) < task.synthetic and found.asked < task.tries:
        which = tuple(int(i) for i in dice.choice(len(seeds), min(task.shots, len(seeds)), replace=False))
        start = shown(task, [seeds[i] for i in which]) + task.format.partition("{prompt}")[0]
        for text in _continue(model, tokenizer, start, task, min(_TOGETHER, task.tries - found.asked)):
            found.asked += 1
            pair = read_pair(task, text)
            why = refusal_of(task, pair)
            if not why and pair is not None:
                prompt, answer = pair
                cut = shingles(prompt)
                if prompt.lower() in texts or any(jaccard(cut, other) > task.filters.max_similarity for other in known):
                    why = "like a seed or another"
                elif counts[answer] >= room:
                    why = "answer is frequent enough"
                else:
                    confidence = answer_confidence(model, tokenizer, task, [seeds[i] for i in which], pair)
                    agreement = _agreement(model, tokenizer, task, seeds, pair, dice)
                    if confidence < task.filters.min_confidence:
                        why = "teacher is unsure"
                    elif agreement < task.filters.min_agreement:
                        why = "teacher says otherwise when asked again"
                    else:
                        counts[answer] += 1
                        known.append(cut)
                        texts.add(prompt.lower())
                        found.kept.append(Made(prompt, answer, confidence, agreement, which))
            if why:
                found.dropped[why] += 1
            if len(found.kept) == task.synthetic:
                break
        told(len(found.kept), task.synthetic, f"{found.asked} asked")
    return found.kept, _report(found, task, teacher, len(seeds), counts)


def read_pair(task: Task, text: str) -> tuple[str, str] | None:
    """The example in a continuation that begins with its request; None if it has no answer."""
    between = task.format.partition("{prompt}")[2].partition("{answer}")[0]
    prompt, middle, rest = text.partition(between)
    answer = rest.partition("\n\n")[0].removesuffix(task.format.partition("{answer}")[2])
    if not middle or not prompt.strip() or not answer.strip() or "\n\n" in prompt:
        return None
    return prompt.strip(), answer.strip()


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


def _continue(model: Any, tokenizer: Any, start: str, task: Task, count: int) -> list[str]:
    """Sampled continuations of a text."""
    ids = tokenizer(start, return_tensors="pt", add_special_tokens=True)["input_ids"]
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    if ids.shape[1] + task.max_new_tokens > context:
        ids = ids[:, -(context - task.max_new_tokens) :]
    if ids.shape[1] < 1:
        raise ConfigError(
            f"task {task.name}: the teacher's context of {context} tokens is too small", hint="Fewer shots."
        )
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=task.temperature,
            top_p=task.top_p,
            top_k=0,
            num_return_sequences=count,
            max_new_tokens=task.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        )
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in made]


def answer_confidence(
    model: Any, tokenizer: Any, task: Task, seeds: Sequence[tuple[str, str]], pair: tuple[str, str]
) -> float:
    """Mean log-probability of the answer's tokens after the seeds and the request, nats."""
    before, _, _ = task.format.partition("{answer}")
    start = shown(task, seeds) + before.replace("{prompt}", pair[0])
    head = tokenizer(start)["input_ids"]
    whole = tokenizer(start + pair[1])["input_ids"]
    same = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    cut = max(0, len(whole) - context)
    ids = torch.tensor([whole[cut:]])
    first = max(1, min(same, len(whole) - 1) - cut)
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits[0, first - 1 : -1].float(), dim=-1)
    return float(logs.gather(-1, ids[0, first:, None]).mean())


def _agreement(
    model: Any, tokenizer: Any, task: Task, seeds: Sequence[tuple[str, str]], pair: tuple[str, str], dice: Any
) -> float:
    """Share of greedy answers to the request, each after other seeds, that are the example's."""
    if not task.filters.asks:
        return 1.0
    same = 0
    for _ in range(task.filters.asks):
        which = dice.choice(len(seeds), min(task.shots, len(seeds)), replace=False)
        others = [seeds[i] for i in which]
        if task.answers:
            scores = {a: answer_confidence(model, tokenizer, task, others, (pair[0], a)) for a in task.answers}
            same += max(scores, key=lambda a: scores[a]) == pair[1]
        else:
            before = task.format.partition("{answer}")[0]
            start = shown(task, others) + before.replace("{prompt}", pair[0])
            ids = tokenizer(start, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                made = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=task.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
                )
            text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            same += text.partition("\n\n")[0].strip() == pair[1]
    return same / task.filters.asks


def _report(found: _Found, task: Task, teacher: str, seeds: int, counts: Counter[str]) -> SyntheticReport:
    pairs = [
        pair for made in found.kept for pair in zip(words_of(made.prompt), words_of(made.prompt)[1:], strict=False)
    ]
    notes = []
    if len(found.kept) < task.synthetic:
        notes.append(f"{len(found.kept)} of {task.synthetic} examples after {found.asked} tries")
    missing = [answer for answer in task.answers if not counts[answer]]
    if missing:
        notes.append("no example has the answer " + ", ".join(missing))
    return SyntheticReport(
        schema=1,
        task=task.name,
        version=task_version(task),
        teacher=teacher,
        seeds=seeds,
        asked=found.asked,
        kept=len(found.kept),
        dropped=dict(found.dropped.most_common()),
        counts=dict(counts.most_common(10)),
        mean_confidence=float(np.mean([m.confidence for m in found.kept])) if found.kept else None,
        mean_agreement=float(np.mean([m.agreement for m in found.kept])) if found.kept else None,
        distinct2=len(set(pairs)) / len(pairs) if pairs else None,
        prompt=task.prompt,
        notes=tuple(notes),
    )
