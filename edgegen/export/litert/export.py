"""Write a compressed model as a LiteRT file with all that a device needs beside it.

The folder is built beside its place and renamed at the end; the conversion runs in a process of its own (see
`convert`), after a look at the free memory. The strict twin is the same graph with the rounded weights in float32.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import remove_tree, replacing, require_free_bytes
from edgegen.errors import ConfigError, DeviceError
from edgegen.export.folder import (
    NO_SPECIAL_TOKENS,
    building,
    copy_companions,
    describe_files,
    prove_tokenizer,
    special_tokens,
)
from edgegen.export.litert import encoder
from edgegen.export.litert.convert import Request, Result, raise_error
from edgegen.export.litert.wrapper import shape_of
from edgegen.modeling.load import config_object
from edgegen.modeling.pooling import is_encoder
from edgegen.modeling.structure import is_added
from edgegen.modeling.summary import position_count
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.flatmodel import tensor_bytes

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction that is finished."""

MODEL_FILE = "model.tflite"

SCORE_TOKENS = 64
"""Tokens whose logits are computed at once when an artifact is judged."""

_CONVERTER_BYTES = 900_000_000
_BYTES_PER_WEIGHT = 18
"""The converter's memory: 0.87 GB for 8 million weights and 2.6 GB for 100 million, measured."""

# Of the file beside weights, all three signatures together, measured and rounded up.
_GRAPH_BYTES = {
    "gemma2": (8_000, 10_100),
    "gemma3_text": (7_700, 11_700),
    "gpt2": (6_900, 8_850),
    "phi": (8_100, 9_200),
    "phi3": (7_200, 8_350),
    "qwen2": (7_200, 8_100),
    "qwen3": (8_200, 9_800),
}
"""Family → (once, for each layer)."""
_USUAL_GRAPH_BYTES = (7_200, 8_000)
"""The same of the others."""
_CONTEXT_BYTES = 4
"""For each position of the context."""
_ADDED_BYTES = 270
"""For each product that the family's own layers have not."""
_DESCRIPTION_BYTES = {"f16": 90, "i8_row": 32, "i4_row": 32, "i4_32": 190}
"""Grid → what describing a matrix takes beyond one in float32."""


def export_litert(
    compressed_folder: Path,
    out: Path,
    settings: Settings,
    *,
    prove_texts: Sequence[str],
    strict: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write an artifact folder: model.tflite, tokenizer, templates, licence and artifact.json.

    Args:
        compressed_folder: with compressed.json, weights.bin, config.json and the tokenizer.
        out: the artifact's folder; an artifact that is already there is replaced.
        settings: how the runtime is to be started; the file's cache has this context, its prompt chunk the micro-batch.
        prove_texts: held-out texts that the tokenizer is tried on.
        strict: gets a file of the same rounded weights in float32.
        progress: called before and after the conversion.

    Raises:
        ConfigError: the compressed folder is incomplete or damaged, or `out` holds something else.
        UnsupportedError: the model cannot be expressed, or LiteRT has no kernels for a grid.
        DeviceError: no space on the disk, or too little memory to convert.
    """
    compressed = load_json(compressed_folder / "compressed.json", Compressed)
    summary = compressed.summary
    special = NO_SPECIAL_TOKENS if summary.task == "encoder" else special_tokens(compressed_folder)
    if settings.context_tokens > summary.context_tokens:
        raise ConfigError(
            f"a context of {settings.context_tokens} tokens is more than the {summary.context_tokens} that the model "
            "was made for",
            hint="Plan with a smaller context.",
        )
    proof = prove_tokenizer(compressed_folder, summary.vocab_size, prove_texts)
    weights = sum(tensor.rows * tensor.columns for tensor in compressed.tensors)
    _require_memory(weights)
    require_free_bytes(out.parent, 9 * weights + 20_000_000)
    tell = progress or (lambda what, fraction: None)
    with (
        building(out) as folder,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as s,
    ):
        scratch = Path(s)
        request = Request(
            compressed=str(compressed_folder.resolve()),
            context_tokens=settings.context_tokens,
            prefill=(min(settings.ubatch_tokens, settings.context_tokens),),
            score_tokens=min(SCORE_TOKENS, settings.context_tokens),
            model=str(scratch / MODEL_FILE),
            strict=str(scratch / "strict.tflite") if strict is not None else "",
        )
        tell("converting", 0.0)
        _convert(request, scratch)
        tell("converting", 0.9)
        with replacing(folder / MODEL_FILE) as temporary:
            (scratch / MODEL_FILE).replace(temporary)
        if strict is not None:
            remove_tree(strict)
            with replacing(strict / MODEL_FILE) as temporary:
                (scratch / "strict.tflite").replace(temporary)
        copy_companions(compressed_folder, folder, compressed.files)
        artifact = Artifact(
            schema=1,
            target="litert",
            model=MODEL_FILE,
            model_files=(MODEL_FILE,),
            files=describe_files(folder),
            family=summary.family,
            parameters=weights,
            vocab_size=summary.vocab_size,
            context_tokens=settings.context_tokens,
            settings=settings,
            bos_id=special.bos_id,
            eos_ids=special.eos_ids,
            add_bos=special.add_bos,
            parent=compressed.digest,
            lineage=compressed.lineage,
            rounding=compressed.rounding,
            tokenizer_proof=proof,
            task=summary.task,
            notes=compressed.notes,
        )
        save_json(folder / "artifact.json", artifact)
        tell("converted", 1.0)
    return artifact


class LiteRtExporter:
    """LiteRT's part of `export.registry.Exporter`."""

    def context_tokens(self, config: dict[str, Any]) -> int:
        """The longest context that the model was made for; the file's cache is as long as the plan's.

        Raises:
            UnsupportedError: layers whose caches differ, an encoder that takes no positions, or no such number.
        """
        read = config_object(config)
        if is_encoder(config):
            encoder.require_family(read.model_type)
        else:
            shape_of(read)
        return position_count(read)

    def tensor_bytes(self, grid: str, rows: int, columns: int) -> int:
        """What a tensor's codes and scales take in the file, each aligned, and their description."""
        return tensor_bytes(grid, rows, columns) + (_DESCRIPTION_BYTES.get(grid, 0) if rows > 1 else 0)

    def overhead_bytes(
        self,
        config: dict[str, Any],
        tokenizer_folder: Path,
        tensors: Sequence[PackedTensor],
        settings: Settings,
        *,
        license_text: str = "",
    ) -> int:
        """The graph of all signatures, the constants that the converter adds, and zero points.

        Measured on files of each family, and rounded up by a percent, so that a file is rather smaller than planned.
        LiteRT wants a zero point of 8 bytes for every row of a grid with a scale a row, although all are 0; matrices of
        equal height share them.
        """
        if is_encoder(config):
            return encoder.graph_bytes(tensors, int(config["num_hidden_layers"]), settings.context_tokens)
        heights = {tensor.rows for tensor in tensors if tensor.rows > 1}
        described = config_object(config)
        once, each = _GRAPH_BYTES.get(described.model_type, _USUAL_GRAPH_BYTES)
        added = sum(is_added(tensor.name) for tensor in tensors)
        return (
            once
            + each * shape_of(described).layers
            + _ADDED_BYTES * added
            + _CONTEXT_BYTES * settings.context_tokens
            + 8 * sum(heights)
        )

    export = staticmethod(export_litert)


def _convert(request: Request, scratch: Path) -> Result:
    """Run the converter; its talk is dropped, its errors become one line."""
    save_json(scratch / "request.json", request)
    done = subprocess.run(
        [sys.executable, "-m", "edgegen.export.litert.convert", scratch / "request.json", scratch / "result.json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if not (scratch / "result.json").exists():
        killed = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DeviceError(
            f"LiteRT's converter ended with {killed}: {last[0][:300]}",
            hint="Signal 9 is what a system does when memory runs out.",
        )
    result = load_json(scratch / "result.json", Result)
    raise_error(result)
    return result


def _require_memory(weights: int) -> None:
    needed, free = _CONVERTER_BYTES + _BYTES_PER_WEIGHT * weights, psutil.virtual_memory().available
    if needed > free:
        raise DeviceError(
            f"converting to LiteRT needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free",
            hint="Close other programs or use a machine with more memory.",
        )
