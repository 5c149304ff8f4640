"""Scores an artifact's folder in a process of its own: `python -m peers.score FOLDER REFERENCE RESULT`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.common.codec import load_json, save_json
from edgegen.errors import EdgegenError
from edgegen.records.artifact import Artifact
from edgegen.records.reference import Reference
from edgegen.runtime.base import Session
from edgegen.runtime.checks import settings_here
from edgegen.runtime.genai import GenaiSession
from edgegen.runtime.registry import runtime_for
from edgegen.verify.worker import score_against

THEIRS = "theirs"
"""File in the folder of an ONNX graph as onnxruntime-genai's builder writes it: it computes all tokens' logits."""


class _AllLogits(GenaiSession):
    """Such a graph on the runtime that it was made for."""

    def _score(self, ids: list[int]) -> Any:
        import onnxruntime_genai

        generator = onnxruntime_genai.Generator(self._model, self._parameters)
        parts = []
        for start in range(0, len(ids), self._chunk):
            generator.append_tokens(np.array(ids[start : start + self._chunk], dtype=np.int32))
            parts.append(np.array(generator.get_output("logits")[0], dtype=np.float32))
        return np.concatenate(parts)


def main(artifact: str, reference: str, out: str) -> int:
    """Write the file's quality on the reference's windows."""
    folder, expected = Path(artifact), Path(reference)
    record = load_json(expected / "reference.json", Reference)
    # What a file says on the windows is all that is asked: no parity with other weights, no greedy text.
    asked = msgspec.structs.replace(record, parity_windows=0, greedy=())
    with contextlib.closing(_open(folder)) as session:
        save_json(Path(out), score_against(session, expected, asked)[1])
    return 0


def _open(folder: Path) -> Session:
    artifact = load_json(folder / "artifact.json", Artifact)
    model, settings = folder / artifact.model, settings_here(artifact.settings)
    if (folder / THEIRS).exists():
        return _AllLogits(model, settings)
    return runtime_for(artifact.target).open(model, settings)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except EdgegenError as error:
        sys.exit(f"{error} {error.hint}")
