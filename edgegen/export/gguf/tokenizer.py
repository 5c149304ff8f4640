"""From tokenizer.json to GGUF's tokenizer metadata.

Two shapes of BPE can be written:

- **SentencePiece-like** (spaces become `▁`, unknown characters fall back to bytes) → GGUF model `llama`.
  llama.cpp merges the pair whose result has the highest score, so a token's score is minus the rank of the
  first merge that makes it.
- **Byte-level** (GPT-2's byte alphabet) → GGUF model `gpt2` with the merges and the *name* of a splitting
  rule (`pre`) that llama.cpp has built in. The rule is first chosen by the tokenizer's own splitting steps;
  which one is right is then proven by `proof`.

llama.cpp ends the process on metadata that it takes for granted (two tokens with one spelling), so that is
checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from edgegen.common.codec import load_object_if_there, read_bytes
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.rope import Value

_UNREACHABLE = -1e9
"""Score of tokens that no merge makes: below every rank, exact in float32."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SAME_AS = {_GPT2: "gpt-2", r"\p{N}": "digits", r"\d": "digits", "[0-9]": "digits"}
"""Splitting patterns that do what another step does."""

_RULES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("gpt-2",): ("gpt-2",),
    ("digits", "gpt-2"): ("smollm",),
    (_LLAMA3,): ("dbrx", "llama-bpe"),
    (_QWEN2,): ("qwen2",),
    (_QWEN35,): ("qwen35",),
    (_TEKKEN,): ("tekken",),
    (_GPT4O,): ("gpt-4o",),
    (r"\p{N}{1,3}", "gpt-2"): ("superbpe",),
}
"""A byte-level tokenizer's splitting steps → llama.cpp's names for them. Where there are two, the second is
the one that takes a whole word's own token before any merge (`ignore_merges`)."""

PRE_NAMES = (
    *("gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm", "gpt-4o", "tekken", "qwen35", "deepseek-llm"),
    *("deepseek-coder", "deepseek-v3", "falcon", "starcoder", "seed-coder", "bailingmoe", "glm4", "minicpm5"),
    *("youtu", "poro-chat", "viking", "tiny_aya", "ufakzeka", "exaone-moe", "chameleon", "default"),
)
"""Rules to try, in this order, when the chosen one fails its proof; one name for each distinct rule."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What was read from a folder."""

    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    model: Mapping[str, Any]
    """config.json."""
    chat_templates: Mapping[str, str]
    library: Tokenizer
    """The same tokenizer, ready to run."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """GGUF metadata of a tokenizer, but for the name of the splitting rule."""

    metadata: dict[str, Value]
    pre_names: tuple[str, ...]
    """Splitting rules to try, best guess first; empty for SentencePiece-like ones, which have none."""
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    special_texts: tuple[str, ...]
    """Spellings of the added tokens."""
    notes: tuple[str, ...] = ()
    kind: str = "SentencePiece"
    """How texts are cut where there is no splitting rule to name."""

    def with_rule(self, pre: str) -> dict[str, Value]:
        """The whole metadata, with the splitting rule's name if there is one."""
        return self.metadata | {"tokenizer.ggml.pre": pre} if pre else dict(self.metadata)


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read the tokenizer's files.

    Raises:
        ConfigError: tokenizer.json is missing or broken.
    """
    data = read_bytes(folder / "tokenizer.json")
    try:
        tree = json.loads(data)
        library = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises bare exceptions
        raise ConfigError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
    library.no_truncation()
    library.no_padding()
    config = load_object_if_there(folder / "tokenizer_config.json")
    for key, value in load_object_if_there(folder / "special_tokens_map.json").items():
        config.setdefault(key, value)
    return TokenizerFiles(
        tokenizer=tree,
        config=config,
        generation=load_object_if_there(folder / "generation_config.json"),
        model=load_object_if_there(folder / "config.json"),
        chat_templates=_chat_templates(folder, config),
        library=library,
    )


def build_vocabulary(files: TokenizerFiles, rows: int) -> Vocabulary:
    """Write a tokenizer in GGUF's words.

    Args:
        rows: rows of the embedding; the token list gets exactly as many entries, unused ones at the end.

    Raises:
        UnsupportedError: not a BPE tokenizer, or one that llama.cpp cannot express.
        ConfigError: more tokens than embedding rows, or a vocabulary that would make llama.cpp end the
            process.
    """
    model = files.tokenizer["model"]
    kind = str(model.get("type", "BPE"))
    if kind != "BPE":
        raise UnsupportedError(
            f"a {kind} tokenizer cannot be written as GGUF", hint="BPE tokenizers can, and WordPiece ones of encoders."
        )
    steps = flat_steps(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    sentencepiece = not byte_level and bool(model.get("byte_fallback"))
    if not (byte_level or sentencepiece):
        raise UnsupportedError(
            "this BPE tokenizer is neither byte-level nor byte-fallback",
            hint="llama.cpp knows these two kinds.",
        )
    if sentencepiece and model.get("ignore_merges"):
        raise UnsupportedError("byte-fallback BPE with ignore_merges cannot be written as GGUF")
    tokens, types = _tokens(files, rows, sentencepiece)
    metadata: dict[str, Value] = {"tokenizer.ggml.model": "llama" if sentencepiece else "gpt2"}
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in model["merges"]]
    if sentencepiece:
        metadata["tokenizer.ggml.scores"] = _scores(model, tokens, types, merges)
        metadata["tokenizer.ggml.add_space_prefix"] = _adds_space(files.tokenizer, steps)
        names: tuple[str, ...] = ()
    else:
        if not merges:
            raise UnsupportedError("a byte-level tokenizer without merges cannot be written as GGUF")
        metadata["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
        guess = _RULES.get(_rule(steps), ())
        guess = guess[-1:] + guess[:-1] if model.get("ignore_merges") else guess
        names = (*guess, *(name for name in PRE_NAMES if name not in guess))
    return _with_special_tokens(files, metadata, names, types)


def _tokens(files: TokenizerFiles, rows: int, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Spelling and type of every id below `rows`."""
    added = {int(token["id"]): token for token in files.tokenizer.get("added_tokens", [])}
    spelling = {int(id_): text for text, id_ in files.tokenizer["model"]["vocab"].items()}
    # Text-only models come with added tokens for images beyond their embedding.
    spelling |= {id_: token["content"] for id_, token in added.items() if id_ < rows}
    highest = max(spelling, default=-1)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer has token id {highest} and the embedding only {rows} rows",
            hint="Give the tokenizer that belongs to this model.",
        )
    unknown = files.tokenizer["model"].get("unk_token")
    tokens, types = [], []
    for id_ in range(rows):
        text = spelling.get(id_)
        if text is None:
            text, kind = f"[PAD{id_}]", gguf.TokenType.UNUSED
        elif text == unknown and sentencepiece:
            kind = gguf.TokenType.UNKNOWN
        elif id_ in added and added[id_]["special"]:
            kind = gguf.TokenType.CONTROL
        elif id_ in added:
            # llama.cpp looks for these in the raw text, where a space is still a space.
            text, kind = text.replace("▁", " ") if sentencepiece else text, gguf.TokenType.USER_DEFINED
        elif sentencepiece and _is_byte(text):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(text)
        types.append(int(kind))
    repeated = len(tokens) - len(set(tokens))
    if repeated:
        raise ConfigError(f"{repeated} tokens share their spelling with another; llama.cpp cannot load that")
    return tokens, types


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(
    model: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> list[float]:
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    return [
        float(-rank.get(text, -_UNREACHABLE)) if kind == gguf.TokenType.NORMAL else 0.0
        for text, kind in zip(tokens, types, strict=True)
    ]


def flat_steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A pre-tokenizer's or normalizer's steps in order, nested sequences opened."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [leaf for child in step[inner] for leaf in flat_steps(child, inner)]
    return [step]


def _rule(steps: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """A byte-level tokenizer's splitting steps as a key of `_RULES`."""
    words: list[str] = []
    for step in steps:
        if step["type"] == "Split":
            pattern = str(step["pattern"].get("Regex", step["pattern"].get("String")))
            words.append(_SAME_AS.get(pattern, pattern))
        elif step["type"] == "Digits":
            words.append("digits" if step.get("individual_digits") else "digit runs")
        elif step["type"] != "ByteLevel":
            words.append(str(step["type"]))
        elif step.get("use_regex", True):
            words.append("gpt-2")
    return tuple(words)


def _adds_space(tokenizer: Mapping[str, Any], steps: list[Mapping[str, Any]]) -> bool:
    """Whether a text is tokenised as if a space stood before it."""
    for step in flat_steps(tokenizer.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == "▁":
            return True
    for step in steps:
        if step["type"] == "Metaspace":
            return bool(step.get("add_prefix_space", True)) and step.get("prepend_scheme", "always") != "never"
    return False


def _with_special_tokens(
    files: TokenizerFiles, metadata: dict[str, Value], names: tuple[str, ...], types: list[int]
) -> Vocabulary:
    """Add ids of special tokens, flags and chat templates."""
    notes: list[str] = []
    byte_types = types.count(int(gguf.TokenType.BYTE))
    if not names and byte_types < 256:
        notes.append(
            f"{256 - byte_types} of 256 byte tokens are missing: llama.cpp's own tokenizer ends the process "
            "on characters that the vocabulary lacks"
        )
    ids = {role: special_id(files, role) for role in ("bos", "eos", "pad", "unk")}
    eos_ids = list(dict.fromkeys(_eos_ids(files, ids["eos"])))
    for id_ in (*ids.values(), *eos_ids):
        if id_ is not None and not 0 <= id_ < len(types):
            raise ConfigError(f"special token id {id_} is outside the vocabulary of {len(types)}")
    if ids["eos"] is None and eos_ids:
        ids["eos"] = eos_ids[0]
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    for role, id_ in ids.items():
        if id_ is not None:
            metadata[f"tokenizer.ggml.{keys[role]}_token_id"] = id_
    if ids["eos"] is None:
        notes.append("the tokenizer names no end-of-sequence token")
    for other in eos_ids:
        if other != ids["eos"]:
            metadata["tokenizer.ggml.eot_token_id"] = other
            break
    add_bos, add_eos = _adds(files, ids["bos"], ids["eos"])
    metadata["tokenizer.ggml.add_bos_token"] = add_bos
    metadata["tokenizer.ggml.add_eos_token"] = add_eos
    named = [name for name in files.chat_templates if name != "default"]
    if "default" in files.chat_templates:
        metadata["tokenizer.chat_template"] = files.chat_templates["default"]
    for name in named:
        metadata[f"tokenizer.chat_template.{name}"] = files.chat_templates[name]
    if named:
        metadata["tokenizer.chat_templates"] = named
    texts = tuple(str(token["content"]) for token in files.tokenizer.get("added_tokens", []))
    return Vocabulary(metadata, names, ids["bos"], tuple(eos_ids), add_bos, texts, tuple(notes))


def special_id(files: TokenizerFiles, role: str) -> int | None:
    """A special token's id: by the tokenizer's own name for it, else by the model's configuration."""
    token = files.config.get(f"{role}_token")
    if isinstance(token, Mapping):
        token = token.get("content")
    if isinstance(token, str):
        return _optional_int(files.library.token_to_id(token))
    for source in (files.model, files.generation):
        value = source.get(f"{role}_token_id")
        if isinstance(value, int):
            return value
    return None


def _eos_ids(files: TokenizerFiles, eos: int | None) -> list[int]:
    """Every id that ends a text: the tokenizer's own first, then those of the configurations."""
    found = [] if eos is None else [eos]
    for source in (files.generation, files.model):
        value = source.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    return [int(id_) for id_ in found]


def _adds(files: TokenizerFiles, bos: int | None, eos: int | None) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text: as the tokenizer does, unless its configuration says
    otherwise."""
    ids = files.library.encode("a", add_special_tokens=True).ids
    before = bool(ids) and ids[0] == bos
    after = len(ids) > 1 and ids[-1] == eos
    before = bool(files.config.get("add_bos_token", before)) and bos is not None
    after = bool(files.config.get("add_eos_token", after)) and eos is not None
    return before, after


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name → template; the file wins over the configuration's entry."""
    given = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(given, str):
        templates["default"] = given
    elif isinstance(given, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in given}
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates["default"] = path.read_text(encoding="utf-8")
    return templates


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)
