"""Time LiteRT's matrix kernels, grid by grid, on one core and in the cache.

A file with one FULLY_CONNECTED is built for each grid and run by the interpreter, which hands it to XNNPACK as it does
in a whole model, rounding of activations included. Time at two heights, divided by the weights between them, is the
cost of one weight without the cost of a call.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgegen import grids
from edgegen.errors import UnsupportedError
from edgegen.runtime.flatmodel import GRIDS, schema, store, write_model
from edgegen.runtime.litert import library_version
from edgegen.runtime.quiet import native_stderr

_COLUMNS = 512
"""Row length for timing kernels, typical of small models, where row ends start to count."""
_ROWS = (128, 640)
"""Heights of the two matrices; the larger is 1.3 MB in float32 and 0.2 MB at 4 bits."""


class LiteRtKernels:
    """XNNPACK on one thread, through LiteRT's interpreter.

    Raises:
        UnsupportedError: ai-edge-litert, or flatbuffers beside it, is not installed.
    """

    def __init__(self) -> None:
        library_version()
        schema()
        try:
            import flatbuffers  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise UnsupportedError(
                "timing LiteRT's kernels needs flatbuffers", hint="Install it with: pip install flatbuffers"
            ) from error
        self._folder = tempfile.TemporaryDirectory(prefix="edgegen-")
        self._open = functools.cache(self._make)

    def ns_per_weight(self, grid: str, tokens: int, seconds: float) -> float:
        """Nanoseconds on one core to multiply one weight with one token's activation, `tokens` at once.

        Args:
            grid: one of `flatmodel.GRIDS`.
            tokens: rows of the other matrix; 1 is decoding.
            seconds: how long each of the two heights is repeated.
        """
        times = [self._best_seconds(grid, rows, tokens, seconds) for rows in _ROWS]
        # Contention can make the small one look slow; the large one alone bounds the cost from above.
        slope = (times[1] - times[0]) / ((_ROWS[1] - _ROWS[0]) * _COLUMNS)
        whole = times[1] / (_ROWS[1] * _COLUMNS)
        return 1e9 / tokens * (slope if 0 < slope <= whole else whole)

    def note(self, grid: str) -> str:
        """How the grid's kernel was reached."""
        return "through XNNPACK" if grid in GRIDS else ""

    def _best_seconds(self, grid: str, rows: int, tokens: int, seconds: float) -> float:
        interpreter = self._open(grid, rows, tokens)
        best, end = math.inf, time.perf_counter() + seconds
        while math.isinf(best) or time.perf_counter() < end:
            start = time.perf_counter()
            interpreter.invoke()
            best = min(best, time.perf_counter() - start)
        return best

    def _make(self, grid: str, rows: int, tokens: int) -> Any:
        """An interpreter with one product and its input set."""
        from ai_edge_litert.interpreter import Interpreter

        path = Path(self._folder.name) / f"{grid}-{rows}-{tokens}.tflite"
        write_product(path, grid, rows, _COLUMNS, tokens)
        with native_stderr():
            interpreter = Interpreter(str(path), num_threads=1)
            interpreter.allocate_tensors()
        values = np.random.default_rng(1).standard_normal((tokens, _COLUMNS)).astype(np.float32)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
        interpreter.invoke()
        return interpreter


def write_product(path: Path, grid: str, rows: int, columns: int, tokens: int) -> None:
    """Write a file that multiplies (tokens, columns) inputs with random (rows, columns) weights of a grid.

    Raises:
        UnsupportedError: LiteRT has no kernels for the grid.
    """
    s = schema()
    weights = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    stored = store(grids.pack(weights, grid), grid, columns)
    model = s.ModelT()
    model.version = 3
    model.buffers = [s.BufferT()]
    graph = s.SubGraphT()
    graph.tensors = []

    def tensor(shape: tuple[int, ...], kind: int, data: Any = None) -> int:
        made = s.TensorT()
        made.shape, made.type, made.hasRank, made.buffer = np.array(shape, np.int32), kind, True, 0
        if data is not None:
            buffer = s.BufferT()
            buffer.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    kinds = s.TensorType
    given = tensor((tokens, columns), kinds.FLOAT32)
    matrix = tensor((rows, columns), stored.kind, stored.data)
    product = tensor((tokens, rows), kinds.FLOAT32)
    operators = []
    model.operatorCodes = [_code(s.BuiltinOperator.FULLY_CONNECTED, 5)]
    if stored.scales is not None:
        quantization = s.QuantizationParametersT()
        if stored.block:
            quantization.detailsType = s.QuantizationDetails.BlockwiseQuantization
            quantization.details = s.BlockwiseQuantizationT()
            quantization.details.scales = tensor(stored.scales.shape, kinds.FLOAT16, stored.scales)
            quantization.details.zeroPoints, quantization.details.blockSize = -1, stored.block
        else:
            quantization.scale, quantization.zeroPoint = stored.scales, np.zeros(rows, np.int64)
        graph.tensors[matrix].quantization = quantization
    elif stored.kind == kinds.FLOAT16:
        model.operatorCodes.append(_code(s.BuiltinOperator.DEQUANTIZE, 3))
        wide = tensor((rows, columns), kinds.FLOAT32)
        operators.append(_operator(1, [matrix], [wide]))
        matrix = wide
    multiply = _operator(0, [given, matrix, -1], [product])
    multiply.builtinOptionsType = s.BuiltinOptions.FullyConnectedOptions
    multiply.builtinOptions = s.FullyConnectedOptionsT()
    graph.operators = [*operators, multiply]
    graph.inputs, graph.outputs = np.array([given], np.int32), np.array([product], np.int32)
    model.subgraphs = [graph]
    write_model(model, path)


def _code(builtin: int, version: int) -> Any:
    code = schema().OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    return code


def _operator(code: int, inputs: list[int], outputs: list[int]) -> Any:
    operator = schema().OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    return operator
