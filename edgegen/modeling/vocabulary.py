"""Drop tokens that a domain does not use, so that what is left still tokenizes.

A byte-pair vocabulary is closed when every token that can be built still has the two parts it is merged from. Kept
are all special and added tokens, all single bytes, and for each kept token its merge ancestors; then any text can be
written, at worst byte by byte (Bogoychev et al. 2023, arXiv:2311.09709, for what trimming saves). Ids are renumbered
in their old order.

V tokens before, K tokens after.
"""

from __future__ import annotations

import collections
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.common.files import write_text
from edgegen.errors import UnsupportedError

_ALIGN = 32
"""Kept vocabularies are multiples of this where possible: every runtime's blocks fit them."""
_ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_eos_token_id",
)


class Vocabulary:
    """The tokens of one tokenizer.json and how they are built.

    Attributes:
        size: V, the highest id plus one.
        always: ids that can never be dropped.
    """

    def __init__(self, tokenizer_json: Path, *, rows: int | None = None) -> None:
        """Read the merges.

        Args:
            rows: of the embedding; added tokens beyond it (images in text-only models) cannot be kept.

        Raises:
            UnsupportedError: not a byte-pair tokenizer.
        """
        self._tree: dict[str, Any] = json.loads(tokenizer_json.read_text(encoding="utf-8"))
        model = self._tree["model"]
        if model.get("type") != "BPE":
            raise UnsupportedError(
                f"{tokenizer_json}: a {model.get('type')} vocabulary cannot be trimmed; only byte-pair ones can",
                hint="Use --vocab keep.",
            )
        self._ids: dict[str, int] = model["vocab"]
        self._parents: dict[int, tuple[int, int]] = {}
        for merge in model["merges"]:
            left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
            if left + right in self._ids and left in self._ids and right in self._ids:
                self._parents.setdefault(self._ids[left + right], (self._ids[left], self._ids[right]))
        added = {int(token["id"]) for token in self._tree.get("added_tokens", [])}
        added = {i for i in added if rows is None or i < rows}
        self.size = max([*self._ids.values(), *added]) + 1
        byte_level = "ByteLevel" in json.dumps(self._tree.get("pre_tokenizer")) + json.dumps(self._tree.get("decoder"))
        single = {i for token, i in self._ids.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
        if byte_level:
            single |= {i for token, i in self._ids.items() if len(token) == 1}
        elif single:
            # Decoders turn the space mark into a space before they join bytes, so bytes cannot stand for it.
            single |= {self._ids["▁"]} if "▁" in self._ids else set()
        else:
            # Without bytes to fall back on, every single character has to stay.
            single = {i for token, i in self._ids.items() if len(token) == 1}
        self._known = frozenset(self._ids.values())
        unknown = model.get("unk_token")
        self.always = frozenset(added | single | ({self._ids[unknown]} if unknown in self._ids else set()))

    def keep(self, strings: Iterable[str], cut: Callable[[str], Iterable[int]]) -> None:
        """Never drop some tokens either.

        Args:
            strings: tokens as the vocabulary writes them, or text.
            cut: text → ids, for strings that are no tokens.
        """
        ids = {i for string in strings for i in ([self._ids[string]] if string in self._ids else cut(string))}
        self.always |= ids & (self._known | self.always)

    def ancestors(self, token: int) -> set[int]:
        """The token and everything it is merged from."""
        found: set[int] = set()
        waiting = [token]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(self._parents.get(current, ()))
        return found

    def choose(self, counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """The closed vocabulary of about `size` tokens that covers most of the counted text.

        Args:
            counts: (V,) how often each id occurs in the domain's text; ties go to the lower id (the earlier merge).
            size: wanted K; the closure of what must stay may be larger.

        Returns:
            (K,) ascending ids.
        """
        kept = set().union(*(self.ancestors(token) for token in self.always))
        left = []
        for token in (int(t) for t in np.lexsort((np.arange(len(counts)), -counts))):
            if token not in self._known or token in kept:
                continue
            brought = self.ancestors(token) - kept
            if len(kept) + len(brought) <= size:
                kept |= brought
            else:
                left.append(token)
        # Up to the next multiple with tokens that bring no ancestors.
        for token in left:
            if len(kept) % _ALIGN == 0:
                break
            if len(self.ancestors(token) - kept) == 1:
                kept.add(token)
        return np.array(sorted(kept), dtype=np.int64)

    def sizes(self, counts: NDArray[np.int64]) -> list[int]:
        """Sizes worth trying: all that the text uses, and those that cover shares of its tokens down to 90 %.

        Multiples of 32, largest first, each at least 3 % smaller than the one before.
        """
        ordered = np.sort(counts)[::-1]
        covered = np.cumsum(ordered) / max(1, int(ordered.sum()))
        wanted = [int((ordered > 0).sum())] + [
            int(np.searchsorted(covered, share)) + 1 for share in (0.9998, 0.9995, 0.999, 0.995, 0.98, 0.95, 0.9)
        ]
        sizes: list[int] = []
        previous = self.size
        for number in wanted:
            size = -(-len(self.choose(counts, number)) // _ALIGN) * _ALIGN
            if size <= 0.97 * previous:
                sizes.append(size)
                previous = size
        return sizes

    def write_trimmed(self, source: Path, out: Path, kept: NDArray[np.int64]) -> None:
        """Copy a tokenizer's files with only the kept tokens, renumbered 0 … K-1 in their old order.

        Args:
            source: folder with tokenizer.json and what belongs to it.
            out: folder that gets the same files; created.
            kept: (K,) ascending ids, closed under merging.
        """
        new = {int(old): index for index, old in enumerate(kept)}
        tree = json.loads(json.dumps(self._tree))
        model = tree["model"]
        model["vocab"] = {token: new[i] for token, i in self._ids.items() if i in new}
        model["merges"] = [m for m in model["merges"] if self._merge_stays(m, model["vocab"])]
        tree["added_tokens"] = [token for token in tree.get("added_tokens", []) if int(token["id"]) in new]
        for token in tree["added_tokens"]:
            token["id"] = new[int(token["id"])]
        _renumber_template(tree.get("post_processor"), new)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "tokenizer.json", json.dumps(tree, ensure_ascii=False))
        for name in (
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
            "chat_template.jinja",
        ):
            path = source / name
            if not path.exists():
                continue
            if path.suffix == ".json":
                content = renumbered_ids(json.loads(path.read_text(encoding="utf-8")), new)
                write_text(out / name, json.dumps(content, ensure_ascii=False, indent=2))
            else:
                shutil.copyfile(path, out / name)

    @staticmethod
    def _merge_stays(merge: Any, vocab: dict[str, int]) -> bool:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        return left in vocab and right in vocab and left + right in vocab


def renumbered_ids(tree: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """A configuration with its token ids renumbered; ids that are not kept (padding rows) become None."""
    result = dict(tree)
    for key in _ID_KEYS:
        value = result.get(key)
        if isinstance(value, int):
            result[key] = new.get(value)
        elif isinstance(value, list):
            result[key] = [new[i] for i in value if i in new]
    decoder = result.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        result["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in decoder.items() if int(i) in new}
    return result


def _renumber_template(processor: Any, new: dict[int, int]) -> None:
    """Template processors hold ids of the special tokens that they insert."""
    if isinstance(processor, list):
        for item in processor:
            _renumber_template(item, new)
    elif isinstance(processor, dict):
        for key, value in processor.items():
            if key == "special_tokens" and isinstance(value, dict):
                for token in value.values():
                    token["ids"] = [new[i] for i in token["ids"]]
            elif key in ("cls", "sep") and isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
                value[1] = new[value[1]]
            else:
                _renumber_template(value, new)


def count_tokens(tokenized: Iterable[Any], size: int) -> NDArray[np.int64]:
    """(V,) occurrences of each id in sequences of ids."""
    counter: collections.Counter[int] = collections.Counter()
    for ids in tokenized:
        counter.update(int(i) for i in ids)
    counts = np.zeros(size, dtype=np.int64)
    for token, number in counter.items():
        if token < size:
            counts[token] = number
    return counts
