"""An artifact's folder: built beside its place, flushed, and renamed into it whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgegen import grids
from edgegen.common import files as whole
from edgegen.common.codec import load_object, load_object_if_there, read_bytes
from edgegen.common.files import digest_file, replacing
from edgegen.errors import ConfigError
from edgegen.records.artifact import ArtifactFile
from edgegen.records.compressed import Compressed

_TRAVELS = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja|generation_config\.json"
    r"|README\.md|LICEN[SC]E.*|NOTICE.*",
    re.IGNORECASE,
)
"""Files of the compressed folder that travel with the model."""


class SpecialTokens(msgspec.Struct, frozen=True):
    """Where texts begin and answers end."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    """Whether the model expects its BOS before a text."""


NO_SPECIAL_TOKENS = SpecialTokens(bos_id=None, eos_ids=(), add_bos=False)
"""Of an encoder: what its tokenizer puts around a text belongs to the text."""


def building(out: Path) -> AbstractContextManager[Path]:
    """A folder to fill that becomes the artifact `out` (see `common.files.building`)."""
    return whole.building(out, mark="artifact.json", what="artifact")


def copy_companions(source: Path, target: Path, files: Sequence[str]) -> None:
    """Copy the files that travel, each flushed; the tokenizer always does."""
    for name in sorted({"tokenizer.json", *(name for name in files if _TRAVELS.fullmatch(name))}):
        data = read_bytes(source / name)
        with replacing(target / name) as temporary:
            temporary.write_bytes(data)


def describe_files(folder: Path) -> tuple[ArtifactFile, ...]:
    """Every file of a folder with its size and digest, sorted by name."""
    return tuple(
        ArtifactFile(path=path.name, bytes=path.stat().st_size, digest=digest_file(path))
        for path in sorted(folder.iterdir())
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a compressed folder.

    Raises:
        ConfigError: missing, or not a JSON object.
    """
    return load_object(folder / "config.json")


def map_weights(folder: Path, compressed: Compressed) -> NDArray[np.uint8]:
    """weights.bin as bytes, mapped, after checking that it is what the record says.

    Raises:
        ConfigError: missing, cut off or damaged.
    """
    path = folder / "weights.bin"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="Run the compression again.")
    size = path.stat().st_size
    for tensor in compressed.tensors:
        expected = tensor.rows * grids.row_bytes(tensor.grid, tensor.columns)
        if tensor.bytes != expected:
            raise ConfigError(
                f"{tensor.name}: {tensor.bytes:,} bytes are recorded, {tensor.grid} takes {expected:,} here"
            )
        if tensor.offset < 0 or tensor.offset + tensor.bytes > size:
            raise ConfigError(f"{path}: cut off, {tensor.name} is not wholly in it", hint="Run the compression again.")
    if digest_file(path) != compressed.digest:
        raise ConfigError(f"{path}: damaged, its digest is not the recorded one", hint="Run the compression again.")
    return np.memmap(path, dtype=np.uint8, mode="r")


def special_tokens(folder: Path) -> SpecialTokens:
    """Where texts begin and answers end, by the tokenizer's, the generation's and the model's settings.

    Raises:
        ConfigError: no readable tokenizer.json.
    """
    library = _open_tokenizer(folder)
    config = load_object_if_there(folder / "tokenizer_config.json")
    for key, value in load_object_if_there(folder / "special_tokens_map.json").items():
        config.setdefault(key, value)
    named = {role: _id_of(library, config.get(f"{role}_token")) for role in ("bos", "eos")}
    ends = [named["eos"]] if named["eos"] is not None else []
    for name in ("generation_config.json", "config.json"):
        settings = load_object_if_there(folder / name)
        value = settings.get("eos_token_id")
        ends += value if isinstance(value, list) else [] if value is None else [value]
        if named["bos"] is None and isinstance(settings.get("bos_token_id"), int):
            named["bos"] = settings["bos_token_id"]
    cut = library.encode("a", add_special_tokens=True).ids
    adds = bool(config.get("add_bos_token", bool(cut) and cut[0] == named["bos"])) and named["bos"] is not None
    return SpecialTokens(bos_id=named["bos"], eos_ids=tuple(dict.fromkeys(int(i) for i in ends)), add_bos=adds)


def prove_tokenizer(folder: Path, rows: int, texts: Sequence[str]) -> str:
    """That the device cuts text as the original does: it reads the same file with the same library.

    What is left to check is that the ids that occur are rows of the table, and whether they spell the text again.

    Raises:
        ConfigError: the tokenizer has ids that the model has no rows for.
    """
    library = _open_tokenizer(folder)
    library.no_padding()
    highest = max(library.get_vocab(with_added_tokens=False).values(), default=-1)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer has token id {highest} and the embedding only {rows} rows",
            hint="The tokenizer is of another model.",
        )
    same = 0
    for text in texts:
        ids = library.encode(text, add_special_tokens=False).ids
        again = library.encode(library.decode(ids, skip_special_tokens=False), add_special_tokens=False).ids
        same += ids == again
    return (
        f"the device cuts text with the original's own tokenizer.json and library; {same} of {len(texts)} held-out "
        "texts are cut the same again after they were put together"
    )


def _open_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        library = Tokenizer.from_str(read_bytes(path).decode())
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise ConfigError(f"{path}: not a tokenizer: {error}") from error
    library.no_truncation()
    return library


def _id_of(library: Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    found = library.token_to_id(text) if isinstance(text, str) else None
    return None if found is None else int(found)
