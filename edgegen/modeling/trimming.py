"""What dropping tokens costs, measured before any is dropped.

The cost of a smaller vocabulary has two parts, both in nats per original token:

- lost mass: mean of -ln(probability that the original gives to the kept tokens), which is the KL divergence of the
  renormalised original to the original;
- other splits: text that used dropped tokens is written with more, smaller ones. The change of nats per byte of the
  original on the re-split text, times bytes per token; never counted as a gain.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.forward import counted_log_probs, counted_targets
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.text import WINDOW_TOKENS, Window, leading_rows, make_windows
from edgegen.modeling.vocabulary import Vocabulary, count_tokens
from edgegen.records.data import Example
from edgegen.records.plan import VocabularyChoice

_GROUP_WINDOWS = 4
"""Windows whose log-probabilities are held at once."""


class VocabularyOption(msgspec.Struct, frozen=True):
    """A vocabulary that the planner may choose."""

    kept: NDArray[np.int64] | None
    """(K,) ascending ids; None keeps all."""
    choice: VocabularyChoice


def keep_all(size: int, why: str) -> VocabularyOption:
    """The option that changes nothing."""
    choice = VocabularyChoice(
        original_size=size, size=size, kl=0.0, lost_mass_fraction=0.0, tokens_per_byte_ratio=1.0, why=why
    )
    return VocabularyOption(kept=None, choice=choice)


def count_domain_tokens(tokenizer: Any, examples: tuple[Example, ...], size: int) -> NDArray[np.int64]:
    """(V,) how often each token occurs in all of the calibration rows."""
    windows = make_windows(tokenizer, examples, max_tokens=5_000_000, window_tokens=1_000_000)
    return count_tokens((window.ids for window in windows), size)


def measure_options(
    model: Any,
    folder: Path,
    tokenizer: Any,
    examples: tuple[Example, ...],
    sizes: list[int] | None,
    *,
    max_tokens: int,
    window_tokens: int = WINDOW_TOKENS,
    keep: tuple[str, ...] = (),
) -> list[VocabularyOption]:
    """Trimmed vocabularies with their measured cost, largest first.

    Args:
        model: the original; not changed.
        folder: where its tokenizer is.
        tokenizer: the same, opened.
        examples: calibration rows: the first of them, in order, are scored, the others counted.
        sizes: sizes to try; None: those that the text suggests.
        max_tokens: predictions to score for each.
        window_tokens: longest window; at most the model's context.
        keep: tokens, or text whose tokens, are never dropped.

    Raises:
        UnsupportedError: the tokenizer is not a byte-pair one.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = Vocabulary(folder / "tokenizer.json", rows=rows)
    vocabulary.keep(keep, lambda text: tokenizer.encode(text, add_special_tokens=False))
    used = leading_rows(tokenizer, examples, max_tokens=max_tokens, window_tokens=window_tokens)
    # The price is measured on rows that the choice did not see, or it would always look free.
    used = used[: max(1, len(examples) // 2)]
    windows = make_windows(tokenizer, used, max_tokens=10 * max_tokens, window_tokens=window_tokens)
    all_counts = count_domain_tokens(tokenizer, examples, rows)
    seen_counts = count_domain_tokens(tokenizer, examples[len(used) :], rows)
    nats, size_bytes, tokens, _ = _likelihood(model, windows, None)
    options = []
    for size in vocabulary.sizes(all_counts) if sizes is None else sizes:
        kept = vocabulary.choose(seen_counts, size)
        with tempfile.TemporaryDirectory() as scratch:
            vocabulary.write_trimmed(folder, Path(scratch), kept)
            trimmed = open_tokenizer(Path(scratch))
        new_windows = [
            Window(ids=kept[w.ids], counts=w.counts, bytes=w.bytes)
            for w in make_windows(trimmed, used, max_tokens=10 * max_tokens, window_tokens=window_tokens)
        ]
        new_nats, new_bytes, new_tokens, lost = _likelihood(model, new_windows, torch.from_numpy(kept))
        final = vocabulary.choose(all_counts, size)
        bytes_per_token = size_bytes / tokens
        splitting = max(0.0, (new_nats / new_bytes - nats / size_bytes) * bytes_per_token)
        choice = VocabularyChoice(
            original_size=rows,
            size=len(final),
            kl=lost[0] + splitting,
            lost_mass_fraction=lost[1],
            tokens_per_byte_ratio=(new_tokens / new_bytes) / (tokens / size_bytes),
        )
        options.append(VocabularyOption(kept=final, choice=choice))
    return options


def _likelihood(
    model: Any, windows: list[Window], kept: torch.Tensor | None
) -> tuple[float, int, int, tuple[float, float]]:
    """(nats of the counted tokens, their bytes, their number, (mean -ln kept mass, mean lost mass))."""
    nats = lost_nats = lost_mass = 0.0
    for start in range(0, len(windows), _GROUP_WINDOWS):
        group = windows[start : start + _GROUP_WINDOWS]
        log_probs = counted_log_probs(model, group)
        nats -= float(log_probs.gather(1, counted_targets(group)[:, None]).sum(dtype=torch.float64))
        if kept is not None:
            mass = torch.logsumexp(log_probs[:, kept], dim=1)
            lost_nats -= float(mass.sum(dtype=torch.float64))
            lost_mass += float((1 - mass.exp()).sum(dtype=torch.float64))
    tokens = sum(w.tokens for w in windows)
    return nats, sum(w.bytes for w in windows), tokens, (lost_nats / tokens, lost_mass / tokens)
