"""The stages in words, for every front end; `onnx/plan` is the one of a target among several."""

from __future__ import annotations

STAGE_WORDS = {
    "measure": "Measuring what each grid costs",
    "structures": "Changing and healing structures",
    "plan": "Planning",
    "compress": "Rounding weights",
    "export": "Writing the artifact",
    "reference": "Asking the original",
    "verify": "Verifying on the runtime",
    "gates": "Judging against its gates",
    "compare": "Comparing targets",
    "bench": "Measuring speed",
}
CHAIN = ("measure", "plan", "compress", "export", "reference", "verify")
"""Of a compression, in order; `structures` comes before `plan` where there is time for it, `gates` last where there
are any."""


def stages_of(*, searched: bool = False, judged: bool = False) -> tuple[str, ...]:
    """Of a compression, in order.

    Args:
        searched: whether there is time for other structures.
        judged: whether there are gates.
    """
    before, after = CHAIN[:1], CHAIN[1:]
    return (*before, *(("structures",) if searched else ()), *after, *(("gates",) if judged else ()))


def stage_words(stage: str) -> str:
    """A stage's name as a sentence's beginning."""
    target, _, name = stage.rpartition("/")
    words = STAGE_WORDS.get(name, name)
    return f"{target}: {words}" if target else words
