"""Run the original encoder once on held-out texts and keep its vectors: `reference` for encoders.

`reference/` holds

- `reference.json`: the texts' token ids;
- `quality.npy`: (W, D) float32 vectors of the original;
- `parity.npy`: (P, D) float32 vectors of the torch model with the artifact's own rounded weights, for the first texts.

W texts, P of them for parity, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.common.codec import save_json
from edgegen.common.files import filling, require_free_bytes
from edgegen.modeling.encoder import make_texts, vectors_of
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.source import TensorSource
from edgegen.records.data import Example
from edgegen.records.model import Pooling
from edgegen.records.reference import Reference, ReferenceWindow

_TEXTS = 500
"""A hundred thousand pairs: enough for a rank correlation, and seconds on a small device."""
_TOKENS = 32_768
_PARITY_TEXTS = 32


def save_vectors(
    model: Any,
    source: TensorSource,
    *,
    tokenizer: Any,
    pooling: Pooling,
    grids: dict[str, str],
    heldout: tuple[Example, ...],
    context_tokens: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Encode held-out texts with the original, and a part of them with the rounded weights.

    Args:
        model: the original; changed and restored.
        grids: tensor name → grid, all tensors.
        heldout: rows that nothing was calibrated on.
        context_tokens: where the artifact's texts are cut.
        out: folder to write; replaced if it exists.

    Raises:
        DeviceError: the disk is full.
    """
    texts = make_texts(tokenizer, heldout[:_TEXTS], max_tokens=_TOKENS, window_tokens=context_tokens)
    require_free_bytes(out.parent, len(texts) * source.summary.hidden_size * 8)
    with filling(out) as building:
        parts = []
        for start in range(0, len(texts), 64):
            parts.append(vectors_of(model, pooling, texts[start : start + 64]).numpy())
            if progress:
                progress(min(start + 64, len(texts)), len(texts))
        np.save(building / "quality.npy", np.concatenate(parts).astype(np.float32))
        parity = texts[:_PARITY_TEXTS]
        with rounded_model(model, source, source.changed(grids), {}):
            np.save(building / "parity.npy", vectors_of(model, pooling, parity).numpy().astype(np.float32))
        record = Reference(
            schema=1,
            vocab_size=source.summary.vocab_size,
            windows=tuple(
                ReferenceWindow(ids=tuple(int(i) for i in w.ids), counts=((0, len(w.ids)),), bytes=w.bytes)
                for w in texts
            ),
            parity_windows=len(parity),
            greedy=(),
            prompts=(),
            original_bits_per_byte=0.0,
            trimmed=False,
        )
        save_json(building / "reference.json", record)
    return record
