"""`.litertlm` files in LiteRT-LM, the engine that Google's own apps run such files with.

The engine takes text and gives text: it cuts prompts with the tokenizer in the file, lays out conversations with the
template in the file, and shows no logits. So this is no runtime of edgegen's, only the proof that the file works there:
what a person says has to reach the model as the same tokens as through the artifact's own tokenizer and template, and
has to be answered with the same text as LiteRT gives from the same weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.base import Record
from edgegen.runtime.base import Session
from edgegen.runtime.checks import require_file
from edgegen.runtime.quiet import native_stderr

if TYPE_CHECKING:  # other workers have no use for a tokenizer
    from edgegen.runtime.text import Text

CONTAINER_FILE = "model.litertlm"
"""Beside an artifact's own model file."""

_NO_CACHE = ":nocache"
"""Otherwise the engine writes its packed weights beside the file."""


class Answer(Record, frozen=True):
    """One prompt, answered greedily by both."""

    own: str
    """LiteRT's answer, special tokens as text."""
    engine: str
    """LiteRT-LM's; empty where the prompt reaches its model as other tokens, or where it failed."""
    is_given_alike: bool
    """Whether the prompt reaches both models as the same tokens."""


class Compared(Record, frozen=True):
    """LiteRT-LM beside LiteRT."""

    version: str
    """LiteRT-LM's."""
    answers: tuple[Answer, ...]
    fault: str = ""
    """Why the first prompt that failed did, in the engine's words."""


def is_installed() -> bool:
    """Whether there is an engine to try a file in."""
    return importlib.util.find_spec("litert_lm") is not None


def compare_answers(
    container: Path, session: Session, text: Text, said: Sequence[str], *, max_tokens: int, threads: int
) -> Compared:
    """Let the engine and LiteRT answer the same prompts.

    Args:
        container: the `.litertlm` file.
        session: the artifact's own model, opened.
        text: the artifact's own tokenizer and template.
        said: what a person says: one turn where the model holds conversations, else text to continue. What is too long
            for the engine is left out.

    Raises:
        UnsupportedError: LiteRT-LM is not installed.
        ConfigError: no such file.
        DeviceError: the engine refuses the file, or LiteRT could not compute.
    """
    try:
        import litert_lm
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f".litertlm files need LiteRT-LM: {error}", hint="Install it with: pip install 'edgegen[litert-lm]'"
        ) from error
    require_file(container)
    answers: list[Answer] = []
    fault = ""
    with native_stderr() as printed:
        try:
            processor = litert_lm.Backend.CPU(thread_count=threads)
            engine = litert_lm.Engine(str(container), backend=processor, cache_dir=_NO_CACHE)
        except RuntimeError as error:
            raise DeviceError(f"{container.name}: LiteRT-LM refuses this file: {_reason(printed(), error)}") from error
        with engine:
            start = [] if engine.bos_token_id is None else [int(engine.bos_token_id)]
            for prompt in said:
                turn = _turn_for(text, prompt)
                ids = text.conversation([turn]) if turn else text.encode(prompt)
                room = _room(text, len(ids))
                if room < 1:
                    continue
                wanted = min(max_tokens, room)
                own = list(session.generate(ids, max_tokens=wanted, stop_ids=text.artifact.eos_ids))
                given = _lay_out(engine, turn) if turn else prompt
                alike, answer = [*start, *engine.tokenize(given)] == ids, ""
                if alike:
                    try:
                        answer = _continue(litert_lm, engine, given, wanted)
                    except RuntimeError as error:
                        fault = fault or _reason(printed(), error)
                spelled = str(text.tokenizer.decode(own, skip_special_tokens=False))
                answers.append(Answer(own=spelled, engine=answer, is_given_alike=alike))
    return Compared(version=metadata.version("litert-lm-api"), answers=tuple(answers), fault=fault)


def longest_prompt(context_tokens: int, chunk_tokens: int) -> int:
    """The longest prompt that the engine takes, tokens: its chunks have one size, and none may reach over the context's
    end."""
    chunk = min(chunk_tokens, context_tokens)
    return context_tokens // chunk * chunk


def _room(text: Text, prompt_tokens: int) -> int:
    """Tokens that fit behind a prompt: the engine stops one before the context is full."""
    settings = text.artifact.settings
    if prompt_tokens > longest_prompt(settings.context_tokens, settings.ubatch_tokens):
        return 0
    return settings.context_tokens - prompt_tokens - 1


def _turn_for(text: Text, said: str) -> dict[str, str]:
    """A conversation's first turn; empty where the model holds none or its template wants something before it."""
    turn = {"role": "user", "content": said}
    if not text.has_template:
        return {}
    try:
        text.conversation([turn])
    except ConfigError:
        return {}
    return turn


def _lay_out(engine: Any, turn: dict[str, str]) -> str:
    """A conversation of one turn as the engine gives it to the model; empty where it cannot render it."""
    with engine.create_conversation() as conversation:
        return str(conversation.render_message_to_string(turn))


def _continue(library: Any, engine: Any, given: str, max_tokens: int) -> str:
    greedy = library.SamplerConfig(top_k=1, temperature=0.0)
    with engine.create_session(
        apply_prompt_template=False, sampler_config=greedy, max_output_tokens=max_tokens
    ) as session:
        session.run_prefill([given])
        return str(session.run_decode().texts[0])


def _reason(printed: str, error: RuntimeError) -> str:
    """The engine raises that something failed and prints why."""
    lines = [line.partition("] ")[2] for line in printed.splitlines() if line.startswith("E0")]
    return (lines[-1] if lines else str(error))[:300]
