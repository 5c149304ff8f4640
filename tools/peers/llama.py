"""llama.cpp's own quantizer: `python -m peers.llama SOURCE OUT TYPE IMPORTANCE PURE` in a process of its own.

IMPORTANCE is an .npz file or empty, PURE is 1 or 0. Nothing is imported here that quantizing does not need.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen.runtime.registry import runtime_for
from peers.process import ProgramError

Weights = Mapping[str, NDArray[np.float32]]


class _Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


def quantize_gguf(source: Path, out: Path, name: str, *, importance: Weights | None = None, pure: bool = False) -> None:
    """Let llama.cpp's own quantizer write a type.

    Args:
        source: a GGUF file in float32.
        name: as in `LLAMA_FTYPE_MOSTLY_…`.
        importance: GGUF tensor name → (columns,) mean square of each input, as llama.cpp's importance matrices hold.
        pure: one type for every matrix, instead of the mix that the name stands for.

    Raises:
        ProgramError: it refuses this model.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = 2
    params.pure = pure
    kept = []
    if importance is not None:
        entries = (_Importance * (len(importance) + 1))()
        for index, (tensor, values) in enumerate(importance.items()):
            data = np.ascontiguousarray(np.maximum(values, values.mean() * 1e-6 + 1e-20), dtype=np.float32)
            kept.append(data)
            entries[index].name = tensor.encode()
            entries[index].data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[index].size = data.size
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    runtime_for("gguf").version()  # starts the backend with its log kept quiet
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if code != 0:
        out.unlink(missing_ok=True)
        raise ProgramError(f"llama.cpp does not write {name} for this model (code {code})")


def main(source: str, out: str, name: str, importance: str, pure: str) -> int:
    """Quantize in this process."""
    weights = None
    if importance:
        with np.load(importance) as stored:
            weights = {tensor: stored[tensor] for tensor in stored.files}
    quantize_gguf(Path(source), Path(out), name, importance=weights, pure=pure == "1")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
