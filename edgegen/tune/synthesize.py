"""Ask a teacher for more examples of a task, and keep those that stand up.

A few real examples, the seeds, are shown, or the teacher has studied them; it writes one more. An example is kept if it
can be read, passes the task's validators, is like no seed and no other example, the teacher is sure of its answer, and
gives the same answer again when it is shown other seeds (self-consistency, Wang et al. 2023; filtering as in
Self-Instruct, Wang et al. 2023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import numpy as np

from edgegen.common.words import jaccard, shingles, words_of
from edgegen.records.task import SyntheticReport, Task
from edgegen.tune.asking import task_version
from edgegen.tune.propose import LIKE_ANOTHER, TOGETHER, Pairs, Proposal

Told = Callable[[int, int, str], None]
Ask = Callable[[int], Generator[list[Proposal]]]
"""So many batches of proposals, in order, made when they are wanted (see `shards`)."""


def synthesize(
    ask: Ask, seeds: Pairs, task: Task, *, teacher: str, told: Told
) -> tuple[list[Proposal], SyntheticReport]:
    """Examples that a teacher writes.

    Args:
        ask: the teacher.
        seeds: real (request, answer) pairs.
        teacher: what it is called.
    """
    known = [shingles(prompt) for prompt, _ in seeds]
    texts = {prompt.strip().lower() for prompt, _ in seeds}
    kept: list[Proposal] = []
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    asked = 0
    room = (
        max(1, round(task.filters.max_share * task.synthetic / len(task.answers))) if task.answers else task.synthetic
    )
    with closing(ask(-(-task.tries // TOGETHER))) as batches:
        for batch in batches:
            for made in batch:
                asked += 1
                why, cut = made.why, shingles(made.prompt)
                if not why and (
                    made.prompt.lower() in texts
                    or any(jaccard(cut, other) > task.filters.max_similarity for other in known)
                ):
                    why = LIKE_ANOTHER
                if not why and counts[made.answer] >= room:
                    why = "answer is frequent enough"
                if why:
                    dropped[why] += 1
                    continue
                counts[made.answer] += 1
                known.append(cut)
                texts.add(made.prompt.lower())
                kept.append(made)
                if len(kept) == task.synthetic:
                    break
            told(len(kept), task.synthetic, f"{asked} asked")
            if len(kept) == task.synthetic:
                break
    return kept, report_of(kept, task, teacher, len(seeds), asked, dropped)


def report_of(
    kept: Sequence[Proposal],
    task: Task,
    teacher: str,
    seeds: int,
    asked: int = 0,
    dropped: Counter[str] | None = None,
) -> SyntheticReport:
    """What a teacher gave.

    Args:
        seeds: how many there were.
        dropped: reason → examples.
    """
    counts = Counter(made.answer for made in kept)
    pairs = [pair for made in kept for pair in zip(words_of(made.prompt), words_of(made.prompt)[1:], strict=False)]
    notes = []
    if len(kept) < task.synthetic:
        notes.append(f"{len(kept)} of {task.synthetic} examples after {asked} tries")
    missing = [answer for answer in task.answers if not counts[answer]]
    if missing and task.synthetic:
        notes.append("no example has the answer " + ", ".join(missing))
    return SyntheticReport(
        schema=1,
        task=task.name,
        version=task_version(task),
        teacher=teacher,
        seeds=seeds,
        asked=asked,
        kept=len(kept),
        dropped=dict((dropped or Counter()).most_common()),
        counts=dict(counts.most_common(10)),
        mean_confidence=float(np.mean([m.confidence for m in kept])) if kept else None,
        mean_agreement=float(np.mean([m.agreement for m in kept])) if kept else None,
        distinct2=len(set(pairs)) / len(pairs) if pairs else None,
        prompt=task.prompt,
        notes=tuple(notes),
    )
