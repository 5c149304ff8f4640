"""The parity matrix of a bake-off: every artifact against torch and against the others.

In strict-accuracy mode an artifact has to agree with the torch model of its own rounded weights but for the order of
additions; as shipped it differs by its runtime's int8 activations. Two artifacts of different targets have different
grids, so what they differ by in strict mode is rounding of weights alone; with `--common-grid` they have the same
weights, and differ as little as from torch. A fault of one file shows as a row that is far from torch in strict mode; a
fault of a runtime's fast kernels as one that is far only as shipped.

P positions, V vocabulary entries.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json
from edgegen.records.artifact import Artifact
from edgegen.records.bakeoff import ParityPair
from edgegen.records.model import Task
from edgegen.records.plan import Plan
from edgegen.records.reference import Reference
from edgegen.records.report import Parity, Report, VectorParity
from edgegen.verify.process import run_worker
from edgegen.verify.quality import compare_parity
from edgegen.verify.vectors import vector_parity
from edgegen.verify.verify import request_for
from edgegen.verify.worker import common_prefix, parity_windows

Mode = Literal["strict", "shipped"]
MODES: tuple[Mode, ...] = ("strict", "shipped")


class _Spoken(msgspec.Struct, frozen=True):
    """What one artifact said in one mode."""

    ids: tuple[tuple[int, ...], ...]
    """Windows and greedy prompts that it was given."""
    logits: NDArray[np.float32]
    """(P, V); of an encoder, a vector for each window."""
    greedy: tuple[tuple[int, ...], ...]
    task: Task


def parity_matrix(outputs: Mapping[str, Path]) -> tuple[ParityPair, ...]:
    """Compare finished outputs of several targets.

    Args:
        outputs: target → folder with artifact, strict twin, reference and report.

    Returns:
        Each target against torch, then each pair of targets, strict before shipped.
    """
    pairs = []
    for mode in MODES:
        for target, folder in outputs.items():
            report = load_json(folder / "report.json", Report)
            pairs.append(_with_torch(target, mode, *_parities(report, mode)))
        with tempfile.TemporaryDirectory() as scratch:
            spoken = {
                target: _speak(folder, mode, Path(scratch) / f"{target}.npy") for target, folder in outputs.items()
            }
        pairs += [_compare(a, b, mode, spoken[a], spoken[b]) for a, b in itertools.combinations(outputs, 2)]
    return tuple(pairs)


def _parities(report: Report, mode: Mode) -> tuple[Parity | None, VectorParity | None]:
    if mode == "strict":
        return report.strict, report.vector_strict
    return report.parity, report.vector_parity


def _with_torch(target: str, mode: Mode, parity: Parity | None, vectors: VectorParity | None) -> ParityPair:
    if vectors is not None:
        return ParityPair(first="torch", second=target, mode=mode, tokens=vectors.texts, kl=vectors.distance)
    if parity is None:
        return ParityPair(first="torch", second=target, mode=mode, missing="not measured")
    return ParityPair(
        first="torch",
        second=target,
        mode=mode,
        tokens=parity.tokens,
        kl=parity.kl,
        top1_fraction=parity.top1_fraction,
        greedy_prefix=parity.greedy_prefix,
        greedy_tokens=parity.greedy_tokens,
    )


def _speak(folder: Path, mode: Mode, path: Path) -> _Spoken | str:
    """Run an artifact on its reference's windows; the reason if that fails."""
    plan = load_json(folder / "plan.json", Plan)
    artifact = load_json(folder / "artifact" / "artifact.json", Artifact)
    strict = folder / "strict"
    if mode == "strict" and not (strict / artifact.model).exists():
        return "its file for strict accuracy is not at hand"
    request = request_for(folder / "artifact", folder / "reference", plan, "logits")
    twin = str(strict.resolve()) if mode == "strict" else ""
    result = run_worker(msgspec.structs.replace(request, strict=twin, logits=str(path)))
    if result.error:
        return result.error
    reference = load_json(folder / "reference" / "reference.json", Reference)
    ids = (*(window.ids for window in parity_windows(reference)), *(run.ids for run in reference.greedy))
    return _Spoken(ids=ids, logits=np.load(path), greedy=result.answers, task=artifact.task)


def _compare(first: str, second: str, mode: Mode, a: _Spoken | str, b: _Spoken | str) -> ParityPair:
    for name, found in ((first, a), (second, b)):
        if isinstance(found, str):
            return ParityPair(first=first, second=second, mode=mode, missing=f"{name}: {found}")
    assert isinstance(a, _Spoken) and isinstance(b, _Spoken)
    if a.ids != b.ids or a.logits.shape != b.logits.shape:
        return ParityPair(first=first, second=second, mode=mode, missing="their vocabularies differ")
    if a.task == "encoder":
        distance = vector_parity(a.logits, b.logits).distance
        return ParityPair(first=first, second=second, mode=mode, tokens=len(a.logits), kl=distance)
    parity = compare_parity(iter([(a.logits, b.logits)]))
    agreed = [common_prefix(x, y) for x, y in zip(a.greedy, b.greedy, strict=True)]
    shortest = int(np.argmin(agreed)) if agreed else 0
    return ParityPair(
        first=first,
        second=second,
        mode=mode,
        tokens=parity.tokens,
        kl=parity.kl,
        top1_fraction=parity.top1_fraction,
        greedy_prefix=agreed[shortest] if agreed else None,
        greedy_tokens=max(len(a.greedy[shortest]), len(b.greedy[shortest])) if agreed else None,
        logit_difference=float(np.abs(a.logits - b.logits).max(initial=0)),
    )
