"""Other tools' own ways from a checkpoint to a runtime's file: onnxruntime-genai, Google's LiteRT quantizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.export.gguf.families import family_of, translate
from edgegen.export.gguf.tensors import place
from edgegen.export.litert.convert import Request
from edgegen.export.litert.export import SCORE_TOKENS
from edgegen.records.compressed import Compressed
from peers.process import Cost, run
from peers.subject import Subject, tell


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
