"""What `reference` keeps of an original, for a model larger than memory: scores of held-out text, and no answers.

An answer takes a pass over all blocks for every token, so prompts and greedy texts are left out; the receipt then rests
on log-probabilities and on parity alone. Windows stand in the order of their length, the order in which they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgegen.common.codec import save_json
from edgegen.common.files import filling, require_free_bytes
from edgegen.modeling.forward import batch_tokens_for, counted_targets
from edgegen.modeling.reference import PARITY_BYTES, first_windows, parity_tokens, quality_tokens, stretches
from edgegen.modeling.streamed import StreamedModel
from edgegen.modeling.streamed_sensitivity import Variant, run_variants
from edgegen.modeling.text import WINDOW_TOKENS, make_windows
from edgegen.records.data import Example
from edgegen.records.reference import Reference, ReferenceWindow


def save_streamed_reference(
    stream: StreamedModel,
    variant: Variant,
    *,
    tokenizer: Any,
    heldout: tuple[Example, ...],
    context_tokens: int,
    out: Path,
    scratch: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Score held-out text with the original, and a part with the rounded weights.

    Args:
        variant: the plan's weights, with activations as they are.
        heldout: rows that nothing was calibrated on.
        context_tokens: what the artifact's runtime will hold.
        out: folder to write; replaced if it exists.
        scratch: folder for activations.
        progress: called with (steps done, steps in all).

    Raises:
        DeviceError: the disk is full.
    """
    columns = stream.frame.get_output_embeddings().weight.shape[0]
    cut = {"max_tokens": quality_tokens(columns), "window_tokens": min(WINDOW_TOKENS, context_tokens)}
    windows = sorted(make_windows(tokenizer, heldout, **cut), key=lambda window: len(window.ids))
    parity = first_windows(windows, parity_tokens(columns))
    total, done = sum(window.tokens for window in windows), 0
    require_free_bytes(out.parent, total * columns * 2 + PARITY_BYTES * 2)

    def tell() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, 2 * stream.layers + 1)

    with filling(out) as building:
        (hidden,) = run_variants(stream, windows, [Variant()], scratch, tell=tell)
        targets, nats, start = counted_targets(windows), 0.0, 0
        with (building / "quality.npy").open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (total, columns)}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in hidden.split(batch_tokens_for(columns)):
                log_probs = torch.log_softmax(stream.counted_logits(piece), dim=-1)
                chosen = targets[start : start + len(piece), None]
                nats -= float(log_probs.gather(1, chosen).sum(dtype=torch.float64))
                file.write(log_probs.clamp_min(-60_000).to(torch.float16).numpy().astype("<f2").tobytes())
                start += len(piece)
        (rounded,) = run_variants(stream, parity, [variant], scratch, every=True, tell=tell)
        logits = stream.counted_logits(rounded, head_grid=variant.head)
        np.save(building / "parity.npy", logits.numpy().astype(np.float32))
        tell()
        record = Reference(
            schema=1,
            vocab_size=columns,
            windows=tuple(
                ReferenceWindow(ids=tuple(int(i) for i in w.ids), counts=stretches(w.counts), bytes=w.bytes)
                for w in windows
            ),
            parity_windows=len(parity),
            greedy=(),
            prompts=(),
            original_bits_per_byte=nats / math.log(2) / sum(w.bytes for w in windows),
            trimmed=False,
        )
        save_json(building / "reference.json", record)
    return record
