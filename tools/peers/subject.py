"""A checkpoint that is packed in different grids, and the folders that its files are opened from."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import digest_file
from edgegen.export.folder import building, copy_companions
from edgegen.export.registry import exporter_for
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import empty_model, find_model, open_tokenizer, read_config, travelling_files
from edgegen.modeling.source import TensorSource
from edgegen.modeling.summary import summarize
from edgegen.modeling.text import render
from edgegen.prepare.split import prepare_data
from edgegen.records.artifact import Artifact, ArtifactFile
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.model import TensorInfo
from edgegen.records.plan import Settings

KV_TYPES = {"gguf": "f16", "onnx": "f32", "litert": "f32"}
"""Each runtime's own default."""


def tell(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


class Subject:
    """A checkpoint that is packed in different grids."""

    def __init__(self, model: Path, data: str, place: Path, context: int, ubatch: int) -> None:
        """Open it; nothing is measured on it, so no weights are loaded as a whole."""
        self.model, self.place = model.resolve(), place
        self.ref = find_model(str(model))
        self.config = read_config(self.ref)
        checkpoint = Checkpoint(self.model)
        empty = empty_model(self.ref)
        self.source = TensorSource(empty, checkpoint, summarize(empty, checkpoint))
        self.summary = self.source.summary
        tokenizer = open_tokenizer(self.model)
        split = prepare_data(data)
        self.texts = ["".join(render(tokenizer, row)[:2]) for row in split.heldout[:50]]
        self.calibration = ["".join(render(tokenizer, row)[:2]) for row in split.calibration]
        self.context, self.ubatch = min(context, self.summary.context_tokens), ubatch
        place.mkdir(parents=True, exist_ok=True)

    def artifact(self, target: str, name: str, grid_of: Callable[[TensorInfo], str]) -> Path:
        """Pack every matrix in a grid and export; what an earlier run made is used again."""
        folder = self.place / f"{target}-{name}"
        if not (folder / "artifact.json").exists():
            tell(f"{self.model.name}: writing {folder.name}")
            packed = self.place / "packed"
            self.pack(packed, grid_of)
            exporter_for(target).export(packed, folder, self.settings(target), prove_texts=self.texts)
        return folder

    def settings(self, target: str) -> Settings:
        """The same for both of a pair."""
        return Settings(context_tokens=self.context, ubatch_tokens=self.ubatch, threads=1, kv_type=KV_TYPES[target])

    def pack(self, out: Path, grid_of: Callable[[TensorInfo], str]) -> None:
        """Write a compressed folder; vectors and position tables stay float32."""
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text(json.dumps(self.config))
        names = [path.name for path in travelling_files(self.model)]
        copy_companions(self.model, out, names)
        tensors, digest, offset = [], hashlib.sha256(), 0
        with (out / "weights.bin").open("wb") as stream:
            for info in self.summary.tensors:
                grid = grid_of(info) if info.quantizable else "f32"
                data = self.source.packed(info.name, grid).tobytes()
                stream.write(data)
                digest.update(data)
                tensors.append(PackedTensor(info.name, grid, info.rows, info.columns, offset, len(data)))
                offset += len(data)
        record = Compressed(
            schema=1,
            summary=self.summary,
            tensors=tuple(tensors),
            digest="sha256:" + digest.hexdigest(),
            steps=(),
            files=(*names, "config.json"),
        )
        save_json(out / "compressed.json", record)

    def beside(self, ours: Path, name: str, make: Callable[[Path], tuple[str, ...]], *, target: str = "") -> Path:
        """An artifact folder for a runtime's own export, so that the same sessions run it.

        Args:
            ours: the artifact whose record it takes.
            make: writes the model's files into a folder and names them, the one to be opened first.
            target: what runs it; empty: what runs `ours`.
        """
        folder = self.place / name
        if not (folder / "artifact.json").exists():
            tell(f"{self.model.name}: writing {name}")
            with building(folder) as place:
                files = make(place)
                listed = tuple(
                    ArtifactFile(path=file, bytes=(place / file).stat().st_size, digest=digest_file(place / file))
                    for file in files
                )
                record = load_json(ours / "artifact.json", Artifact)
                if target:
                    record = msgspec.structs.replace(record, target=target, settings=self.settings(target))
                record = msgspec.structs.replace(record, model=files[0], model_files=files, files=listed)
                save_json(place / "artifact.json", record)
        return folder
