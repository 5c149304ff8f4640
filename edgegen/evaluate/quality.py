"""How well a model predicts held-out text, answers requests and writes, and how like its teacher it is.

Three looks at the same rows: the log-probability of what stands there; greedy answers, which are compared with the
right ones; and drawn answers of the first rows, for variety and coherence, since greedy text shows neither.

A model without a chat template does not know where an answer ends: where no right answer has a line break, its answers
end at the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.evaluate import answers as scores
from edgegen.evaluate.scorer import Scorer, continuation, decode, picked_log_probs, write
from edgegen.evaluate.statistics import Floats, exp_ratio, mean_columns, measure, measure_whole
from edgegen.modeling.text import Window, prompt_ids, windows_of
from edgegen.records.base import Record
from edgegen.records.data import Example
from edgegen.records.evaluation import Answered, Metric
from edgegen.runtime.sampling import GREEDY, Sampling

Told = Callable[[int, int, str], None]
"""(done, of, words)."""


class Wanted(Record, frozen=True):
    """How much is looked at."""

    max_tokens: int = 96
    """Of an answer."""
    samples: int = 32
    """Rows whose answers are drawn, and rows of plain text that are continued."""
    temperature: float = 0.8
    """Of drawn answers."""
    window_tokens: int = 256
    """Longest piece of a row that is predicted at once."""
    seed: int = 0


class Request(Record, frozen=True):
    """What a model is asked."""

    row: int
    example: Example
    expected: str | None
    """The right answer; None: a text to continue, which has none."""


def requests_of(examples: Iterable[Example], *, texts: int) -> list[Request]:
    """Every row with an answer, and the first `texts` of the others."""
    found: list[Request] = []
    for row, example in enumerate(examples):
        if example.completion:
            found.append(Request(row, example, example.messages[-1][1]))
        elif texts > 0:
            texts -= 1
            found.append(Request(row, example, None))
    return found


def start_of(scorer: Scorer, request: Request) -> list[int]:
    """Ids that an answer follows: the request, or the first half of a text, at most 32 tokens."""
    if request.expected is not None:
        return prompt_ids(scorer.tokenizer, request.example)
    example = request.example
    text = example.text or "\n".join(content for _, content in example.messages)
    ids = scorer.encode(text)
    return ids[: max(1, min(32, len(ids) // 2))]


def answers_of(
    scorer: Scorer,
    requests: Sequence[Request],
    wanted: Wanted,
    *,
    sampling: Sampling = GREEDY,
    told: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model answers, without space around."""
    lines = not getattr(scorer.tokenizer, "chat_template", None) and not any(
        "\n" in (request.expected or "") for request in requests
    )
    found = []
    for number, request in enumerate(requests):
        drawn = sampling
        if sampling.temperature > 0:
            drawn = Sampling(temperature=sampling.temperature, seed=wanted.seed * 100_003 + request.row)
        text = decode(
            scorer, write(scorer, start_of(scorer, request), max_tokens=wanted.max_tokens, sampling=drawn)
        ).strip()
        if lines and request.expected is not None:
            text = text.partition("\n")[0].strip()
        found.append(text)
        if told:
            told(number + 1)
    return found


def counting(tell: Told, count: int, words: str) -> Callable[[int], None]:
    """Tells how many of `count` are done."""
    return lambda done: tell(done, count, words)


def quality(
    model: Scorer,
    teacher: Scorer | None,
    examples: Sequence[Example],
    wanted: Wanted,
    *,
    told: Told | None = None,
) -> tuple[list[Metric], list[Answered], list[str]]:
    """Judge on rows.

    Returns:
        Metrics, the greedy answers, and notes.

    Raises:
        ConfigError: no rows.
        UnsupportedError: sacrebleu is not installed.
        DeviceError: a runtime could not compute.
    """
    if not examples:
        raise ConfigError("no rows to judge on", hint="Give --data with held-out rows.")
    tell = told or (lambda done, of, words: None)
    notes: list[str] = []
    metrics = _prediction(model, teacher, examples, wanted, tell, notes)
    requests = requests_of(examples, texts=wanted.samples)
    sides = [model, *([teacher] if teacher else [])]
    greedy = [
        answers_of(s, requests, wanted, told=counting(tell, len(requests), f"answers of {s.judged.source}"))
        for s in sides
    ]
    metrics += _right(requests, greedy)
    metrics += _alike(greedy)
    metrics += _writing(sides, requests[: wanted.samples], wanted, tell)
    answered = [
        Answered(
            row=request.row,
            prompt=decode(model, start_of(model, request)),
            expected=request.expected or "",
            model=greedy[0][place],
            teacher=greedy[1][place] if teacher else None,
        )
        for place, request in enumerate(requests)
    ]
    return metrics, answered, notes


# Prediction


class _Predicted(Record, frozen=True):
    """One row's windows together."""

    nats: float
    tokens: int
    bytes: int
    pieces: tuple[str, ...]
    """Tokens as texts, to see whether two models were asked the same."""
    likeliest: tuple[str, ...]


def _prediction(
    model: Scorer, teacher: Scorer | None, examples: Sequence[Example], wanted: Wanted, tell: Told, notes: list[str]
) -> list[Metric]:
    mine, its = [], []
    for number, example in enumerate(examples):
        mine.append(_predict(model, example, wanted))
        if teacher:
            its.append(_predict(teacher, example, wanted))
        tell(number + 1, len(examples), "predicting held-out rows")

    def columns(found: Sequence[_Predicted], top: str, bottom: str, scale: float = 1.0) -> Floats:
        return np.array([(getattr(p, top) * scale, float(getattr(p, bottom))) for p in found])

    bits = 1 / math.log(2)
    left_out = sum(_other(p, q) for p, q in zip(mine, its, strict=True)) if teacher else 0
    perplexity = measure(
        "perplexity",
        "quality",
        "lower",
        columns(mine, "nats", "tokens"),
        columns(its, "nats", "tokens") if teacher else None,
        value=exp_ratio,
    )
    if left_out:
        note = "of each one's own tokens, which differ: compare bits per byte"
        perplexity = msgspec.structs.replace(perplexity, difference=None, note=note)
    metrics = [
        perplexity,
        measure(
            "bits_per_byte",
            "quality",
            "lower",
            columns(mine, "nats", "bytes", bits),
            columns(its, "nats", "bytes", bits) if teacher else None,
        ),
    ]
    if teacher:
        agreed = [
            (float(sum(a == b for a, b in zip(p.likeliest, q.likeliest, strict=True))), float(p.tokens))
            if not _other(p, q)
            else (0.0, 0.0)
            for p, q in zip(mine, its, strict=True)
        ]
        metrics.append(
            measure(
                "top1_agreement",
                "quality",
                "higher",
                np.array(agreed),
                note=f"{left_out} rows that the two cut into other tokens are left out" if left_out else "",
            )
        )
    short = sum(p.tokens == 0 for p in mine)
    if short:
        notes.append(f"{short} of {len(examples)} rows are too short to predict anything")
    return metrics


def _other(one: _Predicted, other: _Predicted) -> bool:
    return one.pieces != other.pieces


def _predict(scorer: Scorer, example: Example, wanted: Wanted) -> _Predicted:
    nats, tokens, size = 0.0, 0, 0
    pieces: list[str] = []
    likeliest: list[str] = []
    for window in windows_of(scorer.tokenizer, example, min(wanted.window_tokens, scorer.context_tokens)):
        logits, targets = _counted(scorer, window)
        nats -= float(picked_log_probs(logits, targets).sum())
        tokens += len(targets)
        size += window.bytes
        pieces += scorer.tokenizer.convert_ids_to_tokens(window.ids.tolist())
        likeliest += _texts(scorer.tokenizer, logits.argmax(axis=-1))
    return _Predicted(nats, tokens, size, tuple(pieces), tuple(likeliest))


def _counted(scorer: Scorer, window: Window) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    logits = scorer.session.score(window.ids.tolist())
    return logits[window.counts], window.ids[1:][window.counts[:-1]]


def _texts(tokenizer: Any, ids: NDArray[np.int64]) -> list[str]:
    """Tokens as texts; rows of the table that are no token get their number."""
    return [
        text or f"#{i}" for i, text in zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True)
    ]


# Answers

_ANSWER_SCORES: tuple[tuple[str, Callable[[str, str], float | None]], ...] = (
    ("exact_match", scores.exact_match),
    ("token_f1", scores.token_f1),
    ("json_valid", scores.json_valid),
    ("function_match", scores.function_match),
    ("function_name_match", scores.function_name_match),
)


def _right(requests: Sequence[Request], greedy: Sequence[Sequence[str]]) -> list[Metric]:
    asked = [(place, r.expected) for place, r in enumerate(requests) if r.expected is not None]
    if not asked:
        return []
    metrics = []
    for name, score in _ANSWER_SCORES:
        sides = [mean_columns([score(side[place], right) for place, right in asked]) for side in greedy]
        if sides[0][:, 1].any():
            metrics.append(measure(name, "quality", "higher", *sides))
    return metrics


def _alike(greedy: Sequence[Sequence[str]]) -> list[Metric]:
    if len(greedy) < 2:
        return []
    likeness = mean_columns([scores.chrf(a, b) for a, b in zip(*greedy, strict=True)])
    same = mean_columns([float(a == b) for a, b in zip(*greedy, strict=True)])
    return [
        measure("teacher_chrf", "quality", "higher", likeness, note="greedy answers against the teacher's"),
        measure("teacher_same_answer", "quality", "higher", same, note="greedy answers, letter by letter"),
    ]


def _writing(sides: Sequence[Scorer], requests: Sequence[Request], wanted: Wanted, tell: Told) -> list[Metric]:
    if not requests:
        return []
    drawn = [
        answers_of(
            s,
            requests,
            wanted,
            sampling=Sampling(temperature=wanted.temperature),
            told=counting(tell, len(requests), f"drawn answers of {s.judged.source}"),
        )
        for s in sides
    ]
    note = f"answers drawn at temperature {wanted.temperature:g}"
    metrics = [
        measure_whole(
            f"distinct_{n}",
            "quality",
            "higher",
            drawn[0],
            drawn[1] if len(drawn) > 1 else None,
            functools.partial(scores.distinct, n=n),
            note=note,
        )
        for n in (1, 2, 3)
    ]
    metrics.append(
        measure_whole(
            "compression_ratio",
            "quality",
            "lower",
            drawn[0],
            drawn[1] if len(drawn) > 1 else None,
            scores.compression_ratio,
            note=note,
        )
    )
    for name, each in (("self_bleu", scores.self_bleu), ("repetition_4", _repetitions)):
        metrics.append(measure(name, "quality", "lower", *[mean_columns(each(d)) for d in drawn], note=note))
    if len(sides) > 1:
        judged = [_by_teacher(sides[1], requests, texts) for texts in drawn]
        metrics.append(
            measure(
                "teacher_perplexity",
                "quality",
                "lower",
                *judged,
                value=exp_ratio,
                note=f"the teacher's, of {note}",
            )
        )
    return metrics


def _repetitions(texts: Sequence[str]) -> list[float | None]:
    return [scores.repetition(text) for text in texts]


def _by_teacher(teacher: Scorer, requests: Sequence[Request], texts: Sequence[str]) -> Floats:
    """(N, 2) nats and tokens of each text behind its request, by the teacher."""
    rows = []
    for request, text in zip(requests, texts, strict=True):
        ids = [int(i) for i in teacher.tokenizer.encode(text, add_special_tokens=False)]
        found, _ = continuation(teacher, start_of(teacher, request), ids) if ids else (np.zeros(0), True)
        rows.append((-float(found.sum()), float(len(found))))
    return np.array(rows)
