"""Distill: a student learns what a teacher would say, beside what the data says.

    loss = (1 - w) · divergence(teacher, student) + w · cross entropy

of each counted prediction (Hinton et al. 2015). The teacher is asked while the student learns, or once, into a cache.
On-policy (GKD, Agarwal et al. 2024), a share of the steps replaces the data's answers by the student's own: it is told
what the teacher would have said where the student itself goes. Where vocabularies differ, distributions cannot be
compared: the teacher's own answers are learnt instead (sequence-level, Kim and Rush 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.common.codec import digest_record
from edgegen.errors import ConfigError
from edgegen.modeling.load import open_model
from edgegen.modeling.text import prompt_ids
from edgegen.records.base import Record
from edgegen.records.data import Example
from edgegen.records.model import ModelRef
from edgegen.records.training import Training
from edgegen.training.batches import Batch, Item, collate, encode
from edgegen.training.divergence import KINDS
from edgegen.training.loop import Progress, fit, make_accelerator
from edgegen.training.losses import counted, logits_of
from edgegen.training.options import Options
from edgegen.training.teacher import CachedTeacher, LiveTeacher, Teacher, keep_answers
from edgegen.tune.finetune import Data, finished, result_of, training_of
from edgegen.tune.pupil import Pupil
from edgegen.tune.save import publish

_ANSWER_TOKENS = 128


class Distilling(Record, frozen=True):
    """How a student is taught."""

    loss: str = "skew"
    """One of `training.divergence.KINDS`."""
    alpha: float = 0.1
    """Skew, or the teacher's share of `js`."""
    temperature: float = 1.0
    labels: float = 0.1
    """w: share of the data's own answers."""
    top: int = 0
    """Entries of the teacher's distributions that are kept on disk; 0: it is asked live."""
    on_policy: float = 0.0
    """Share of the steps that learn from the student's own answers."""


def require_distilling(how: Distilling) -> None:
    """
    Raises:
        ConfigError: a setting out of its range, or two that do not go together.
    """
    if how.loss not in KINDS:
        raise ConfigError(f"--loss {how.loss!r} is unknown", hint=f"Choose one of: {', '.join(KINDS)}.")
    for name, value, low, high in (
        ("--labels", how.labels, 0.0, 1.0),
        ("--alpha", how.alpha, 0.0, 1.0),
        ("--on-policy", how.on_policy, 0.0, 1.0),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")
    if not (math.isfinite(how.temperature) and how.temperature > 0):
        raise ConfigError(f"--temperature must be a number above 0, not {how.temperature:g}")
    if how.top < 0:
        raise ConfigError(f"--top must be 0 or more, not {how.top}")
    if how.top and how.on_policy:
        raise ConfigError("--top keeps answers to the data, --on-policy asks about others", hint="Leave out --top.")


def same_vocabulary(teacher: Any, student: Any) -> str:
    """What differs between two tokenizers, in words; empty if ids mean the same."""
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours == theirs:
        return ""
    shared = sum(theirs.get(token) == number for token, number in ours.items())
    return f"{shared:,} of the teacher's {len(ours):,} tokens have the same id in the student's {len(theirs):,}"


def require_same_vocabulary(teacher: Any, student: Any) -> None:
    """
    Raises:
        ConfigError: ids mean different tokens.
    """
    if said := same_vocabulary(teacher, student):
        raise ConfigError(
            f"teacher and student have different vocabularies: {said}",
            hint="Add --sequence-level: the student then learns the teacher's answers, not its distributions.",
        )


class DistillationLoss:
    """The loss of a batch, for `fit`."""

    def __init__(
        self, teacher: Teacher, how: Distilling, *, eos_ids: Sequence[int] = (), context_tokens: int = 0
    ) -> None:
        self._teacher, self._how, self._eos = teacher, how, frozenset(eos_ids)
        self._context = context_tokens

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        how = self._how
        if how.on_policy and float(torch.rand(())) < how.on_policy:
            return self._on_own_answers(model, batch)
        return self.on_data(model, batch)

    def on_data(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss on the data's own answers."""
        how = self._how
        mask, targets, weights = counted(batch)
        logits = logits_of(model, batch)[mask].float()
        found = torch.zeros((), device=logits.device)
        if how.labels < 1:
            distance = self._teacher.distance(batch, logits, kind=how.loss, alpha=how.alpha)
            found = found + (1 - how.labels) * (distance * weights).sum()
        if how.labels > 0:
            entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            found = found + how.labels * (entropy * weights).sum()
        return found

    def _on_own_answers(self, model: Any, batch: Batch) -> torch.Tensor:
        """The same divergence on what the student answers, scaled to the batch's weight: no labels there."""
        whole = float(batch.weights.sum())
        items = [_answered(model, item, self._eos, self._context) for row in batch.items for item in row]
        kept = [[item] for item in items if item.tokens]
        if not kept:
            return logits_of(model, batch).sum() * 0.0
        own = collate(kept, packed=False).to(batch.ids.device)
        mask, _, weights = counted(own)
        distance = self._teacher.distance(
            own, logits_of(model, own)[mask].float(), kind=self._how.loss, alpha=self._how.alpha
        )
        return (distance * weights).sum() * (whole / float(weights.sum()))


def generate(
    model: Any, ids: torch.Tensor, eos_ids: Iterable[int], most: int, *, sampled: bool = False
) -> torch.Tensor:
    """(1, L) ids with at most `most` tokens more, to the first of `eos_ids`: likeliest, or drawn at temperature 1."""
    continued: torch.Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=sampled,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=most,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
    )
    return continued


def _answered(model: Any, item: Item, eos: frozenset[int], context: int) -> Item:
    """An item whose answer is sampled from the model, at temperature 1; its prompt stays."""
    first = int(np.argmax(item.counts))  # predicts the answer's first token
    prompt = torch.from_numpy(item.ids[: first + 1])[None]
    most = min(_ANSWER_TOKENS, max(1, context - first - 1), max(1, item.tokens * 2))
    was_training = model.training
    bare = getattr(model, "module", model).eval()
    ids = generate(bare, prompt.to(bare.device), eos, most, sampled=True)
    bare.train(was_training)
    row = ids[0].cpu().numpy().astype(np.int64)
    counts = np.zeros(len(row), dtype=bool)
    counts[first:-1] = True
    return Item(row, counts, weight=item.weight, index=item.index)


def answers_of(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, eos_ids: Sequence[int]
) -> tuple[Example, ...]:
    """The examples with a teacher's greedy answers in place of their own; rows without an answer are left out."""
    found = []
    for example in examples:
        if not example.completion:
            continue
        ids = torch.tensor([prompt_ids(tokenizer, example)])
        said = generate(model, ids, eos_ids, _ANSWER_TOKENS)[0, ids.shape[1] :]
        text = tokenizer.decode([i for i in said.tolist() if i not in eos_ids], skip_special_tokens=True)
        if text.strip():
            messages = (*example.messages[:-1], (example.messages[-1][0], text))
            found.append(msgspec.structs.replace(example, messages=messages))
    if not found:
        raise ConfigError(
            "no row has a prompt that the teacher could answer", hint="Sequence-level distillation needs answers."
        )
    return tuple(found)


def distill(
    teacher: ModelRef,
    teacher_tokenizer: Any,
    pupil: Pupil,
    data: Data,
    *,
    teacher_parameters: int,
    how: Distilling,
    options: Options,
    out: Path,
    eos_ids: Sequence[int],
    context_tokens: int,
    sequence_level: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Teach a student and write it to `out`; the same call goes on where a killed one was.

    Raises:
        ConfigError: vocabularies that differ, settings out of range, too little data, or training that diverged.
        UnsupportedError: a student that cannot be derived.
        DeviceError: memory or disk does not suffice.
    """
    require_distilling(how)
    if not sequence_level:
        require_same_vocabulary(teacher_tokenizer, pupil.tokenizer)
    identity = digest_record(
        [teacher.digest, pupil.identity, data.digest, msgspec.to_builtins(how), result_of(options), sequence_level]
    )
    if (done := finished(out, identity)) is not None:
        return done
    work, kept = out.with_name(out.name + ".training"), out.with_name(out.name + ".teacher")
    master = open_model(teacher, parameters=teacher_parameters)
    train = data.train
    if sequence_level:
        train = answers_of(master, teacher_tokenizer, train, eos_ids=eos_ids)
    items = encode(pupil.tokenizer, train, max_tokens=options.max_tokens)
    heldout = encode(pupil.tokenizer, data.validation, max_tokens=options.max_tokens) if data.validation else []
    heldout = [msgspec.structs.replace(item, index=len(items) + item.index) for item in heldout]
    student = pupil.open(lambda: master, items)
    accelerator = make_accelerator(options)
    if sequence_level:
        loss = DistillationLoss(LiveTeacher(master, 1.0), Distilling(labels=1.0))
    elif how.top:
        vocab = student.get_input_embeddings().weight.shape[0]
        if accelerator.is_main_process:
            keep_answers(
                master.to(accelerator.device),
                [*items, *heldout],
                kept,
                identity=digest_record([teacher.digest, data.digest, options.max_tokens]),
                k=how.top,
                temperature=how.temperature,
                vocab=vocab,
                progress=(lambda done, total: progress(done, total, "asking the teacher")) if progress else None,
            )
        accelerator.wait_for_everyone()
        loss = DistillationLoss(CachedTeacher(kept, [*items, *heldout]), how)
        del master
    else:
        loss = DistillationLoss(
            LiveTeacher(master.to(accelerator.device), how.temperature),
            how,
            eos_ids=eos_ids,
            context_tokens=min(context_tokens, options.max_tokens),
        )
    fitted = fit(
        student,
        items,
        heldout,
        options,
        work,
        identity=identity,
        loss=loss,
        judge=loss.on_data,
        progress=progress,
        accelerator=accelerator,
    )
    method = "sequence-level" if sequence_level else "on-policy" if how.on_policy else "distill"
    training = training_of(
        fitted,
        student,
        parameters=sum(p.numel() for p in student.parameters()),
        method=method,
        ref=pupil.origin(teacher),
        data=data,
        options=options,
        settings={
            **{k: str(v) for k, v in msgspec.to_builtins(how).items()},
            "student": str(pupil.shape) if pupil.shape else "checkpoint",
        },
        identity=identity,
        teacher=teacher,
    )
    return publish(
        out,
        training,
        lambda folder: pupil.save(student, teacher, folder),
        accelerator=accelerator,
        work=(work, kept),
    )
