"""Time ONNX Runtime's matrix kernels, grid by grid, on one core and in the cache.

As `kernels` does for ggml: a graph of one node (`MatMulNBits`, or `MatMul` for floats) is run at two heights, and the
difference in time divided by the weights between them is the cost of one weight without the cost of a call. The graph
is written here, field by field (protobuf's wire format, numbers from onnx.proto), because a device has ONNX Runtime
but not the `onnx` package.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import UnsupportedError
from edgegen.grids import uniform

_COLUMNS = 512
_ROWS = (128, 640)
_FLOAT, _UINT8 = 1, 2
"""onnx.TensorProto.DataType."""
_ATTRIBUTE_INT = 2
_ACCURACY = 4
"""`accuracy_level`: activations in int8, as artifacts ship."""


class OnnxKernels:
    """ONNX Runtime's CPU provider on one thread.

    Raises:
        UnsupportedError: onnxruntime is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise UnsupportedError("onnxruntime is not installed", hint="pip install 'edgegen[onnx]'") from error
        self._ort = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 4

    def ns_per_weight(self, grid: str, tokens: int, seconds: float) -> float:
        """Nanoseconds on one core to multiply one weight with one token's activation, `tokens` at once.

        Args:
            grid: `f32`, `f16` (which ONNX Runtime widens when it loads), or a uniform grid of `MatMulNBits`.
            tokens: rows of the other matrix; 1 is decoding.
            seconds: how long each of the two heights is repeated.

        Raises:
            UnsupportedError: ONNX Runtime has no kernel for the grid.
        """
        times = [self._best_seconds(grid, rows, tokens, seconds) for rows in _ROWS]
        slope = (times[1] - times[0]) / ((_ROWS[1] - _ROWS[0]) * _COLUMNS)
        whole = times[1] / (_ROWS[1] * _COLUMNS)
        # Contention can make the small one look slow; the large one alone bounds the cost from above.
        return 1e9 / tokens * (slope if 0 < slope <= whole else whole)

    def note(self, grid: str) -> str:
        """How the grid's kernel was reached."""
        return "widened to f32 when loaded" if grid == "f16" else ""

    def _best_seconds(self, grid: str, rows: int, tokens: int, seconds: float) -> float:
        try:
            session = self._ort.InferenceSession(
                one_product(grid, rows), self._options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises types of its own
            raise UnsupportedError(f"this ONNX Runtime cannot multiply {grid}: {str(error)[:200]}") from error
        binding = session.io_binding()
        binding.bind_cpu_input("x", np.ones((tokens, _COLUMNS), dtype=np.float32))
        binding.bind_output("y")
        best, end = math.inf, time.perf_counter() + seconds
        while math.isinf(best) or time.perf_counter() < end:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            best = min(best, time.perf_counter() - start)
        return best


def one_product(grid: str, rows: int, columns: int = _COLUMNS) -> bytes:
    """An ONNX model y = x Wᵀ with random weights W (R, C) on a grid; x (T, C), y (T, R)."""
    weights = np.random.default_rng(0).standard_normal((8, columns)).astype(np.float32)
    attributes: dict[str, int] = {}
    if grid in grids.floats.NAMES:
        values = np.tile(weights, (rows // 8, 1)).T
        operands: list[tuple[str, int, NDArray[Any]]] = [("w", _FLOAT, np.ascontiguousarray(values))]
        kind, domain = "MatMul", ""
    else:
        spec = uniform.NAMES[grid]
        parts = uniform.split(np.tile(grids.pack(weights, grid), (rows // 8, 1)), grid, columns)
        operands = [("w", _UINT8, parts.packed), ("s", _FLOAT, parts.scales.reshape(-1))]
        if parts.zeros is not None:
            operands.append(("z", _UINT8, parts.zeros.reshape(-1)))
        kind, domain = "MatMulNBits", "com.microsoft"
        attributes = {
            "K": columns,
            "N": rows,
            "bits": spec.bits,
            "block_size": spec.block,
            "accuracy_level": _ACCURACY,
        }
    node = b"".join(_text(1, name) for name in ("x", *(name for name, _, _ in operands)))
    node += _text(2, "y") + _text(4, kind) + _text(7, domain)
    for name, value in attributes.items():
        node += _field(5, _text(1, name) + _number(3, value) + _number(20, _ATTRIBUTE_INT))
    graph = _field(1, node) + _text(2, "product")
    graph += b"".join(_field(5, _tensor(name, kind_, values)) for name, kind_, values in operands)
    graph += _field(11, _value("x", columns)) + _field(12, _value("y", rows))
    versions = _field(8, _text(1, "") + _number(2, 20)) + _field(8, _text(1, "com.microsoft") + _number(2, 1))
    return _number(1, 10) + _field(7, graph) + versions


def _tensor(name: str, kind: int, values: NDArray[Any]) -> bytes:
    shape = b"".join(_number(1, size) for size in values.shape)
    return shape + _number(2, kind) + _text(8, name) + _field(9, values.tobytes())


def _value(name: str, width: int) -> bytes:
    """A float matrix with any number of rows."""
    shape = _field(1, _text(2, "tokens")) + _field(1, _number(1, width))
    return _text(1, name) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, shape)))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
