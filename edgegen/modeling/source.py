"""A model's tensors as they will be exported: one orientation, rows that fit blocks, packed on demand.

Every matrix is (R outputs, C inputs) float32. Where the feed-forward width is no multiple of 32 it is padded with
zero channels: zero rows in gate and up, zero columns in down. That changes no output, and rows that grids can cut
into blocks are worth more than the padding costs.

Packing works row by row, so a trimmed vocabulary's packed table is a selection of the whole table's packed rows.

Where a layer's Hessian is known and the grid has a code for each weight, rounding errors are compensated
(`compensation`); elsewhere weights are rounded one by one.
"""

from __future__ import annotations

import collections
import re
import threading
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.modeling import compensation
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.hessians import Hessians
from edgegen.modeling.load import stored_names
from edgegen.modeling.summary import is_transposed
from edgegen.records.model import ModelSummary, TensorInfo

_BLOCK_COLUMNS = 32
_FFN_IN_BIAS = re.compile(r"\.(mlp\.(gate_proj|up_proj|c_fc|fc1)|intermediate\.dense|ffn\.lin1)\.bias$")
_CACHE_BYTES = 1_500_000_000
_FACTORS_KEPT = 3
"""Factored Hessians in memory: those that the tensors rounded next may share."""


class TensorSource:
    """Reads, pads and packs the tensors of one checkpoint. Safe to use from several threads."""

    def __init__(self, empty: Any, checkpoint: Checkpoint, summary: ModelSummary, *, pad: bool = True) -> None:
        """Take a checkpoint's tensors; without `pad` every width stays as it is."""
        self._checkpoint = checkpoint
        self._stored = stored_names(empty, checkpoint)
        self._transposed = {t.name for t in summary.tensors if is_transposed(empty, t.name)}
        self.original = summary
        self.summary = padded_summary(summary) if pad else summary
        self._shape = {t.name: (t.rows, t.columns) for t in self.summary.tensors}
        self._original_shape = {t.name: (t.rows, t.columns) for t in summary.tensors}
        self._importance: dict[str, NDArray[np.float32]] = {}
        self._hessians: Hessians | None = None
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

    def matrix(self, name: str) -> NDArray[np.float32]:
        """One tensor as exported: (R, C), vectors as (1, C); padded.

        Raises:
            ConfigError: it holds NaN or infinity.
        """
        tensor = self._checkpoint.read(self._stored[name])
        if name in self._transposed:
            tensor = tensor.T
        values = tensor.reshape(self._original_shape[name]).contiguous().numpy()
        rows, columns = self._shape[name]
        return np.pad(values, ((0, rows - values.shape[0]), (0, columns - values.shape[1])))

    def packed(self, name: str, grid: str, *, plain: bool = False) -> NDArray[np.uint8]:
        """One tensor rounded onto a grid: (R, row bytes) uint8. Kept in memory up to a limit.

        Args:
            plain: without compensating errors, whether or not that would be possible.
        """
        compensated = not plain and self.compensates(name, grid)
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
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.nbytes
        return packed

    def rounded(self, name: str, grid: str, *, plain: bool = False) -> NDArray[np.float32]:
        """What a tensor becomes on a grid, in the exported orientation and padded width; arguments as `packed`."""
        return grids.unpack(self.packed(name, grid, plain=plain), grid, self._shape[name][1])

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

    def as_parameter(self, name: str, values: NDArray[np.float32]) -> torch.Tensor:
        """An exported matrix back in the model's own shape: padding cut off, orientation restored."""
        rows, columns = self._original_shape[name]
        tensor = torch.from_numpy(np.ascontiguousarray(values[:rows, :columns]))
        if name in self._transposed:
            tensor = tensor.T
        return tensor.reshape(self._checkpoint.shapes[self._stored[name]])

    def original_parameter(self, name: str) -> torch.Tensor:
        """A tensor as stored, in float32."""
        return self._checkpoint.read(self._stored[name])


def padded_summary(summary: ModelSummary) -> ModelSummary:
    """The same model with a feed-forward width that is a multiple of 32."""
    extra = -summary.ffn_size % _BLOCK_COLUMNS
    if not extra or not any(t.role == "ffn_out" for t in summary.tensors):
        return summary
    if any(t.rows == 2 * summary.ffn_size for t in summary.tensors if t.role == "ffn_in"):
        return summary  # gate and up in one matrix cannot be padded at its end
    return msgspec.structs.replace(
        summary,
        ffn_size=summary.ffn_size + extra,
        tensors=tuple(_padded(t, summary.ffn_size, extra) for t in summary.tensors),
    )


def _padded(tensor: TensorInfo, ffn_size: int, extra: int) -> TensorInfo:
    if tensor.role == "ffn_in" and tensor.rows == ffn_size:
        return msgspec.structs.replace(tensor, rows=ffn_size + extra)
    if tensor.role == "ffn_out" and tensor.columns == ffn_size:
        return msgspec.structs.replace(tensor, columns=ffn_size + extra)
    is_ffn_bias = tensor.role == "vector" and tensor.columns == ffn_size and _FFN_IN_BIAS.search(tensor.name)
    return msgspec.structs.replace(tensor, columns=ffn_size + extra) if is_ffn_bias else tensor
