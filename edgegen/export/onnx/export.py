"""Write a compressed model as an ONNX folder with all that a device needs beside it.

The folder is built beside its place and renamed at the end. The strict twin is the same graph with activations that
stay float (`accuracy_level` 1), beside the same data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import remove_tree, replacing, require_free_bytes, write_bytes, write_text
from edgegen.errors import ConfigError
from edgegen.export.folder import (
    NO_SPECIAL_TOKENS,
    SpecialTokens,
    building,
    copy_companions,
    describe_files,
    map_weights,
    prove_tokenizer,
    read_config,
    special_tokens,
)
from edgegen.export.onnx import encoder, families, graph, settings, sizes
from edgegen.export.onnx.builder import build_graph
from edgegen.export.onnx.traced import trace_graph
from edgegen.export.onnx.weights import Weights, tensor_bytes
from edgegen.modeling.pooling import is_encoder
from edgegen.modeling.rebuild import rebuild_model
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.onnx import CONTEXT_KEY
from edgegen.runtime.onnx_encoder import VOCABULARY_KEY

Progress = Callable[[str, float], None]
"""Called with an initializer's name and the fraction of bytes written."""


def export_onnx(
    compressed_folder: Path,
    out: Path,
    wanted: Settings,
    *,
    prove_texts: Sequence[str],
    strict: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write an artifact folder: graph, weights, genai_config.json, tokenizer, templates, licence and artifact.json.

    An encoder's has no genai_config.json: onnxruntime-genai does not run it.

    Args:
        compressed_folder: with compressed.json, weights.bin, config.json and the tokenizer.
        out: the artifact's folder; an artifact that is already there is replaced.
        wanted: how the runtime is to be started; the file holds positions for this context.
        prove_texts: held-out texts that the tokenizer is tried on.
        strict: gets the same graph with float activations; the data file is copied.
        progress: called after each initializer.

    Raises:
        ConfigError: the compressed folder is incomplete or damaged, or `out` holds something else.
        UnsupportedError: the model or its configuration cannot be expressed.
        DeviceError: no space on the disk, or too little memory.
    """
    compressed = load_json(compressed_folder / "compressed.json", Compressed)
    config = read_config(compressed_folder)
    weights = map_weights(compressed_folder, compressed)
    pooling = compressed.summary.pooling
    described = None if pooling is not None else families.read(config)
    longest = encoder.context_tokens(config) if described is None else families.context_tokens(described)
    if wanted.context_tokens > longest:
        raise ConfigError(
            f"a context of {wanted.context_tokens} tokens is more than the {longest} that this file can stand for",
            hint="Plan with a smaller context.",
        )
    rebuilt = rebuild_model(compressed_folder, compressed, weights)
    vocab_size = int(rebuilt.model.get_input_embeddings().weight.shape[0])
    proof = prove_tokenizer(compressed_folder, vocab_size, prove_texts)
    if pooling is not None:
        why, tokens = "it is an encoder", longest
        model = encoder.trace_encoder(rebuilt.model, pooling, Weights.of(rebuilt))
        special = NO_SPECIAL_TOKENS
    else:
        why = families.why_traced(described)
        tokens = longest if why else wanted.context_tokens
        make = trace_graph if why else build_graph
        model = make(rebuilt.model, Weights.of(rebuilt), tokens=tokens)
        special = special_tokens(compressed_folder)
    graph.shorten(model)
    model.metadata_props[CONTEXT_KEY] = str(tokens)
    if pooling is not None:
        model.metadata_props[VOCABULARY_KEY] = str(vocab_size)
    require_free_bytes(out.parent, int(1.05 * weights.size) + 5_000_000)
    with building(out) as folder:
        with replacing(folder / graph.DATA_FILE) as temporary:
            graph.write_data(model, temporary, progress)
        write_bytes(folder / graph.MODEL_FILE, graph.serialize(model))
        if described is not None:
            write_text(folder / settings.FILE, _genai_config(described, model, special, vocab_size, tokens))
        copy_companions(compressed_folder, folder, compressed.files)
        artifact = Artifact(
            schema=1,
            target="onnx",
            model=graph.MODEL_FILE,
            model_files=(graph.MODEL_FILE, graph.DATA_FILE),
            files=describe_files(folder),
            family=compressed.summary.family,
            parameters=sum(tensor.rows * tensor.columns for tensor in compressed.tensors),
            vocab_size=vocab_size,
            context_tokens=tokens,
            settings=wanted,
            bos_id=special.bos_id,
            eos_ids=special.eos_ids,
            add_bos=special.add_bos,
            parent=compressed.digest,
            lineage=compressed.lineage,
            rounding=compressed.rounding,
            tokenizer_proof=proof,
            task=compressed.summary.task,
            notes=(*compressed.notes, *_notes(why, tokens, longest)),
        )
        save_json(folder / "artifact.json", artifact)
    if strict is not None:
        _write_strict(model, out, strict)
    return artifact


class OnnxExporter:
    """ONNX's part of `export.registry.Exporter`."""

    def context_tokens(self, config: dict[str, Any]) -> int:
        """The longest context whose positions the file can hold."""
        if is_encoder(config):
            return encoder.context_tokens(config)
        return families.context_tokens(families.read(config))

    def tensor_bytes(self, grid: str, rows: int, columns: int) -> int:
        """What a tensor's codes, scales and zero points take in the data file, each padded to a cache line."""
        return tensor_bytes(grid, rows, columns)

    def overhead_bytes(
        self,
        config: dict[str, Any],
        tokenizer_folder: Path,
        tensors: Sequence[PackedTensor],
        settings: Settings,
        *,
        license_text: str = "",
    ) -> int:
        """Graph and position tables; see `sizes.overhead_bytes` for how exact it is."""
        if is_encoder(config):
            return encoder.graph_bytes(tensors)
        return sizes.overhead_bytes(config, tensors, settings)

    export = staticmethod(export_onnx)


def _genai_config(config: Any, model: ir.Model, special: SpecialTokens, vocab_size: int, tokens: int) -> str:
    positions = any(value.name == "position_ids" for value in model.graph.inputs)
    tree = settings.genai_config(config, special, vocab_size=vocab_size, tokens=tokens, positions=positions)
    return json.dumps(tree, indent=1)


def _notes(why: str, tokens: int, longest: int) -> list[str]:
    notes = [
        f"The graph was traced by torch's exporter: {why}."
        if why
        else "The graph was built by onnxruntime-genai's model builder."
    ]
    if tokens < longest:
        notes.append(f"The file holds positions for {tokens:,} tokens, as planned; the model was made for {longest:,}.")
    return notes


def _write_strict(model: ir.Model, artifact: Path, strict: Path) -> None:
    """The twin whose activations stay float. The model's weights already lie in the artifact's data file."""
    graph.set_accuracy(model, 1)
    remove_tree(strict)
    write_bytes(strict / graph.MODEL_FILE, graph.serialize(model))
    if (artifact / settings.FILE).exists():
        write_bytes(strict / settings.FILE, (artifact / settings.FILE).read_bytes())
    # A copy and not a link: the `onnx` package refuses data files that have two names.
    require_free_bytes(strict, (artifact / graph.DATA_FILE).stat().st_size)
    with replacing(strict / graph.DATA_FILE) as temporary:
        shutil.copyfile(artifact / graph.DATA_FILE, temporary)
