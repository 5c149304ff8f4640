"""A model whose rounded weights can learn: codes, the scales of their steps, and the vectors that stay real numbers.

A runtime computes with w = offset + step · level(code). Here each code follows a parameter v in units of levels: the
nearest level counts, and its gradient passes as if nothing were rounded (straight-through, Bengio et al. 2013,
arXiv:1308.3432). It begins on its level, half a step from any other: rounding with compensation has put many codes
elsewhere than next to the original weight, and a parameter that began there would fall to another level by noise alone.
Steps and offsets of a unit are multiplied by 1 + a parameter, vectors have one added to them. All are in units in which
the same learning rate fits.

What is learnt can be packed again in the same grids without any further rounding but of the scales to what their
format holds.

R rows, C columns, G groups and U units a row (see `grids.codes`), S scales a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.grids import codes
from edgegen.modeling.source import TensorSource

Bytes = NDArray[np.uint8]

_SCALE_UNIT = 0.02
"""A parameter's 1 in scales."""
_VECTOR_UNIT = 0.05
"""A parameter's 1 in vectors, as a share of their root mean square."""
_LEAST_VECTOR = 0.01
"""Root mean square that a vector of smaller numbers counts with."""
_VECTOR_GRID = "f32"


def learns(grid: str) -> bool:
    """Whether a tensor in this grid is among what learns."""
    return grid == _VECTOR_GRID or codes.has_codes(grid)


class LatentModel(torch.nn.Module):
    """A model computing with what some of its tensors become on their grids."""

    def __init__(self, model: Any, source: TensorSource, chosen: Mapping[str, str]) -> None:
        """
        Args:
            model: whose configuration is used; its weights are not changed.
            source: where tensors come from, rounded and as they were.
            chosen: tensor name → grid, of all tensors; those that do not learn (see `learns`) are rounded for good.
        """
        super().__init__()
        self._model = [model]  # in a list, so that its weights are none of this module's
        self._source = source
        self._names = list(chosen)
        self.tensors = torch.nn.ModuleList(
            (_Vector(source, name) if grid == _VECTOR_GRID else _Codes(source, name, grid))
            if learns(grid)
            else _Fixed(source, name, grid)
            for name, grid in chosen.items()
        )

    def forward(self, **inputs: Any) -> Any:
        """The model's own outputs."""
        weights = {
            name: self._source.to_parameter(name, tensor())
            for name, tensor in zip(self._names, self.tensors, strict=True)
        }
        return torch.func.functional_call(self._model[0], weights, kwargs=inputs, tie_weights=True)

    def packed(self) -> Iterator[tuple[str, Bytes]]:
        """Each tensor that learns, with its (R, row bytes) as they are now."""
        for name, tensor in zip(self._names, self.tensors, strict=True):
            if not isinstance(tensor, _Fixed):
                yield name, tensor.packed()


class _Fixed(torch.nn.Module):
    """Weights without codes of their own."""

    def __init__(self, source: TensorSource, name: str, grid: str) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(source.rounded(name, grid)), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.values


class _Vector(torch.nn.Module):
    """Numbers that no grid rounds."""

    def __init__(self, source: TensorSource, name: str) -> None:
        super().__init__()
        values = torch.from_numpy(source.matrix(name))
        size = max(float(values.square().mean().sqrt()), _LEAST_VECTOR)
        self._unit = _VECTOR_UNIT * size
        self.register_buffer("values", values)
        self.moved = torch.nn.Parameter(torch.zeros_like(values))

    def forward(self) -> torch.Tensor:
        return self.values + self._unit * self.moved

    def packed(self) -> Bytes:
        with torch.no_grad():
            return grids.pack(self.forward().cpu().numpy(), _VECTOR_GRID)


class _Codes(torch.nn.Module):
    """Weights with a code each."""

    def __init__(self, source: TensorSource, name: str, grid: str) -> None:
        super().__init__()
        self._grid, self._levels = grid, codes.levels_of(grid)
        self._packed = source.packed(name, grid)
        self._rows, self._columns = source.shape(name)
        lattice = codes.lattice(self._packed, grid, self._columns)
        self._width = self._levels.width or self._columns
        self._unit = self._levels.unit or self._columns
        self._units = -(-self._columns // self._unit)
        self.register_buffer("steps", torch.from_numpy(lattice.steps).float())
        self.register_buffer("offsets", torch.from_numpy(lattice.offsets).float())
        self.register_buffer("values", torch.from_numpy(self._levels.values).float())
        found = codes.read_codes(self._packed, grid, self._columns).astype(np.int64) - self._levels.first
        self.places = torch.nn.Parameter(self.values[torch.from_numpy(found)])
        self.gains = torch.nn.Parameter(torch.zeros(self._rows, self._units, self._levels.scales))

    def forward(self) -> torch.Tensor:
        level = self.places + (self._nearest() - self.places).detach()
        factors = 1 + _SCALE_UNIT * self.gains
        groups = self._unit // self._width
        last = self._levels.scales - 1
        steps = self.steps * factors[..., 0].repeat_interleave(groups, 1)[:, : self.steps.shape[1]]
        found = self._spread(steps, self._width) * level
        if self._levels.minimum:
            offsets = self.offsets * factors[..., last].repeat_interleave(groups, 1)[:, : self.steps.shape[1]]
            found = found + self._spread(offsets, self._width)
        return found

    def packed(self) -> Bytes:
        with torch.no_grad():
            factors = (1 + _SCALE_UNIT * self.gains).double().cpu().numpy()
            index = torch.bucketize(self.places, self._middles()).to(torch.uint8).cpu().numpy()
        scaled = codes.rescale_rows(self._packed, self._grid, self._columns, factors)
        return codes.write_codes(scaled, self._grid, index + np.uint8(self._levels.first))

    def _nearest(self) -> torch.Tensor:
        if self._levels.even:
            return self.places.detach().round().clamp_(float(self.values[0]), float(self.values[-1]))
        return self.values[torch.bucketize(self.places.detach(), self._middles())]

    def _middles(self) -> torch.Tensor:
        return (self.values[1:] + self.values[:-1]) / 2

    def _spread(self, groups: torch.Tensor, width: int) -> torch.Tensor:
        """(R, C) from one number a group."""
        return groups.repeat_interleave(width, 1)[:, : self._columns]
