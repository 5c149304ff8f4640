"""Write a compressed model as a GGUF file with all that a device needs beside it.

The file is built in a folder beside its place and renamed at the end: an interrupted export leaves nothing
that looks like an artifact. Weights are read through a memory map, one tensor at a time, and copied as they
are packed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.common.codec import load_json, save_json
from edgegen.common.files import remove_tree, replacing, require_free_bytes
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.folder import (
    NO_SPECIAL_TOKENS,
    SpecialTokens,
    building,
    copy_companions,
    describe_files,
    map_weights,
    read_config,
)
from edgegen.export.gguf import header
from edgegen.export.gguf.encoder import pooling_metadata
from edgegen.export.gguf.families import translate
from edgegen.export.gguf.family import Config, Family, Translation
from edgegen.export.gguf.layers import describe
from edgegen.export.gguf.proof import Proof, prove
from edgegen.export.gguf.rope import Value
from edgegen.export.gguf.tensors import Placed, Stored, aligned, head_order, place, tensor_bytes
from edgegen.export.gguf.tokenizer import TokenizerFiles, Vocabulary, build_vocabulary, read_tokenizer
from edgegen.export.gguf.wordpiece import build_wordpiece
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.model import Pooling
from edgegen.records.plan import Settings

MODEL_FILE = "model.gguf"

_FILE_TYPES = {
    **{"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12},
    **{"q4_k": 15, "q5_k": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq4_nl": 25},
    **{"iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "bf16": 32},
}
"""Grid → GGUF's `general.file_type`, which says only what most of a file is."""

Progress = Callable[[str, float], None]
"""Called with a tensor's name and the fraction of bytes written."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Everything about the file but its tensor data."""

    family: Family
    translation: Translation
    metadata: dict[str, Value]
    placed: list[Placed]
    vocabulary: Vocabulary
    proof: Proof | None


def export_gguf(
    compressed_folder: Path,
    out: Path,
    settings: Settings,
    *,
    prove_texts: Sequence[str],
    strict: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write an artifact folder: model.gguf, tokenizer, templates, licence and artifact.json.

    Args:
        compressed_folder: with compressed.json, weights.bin, config.json and the tokenizer.
        out: the artifact's folder; an artifact that is already there is replaced.
        settings: how the runtime is to be started; recorded, and checked against the model's context.
        prove_texts: held-out texts on which both tokenizers must agree.
        strict: gets a file of the same rounded weights in f32, which llama.cpp multiplies without rounding the
            activations: what differs then from the torch model is a fault of the file, not of int8.
        progress: called after each tensor.

    Raises:
        ConfigError: the compressed folder is incomplete or damaged, or `out` holds something else.
        UnsupportedError: the model, its configuration or its tokenizer cannot be expressed.
        DeviceError: no space on the disk.
    """
    compressed = load_json(compressed_folder / "compressed.json", Compressed)
    if compressed.shared:
        name, source = next(iter(compressed.shared.items()))
        raise UnsupportedError(
            f"GGUF has no shared weights, and {name} uses those of {source}",
            hint="Plan without sharing for this target: a file would hold them twice.",
        )
    config = read_config(compressed_folder)
    weights = map_weights(compressed_folder, compressed)
    summary = compressed.summary
    layout = _lay_out(
        config, compressed_folder, compressed.tensors, summary.license, prove_texts, pooling=summary.pooling
    )
    assert layout.proof is not None, "the tokenizer is always proven before writing"
    if settings.context_tokens > layout.translation.context_tokens:
        raise ConfigError(
            f"a context of {settings.context_tokens} tokens is more than the "
            f"{layout.translation.context_tokens} that this file stands for",
            hint="Plan with a smaller context.",
        )
    size = header.header_bytes(layout.family.arch, layout.metadata, layout.placed)
    require_free_bytes(out.parent, size + sum(aligned(tensor.nbytes) for tensor in layout.placed))
    with building(out) as folder:
        with replacing(folder / MODEL_FILE) as temporary:
            _write_model(temporary, layout, compressed.tensors, weights, progress)
        copy_companions(compressed_folder, folder, compressed.files)
        artifact = _describe(folder, compressed, layout, settings)
        save_json(folder / "artifact.json", artifact)
    if strict is not None:
        widened = [msgspec.structs.replace(tensor, grid="f32") for tensor in compressed.tensors]
        exact = replace(layout, placed=place(layout.family, config, layout.translation, widened))
        require_free_bytes(strict.parent, sum(aligned(tensor.nbytes) for tensor in exact.placed))
        remove_tree(strict)
        with replacing(strict / MODEL_FILE) as temporary:
            _write_model(temporary, exact, compressed.tensors, weights, None)
    return artifact


class GgufExporter:
    """GGUF's part of `export.registry.Exporter`."""

    def context_tokens(self, config: Config) -> int:
        """The longest context that llama.cpp's file expresses: fixed windows cap it."""
        return translate(config).context_tokens

    def tensor_bytes(self, grid: str, rows: int, columns: int) -> int:
        """What a tensor's data takes in the file, padding included."""
        return tensor_bytes(grid, rows, columns)

    def overhead_bytes(
        self,
        config: Config,
        tokenizer_folder: Path,
        tensors: Sequence[PackedTensor],
        settings: Settings,
        *,
        license_text: str = "",
    ) -> int:
        """Header, padding, computed and repeated tensors: exact."""
        return gguf_overhead_bytes(config, tokenizer_folder, tensors, license_text=license_text)

    export = staticmethod(export_gguf)


def gguf_overhead_bytes(
    config: Config,
    tokenizer_folder: Path,
    tensors: Sequence[Stored],
    *,
    license_text: str = "",
    prove_texts: Sequence[str] = (),
) -> int:
    """What a GGUF file takes beyond the data of the given tensors: header, padding, computed and repeated
    tensors.

    Added to `tensor_bytes` of each given tensor it is `predict_gguf_bytes`; it depends on the grids only
    through the number type that each tensor names, which has a fixed size. So a planner asks for it once for
    many grids. Arguments as `predict_gguf_bytes`.
    """
    total = predict_gguf_bytes(config, tokenizer_folder, tensors, license_text=license_text, prove_texts=prove_texts)
    return total - sum(tensor_bytes(t.grid, t.rows, t.columns) for t in tensors)


def predict_gguf_bytes(
    config: Config,
    tokenizer_folder: Path,
    tensors: Sequence[Stored],
    *,
    license_text: str = "",
    prove_texts: Sequence[str] = (),
) -> int:
    """Exact size of the GGUF file that these tensors will make.

    The header holds the name of the tokenizer's splitting rule, so the count is exact when the same texts are
    given as for the export; without any, the rule is the first guess, whose name can be off by one alignment
    step.

    Args:
        config: config.json, with final sizes.
        tokenizer_folder: with tokenizer.json and the files beside it.
        tensors: name, grid, rows and columns of every stored tensor.
        license_text: what the model's summary says, used where the model card is silent.
        prove_texts: held-out texts; given, the tokenizer is proven as for an export.

    Raises:
        ConfigError, UnsupportedError: as `export_gguf`, for whatever can be seen without the weights.
    """
    layout = _lay_out(config, tokenizer_folder, tensors, license_text, prove_texts or None)
    head = header.header_bytes(layout.family.arch, layout.metadata, layout.placed)
    return head + sum(aligned(tensor.nbytes) for tensor in layout.placed)


def _lay_out(
    config: Config,
    folder: Path,
    stored: Sequence[Stored],
    license_text: str,
    prove_texts: Sequence[str] | None,
    *,
    pooling: Pooling | None = None,
) -> _Layout:
    """Decide everything about the file but its tensor data; without texts the tokenizer is taken at its
    word.

    Args:
        pooling: an encoder's; any takes as many bytes as another.
    """
    family, translation = describe(config, stored)
    placed = place(family, config, translation, stored)
    rows = next(tensor.rows for tensor in placed if tensor.name == "token_embd.weight")
    files = read_tokenizer(folder)
    wordpiece = family.is_encoder and files.tokenizer["model"].get("type") == "WordPiece"
    vocabulary = (build_wordpiece if wordpiece else build_vocabulary)(files, rows)
    metadata = {
        **_general(config, folder, placed, license_text, files),
        **translation.metadata,
    }
    if family.is_encoder:
        metadata |= pooling_metadata(family, pooling or Pooling(mode="mean", normalize=False))
    proof = None
    if prove_texts is None:
        tokenizer = vocabulary.with_rule(vocabulary.pre_names[0] if vocabulary.pre_names else "")
    else:
        proof = prove(family.arch, metadata, vocabulary, files, prove_texts, required=not family.is_encoder)
        tokenizer = proof.metadata
    return _Layout(family, translation, metadata | tokenizer, placed, vocabulary, proof)


def _general(
    config: Config, folder: Path, placed: Sequence[Placed], license_text: str, files: TokenizerFiles
) -> dict[str, Value]:
    """The `general.*` keys."""
    weights = sum(tensor.rows * tensor.columns for tensor in placed if tensor.source and not tensor.repeated)
    by_grid: Counter[str] = Counter()
    for tensor in placed:
        if not tensor.vector:
            by_grid[tensor.grid] += tensor.nbytes
    most = max(sorted(by_grid), key=by_grid.__getitem__, default="f32")
    metadata: dict[str, Value] = {
        "general.type": "model",
        "general.name": _name(config, weights, files),
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES[most],
    }
    card = _card(folder)
    licence = card.get("license") or license_text
    if licence:
        metadata["general.license"] = licence
    for key in ("license_name", "license_link"):
        if key in card:
            metadata[f"general.{key.replace('_', '.')}"] = card[key]
    return metadata


def _name(config: Config, weights: int, files: TokenizerFiles) -> str:
    """The model's name: the last part of where it was loaded from, else its family and size.

    llama.cpp takes a name with `phi-3` in it as a sign of special tokens that swallow the space after them,
    and ends the process when the tokens that it expects then are not there.
    """
    given = str(config.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1]
    name = given or f"{config['model_type']} {weights}"
    added = files.tokenizer.get("added_tokens", [])
    known = {*files.tokenizer["model"].get("vocab", {}), *(token["content"] for token in added)}
    swallowing = any(token.get("rstrip") for token in added)
    if not swallowing or not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= known:
        name = re.sub(r"(?i)(phi)-?3", r"\1 3", name)
    return name


def _card(folder: Path) -> dict[str, str]:
    """The licence lines of the model card's front matter, without quotes."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.findall(r"^(license(?:_name|_link)?):[ \t]*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE)
    return {key: value.strip("'\"") for key, value in found}


def _write_model(
    path: Path,
    layout: _Layout,
    stored: Sequence[PackedTensor],
    weights: NDArray[np.uint8],
    progress: Progress | None,
) -> None:
    sources = {tensor.name: tensor for tensor in stored}
    total, done = sum(tensor.nbytes for tensor in layout.placed), 0
    writer = header.start(path, layout.family.arch, layout.metadata, layout.placed)
    try:
        for tensor in layout.placed:
            writer.write_tensor_data(_data(tensor, sources, weights))
            done += tensor.nbytes
            if progress is not None:
                progress(tensor.name, done / total)
    finally:
        writer.close()


def _data(tensor: Placed, sources: Mapping[str, PackedTensor], weights: NDArray[np.uint8]) -> NDArray[np.generic]:
    """A tensor's bytes as they stand in the file: packed rows in the file's order, or a float32 vector."""
    if tensor.values is not None:
        return tensor.values
    source = sources[tensor.source]
    raw = weights[source.offset : source.offset + source.bytes]
    if tensor.vector:
        values = np.frombuffer(raw.tobytes(), dtype=np.float32)
        if tensor.heads:
            values = values[head_order(values.size, tensor.heads)]
        return (values + np.float32(tensor.shift)) * np.float32(tensor.scale)
    if tensor.skip:
        raw = raw.reshape(source.rows, -1)[tensor.skip :]
    if tensor.grid != source.grid:
        raw = grids.pack(grids.unpack(raw.reshape(tensor.rows, -1), source.grid, tensor.columns), tensor.grid)
    if tensor.heads:
        return raw.reshape(tensor.rows, -1)[head_order(tensor.rows, tensor.heads)]
    return raw


def _describe(folder: Path, compressed: Compressed, layout: _Layout, settings: Settings) -> Artifact:
    assert layout.proof is not None
    table = next(tensor for tensor in layout.placed if tensor.name == "token_embd.weight")
    parameters = sum(t.rows * t.columns for t in layout.placed if t.source and not t.repeated)
    notes = (*compressed.notes, *layout.translation.notes, *layout.proof.notes)
    if any(tensor.repeated for tensor in layout.placed):
        notes += (f"{layout.family.arch} has no tied head in llama.cpp, so the embedding is stored twice",)
    vocabulary = layout.vocabulary
    special = SpecialTokens(bos_id=vocabulary.bos_id, eos_ids=vocabulary.eos_ids, add_bos=vocabulary.add_bos)
    if layout.family.is_encoder:
        special = NO_SPECIAL_TOKENS
    return Artifact(
        schema=1,
        target="gguf",
        model=MODEL_FILE,
        model_files=(MODEL_FILE,),
        files=describe_files(folder),
        family=compressed.summary.family,
        parameters=parameters,
        vocab_size=table.rows,
        context_tokens=layout.translation.context_tokens,
        settings=settings,
        bos_id=special.bos_id,
        eos_ids=special.eos_ids,
        add_bos=special.add_bos,
        parent=compressed.digest,
        lineage=compressed.lineage,
        rounding=compressed.rounding,
        tokenizer_proof=layout.proof.words,
        task=compressed.summary.task,
        notes=notes,
    )
