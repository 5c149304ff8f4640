"""Successive halving (Jamieson and Talwalkar 2016) among restructured models: each is healed a little, the worse half
falls, those that stay share the next round's budget. Rankings before healing say little: they flip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgegen.errors import ConfigError
from edgegen.records.healing import Halving, HalvingRound


def halve(
    candidates: Sequence[str],
    heal_one: Callable[[str, int, int], None],
    score: Callable[[str], float],
    tokens: int,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Halving:
    """Find the best candidate once healed.

    Every round has the same budget, shared evenly among the candidates that are left, so that those that stay get
    more each time. It keeps no state: where `heal_one` is `healing.heal` with a folder for each candidate and round, a
    call that was cut off is repeated, does what is left, and decides the same.

    Args:
        candidates: names, in the order that decides between equal scores.
        heal_one: (candidate, round from 1, counted predictions more to learn from); goes on from the round before.
        score: of a candidate as it is now; less is better, and what is not finite is worst.
        tokens: of all rounds together.
        progress: told (healings done, healings, words).

    Raises:
        ConfigError: no candidates, equal names, or fewer tokens than healings.
    """
    if not candidates or len(set(candidates)) != len(candidates):
        raise ConfigError("successive halving needs candidates of different names")
    sizes = _sizes(len(candidates))
    if tokens < sum(sizes):
        raise ConfigError(f"{tokens} tokens cannot be shared among {sum(sizes)} healings")
    left = list(candidates)
    rounds = [HalvingRound(tokens=0, scores=_scores(left, score))]
    fallen: list[str] = []
    done, spent = 0, 0
    for number, size in enumerate(sizes, 1):
        each = tokens // len(sizes) // size
        for name in left:
            heal_one(name, number, each)
            done, spent = done + 1, spent + each
            if progress:
                progress(done, sum(sizes), f"round {number} of {len(sizes)}: {name}")
        scores = _scores(left, score)
        rounds.append(HalvingRound(tokens=each, scores=scores))
        left.sort(key=lambda name: (_worth(scores[name]), candidates.index(name)))
        stay = math.ceil(size / 2)
        fallen = left[stay:] + fallen
        left = left[:stay]
    return Halving(ranking=(*left, *fallen), rounds=tuple(rounds), tokens=spent)


def _sizes(count: int) -> list[int]:
    """Candidates in each round, until one is left."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return sizes


def _scores(names: Sequence[str], score: Callable[[str], float]) -> dict[str, float | None]:
    found = {name: score(name) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _worth(score: float | None) -> float:
    return math.inf if score is None else score
