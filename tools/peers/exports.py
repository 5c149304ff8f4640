"""Other tools' own ways from a checkpoint to a runtime's file: llama.cpp, onnxruntime-genai, Google's LiteRT quantizer.

`python -m peers.exports gguf SOURCE OUT TYPE IMPORTANCE PURE` is llama.cpp's quantizer in a process of its own;
IMPORTANCE is an .npz file or empty, PURE is 1 or 0.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.export.gguf.families import family_of, translate
from edgegen.export.gguf.tensors import place
from edgegen.export.litert.convert import Request
from edgegen.export.litert.export import SCORE_TOKENS
from edgegen.records.compressed import Compressed
from edgegen.runtime.registry import runtime_for
from peers.process import Cost, ProgramError, run
from peers.subject import Subject, tell

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


def gguf_importance(output: Path) -> dict[str, NDArray[np.float32]]:
    """GGUF tensor name → importance weights, from an edgegen output that keeps what was measured."""
    config = json.loads((output / "compressed" / "config.json").read_bytes())
    compressed = load_json(output / "compressed" / "compressed.json", Compressed)
    placed = place(family_of(config), config, translate(config), compressed.tensors)
    with np.load(output / "importance.npz") as stored:
        found = {tensor.name: stored[tensor.source] for tensor in placed if tensor.source in stored.files}
    columns = {tensor.name: tensor.columns for tensor in placed}
    found = {
        name: np.pad(values, (0, columns[name] - len(values))).astype(np.float32) for name, values in found.items()
    }
    if "token_embd.weight" in found:
        found.setdefault("output.weight", found["token_embd.weight"])
    return found


def build_onnx(subject: Subject, out: Path, precision: str, options: tuple[str, ...] = ()) -> Cost:
    """onnxruntime-genai's model builder as its own command line runs it.

    Args:
        out: an existing folder, which gets model.onnx and model.onnx.data.
        options: `name=value` pairs of its `--extra_options`.

    Raises:
        ProgramError: it failed.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(subject.model), "-o", str(out)]
    command += ["-p", precision, "-e", "cpu", "-c", str(subject.place / "cache")]
    return run([*command, "--extra_options", *options] if options else command)


def plain_litert(subject: Subject) -> Path:
    """edgegen's LiteRT graph in float32 as the converter makes it, the quantizer's input; kept in the working folder.

    Raises:
        ProgramError: the converter failed.
    """
    plain = subject.place / "plain.tflite"
    if plain.exists():
        return plain
    tell(f"{subject.model.name}: converting to LiteRT in float32")
    packed = subject.place / "packed"
    subject.pack(packed, lambda info: "f32")
    request = Request(
        compressed=str(packed),
        context_tokens=subject.context,
        prefill=(min(subject.ubatch, subject.context),),
        score_tokens=min(SCORE_TOKENS, subject.context),
        model="",
        strict="",
    )
    save_json(subject.place / "request.json", request)
    code = (
        "import sys; from pathlib import Path; from edgegen.common.codec import load_json\n"
        "from edgegen.export.litert.convert import Request, convert_plain\n"
        "request = load_json(Path(sys.argv[1]), Request)\n"
        "convert_plain(Path(request.compressed), request, Path(sys.argv[2]))"
    )
    made = plain.with_suffix(".tmp.tflite")
    run([sys.executable, "-c", code, str(subject.place / "request.json"), str(made)])
    made.replace(plain)
    return plain


def quantize_litert(plain: Path, out: Path, recipe: str) -> Cost:
    """Google's quantizer.

    Args:
        recipe: name of a function in `ai_edge_quantizer.recipe`.

    Raises:
        ProgramError: it failed.
    """
    code = (
        "import sys; from ai_edge_quantizer import quantizer, recipe\n"
        "found = quantizer.Quantizer(sys.argv[1])\n"
        "found.load_quantization_recipe(getattr(recipe, sys.argv[3])())\n"
        "found.quantize().export_model(sys.argv[2])"
    )
    return run([sys.executable, "-c", code, str(plain), str(out), recipe])


def main(kind: str, source: str, out: str, name: str, importance: str, pure: str) -> int:
    """llama.cpp's quantizer in this process."""
    assert kind == "gguf", "the other tools have command lines"
    weights = None
    if importance:
        with np.load(importance) as stored:
            weights = {tensor: stored[tensor] for tensor in stored.files}
    quantize_gguf(Path(source), Path(out), name, importance=weights, pure=pure == "1")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
