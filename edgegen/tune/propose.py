"""One batch of examples that a teacher writes, each with what the teacher thinks of it.

A batch depends on its number and the seed alone, not on the batches before, so that they can be made anywhere, in any
order (`shards`), and come out the same.

Where the task has `write`, the teacher is given an answer and writes a request to it; each answer has its turn. How
sure it is of the answer is then judged by the same ability: the answer under which the request is likeliest (the noisy
channel: Min et al. 2022). A small model that has studied a few examples writes better than it labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.words import jaccard, shingles
from edgegen.errors import ConfigError
from edgegen.records.task import Task
from edgegen.tune.asking import END, filled, opening, read_pair, refusal_of, shown

TOGETHER = 16
"""Examples of a batch."""
LIKE_ANOTHER = "like a seed or another"

Pairs = Sequence[tuple[str, str]]


class Proposal(msgspec.Struct, frozen=True):
    """One example that a teacher wrote."""

    prompt: str
    answer: str
    why: str = ""
    """Why it cannot be used; empty if it may be."""
    confidence: float = 0.0
    """Mean log-probability of the answer's tokens; with `write` the answer's log-probability among all; nats."""
    agreement: float = 0.0
    """Share of the times that the teacher gave the same answer when it was shown other seeds."""
    shown: tuple[int, ...] = ()
    """Seeds that it was shown."""


def propose(model: Any, tokenizer: Any, seeds: Pairs, task: Task, seed: int, number: int) -> list[Proposal]:
    """Batch `number`, from 0: at most `TOGETHER` examples, and the last batch what is left of the task's tries.

    Raises:
        ConfigError: the teacher's context is too small.
    """
    dice = np.random.default_rng([seed, number])
    torch.manual_seed(int(dice.integers(1 << 62)))
    which = tuple(int(i) for i in dice.choice(len(seeds), min(task.shots, len(seeds)), replace=False))
    pairs = [seeds[i] for i in which]
    answer = task.answers[number % len(task.answers)] if task.write else ""
    count = min(TOGETHER, task.tries - TOGETHER * number)
    known = [shingles(prompt) for prompt, _ in seeds]
    texts = {prompt.strip().lower() for prompt, _ in seeds}
    found = []
    for text in _continue(model, tokenizer, opening(task, pairs, answer), task, count):
        pair = read_pair(task, text, answer)
        why = refusal_of(task, pair)
        if why or pair is None:
            found.append(Proposal("", "", why))
            continue
        cut = shingles(pair[0])
        if pair[0].lower() in texts or any(jaccard(cut, other) > task.filters.max_similarity for other in known):
            found.append(Proposal(*pair, LIKE_ANOTHER))
            continue
        confidence = confidence_of(model, tokenizer, task, pairs, pair)
        if confidence < task.filters.min_confidence:
            found.append(Proposal(*pair, "teacher is unsure", confidence, 0.0, which))
            continue
        agreement = _agreement(model, tokenizer, task, seeds, pair, dice)
        why = "teacher says otherwise when asked again" if agreement < task.filters.min_agreement else ""
        found.append(Proposal(*pair, why, confidence, agreement, which))
    return found


def confidence_of(model: Any, tokenizer: Any, task: Task, pairs: Pairs, pair: tuple[str, str]) -> float:
    """How sure the teacher is of an answer after some seeds, nats; see `Proposal`."""
    if task.write:
        logs = answer_logs(model, tokenizer, task, pairs, pair[0])
        return float(logs[task.answers.index(pair[1])])
    return answer_confidence(model, tokenizer, task, pairs, pair)


def answer_confidence(model: Any, tokenizer: Any, task: Task, pairs: Pairs, pair: tuple[str, str]) -> float:
    """Mean log-probability of the answer's tokens after the seeds and the request, nats."""
    start = _asked(task, pairs, pair[0])
    return float(_logs_after(model, tokenizer, [start], [start + pair[1]])[0].mean())


def answer_logs(model: Any, tokenizer: Any, task: Task, pairs: Pairs, prompt: str) -> NDArray[np.float64]:
    """(A,) log-probabilities of the task's answers to a request, which add up to 1 as probabilities."""
    if task.write:
        heads = [opening(task, pairs, answer) for answer in task.answers]
        before = shown(task, pairs)
        wholes = [before + filled(task, (prompt, answer)) + END for answer in task.answers]
    else:
        start, after = _asked(task, pairs, prompt), task.format.partition("{answer}")[2]
        heads = [start] * len(task.answers)
        wholes = [start + answer + after + END for answer in task.answers]
    sums = np.array([float(logs.sum()) for logs in _logs_after(model, tokenizer, heads, wholes)])
    top = sums.max()
    found: NDArray[np.float64] = sums - top - np.log(np.exp(sums - top).sum())
    return found


def _asked(task: Task, pairs: Pairs, prompt: str) -> str:
    return shown(task, pairs) + task.format.partition("{answer}")[0].replace("{prompt}", prompt)


def _logs_after(model: Any, tokenizer: Any, heads: Sequence[str], wholes: Sequence[str]) -> list[NDArray[np.float64]]:
    """Log-probabilities of the tokens of each text that come after its head, nats."""
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    rows, firsts = [], []
    for head, whole in zip(heads, wholes, strict=True):
        short, long = tokenizer(head)["input_ids"], tokenizer(whole)["input_ids"]
        same = next(
            (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), min(len(short), len(long))
        )
        cut = max(0, len(long) - context)
        rows.append(long[cut:])
        firsts.append(max(1, min(same, len(long) - 1) - cut))
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    found = []
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
            logs = torch.log_softmax(logits[number, first - 1 : len(row) - 1].float(), dim=-1)
            picked = logs.gather(-1, ids[number, first : len(row), None])[:, 0]
            found.append(picked.double().numpy())
    return found


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


def _agreement(model: Any, tokenizer: Any, task: Task, seeds: Pairs, pair: tuple[str, str], dice: Any) -> float:
    """Share of the teacher's answers to the request, each after other seeds, that are the example's."""
    asks = task.filters.asks if task.shots else min(1, task.filters.asks)
    if not asks:
        return 1.0
    same = 0
    for _ in range(asks):
        which = dice.choice(len(seeds), min(task.shots, len(seeds)), replace=False)
        others = [seeds[i] for i in which]
        if task.answers:
            same += task.answers[int(answer_logs(model, tokenizer, task, others, pair[0]).argmax())] == pair[1]
        else:
            same += _answer(model, tokenizer, task, others, pair[0]) == pair[1]
    return same / asks


def _answer(model: Any, tokenizer: Any, task: Task, pairs: Pairs, prompt: str) -> str:
    """The teacher's greedy answer."""
    ids = tokenizer(_asked(task, pairs, prompt).rstrip(" "), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=task.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        )
    text = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return text.partition(END)[0].strip()
