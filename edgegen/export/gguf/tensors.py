"""Which GGUF tensor each stored tensor becomes, and how its packed rows are laid out there.

Rows are packed one by one, so reordering packed rows is exact: nothing is unpacked on the way. Only vectors,
which are stored as f32, are ever computed with.

R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.family import Config, Family, Translation
from edgegen.export.gguf.rope import Floats
from edgegen.grids import ggml

ALIGNMENT = 32
"""Tensor data starts at multiples of this many bytes, as GGUF files say by default."""

_ADDED = "token_types.weight"
"""llama.cpp adds a row of it as it stands, and adds only f32."""

_SKIPPED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that old checkpoints store among their weights."""


class Stored(Protocol):
    """What is known of a stored tensor before its bytes are read; `records.compressed.PackedTensor` is
    one."""

    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of the GGUF file."""

    name: str
    grid: str
    rows: int
    columns: int
    source: str = ""
    """The stored tensor, or empty when `values` are given."""
    values: Floats | None = None
    heads: int = 0
    """More than 0: rows are reordered per head, see `head_order`."""
    shift: float = 0.0
    scale: float = 1.0
    """For vectors: (stored + shift) · scale."""
    skip: int = 0
    """Leading rows of the stored tensor that are left out."""
    repeated: bool = False
    """A second copy of a stored table."""

    @property
    def vector(self) -> bool:
        """Vectors have one dimension in the file."""
        return self.values is not None or self.name.endswith((".bias", "_norm.weight"))

    @property
    def nbytes(self) -> int:
        return self.rows * ggml.row_bytes(self.grid, self.columns)


def aligned(count: int) -> int:
    """The next multiple of the file's alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def tensor_bytes(grid: str, rows: int, columns: int) -> int:
    """What a tensor's data takes in the file, padding included.

    Raises:
        ConfigError: a row does not fit the grid's block.
    """
    return aligned(rows * ggml.row_bytes(grid, columns))


def head_order(rows: int, heads: int) -> NDArray[np.intp]:
    """For each row of the file, the checkpoint's row. (R,)

    transformers rotates the first half of a head's values against the second; llama.cpp's `llama` rotates
    neighbours. So row (h, half, i) becomes row (h, i, half).
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def place(family: Family, config: Config, translation: Translation, stored: Sequence[Stored]) -> list[Placed]:
    """Name and lay out every tensor of the file, in the file's order.

    Args:
        stored: every tensor of the model, in any order; matrices are (outputs, inputs).

    Raises:
        UnsupportedError: a tensor that the architecture has no place for.
        ConfigError: a tensor is missing or there twice, has an impossible shape, or a vector is not f32.
    """
    named = name_tensors(family, translation, stored)
    placed: dict[str, Placed] = {}
    for name, tensor in named.items():
        heads = 0
        if family.permuted and ".attn_q." in name:
            heads = translation.heads[_layer(name)]
        elif family.permuted and ".attn_k." in name:
            heads = translation.kv_heads[_layer(name)]
        norm = name.endswith("_norm.weight")
        skip = translation.first_position if name == "position_embd.weight" else 0
        placed[name] = _checked(
            Placed(
                name=name,
                grid="f32" if name == _ADDED else tensor.grid,
                rows=tensor.rows - skip,
                columns=tensor.columns,
                source=tensor.name,
                heads=heads,
                skip=skip,
                shift=family.norm_shift if norm else 0.0,
                scale=translation.query_scale if name.endswith("attn_q_norm.weight") else 1.0,
            )
        )
    if family.head == "required" and "output.weight" not in placed:
        table = placed["token_embd.weight"]
        placed["output.weight"] = Placed(
            "output.weight", table.grid, table.rows, table.columns, table.source, repeated=True
        )
    _require_shapes(family, translation, config, placed)
    for name, values in translation.tensors.items():
        placed[name] = Placed(name, "f32", 1, values.size, values=values)
    return sorted(placed.values(), key=_file_order)


def name_tensors(family: Family, translation: Translation, stored: Sequence[Stored]) -> dict[str, Stored]:
    """GGUF name → stored tensor, complete and without surplus.

    Raises:
        UnsupportedError: a tensor that the architecture has no place for.
        ConfigError: a tensor is missing or there twice.
    """
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.arch)
    names = gguf.get_tensor_name_map(arch, translation.layers)
    allowed = {*family.top, "output.weight"} - ({"output.weight"} if family.head == "tied" else set())
    required = set(family.top)
    for layer in range(translation.layers):
        required |= {f"blk.{layer}.{kind}" for kind in family.block}
        allowed |= {f"blk.{layer}.{kind}" for kind in family.optional}
    allowed |= required
    found: dict[str, Stored] = {}
    for tensor in stored:
        if tensor.name.endswith(_SKIPPED):
            continue
        name = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if name is None and tensor.name == "lm_head.weight":
            name = "output.weight"
        if name not in allowed and name != "output.weight":
            raise UnsupportedError(f"tensor {tensor.name!r} has no place in GGUF's {family.arch}")
        if name in found:
            raise ConfigError(f"tensors {found[name].name!r} and {tensor.name!r} are the same one")
        found[name] = tensor
    if "token_embd.weight" not in found and "output.weight" in found:
        # A tied checkpoint may store its one table under the head's name.
        found["token_embd.weight"] = found.pop("output.weight")
    if family.head == "tied" and "output.weight" in found:
        raise UnsupportedError(
            f"{family.arch} has no separate output table in llama.cpp",
            hint="Only tied models of this family can be written.",
        )
    missing = sorted(required - found.keys())
    if missing:
        raise ConfigError(f"{len(missing)} tensors are missing for {family.arch}, the first is {missing[0]!r}")
    return found


def _checked(tensor: Placed) -> Placed:
    if tensor.vector and (tensor.rows != 1 or tensor.grid != "f32"):
        raise ConfigError(
            f"{tensor.source}: a vector is one row of f32, not {tensor.rows} × {tensor.columns} {tensor.grid}"
        )
    length = tensor.columns if tensor.vector else tensor.rows
    if tensor.heads and length % (2 * tensor.heads):
        raise ConfigError(f"{tensor.source}: {length} rows cannot be cut into {tensor.heads} heads of even size")
    return tensor


def _require_shapes(family: Family, translation: Translation, config: Config, placed: dict[str, Placed]) -> None:
    """Sizes that the configuration states too; llama.cpp would refuse or, for positions, read past the
    end."""
    table = placed["token_embd.weight"]
    said = int(config.get("vocab_size", table.rows))
    if table.rows != said:
        raise ConfigError(f"the embedding has {table.rows} rows and config.json says vocab_size={said}")
    head = placed.get("output.weight")
    if head is not None and head.rows != table.rows:
        raise ConfigError(f"the head has {head.rows} rows and the embedding {table.rows}")
    positions = placed.get("position_embd.weight")
    if positions is not None and positions.rows != translation.context_tokens:
        raise ConfigError(
            f"the position table has {positions.rows} rows for tokens and config.json says {translation.context_tokens}"
        )


def _file_order(tensor: Placed) -> tuple[int, str]:
    """Tables first, then the blocks in order: a memory-mapped file is then read front to back."""
    if tensor.name.startswith("blk."):
        return _layer(tensor.name), tensor.name
    return (-1 if tensor.name.startswith(("token_", "position_embd", "rope")) else 1_000_000), tensor.name


def _layer(name: str) -> int:
    """Of a tensor in a block, by its GGUF name."""
    return int(name.split(".")[1])
