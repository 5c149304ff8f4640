"""Packed rows as the initializers that ONNX Runtime's operators take.

`uB_N` and `sB_N` are the layout of `MatMulNBits` and `GatherBlockQuantized` already: codes of whole blocks, then
scales, then zero points, each its own tensor here. `f16` rows are stored as float16 and cast in the graph; ONNX
Runtime casts them once, when it loads them.

R rows (outputs), C columns (inputs), B blocks a row.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import uniform
from edgegen.modeling.rebuild import Rebuilt
from edgegen.records.compressed import PackedTensor

ALIGNMENT = 64
"""Every tensor in the data file begins at a multiple of this many bytes: a cache line."""

Packed = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """One initializer."""

    suffix: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]
    """Its values; only called when they are written."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows packed in one grid: a stored tensor, several of them one below the other, or some of its rows."""

    name: str
    grid: str
    rows: int
    columns: int
    load: Callable[[], Packed] = field(repr=False, compare=False)
    """(R, row bytes)."""

    @property
    def spec(self) -> uniform.Uniform | None:
        """The grid's description; None for floating point."""
        return uniform.NAMES.get(self.grid)

    @property
    def padded_columns(self) -> int:
        """C, filled up to whole blocks."""
        return self.columns if self.spec is None else self.spec.blocks(self.columns) * self.spec.block

    def some_rows(self, start: int, stop: int) -> Matrix:
        """Rows `start` to `stop`, exactly as they are packed."""
        return replace(self, name=f"{self.name}.{start}", rows=stop - start, load=lambda: self.load()[start:stop])

    def parts(self) -> list[Part]:
        """Its initializers, in the order in which the operators take them."""
        spec = self.spec
        if spec is None:
            kind = np.dtype(np.float16 if self.grid == "f16" else np.float32)
            return [Part("weight", kind, (self.rows, self.columns), lambda: self._floats(kind))]
        blocks = spec.blocks(self.columns)
        found = [
            Part(
                "codes",
                np.dtype(np.uint8),
                (self.rows, blocks, spec.block_bytes(self.columns)),
                lambda: self._split().packed,
            ),
            Part("scales", np.dtype(np.float32), (self.rows, blocks), lambda: self._split().scales),
        ]
        if spec.zero_points:
            width = -(-blocks * spec.bits // 8)
            found.append(Part("zeros", np.dtype(np.uint8), (self.rows, width), self._zeros))
        return found

    def _split(self) -> uniform.Codes:
        return uniform.split(self.load(), self.grid, self.columns)

    def _zeros(self) -> NDArray[Any]:
        zeros = self._split().zeros
        assert zeros is not None, "this grid stores zero points"
        return zeros

    def _floats(self, kind: np.dtype[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(self.load()).view(kind).reshape(self.rows, self.columns)


class Weights:
    """Which packed rows each module of a model multiplies with."""

    def __init__(self, model: Any, tensors: dict[str, PackedTensor], packed: Callable[[str], Packed]) -> None:
        """Take a rebuilt model's.

        Args:
            tensors: parameter name → stored tensor.
            packed: (R, row bytes) of a parameter, by name.

        Raises:
            UnsupportedError: a grid that ONNX Runtime has no operator for.
        """
        self._of: dict[int, Matrix] = {}
        self._uses = collections.Counter(
            id(parameter) for module in model.modules() for parameter in module._parameters.values()
        )
        for name, parameter in model.named_parameters():
            stored = tensors[name]
            check_grid(stored.grid)
            self._of[id(parameter)] = Matrix(
                name=short_name(stored.name),
                grid=stored.grid,
                rows=stored.rows,
                columns=stored.columns,
                load=functools.partial(packed, name),
            )

    @classmethod
    def of(cls, rebuilt: Rebuilt) -> Weights:
        """Of a model with its weights."""
        return cls(rebuilt.model, rebuilt.tensors, rebuilt.packed)

    def matrix(self, parameter: Any) -> Matrix:
        """The rows of a parameter, (outputs, inputs) whichever way the module stores it."""
        return self._of[id(parameter)]

    def uses(self, parameter: Any) -> int:
        """How many modules hold a parameter."""
        return self._uses[id(parameter)]


def stacked(matrices: Sequence[Matrix]) -> Matrix | None:
    """Matrices of one grid and width, one below the other; None where they differ."""
    first = matrices[0]
    if len({(matrix.grid, matrix.columns) for matrix in matrices}) > 1:
        return None
    names = [matrix.name for matrix in matrices]
    return replace(
        first,
        name="+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])]),
        rows=sum(matrix.rows for matrix in matrices),
        load=lambda: np.concatenate([matrix.load() for matrix in matrices]),
    )


def short_name(stored: str) -> str:
    """A stored tensor's name without what all names share: `3.self_attn.q_proj`."""
    return re.sub(r"^(?:model|transformer)\.(?:layers|h)\.", "", stored).removesuffix(".weight")


def tensor_bytes(grid: str, rows: int, columns: int) -> int:
    """What a tensor's initializers take in the data file, padding included.

    Raises:
        ConfigError: a row does not fit the grid.
        UnsupportedError: a grid that ONNX Runtime has no operator for.
    """
    check_grid(grid)
    if columns <= 0:
        raise ConfigError(f"{grid}: a row of {columns} columns cannot be packed")
    matrix = Matrix("", grid, rows, columns, load=lambda: np.empty((0, 0), np.uint8))
    return sum(aligned(part_bytes(part)) for part in matrix.parts())


def part_bytes(part: Part) -> int:
    """Bytes of an initializer's values."""
    return int(np.prod(part.shape, dtype=np.int64)) * part.dtype.itemsize


def aligned(count: int) -> int:
    """Rounded up to `ALIGNMENT`."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def check_grid(grid: str) -> None:
    """Refuse what has no operator.

    Raises:
        UnsupportedError: not `f32`, `f16`, `uB_N` or `sB_N`.
    """
    spec = uniform.NAMES.get(grid)
    if grid in ("f32", "f16") or (spec is not None and spec.partial):
        return
    known = [name for name, kind in uniform.NAMES.items() if kind.partial]
    grids.family_of(grid)
    raise UnsupportedError(
        f"ONNX Runtime has no operator for grid {grid}", hint="It takes f32, f16, " + ", ".join(known) + "."
    )
