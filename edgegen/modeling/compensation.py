"""Rounding onto a grid with each column's error made good by the columns that come after it.

For a linear layer with inputs x the rounded weights Q should keep the outputs, so what counts is

    E‖(W - Q) x‖² = Σ_rows d H dᵀ,    d a row of W - Q,    H = E[x xᵀ].

Columns are rounded from left to right, and what rounding one of them did wrong is spread over those still to come
as H says (GPTQ, Frantar et al. 2022; the same as LDLQ, Chee et al. 2023): with Uᵀ U = H⁻¹, U upper triangular, column
j's error e_j costs (e_j / U_jj)², which is therefore the importance that steps are searched with. The steps of a block
are chosen when its first column is reached, from the weights as they then are. Afterwards each code in turn moves to
the level that is best with all others as they are, until a sweep changes little (coordinate descent on the same
quadratic).

Steps are chosen by `grids.pack` and codes written into what it packed, so no grid's format is known here and the
runtime gets exactly the weights chosen.

Everything is float64 and rows do not meet, so equal inputs give equal bytes.

R rows, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.grids import codes

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

DAMPING = 0.01
_SWEEPS = 3
_TOGETHER = 32
"""Columns whose errors are spread over the rest of the row in one product."""
_MANY = 0.2
"""Share of rows from which on it is quicker to treat all of them alike."""
_CHUNK_VALUES = 4_000_000
"""Weights rounded at once: bounds the working memory to some 200 MB."""


class Factored(msgspec.Struct, frozen=True):
    """A layer's damped Hessian, ready for use; (C, C) float64."""

    hessian: torch.Tensor
    upper: torch.Tensor
    """U with Uᵀ U = H⁻¹."""


def factored(hessian: Floats, damping: float = DAMPING) -> Factored:
    """Damp a Hessian until it can be inverted, and factor its inverse.

    Args:
        hessian: (C, C) E[x xᵀ], at least half of it positive; inputs that were never active have rows of zeros.
        damping: of the mean diagonal, added to the diagonal.
    """
    damped = torch.from_numpy(hessian).double()
    mean = float(damped.diagonal().mean())
    damped = damped / mean if mean > 0 else torch.zeros_like(damped)
    while True:
        damped.diagonal().add_(damping if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        damping *= 10
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return Factored(hessian=damped, upper=upper)


def remaining_share(factors: Factored) -> float:
    """Expected error of compensated over that of plain rounding: tr D / tr H with H = L D Lᵀ (Chee et al. 2023)."""
    return float(factors.upper.diagonal().pow(-2).sum() / factors.hessian.diagonal().sum())


def can_compensate(grid: str) -> bool:
    """Whether a grid's codes can be chosen one by one."""
    return codes.has_codes(grid)


def pack_compensated(weights: Floats, grid: str, factors: Factored) -> Bytes:
    """Round (R, C) rows onto a grid, keeping the layer's outputs: (R, row bytes) uint8.

    Raises:
        As `grids.pack`.
    """
    rows, columns = weights.shape
    packed = np.empty((rows, grids.row_bytes(grid, columns)), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        packed[start : start + step] = _Rows(weights[start : start + step], grid, factors).pack()
    return packed


class _Columns(NamedTuple):
    """Views of a matrix's columns, (C, R)."""

    rounded: NDArray[np.float64]
    indices: NDArray[np.float64]


class _Scales(NamedTuple):
    """Views of the groups' scales, (groups, R)."""

    steps: NDArray[np.float64]
    inverses: NDArray[np.float64]
    offsets: NDArray[np.float64]


class _Rows:
    """Some rows on their way onto a grid; columns come first in all matrices, so that each is contiguous.

    A column is small, and calling is most of its cost: what is done column by column is done in numpy, on the memory of
    the torch tensors that whole blocks of columns are multiplied in.
    """

    def __init__(self, weights: Floats, grid: str, factors: Factored) -> None:
        self._grid = grid
        self._levels = codes.levels_of(grid)
        self._factors = factors
        self._rows, self._columns = weights.shape
        self._original = torch.from_numpy(np.ascontiguousarray(weights.T)).double()
        self._rounded = torch.empty_like(self._original)
        self._indices = torch.empty_like(self._original)  # codes less the first; small whole numbers
        self._columns_of = _Columns(self._rounded.numpy(), self._indices.numpy())
        self._level_row = np.empty(self._rows)
        self._unit = self._levels.unit or self._columns
        self._width = self._levels.width or self._columns
        groups = -(-self._columns // self._width)
        self._steps = torch.empty((groups, self._rows), dtype=torch.float64)
        self._inverses = torch.empty_like(self._steps)
        self._offsets = torch.empty_like(self._steps)
        self._scales_of = _Scales(self._steps.numpy(), self._inverses.numpy(), self._offsets.numpy())
        self._values = torch.from_numpy(self._levels.values)
        self._lowest, self._highest = float(self._values[0]), float(self._values[-1])
        self._middles = (self._levels.values[1:] + self._levels.values[:-1]) / 2
        self._parts: list[Bytes] = []

    def pack(self) -> Bytes:
        self._spread()
        for _ in range(_SWEEPS):
            self._sweep()
        packed = codes.join(self._parts, self._grid, self._columns)
        found = (self._indices + self._levels.first).to(torch.uint8).T.contiguous().numpy()
        return codes.write_codes(packed, self._grid, found)

    def _spread(self) -> None:
        """Left to right, with steps chosen on the way."""
        upper, work = self._factors.upper, self._original.clone()
        spread, rows, rounded = upper.numpy(), work.numpy(), self._columns_of.rounded
        for start in range(0, self._columns, _TOGETHER):
            end = min(start + _TOGETHER, self._columns)
            errors = np.empty((end - start, self._rows))
            for column in range(start, end):
                if column % self._unit == 0:
                    self._choose_steps(work, column)
                self._round(column, rows[column])
                error = errors[column - start]
                np.subtract(rows[column], rounded[column], out=error)
                error /= spread[column, column]
                rows[column + 1 : end] -= spread[column, column + 1 : end, None] * error
            work[end:].addmm_(upper[start:end, end:].T, torch.from_numpy(errors), alpha=-1)

    def _sweep(self) -> None:
        """Move each unit's steps, then each code, to what is best with all else as it is."""
        hessian = self._factors.hessian
        pull = hessian @ (self._original - self._rounded)
        costs, pulls, rounded = hessian.numpy(), pull.numpy(), self._columns_of.rounded
        wanted, step = np.empty(self._rows), np.empty(self._rows)
        for start in range(0, self._columns, _TOGETHER):
            end = min(start + _TOGETHER, self._columns)
            for column in range(start, end):
                if column % self._unit == 0:
                    self._refit_steps(pull, column)
            before, local = rounded[start:end].copy(), pulls[start:end]
            for column in range(start, end):
                old = before[column - start]
                np.divide(local[column - start], costs[column, column], out=wanted)
                wanted += old
                self._round(column, wanted)
                np.subtract(rounded[column], old, out=step)
                moving = step.nonzero()[0]
                if len(moving) > _MANY * self._rows:
                    local -= costs[column, start:end, None] * step
                elif len(moving):
                    local[:, moving] -= costs[column, start:end, None] * step[moving]
            moved = torch.from_numpy(rounded[start:end] - before)
            pull[:start].addmm_(hessian[:start, start:end], moved, alpha=-1)
            pull[end:].addmm_(hessian[end:, start:end], moved, alpha=-1)

    def _choose_steps(self, work: torch.Tensor, start: int) -> None:
        """Of the unit that begins at a column, for the weights as they are now."""
        end = min(start + self._unit, self._columns)
        piece = work[start:end].T.float().contiguous().numpy()
        cost = self._factors.upper.diagonal()[start:end].pow(-2).float().numpy()
        packed = grids.pack(piece, self._grid, cost)
        self._parts.append(packed)
        self._take_steps(packed, start, end)

    def _refit_steps(self, pull: torch.Tensor, start: int) -> None:
        """Multiply a unit's steps and offsets by what least squares says, in the rows where that helps."""
        end = min(start + self._unit, self._columns)
        hessian, old = self._factors.hessian[start:end, start:end], self._rounded[start:end].clone()
        offsets = self._spread_out(self._offsets, start, end)
        parts = [old - offsets, offsets] if self._levels.scales == 2 else [old]
        pushed = [hessian @ part for part in parts]
        normal = torch.stack([torch.stack([(a * b).sum(0) for b in pushed], -1) for a in parts], -2)  # (R, P, P)
        gain = torch.stack([(part * pull[start:end]).sum(0) for part in parts], -1)
        ridge = 1e-9 * normal.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-300
        normal = normal + ridge[:, None, None] * torch.eye(len(parts), dtype=torch.float64)
        factors = 1 + torch.linalg.solve(normal, gain.unsqueeze(-1)).squeeze(-1)
        number = start // self._unit
        packed = codes.rescale(self._parts[number], self._grid, end - start, factors.numpy())
        before = self._parts[number]
        self._take_steps(packed, start, end)
        new = self._spread_out(self._steps, start, end) * self._level(start, end) + self._spread_out(
            self._offsets, start, end
        )
        moved = new - old
        better = ((2 * pull[start:end] - hessian @ moved) * moved).sum(0) > 0
        kept = np.where(better.numpy()[:, None], packed, before)
        self._parts[number] = kept
        self._take_steps(kept, start, end)
        moved = torch.where(better, moved, torch.zeros_like(moved))
        self._rounded[start:end] = torch.where(better, new, old)
        pull.addmm_(self._factors.hessian[:, start:end], moved, alpha=-1)

    def _level(self, start: int, end: int) -> torch.Tensor:
        if self._levels.even:
            return self._indices[start:end] + self._lowest
        return self._values[self._indices[start:end].long()]

    def _spread_out(self, groups: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """(columns, R) from one number a group."""
        first, last = start // self._width, -(-end // self._width)
        return groups[first:last].repeat_interleave(self._width, 0)[: end - start]

    def _take_steps(self, packed: Bytes, start: int, end: int) -> None:
        found = codes.lattice(packed, self._grid, end - start)
        first, last = start // self._width, -(-end // self._width)
        self._steps[first:last] = torch.from_numpy(found.steps.T)
        self._offsets[first:last] = torch.from_numpy(found.offsets.T)
        here = self._steps[first:last]
        self._inverses[first:last] = torch.where(here == 0, torch.zeros_like(here), 1 / here)

    def _round(self, column: int, wanted: NDArray[np.float64]) -> None:
        """Put (R,) values of a column on their nearest levels."""
        group = column // self._width
        scales, level = self._scales_of, self._level_row
        np.subtract(wanted, scales.offsets[group], out=level)
        level *= scales.inverses[group]
        if self._levels.even:
            np.rint(level, out=level)
            np.maximum(level, self._lowest, out=level)
            np.minimum(level, self._highest, out=level)
            np.subtract(level, self._lowest, out=self._columns_of.indices[column])
        else:
            index = self._middles.searchsorted(level)
            self._columns_of.indices[column] = index
            level = self._levels.values[index]
        rounded = self._columns_of.rounded[column]
        np.multiply(level, scales.steps[group], out=rounded)
        rounded += scales.offsets[group]
