"""What the original model said on held-out text; the artifact is compared with it."""

from __future__ import annotations

from edgegen.records.base import Record


class ReferenceWindow(Record, frozen=True):
    """One sequence, in the artifact's token ids."""

    ids: tuple[int, ...]
    counts: tuple[tuple[int, int], ...]
    """Stretches [start, end) of positions whose next-token prediction counts."""
    bytes: int
    """UTF-8 bytes of the text that the counted predictions spell."""


class ReferencePrompt(Record, frozen=True):
    """A request and the original's greedy answer."""

    prompt: str
    """As a person reads it."""
    ids: tuple[int, ...]
    """As the artifact gets it: template and special tokens included."""
    answer: str
    answer_tokens: int
    expected: str
    """The data's own answer, empty for plain text."""


class GreedyRun(Record, frozen=True):
    """How the torch model with the artifact's rounded weights continues a prompt, in the artifact's ids."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]


class Reference(Record, frozen=True):
    """`reference.json`; `quality.npy` and `parity.npy` lie beside it.

    Of an encoder the windows are whole texts, the two files hold a vector for each, and nothing is answered.
    """

    schema: int
    vocab_size: int
    windows: tuple[ReferenceWindow, ...]
    parity_windows: int
    """The first so many windows have logits in `parity.npy`."""
    greedy: tuple[GreedyRun, ...]
    prompts: tuple[ReferencePrompt, ...]
    original_bits_per_byte: float
    """Of the original with its own vocabulary on the same rows."""
    trimmed: bool
    """Whether the artifact's vocabulary is smaller than the original's."""
