"""What an artifact answered, and how fast."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record

Ended = Literal["stop", "stop_text", "length", "context", "interrupted"]


class Answer(Record, frozen=True):
    """One prompt answered. What `edgegen run --json` prints."""

    schema: int
    target: str
    runtime: str
    version: str
    """The runtime's."""
    threads: int
    prompt: str
    text: str
    prompt_tokens: int
    """With the chat template's and what is remembered of the conversation."""
    answer_tokens: int
    ended: Ended
    """`stop`: the model ended it; `stop_text`: a stop text was met; `length`: max_tokens; `context`: it is full."""
    load_ms: float
    ttft_ms: float | None
    """From the prompt's text to the first token, loading not included; None without a token."""
    decode_tokens_per_s: float | None
    """Of the tokens after the first; None with fewer than two."""
    forgotten_turns: int = 0
    """Oldest questions, with their answers, that were dropped because the context could not hold them."""
    notes: tuple[str, ...] = ()
