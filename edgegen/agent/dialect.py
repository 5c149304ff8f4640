"""OpenAI's words for requests and answers.

A field that would change the answer and is not understood is refused by name; one that cannot matter here (`user`,
`store`, `metadata`) is let through, because clients send such on their own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from edgegen.agent.constrain import Constraint, TokenBytes
from edgegen.agent.engine import Ask, Engine
from edgegen.agent.grammar import json_grammar
from edgegen.errors import ConfigError
from edgegen.runtime.sampling import Sampling

Json = dict[str, Any]

_IGNORED = frozenset(
    ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)
_NEUTRAL: Json = {
    "n": 1,
    "best_of": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "echo": False,
    "suffix": None,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "modalities": ["text"],
    "top_logprobs": 0,
}
"""Fields that are not understood, with the values that change nothing."""


class Wish(msgspec.Struct, frozen=True):
    """A request, understood."""

    ask: Ask
    constraint: Constraint | None
    stream: bool
    usage_in_stream: bool
    chat: bool
    id: str
    model: str
    created: int


class Reader:
    """Turns request bodies into wishes for one engine."""

    def __init__(self, engine: Engine, model: str, *, max_tokens: int) -> None:
        """Prepare.

        Args:
            model: name under which the release answers.
            max_tokens: where a request names no limit.
        """
        self._engine, self._model, self._max_tokens = engine, model, max_tokens
        self._tokens: TokenBytes | None = None

    def chat(self, body: Json) -> Wish:
        """Of `/v1/chat/completions`.

        Raises:
            ConfigError: what is wrong with it.
        """
        messages = _take(body, "messages", list, None)
        if not messages:
            raise ConfigError("messages: at least one is needed")
        ids = self._engine.text.conversation([_message(message, at) for at, message in enumerate(messages)])
        limit = _take(body, "max_completion_tokens", int, None)
        return self._wish(body, ids, chat=True, limit=limit, logprobs=bool(_take(body, "logprobs", bool, False)))

    def completion(self, body: Json) -> Wish:
        """Of `/v1/completions`: text, or token ids as the release's own tokenizer makes them.

        Raises:
            ConfigError: what is wrong with it.
        """
        prompt = body.pop("prompt", None)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            ids = self._engine.text.encode(prompt)
        elif isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
            ids = prompt
        else:
            raise ConfigError("prompt: one text or one list of token ids is needed")
        logprobs = _take(body, "logprobs", int, None)
        if logprobs:
            raise ConfigError("logprobs: only 0 (the chosen tokens' own) can be given")
        return self._wish(body, ids, chat=False, limit=None, logprobs=logprobs is not None)

    def _wish(self, body: Json, ids: Sequence[int], *, chat: bool, limit: int | None, logprobs: bool) -> Wish:
        engine = self._engine
        plain = _take(body, "max_tokens", int, None)
        limit = limit if limit is not None else plain if plain is not None else self._max_tokens
        if limit < 1:
            raise ConfigError("max_tokens: must be 1 or more")
        if not ids:
            raise ConfigError("the prompt has no tokens")
        if len(ids) >= engine.context_tokens:
            raise ConfigError(
                f"the prompt's {len(ids)} tokens leave no room for an answer in a context of {engine.context_tokens}"
            )
        if not all(0 <= i < engine.vocab_size for i in ids):
            raise ConfigError(f"prompt: token ids must be from 0 to {engine.vocab_size - 1}")
        stop = body.pop("stop", None)
        stops = [stop] if isinstance(stop, str) else stop or []
        if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
            raise ConfigError("stop: a text or a list of texts is needed")
        sampling = Sampling(
            temperature=float(_take(body, "temperature", (int, float), 1.0)),
            top_p=float(_take(body, "top_p", (int, float), 1.0)),
            top_k=_take(body, "top_k", int, 0),
            min_p=float(_take(body, "min_p", (int, float), 0.0)),
            repetition_penalty=float(_take(body, "repetition_penalty", (int, float), 1.0)),
            seed=_take(body, "seed", int, None),
        )
        if sampling.seed is not None and sampling.seed < 0:
            raise ConfigError("seed: must be 0 or more")
        constraint = self._constraint(body.pop("response_format", None), sampling)
        stream = bool(_take(body, "stream", bool, False))
        options = _take(body, "stream_options", dict, {})
        self._refuse_rest(body)
        return Wish(
            ask=Ask(tuple(ids), limit, sampling, tuple(stops), logprobs),
            constraint=constraint,
            stream=stream,
            usage_in_stream=bool(options.get("include_usage")),
            chat=chat,
            id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            model=self._model,
            created=int(time.time()),
        )

    def _constraint(self, form: Any, sampling: Sampling) -> Constraint | None:
        if form is None or form == {"type": "text"}:
            return None
        kind = form.get("type") if isinstance(form, dict) else None
        if kind == "json_object":
            grammar = json_grammar()
        elif kind == "json_schema":
            wrapped = form.get("json_schema")
            schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
            if not isinstance(schema, dict):
                raise ConfigError("response_format.json_schema.schema: an object is needed")
            grammar = json_grammar(schema)
        else:
            raise ConfigError("response_format.type: known are text, json_object and json_schema")
        if self._tokens is None:
            self._tokens = TokenBytes(self._engine.text.tokenizer, self._engine.vocab_size)
        # A sampler with a penalty remembers every token that it chose, also those that were then refused.
        return Constraint(grammar, self._tokens, **({"tries": 0} if sampling.repetition_penalty != 1 else {}))

    def _refuse_rest(self, body: Json) -> None:
        model = body.pop("model", self._model)
        if not isinstance(model, str):
            raise ConfigError("model: a name is needed")
        for name, value in body.items():
            if name in _IGNORED or value is None:
                continue
            if name not in _NEUTRAL:
                raise ConfigError(f"{name}: this field is not known here")
            if value != _NEUTRAL[name]:
                raise ConfigError(f"{name}: cannot be done here; leave it out")


def _take(body: Json, name: str, kind: Any, default: Any) -> Any:
    value = body.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name}: not of the right type")
    return value


def _message(message: Any, at: int) -> dict[str, str]:
    """One turn; content in parts is joined."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ConfigError(f"messages[{at}]: an object with role and content is needed")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ConfigError(f"messages[{at}].content: only text can be read")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ConfigError(f"messages[{at}].content: a text is needed")
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": content}


def whole_answer(
    wish: Wish, text: str, ended: str, tokens: int, marks: Sequence[tuple[int, float]], engine: Engine
) -> Json:
    """The body of an answer that is not streamed."""
    choice: Json = {"index": 0, "finish_reason": ended, "logprobs": _logprobs(wish, marks, engine)}
    if wish.chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    kind = "chat.completion" if wish.chat else "text_completion"
    return {**_head(wish, kind), "choices": [choice], "usage": usage(wish, tokens)}


def chunk(
    wish: Wish, *, text: str = "", role: bool = False, ended: str | None = None, marks: Any = (), engine: Engine
) -> Json:
    """One event of a stream."""
    choice: Json = {"index": 0, "finish_reason": ended, "logprobs": _logprobs(wish, marks, engine) if marks else None}
    if wish.chat:
        choice["delta"] = ({"role": "assistant", "content": ""} if role else {}) | ({"content": text} if text else {})
    else:
        choice["text"] = text
    return {**_head(wish, "chat.completion.chunk" if wish.chat else "text_completion"), "choices": [choice]}


def usage_chunk(wish: Wish, tokens: int) -> Json:
    """The last event where usage was asked for."""
    kind = "chat.completion.chunk" if wish.chat else "text_completion"
    return {**_head(wish, kind), "choices": [], "usage": usage(wish, tokens)}


def usage(wish: Wish, tokens: int) -> Json:
    """Counted tokens."""
    prompt = len(wish.ask.ids)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def problem(message: str, *, kind: str, code: str | None = None) -> Json:
    """The body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _head(wish: Wish, kind: str) -> Json:
    return {"id": wish.id, "object": kind, "created": wish.created, "model": wish.model}


def _logprobs(wish: Wish, marks: Sequence[tuple[int, float]], engine: Engine) -> Json | None:
    if not wish.ask.logprobs:
        return None
    texts = [engine.text.tokenizer.id_to_token(token) or "" for token, _ in marks]
    if not wish.chat:
        return {
            "tokens": texts,
            "token_logprobs": [value for _, value in marks],
            "top_logprobs": None,
            "text_offset": [],
        }
    entries = [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, (_, value) in zip(texts, marks, strict=True)
    ]
    return {"content": entries, "refusal": None}
