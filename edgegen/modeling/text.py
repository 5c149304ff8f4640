"""Examples → windows of token ids, with a mask of the positions that count.

A window is one row (or a slice of a long one), never several rows glued together, because a model judged on its own
use sees one request at a time. Where a row ends with an answer, only the answer's tokens count; in plain text all do.

L: tokens of a window.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.records.data import Example

WINDOW_TOKENS = 256
"""Default length of a window."""


class Window(msgspec.Struct, frozen=True):
    """One sequence to score.

    `counts[t]` says whether the prediction made *at* position t (of token t + 1) counts; the last is always False.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.bool_]
    bytes: int
    """UTF-8 bytes of the text that the counted predictions spell."""

    @property
    def tokens(self) -> int:
        """Predictions that count."""
        return int(self.counts.sum())


def render(tokenizer: Any, example: Example) -> tuple[str, str, bool]:
    """A row as (text before the counted part, counted part, whether special tokens are already in the text).

    Conversations go through the model's chat template; without one they are written as plain lines.
    """
    if not example.messages:
        return "", example.text, False
    messages = [{"role": role, "content": content} for role, content in example.messages]
    if getattr(tokenizer, "chat_template", None):
        try:
            full = tokenizer.apply_chat_template(messages, tokenize=False)
            if not example.completion:
                return "", full, True
            prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja and the templates themselves raise what they like
            raise ConfigError(
                f"the model's chat template refuses a row: {str(error).splitlines()[0][:200]}",
                hint="Its roles may not be those of the data, such as a system message that it does not know.",
            ) from error
        return (prompt, full[len(prompt) :], True) if full.startswith(prompt) else ("", full, True)
    body = "\n".join(content for _, content in example.messages[:-1]) + "\n"
    return (body, example.messages[-1][1], False) if example.completion else ("", body + example.messages[-1][1], False)


def prompt_ids(tokenizer: Any, example: Example) -> list[int]:
    """The ids that a request starts generation with (without its answer)."""
    prompt, _, special = render(tokenizer, example)
    return [int(i) for i in tokenizer.encode(prompt, add_special_tokens=not special)]


def make_windows(tokenizer: Any, examples: tuple[Example, ...], *, max_tokens: int, window_tokens: int) -> list[Window]:
    """Windows of at most `window_tokens` until `max_tokens` predictions count.

    Rows are taken in the given order; the tail of a long row that is shorter than 8 tokens is left out.

    Raises:
        ConfigError: no row gives a single prediction.
    """
    windows: list[Window] = []
    total = 0
    for example in examples:
        for window in windows_of(tokenizer, example, window_tokens):
            windows.append(window)
            total += window.tokens
            if total >= max_tokens:
                return windows
    if total == 0:
        raise ConfigError("the data's rows are too short: none has two tokens", hint="Give longer rows.")
    return windows


def leading_rows(
    tokenizer: Any, examples: tuple[Example, ...], *, max_tokens: int, window_tokens: int
) -> tuple[Example, ...]:
    """As many of the first rows as give `max_tokens` counted predictions, whole rows."""
    total = 0
    for number, example in enumerate(examples, 1):
        total += sum(window.tokens for window in windows_of(tokenizer, example, window_tokens))
        if total >= max_tokens:
            return examples[:number]
    return examples


def windows_of(tokenizer: Any, example: Example, window_tokens: int) -> list[Window]:
    """One row's windows; none if it is too short to predict anything."""
    prompt, counted, special = render(tokenizer, example)
    encoding = tokenizer(
        prompt + counted,
        add_special_tokens=not special,
        return_offsets_mapping=True,
        verbose=False,
        truncation=False,
    )
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    starts = np.asarray([start for start, _ in encoding["offset_mapping"]] or [0])
    in_answer = starts >= len(prompt) if prompt else np.ones(len(ids), dtype=bool)
    windows = []
    for begin in range(0, len(ids), window_tokens):
        piece = ids[begin : begin + window_tokens]
        if len(piece) < (2 if begin == 0 else 8):
            continue
        counts = np.zeros(len(piece), dtype=bool)
        counts[:-1] = in_answer[begin + 1 : begin + len(piece)]
        if not counts.any():
            continue
        spelled = tokenizer.decode(
            piece[1:][counts[:-1]], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        windows.append(Window(ids=piece, counts=counts, bytes=max(1, len(spelled.encode(errors="replace")))))
    return windows


def batches(windows: list[Window], *, batch_tokens: int) -> list[list[Window]]:
    """Group windows of similar length so that little is padding; a group has at most `batch_tokens` padded tokens."""
    groups: list[list[Window]] = []
    for window in sorted(windows, key=lambda w: len(w.ids)):
        if groups and len(window.ids) * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups
