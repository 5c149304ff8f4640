"""A WordPiece tokenizer in GGUF's words.

llama.cpp marks tokens that begin a word with U+2581 and leaves those that continue one bare, where tokenizer.json
leaves the first bare and marks the others with `##`. It cleans texts as BERT does, lower case and accents as two
switches say.
"""

from __future__ import annotations

import gguf

from edgegen.errors import ConfigError
from edgegen.export.gguf.rope import Value
from edgegen.export.gguf.tokenizer import TokenizerFiles, Vocabulary, flat_steps, special_id

_KEYS = {"cls": "cls", "sep": "seperator", "pad": "padding", "unk": "unknown", "mask": "mask"}
"""Role → how GGUF spells it."""


def build_wordpiece(files: TokenizerFiles, rows: int) -> Vocabulary:
    """Write a WordPiece tokenizer in GGUF's words.

    Args:
        rows: rows of the embedding; the token list gets exactly as many entries, unused ones at the end.

    Raises:
        ConfigError: more tokens than embedding rows, or two that llama.cpp could not tell apart.
    """
    model = files.tokenizer["model"]
    prefix = str(model.get("continuing_subword_prefix", "##"))
    added = {int(token["id"]): token for token in files.tokenizer.get("added_tokens", [])}
    spelling = {int(id_): text for text, id_ in model["vocab"].items()}
    spelling |= {id_: token["content"] for id_, token in added.items() if id_ < rows}
    highest = max(spelling, default=-1)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer has token id {highest} and the embedding only {rows} rows",
            hint="Give the tokenizer that belongs to this model.",
        )
    tokens, types = [], []
    for id_ in range(rows):
        text, kind = spelling.get(id_), gguf.TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{id_}]", gguf.TokenType.UNUSED
        elif id_ in added:
            kind = gguf.TokenType.CONTROL if added[id_]["special"] else gguf.TokenType.USER_DEFINED
        else:
            text = text.removeprefix(prefix) if text.startswith(prefix) and text != prefix else f"▁{text}"
        tokens.append(text)
        types.append(int(kind))
    repeated = len(tokens) - len(set(tokens))
    if repeated:
        raise ConfigError(f"{repeated} tokens share their spelling with another; llama.cpp cannot load that")
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **_cleaning(files),
        **_special(files),
    }
    texts = tuple(str(token["content"]) for token in files.tokenizer.get("added_tokens", []))
    return Vocabulary(metadata, (), None, (), False, texts, kind="WordPiece")


def _cleaning(files: TokenizerFiles) -> dict[str, Value]:
    """Whether texts lose capitals and accents; accents go with the capitals where nothing is said."""
    lower, accents = False, False
    for step in flat_steps(files.tokenizer.get("normalizer"), "normalizers"):
        if step["type"] == "BertNormalizer":
            lower = bool(step.get("lowercase", True))
            accents = lower if step.get("strip_accents") is None else bool(step["strip_accents"])
        lower = lower or step["type"] == "Lowercase"
        accents = accents or step["type"] == "StripAccents"
    return {"tokenizer.ggml.normalizer.lowercase": lower, "tokenizer.ggml.normalizer.strip_accents": accents}


def _special(files: TokenizerFiles) -> dict[str, Value]:
    """Ids of special tokens, and whether the first and the last of them are put around a text."""
    ids = {role: special_id(files, role) for role in _KEYS}
    found: dict[str, Value] = {
        f"tokenizer.ggml.{_KEYS[role]}_token_id": id_ for role, id_ in ids.items() if id_ is not None
    }
    # llama.cpp begins a text with BOS, which is 101 where nothing is said.
    if ids["cls"] is not None:
        found["tokenizer.ggml.bos_token_id"] = ids["cls"]
    if ids["sep"] is not None:
        found["tokenizer.ggml.eos_token_id"] = ids["sep"]
    cut = files.library.encode("a", add_special_tokens=True).ids
    found["tokenizer.ggml.add_bos_token"] = bool(cut) and cut[0] == ids["cls"]
    found["tokenizer.ggml.add_sep_token"] = len(cut) > 1 and cut[-1] == ids["sep"]
    return found
