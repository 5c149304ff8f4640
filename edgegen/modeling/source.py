"""A model's tensors as they will be exported: one orientation, rows that fit blocks, packed on demand.

Every matrix is (R outputs, C inputs) float32. Where a layer's feed-forward width is no multiple of 32 it is padded with
zero channels: zero rows in gate and up, zero columns in down. That changes no output, and rows that grids can cut
into blocks are worth more than the padding costs.

Packing works row by row, so a trimmed vocabulary's packed table is a selection of the whole table's packed rows.

A source for several runtimes rounds onto the grids that they agree on (`grids.agreed`), so that a tensor is the same
weights in each of them.

Where a layer's Hessian is known and the grid has a code for each weight, rounding errors are compensated
(`compensation`); elsewhere weights are rounded one by one.
"""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from edgegen import grids
from edgegen.grids import agreed
from edgegen.modeling import compensation
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.distortion import Distortion, distortion_of
from edgegen.modeling.hessians import Hessians
from edgegen.modeling.load import stored_names
from edgegen.modeling.summary import is_transposed
from edgegen.records.model import ModelSummary, TensorInfo

_BLOCK_COLUMNS = 32
_FFN_IN_BIAS = re.compile(r"\.(mlp\.(gate_proj|up_proj|c_fc|fc1)|intermediate\.dense|ffn\.lin1)(\.1)?\.bias$")
_FIRST_FACTOR, _SECOND_FACTOR = ".0.weight", ".1.weight"
"""Ends of the names of a factorised matrix's two parts: (rank, inputs) and (outputs, rank)."""
CACHE_BYTES = 1_500_000_000
_FACTORS_KEPT = 3
"""Factored Hessians in memory: those that the tensors rounded next may share."""


class TensorSource:
    """Reads, pads and packs the tensors of one checkpoint. Safe to use from several threads."""

    def __init__(
        self,
        empty: Any,
        checkpoint: Checkpoint,
        summary: ModelSummary,
        *,
        pad: bool = True,
        cache_bytes: int = CACHE_BYTES,
        is_agreed: bool = False,
    ) -> None:
        """Take a checkpoint's tensors; without `pad` every width stays as it is.

        Args:
            cache_bytes: packed tensors that are kept; the last one always is.
            is_agreed: whether each grid is to hold the weights of its agreed one, for several runtimes at once.
        """
        self._is_agreed = is_agreed
        self._cache_bytes = cache_bytes
        self._checkpoint = checkpoint
        self._stored = stored_names(empty, checkpoint)
        self._transposed = {t.name for t in summary.tensors if is_transposed(empty, t.name)}
        self.original = summary
        self.summary = padded_summary(summary) if pad else summary
        self._shape = {t.name: (t.rows, t.columns) for t in self.summary.tensors}
        self._original_shape = {t.name: (t.rows, t.columns) for t in summary.tensors}
        self._importance: dict[str, NDArray[np.float32]] = {}
        self._hessians: Hessians | None = None
        self._tuned: dict[str, str] = {}
        self._tuned_file: Path | None = None
        self._factors: collections.OrderedDict[str, compensation.Factored] = collections.OrderedDict()
        self._factoring = threading.Lock()
        self._cache: collections.OrderedDict[tuple[str, str, bool], NDArray[np.uint8]] = collections.OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def use_importance(self, importance: dict[str, NDArray[np.float32]]) -> None:
        """Weight rounding errors by the mean square of each input: tensor name → (C,) float32 of the unpadded width."""
        padded = {name: np.pad(values, (0, self._shape[name][1] - len(values))) for name, values in importance.items()}
        with self._lock:
            self._importance = padded
            self._forget()

    def use_hessians(self, hessians: Hessians | None) -> None:
        """Compensate rounding errors where these allow it; None: nowhere."""
        with self._lock, self._factoring:
            self._hessians = hessians
            self._factors.clear()
            self._forget()

    def use_tuned(self, chosen: Mapping[str, str], file: Path | None) -> None:
        """Take tensors that were tuned in their grids from a file instead of rounding them; None: none.

        Args:
            chosen: tensor name → grid, of those in the file.
            file: in safetensors format: tensor name → (R, row bytes).
        """
        self._tuned, self._tuned_file = dict(chosen), file

    def _forget(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0

    def compensates(self, name: str, grid: str) -> bool:
        """Whether `packed` rounds a tensor onto a grid with its errors compensated."""
        return self._hessians is not None and name in self._hessians and compensation.can_compensate(grid)

    def compensation_gain(self, name: str) -> float:
        """What part of a tensor's rounding error is expected to remain once it is compensated; 1 where it is not."""
        if self._hessians is None or name not in self._hessians:
            return 1.0
        return compensation.remaining_share(self._factored(name))

    def shape(self, name: str) -> tuple[int, int]:
        """(R, C) of a tensor as exported."""
        return self._shape[name]

    def matrix(self, name: str) -> NDArray[np.float32]:
        """One tensor as exported: (R, C), vectors as (1, C); padded.

        Raises:
            ConfigError: it holds NaN or infinity.
        """
        tensor = self._checkpoint.read(self._stored[name])
        if name in self._transposed:
            tensor = tensor.T
        values: NDArray[np.float32] = tensor.reshape(self._original_shape[name]).contiguous().numpy()
        rows, columns = self._shape[name]
        if values.shape == (rows, columns):
            return values
        return np.pad(values, ((0, rows - values.shape[0]), (0, columns - values.shape[1])))

    def packed(self, name: str, grid: str, *, plain: bool = False) -> NDArray[np.uint8]:
        """One tensor rounded onto a grid: (R, row bytes) uint8. Kept in memory up to a limit.

        Args:
            plain: without compensating errors, whether or not that would be possible.
        """
        if not plain and self._tuned_file is not None and self._tuned.get(name) == grid:
            with safe_open(self._tuned_file, framework="numpy") as stored:
                return np.asarray(stored.get_tensor(name))
        compensated = not plain and self.compensates(name, grid)
        onto = self._rounding_grid(grid)
        return agreed.translate(self._rounded_onto(name, onto, compensated), onto, grid, self._shape[name][1])

    def changed(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Those of the tensors with these grids that do not stay what they are in the checkpoint."""
        return {name: grid for name, grid in chosen.items() if grid != "f32" or self._tuned.get(name) == grid}

    def _rounding_grid(self, grid: str) -> str:
        """The grid that weights are rounded onto before they are packed in another."""
        return agreed.agreed_of(grid) if self._is_agreed else grid

    def _rounded_onto(self, name: str, grid: str, compensated: bool) -> NDArray[np.uint8]:
        """(R, row bytes) of a grid, from the cache or made for it."""
        key = (name, grid, compensated)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        if compensated:
            packed = compensation.pack_compensated(self.matrix(name), grid, self._factored(name))
        else:
            packed = grids.pack(self.matrix(name), grid, self._importance.get(name))
        with self._lock:
            if key not in self._cache:  # another thread may have been as quick
                self._cached_bytes += packed.nbytes
            self._cache[key] = packed
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.nbytes
        return packed

    def rounded(self, name: str, grid: str, *, plain: bool = False) -> NDArray[np.float32]:
        """What a tensor becomes on a grid, in the exported orientation and padded width; arguments as `packed`."""
        return grids.unpack(self.packed(name, grid, plain=plain), grid, self._shape[name][1])

    def distortion(self, name: str, grid: str) -> Distortion:
        """What a tensor's rounding onto a grid, as `packed` does it, costs its layer's outputs."""
        packed = self.packed(name, grid)
        return distortion_of(
            self.matrix(name),
            grids.unpack(packed, grid, self._shape[name][1]),
            packed.nbytes,
            self._factored(name) if self.compensates(name, grid) else None,
            self._importance.get(name),
        )

    def _factored(self, name: str) -> compensation.Factored:
        """A layer's Hessian of the padded width, factored once for the tensors that share it."""
        assert self._hessians is not None, "only asked for where there are some"
        number = self._hessians.file_of(name)
        with self._factoring:
            if number not in self._factors:
                hessian = self._hessians.read(number)
                extra = self._shape[name][1] - len(hessian)
                self._factors[number] = compensation.factored(np.pad(hessian, (0, extra)))
            self._factors.move_to_end(number)
            found = self._factors[number]
            while len(self._factors) > _FACTORS_KEPT:
                self._factors.popitem(last=False)
        return found

    def round_rows(self, name: str, grid: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What some of an unpadded tensor's rows become on a grid: (rows, C)."""
        onto = self._rounding_grid(grid)
        return grids.unpack(grids.pack(rows, onto, self._importance.get(name)), onto, rows.shape[1])

    def as_parameter(self, name: str, values: NDArray[np.float32]) -> torch.Tensor:
        """An exported matrix back in the model's own shape: padding cut off, orientation restored."""
        return self.to_parameter(name, torch.from_numpy(np.ascontiguousarray(values)))

    def to_parameter(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The same of a tensor; gradients pass."""
        rows, columns = self._original_shape[name]
        tensor = values[:rows, :columns]
        if name in self._transposed:
            tensor = tensor.T
        return tensor.reshape(self._checkpoint.shapes[self._stored[name]])

    def original_parameter(self, name: str) -> torch.Tensor:
        """A tensor as stored, in float32."""
        return self._checkpoint.read(self._stored[name])


def padded_summary(summary: ModelSummary) -> ModelSummary:
    """The same model with feed-forward widths that are multiples of 32, layer by layer; itself if they all are."""
    widths = ffn_widths(summary)
    wide_in = [t for t in summary.tensors if t.role == "ffn_in" and not t.name.endswith(_FIRST_FACTOR)]
    if any(t.rows == 2 * widths[t.layer] for t in wide_in):
        return summary  # gate and up in one matrix cannot be padded at its end
    if not any(width % _BLOCK_COLUMNS for width in widths.values()):
        return summary
    return msgspec.structs.replace(
        summary,
        ffn_size=_fitting(summary.ffn_size),
        tensors=tuple(_padded(t, widths[t.layer]) if t.layer in widths else t for t in summary.tensors),
    )


def ffn_widths(summary: ModelSummary) -> dict[int, int]:
    """Feed-forward channels of each layer that has any, by the shapes of its matrices."""
    widths: dict[int, int] = {}
    for tensor in summary.tensors:
        if tensor.role == "ffn_in" and not tensor.name.endswith(_FIRST_FACTOR):
            widths.setdefault(tensor.layer, tensor.rows)
    for tensor in summary.tensors:
        # The output matrix says it best: gate and up may be one matrix. It may also be another layer's, and not stored.
        if tensor.role == "ffn_out" and not tensor.name.endswith(_SECOND_FACTOR):
            widths[tensor.layer] = tensor.columns
    return widths


def _padded(tensor: TensorInfo, width: int) -> TensorInfo:
    if tensor.role == "ffn_in" and tensor.rows == width and not tensor.name.endswith(_FIRST_FACTOR):
        return msgspec.structs.replace(tensor, rows=_fitting(width))
    if tensor.role == "ffn_out" and not tensor.name.endswith(_SECOND_FACTOR):
        return msgspec.structs.replace(tensor, columns=_fitting(width))
    if tensor.role == "vector" and tensor.columns == width and _FFN_IN_BIAS.search(tensor.name):
        return msgspec.structs.replace(tensor, columns=_fitting(width))
    return tensor


def _fitting(width: int) -> int:
    return width + -width % _BLOCK_COLUMNS
