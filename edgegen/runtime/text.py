"""Text in, token ids out, and back: once, for every runtime.

Runtimes' own tokenizers were measured to disagree with the original's, so the `tokenizers` library cuts text
everywhere, and the artifact's own chat template lays out conversations.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from edgegen.common.codec import load_json, load_object_if_there
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact


class Text:
    """The tokenizer and chat template of one artifact's folder."""

    def __init__(self, folder: Path) -> None:
        """Read them.

        Raises:
            ConfigError: no artifact there, or a broken tokenizer or template.
        """
        self.folder = folder
        self.artifact = load_json(folder / "artifact.json", Artifact)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{path}: no such file", hint="The artifact is incomplete; export it again.")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise ConfigError(f"{path}: not a tokenizer: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._config = {
            **load_object_if_there(folder / "special_tokens_map.json"),
            **load_object_if_there(folder / "tokenizer_config.json"),
        }
        self._special = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        self.template = _template_source(folder, self._config)
        """The chat template as the model brought it; empty: none."""
        self._template = _template(folder, self.template)

    @property
    def has_template(self) -> bool:
        """Whether the model knows conversations."""
        return self._template is not None

    @property
    def special_texts(self) -> dict[str, str]:
        """`bos_token` and its kin, as templates use them."""
        return _special_texts(self._config)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model expects before it.

        Whether BOS stands first is what the artifact says, as `add_bos_token` overrules the tokenizer's own steps in
        transformers. An EOS that the tokenizer puts behind a text is left out: an answer follows.
        """
        encoding = self.tokenizer.encode(text, add_special_tokens=True)
        ids = [int(i) for i in encoding.ids]
        put_there = [bool(mark) for mark in encoding.special_tokens_mask]  # unlike what the text itself spells
        if ids and put_there[-1] and ids[-1] in self.artifact.eos_ids and len(ids) > 1:
            ids.pop()
        bos = self.artifact.bos_id
        if bos is not None and self.artifact.add_bos and ids[:1] != [bos]:
            ids.insert(0, bos)
        if not self.artifact.add_bos and ids[:1] == [bos] and put_there[0]:
            del ids[0]
        return ids

    def sentence(self, text: str) -> list[int]:
        """Ids of a text for an encoder, cut where it cuts: its last special token stays."""
        self.tokenizer.enable_truncation(self.artifact.settings.context_tokens)
        try:
            return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=True).ids]
        finally:
            self.tokenizer.no_truncation()

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where the model answers.

        Args:
            messages: `role` and `content` of each turn.

        Raises:
            ConfigError: the model has no chat template, or the template refuses these turns.
        """
        if self._template is None:
            raise ConfigError(
                "this model has no chat template, so it continues text and does not hold conversations",
                hint="Give it text to continue, with --raw.",
            )
        try:
            prompt = self._template.render(
                **self.special_texts,
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
            )
        except Exception as error:  # templates raise what they like
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"the model's chat template refuses this conversation: {lines[0][:200]}") from error
        return [int(i) for i in self.tokenizer.encode(prompt, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def stream(self, ids: Iterable[int], *, after: Sequence[int] = (), stop: Sequence[str] = ()) -> Iterator[str]:
        """Pieces of text as ids arrive; together they are what `decode` makes of all of them.

        A character is held back until all its tokens are there; what never becomes one is shown as `decode` shows it.

        Args:
            after: ids of the text that this one continues: with them the space between the two is kept.
            stop: texts at which the stream ends; neither they nor what follows is given. Text that may become one of
                them is held back.
        """
        wanted = [text for text in stop if text]
        held = ""
        for piece in self._pieces(ids, after):
            held += piece
            found = min((held.find(text) for text in wanted if text in held), default=-1)
            if found >= 0:
                if found:
                    yield held[:found]
                return
            keep = max((_overlap(held, text) for text in wanted), default=0)
            if len(held) > keep:
                yield held[: len(held) - keep]
                held = held[len(held) - keep :]
        if held:
            yield held

    def _pieces(self, ids: Iterable[int], after: Sequence[int]) -> Iterator[str]:
        """Whole characters as ids arrive.

        Tokenizers treat the start of a text differently (a space is dropped there), so the last piece given is decoded
        again, together with the ids that are still to be given.
        """
        given = [int(i) for i in after if i not in self._special]
        before, waiting = self.decode(given), list[int]()
        for token in map(int, ids):
            if token in self._special:
                continue
            waiting.append(token)
            text = self.decode(given + waiting)
            if len(text) > len(before) and not text.endswith("\ufffd"):
                yield text[len(before) :]
                given, waiting = waiting, []
                before = self.decode(given)
        rest = self.decode(given + waiting)[len(before) :]
        if rest:
            yield rest


def _overlap(text: str, stop: str) -> int:
    """Longest end of `text` that begins `stop`."""
    return max((size for size in range(1, min(len(text), len(stop) - 1) + 1) if text.endswith(stop[:size])), default=0)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks in a template what a model is trained on; here its body is text like any other."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The body alone."""
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _template_source(folder: Path, config: dict[str, Any]) -> str:
    """The chat template's text; empty if there is none."""
    path = folder / "chat_template.jinja"
    given: Any = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(given, list):  # several by name
        given = {str(entry["name"]): str(entry["template"]) for entry in given}.get("default")
    return given or ""


def _template(folder: Path, given: str) -> jinja2.Template | None:
    """The chat template as transformers compiles it: sandboxed, with its filters and functions."""
    if not given:
        return None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(given)
    except jinja2.TemplateError as error:
        raise ConfigError(f"{folder}: its chat template cannot be read: {error}") from error


def _special_texts(config: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in config.items():
        if name.endswith("_token") and isinstance(value, str | dict):
            found[name] = str(value["content"]) if isinstance(value, dict) else value
    return found
