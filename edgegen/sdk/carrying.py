"""A changed model's planning problem before anything of it is measured: the original's prices carried over.

A tensor that was narrowed costs in proportion to its weights, and so does a factor of one; the product beside a table
with short rows costs what the table did, for it is in every word; a block that moved keeps its own price; what is on a
grid already costs nothing more on it and on finer ones. Grids that the original's rows do not fit are priced between
their neighbours in bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgegen.modeling.sensitivity import fitting_grids
from edgegen.modeling.structure import whole_name
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.records.model import ModelSummary
from edgegen.records.plan import Option
from edgegen.records.structure import Change, kept_layers, rounded_layers
from edgegen.records.target import Target
from edgegen.sdk.job import Job
from edgegen.sdk.planning import with_vocabulary


def carried_problem(
    job: Job,
    problem: Problem,
    summary: ModelSummary,
    changes: tuple[Change, ...],
    kl: float,
    grids: tuple[str, ...] | None,
) -> Problem:
    """The problem of a changed model.

    Args:
        problem: the original's.
        summary: the changed model's, with the whole vocabulary.
        changes: what was done.
        kl: that the change costs, nats per token.
        grids: that the user allows; None: what the target plans with.
    """
    kept = kept_layers(problem.cases[0].summary.layers, changes)
    rounded = {f"{layer}.weight": job.target.grid(g).bits_per_weight for layer, g in rounded_layers(changes).items()}
    cases = tuple(
        _carried(job, case, with_vocabulary(summary, case.summary.vocab_size), kept, rounded, grids)
        for case in problem.cases
    )
    return msgspec.structs.replace(problem, cases=cases, kl_floor=problem.kl_floor + kl)


def _carried(
    job: Job,
    case: VocabularyCase,
    summary: ModelSummary,
    kept: Sequence[int],
    rounded: Mapping[str, float],
    grids: tuple[str, ...] | None,
) -> VocabularyCase:
    """
    Args:
        rounded: tensor name → bits per weight of the grid that it is on already.
    """
    known = {tensor.name: tensor for tensor in case.summary.tensors}
    options = {}
    for tensor in summary.tensors:
        source = known.get(original_name(tensor.name, kept))
        if source is None and tensor.role == "projection":  # of a head that is the embedding's table
            source = next(t for t in case.summary.tensors if t.role == "embedding")
        prices = {} if source is None else {o.grid: o.kl for o in case.options[source.name]}
        share = 0.0 if source is None else 1.0 if tensor.role == "projection" else tensor.weights / source.weights
        free = rounded.get(tensor.name, math.inf)
        options[tensor.name] = tuple(
            Option(
                grid=grid,
                bytes=job.exporter.tensor_bytes(grid, tensor.rows, tensor.columns),
                kl=0.0 if job.target.grid(grid).bits_per_weight >= free else share * _price(grid, prices, job.target),
            )
            for grid in fitting_grids(tensor, job.target, grids)
        )
    return msgspec.structs.replace(case, summary=summary, options=options)


def original_name(name: str, kept: Sequence[int]) -> str:
    """What a changed model's tensor comes from, in the original's names.

    Args:
        kept: the original's number of each block.
    """
    name = whole_name(name)
    found = re.search(r"\.(?:layers|h|layer)\.(\d+)\.", name)
    if not found:
        return name
    return name[: found.start(1)] + str(kept[int(found[1])]) + name[found.end(1) :]


def _price(grid: str, prices: dict[str, float], target: Target) -> float:
    if grid in prices or not prices:
        return prices.get(grid, 0.0)
    points = sorted((target.grid(name).bits_per_weight, math.log(kl + 1e-12)) for name, kl in prices.items())
    bits = target.grid(grid).bits_per_weight
    return float(np.exp(np.interp(bits, [p[0] for p in points], [p[1] for p in points])))
