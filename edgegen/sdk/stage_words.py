"""The stages in words, for every front end; `onnx/plan` is the one of a target among several."""

from __future__ import annotations

STAGE_WORDS = {
    "measure": "Measuring what each grid costs",
    "structures": "Changing and healing structures",
    "plan": "Planning",
    "refine": "Tuning rounded weights",
    "compress": "Rounding weights",
    "export": "Writing the artifact",
    "reference": "Asking the original",
    "verify": "Verifying on the runtime",
    "gates": "Judging against its gates",
    "compare": "Comparing targets",
    "bench": "Measuring speed",
}
_ALL = ("measure", "structures", "plan", "refine", "compress", "export", "reference", "verify", "gates")
_OPTIONAL = ("structures", "refine", "gates")
CHAIN = tuple(stage for stage in _ALL if stage not in _OPTIONAL)
"""Of a compression, in order; what there is time or a wish for comes in between, see `stages_of`."""


def stages_of(*, searched: bool = False, refined: bool = False, judged: bool = False) -> tuple[str, ...]:
    """Of a compression, in order.

    Args:
        searched: whether there is time for other structures.
        refined: whether there is time for tuning the rounded weights.
        judged: whether there are gates.
    """
    wanted = dict(zip(_OPTIONAL, (searched, refined, judged), strict=True))
    return tuple(stage for stage in _ALL if wanted.get(stage, True))


def stage_words(stage: str) -> str:
    """A stage's name as a sentence's beginning."""
    target, _, name = stage.rpartition("/")
    words = STAGE_WORDS.get(name, name)
    return f"{target}: {words}" if target else words
