"""Time ggml's matrix kernels, grid by grid, on one core and in the cache.

The product runs through the CPU backend that llama.cpp uses, with weights rearranged as it would rearrange them.
Time at two heights, divided by the weights between them, is the cost of one weight without the cost of starting a
graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.errors import UnsupportedError
from edgegen.grids.ggml import TYPES

_COLUMNS = 512
"""Row length for timing kernels: two super-blocks, typical of small models, where row ends start to count."""
_ROWS = (128, 640)
"""Heights of the two matrices; the larger is 1.3 MB in f32 and 0.2 MB at 4 bits."""


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Kernels:
    """ggml's CPU backend on one thread, through its public C interface.

    Raises:
        UnsupportedError: llama-cpp-python is not installed, or its ggml has another interface.
    """

    def __init__(self, *, rearranged: bool = True) -> None:
        self.repacked: set[str] = set()
        base, cpu = _libraries()
        pointer, size, int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64

        def declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
            return function

        try:
            self._init = declare(base, "ggml_init", pointer, _InitParams)
            self._free = declare(base, "ggml_free", None, pointer)
            self._tensor = declare(base, "ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, int64, int64)
            self._multiply = declare(base, "ggml_mul_mat", pointer, pointer, pointer, pointer)
            self._graph = declare(base, "ggml_new_graph", pointer, pointer)
            self._expand = declare(base, "ggml_build_forward_expand", None, pointer, pointer)
            self._bytes = declare(base, "ggml_nbytes", size, pointer)
            self._quantize = declare(
                base,
                "ggml_quantize_chunk",
                size,
                ctypes.c_int,
                pointer,
                pointer,
                int64,
                int64,
                int64,
                pointer,
            )
            self._allocate = declare(base, "ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer)
            self._release = declare(base, "ggml_backend_buffer_free", None, pointer)
            self._set = declare(base, "ggml_backend_tensor_set", None, pointer, pointer, size, size)
            self._supports = declare(base, "ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
            self._compute = declare(base, "ggml_backend_graph_compute", ctypes.c_int, pointer, pointer)
            registry = declare(cpu, "ggml_backend_cpu_reg", pointer)()
            self._device = declare(base, "ggml_backend_reg_dev_get", pointer, pointer, size)(registry, 0)
            self._plain = declare(base, "ggml_backend_dev_buffer_type", pointer, pointer)(self._device)
            address = declare(base, "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
            extra = address(registry, b"ggml_backend_dev_get_extra_bufts")
            self._backend = declare(cpu, "ggml_backend_cpu_init", pointer)()
            declare(cpu, "ggml_backend_cpu_set_n_threads", None, pointer, ctypes.c_int)(self._backend, 1)
        except AttributeError as error:
            raise UnsupportedError(
                f"this llama.cpp has another interface ({error})", hint="Install a newer llama-cpp-python."
            ) from error
        self._extra: list[int] = []
        if extra and rearranged:
            listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(extra)(self._device)
            index = 0
            while listed and listed[index]:
                self._extra.append(int(listed[index] or 0))
                index += 1

    def ns_per_weight(self, grid: str, tokens: int, seconds: float) -> float:
        """Nanoseconds on one core to multiply one weight with one token's activation, `tokens` at once.

        Args:
            grid: a key of `TYPES`.
            tokens: columns of the other matrix; 1 is decoding.
            seconds: how long each of the two heights is repeated.
        """
        for buffer in (*self._extra, self._plain):
            times = [self._best_seconds(TYPES[grid], rows, tokens, buffer, seconds) for rows in _ROWS]
            if times[0] is None or times[1] is None:
                continue
            if buffer != self._plain:
                self.repacked.add(grid)
            # Contention can make the small one look slow; the large one alone bounds the cost from above.
            slope = (times[1] - times[0]) / ((_ROWS[1] - _ROWS[0]) * _COLUMNS)
            whole = times[1] / (_ROWS[1] * _COLUMNS)
            return 1e9 / tokens * (slope if 0 < slope <= whole else whole)
        raise UnsupportedError(f"this llama.cpp cannot multiply {grid}", hint="Install a newer llama-cpp-python.")

    def note(self, grid: str) -> str:
        """How the grid's kernel was reached."""
        return "rearranged when loaded" if grid in self.repacked else ""

    def _best_seconds(self, kind: int, rows: int, tokens: int, buffer_type: int, seconds: float) -> float | None:
        """Shortest time of one product, None if weights of this type cannot live in this kind of buffer."""
        with self._context() as weights_context, self._context() as other_context:
            weights = self._tensor(weights_context, kind, _COLUMNS, rows)
            inputs = self._tensor(other_context, 0, _COLUMNS, tokens)
            product = self._multiply(other_context, weights, inputs)
            graph = self._graph(other_context)
            self._expand(graph, product)
            with self._buffer(weights_context, buffer_type), self._buffer(other_context, self._plain):
                if not self._supports(self._device, product):
                    return None
                self._fill(weights, kind, rows)
                values = np.ones((tokens, _COLUMNS), dtype=np.float32)
                self._set(inputs, values.ctypes.data, 0, values.nbytes)
                best, end = math.inf, time.perf_counter() + seconds
                while math.isinf(best) or time.perf_counter() < end:
                    start = time.perf_counter()
                    self._compute(self._backend, graph)
                    best = min(best, time.perf_counter() - start)
                return best

    def _fill(self, weights: int, kind: int, rows: int) -> None:
        """Eight quantised random rows over and over: rounding is slow and values do not matter."""
        total = self._bytes(weights)
        sample = np.random.default_rng(0).standard_normal((8, _COLUMNS)).astype(np.float32)
        packed = np.empty(total // rows * 8, dtype=np.uint8)
        importance = np.ones(_COLUMNS, dtype=np.float32)
        self._quantize(kind, sample.ctypes.data, packed.ctypes.data, 0, 8, _COLUMNS, importance.ctypes.data)
        whole = np.tile(packed, rows // 8)
        self._set(weights, whole.ctypes.data, 0, total)

    @contextlib.contextmanager
    def _context(self) -> Iterator[int]:
        context = self._init(_InitParams(1 << 20, None, True))
        try:
            yield context
        finally:
            self._free(context)

    @contextlib.contextmanager
    def _buffer(self, context: int, buffer_type: int) -> Iterator[None]:
        buffer = self._allocate(context, buffer_type)
        try:
            yield
        finally:
            self._release(buffer)


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """ggml's base and CPU libraries, the very ones that llama.cpp has loaded."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # the latter two come from a broken build
        raise UnsupportedError("llama-cpp-python is not installed", hint="pip install 'edgegen[gguf]'") from error
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    folder = Path(llama_cpp.__file__).parent / "lib"
    found = []
    for stem in ("ggml-base", "ggml-cpu"):
        paths = [folder / name for name in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll")]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise UnsupportedError(
                f"llama-cpp-python brings no {stem} library of its own",
                hint="Build it with shared libraries.",
            )
        found.append(ctypes.CDLL(str(path)))
    return found[0], found[1]
