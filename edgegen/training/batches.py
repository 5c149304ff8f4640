"""Examples → batches, in an order that the seed and the step alone decide, so that a run that was cut off goes on
exactly where it was, on any number of processes.

B sequences of a batch, L tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.modeling.text import windows_of
from edgegen.records.data import Example


class Item(msgspec.Struct, frozen=True):
    """One sequence to learn from."""

    ids: NDArray[np.int64]
    """(L,)"""
    counts: NDArray[np.bool_]
    """(L,): whether the prediction made *at* a position, of the token after it, counts. The last never does."""
    weight: float = 1.0
    """Of each of its counted predictions."""
    index: int = 0
    """Its place among all items: what a teacher said of it is kept under this number."""
    shares: NDArray[np.float32] | None = None
    """(L,): what each counted prediction weighs besides; None: all alike."""

    @property
    def tokens(self) -> int:
        """Predictions that count."""
        return int(self.counts.sum())

    @property
    def mass(self) -> float:
        """What they weigh together."""
        if self.shares is None:
            return self.tokens * self.weight
        return float(self.shares[self.counts].sum()) * self.weight


class Batch(msgspec.Struct, frozen=True):
    """Some items side by side, or several in a row where they are packed."""

    ids: torch.Tensor
    """(B, L) int64, padded on the right with 0."""
    weights: torch.Tensor
    """(B, L) float32: what the prediction made at a position weighs; 0 where it does not count."""
    positions: torch.Tensor
    """(B, L) int64, from 0 in each item."""
    documents: torch.Tensor
    """(B, L) int64: which item of its row a token belongs to; -1 is padding."""
    items: tuple[tuple[Item, ...], ...]
    """The items of each row."""
    packed: bool

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """What the model is called with.

        Packed rows get a mask (B, 1, L, L) that keeps items apart: 0 where a token may look, else the type's lowest.
        Without packing none is needed: no real position sees the padding after it.
        """
        if not self.packed:
            return {"input_ids": self.ids}
        length = self.ids.shape[1]
        same = self.documents[:, :, None] == self.documents[:, None, :]
        past = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        hidden = torch.full(same.shape, torch.finfo(dtype).min, dtype=dtype, device=self.ids.device)
        mask = hidden.masked_fill(same & past, 0.0)[:, None]
        return {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": mask}

    def to(self, device: Any) -> Batch:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "weights", "positions", "documents")}
        return Batch(**moved, items=self.items, packed=self.packed)


def encode(tokenizer: Any, examples: Sequence[Example], *, max_tokens: int) -> list[Item]:
    """Items of at most `max_tokens` tokens; long rows give several. Where a row has an answer only that counts.

    Raises:
        ConfigError: no row gives a single prediction.
    """
    items: list[Item] = []
    for example in examples:
        if example.weight <= 0:
            continue
        for window in windows_of(tokenizer, example, max_tokens):
            items.append(Item(window.ids, window.counts, weight=example.weight, index=len(items)))
    if not items:
        raise ConfigError(
            "no row gives a token to learn from",
            hint="Rows are too short, weigh nothing, or their answers lie beyond --max-tokens.",
        )
    return items


def collate(rows: Sequence[Sequence[Item]], *, packed: bool) -> Batch:
    """Put rows of items side by side."""
    length = max(sum(len(item.ids) for item in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    documents = torch.full((len(rows), length), -1, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for which, item in enumerate(row):
            end = start + len(item.ids)
            ids[number, start:end] = torch.from_numpy(item.ids)
            weights[number, start:end] = torch.from_numpy(item.counts).float() * item.weight
            if item.shares is not None:
                weights[number, start:end] *= torch.from_numpy(item.shares)
            positions[number, start:end] = torch.arange(end - start)
            documents[number, start:end] = which
            start = end
    return Batch(ids, weights, positions, documents, tuple(tuple(row) for row in rows), packed)


def pack(items: Sequence[Item], length: int) -> list[list[Item]]:
    """Rows of whole items of at most `length` tokens each, by first fit in descending length (Johnson 1973)."""
    rows: list[list[Item]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda item: (-len(item.ids), item.index)):
        size = len(item.ids)
        for number, left in enumerate(room):
            if size <= left:
                rows[number].append(item)
                room[number] -= size
                break
        else:
            rows.append([item])
            room.append(max(0, length - size))
    return rows


class Order:
    """All batches of a run by their step.

    Attributes:
        steps_per_epoch: batches that show each item at most once; what does not fill the last is left to the next
            epoch's chance.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        rows: int,
        seed: int,
        packed_tokens: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Arrange items.

        Args:
            rows: of a batch, all processes together.
            packed_tokens: length of rows that several items share; 0: each has its own.
            process: this one of `processes`: it gets every `processes`-th row.

        Raises:
            ConfigError: fewer rows than a batch takes, or than there are processes.
        """
        self._rows = pack(items, packed_tokens) if packed_tokens else [[item] for item in items]
        if len(self._rows) < rows:
            raise ConfigError(
                f"the data fills {len(self._rows)} rows, a batch takes {rows}",
                hint=f"Use --batch {max(1, len(self._rows))} or less, or more data.",
            )
        if rows < processes:
            raise ConfigError(f"a batch of {rows} rows cannot be split among {processes} processes")
        self._size, self._seed, self._packed = rows, seed, bool(packed_tokens)
        self._process, self._processes = process, processes
        self.steps_per_epoch = len(self._rows) // rows
        self._epoch = -1
        self._starts: list[list[int]] = []

    def at(self, step: int) -> tuple[Batch, float]:
        """This process's part of a step's batch, and what the whole batch's counted predictions weigh; steps from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._starts = epoch, self._arranged(epoch)
        chosen = [self._rows[number] for number in self._starts[place]]
        total = sum(item.mass for row in chosen for item in row)
        mine = chosen[self._process :: self._processes]
        return collate(mine, packed=self._packed), total

    def _arranged(self, epoch: int) -> list[list[int]]:
        """The epoch's batches: rows of like length together, so that little is padding, in random order."""
        dice = np.random.default_rng([self._seed, epoch])
        shuffled = dice.permutation(len(self._rows))
        usable = shuffled[: self.steps_per_epoch * self._size]
        lengths = np.array([sum(len(item.ids) for item in row) for row in self._rows])
        # Sorted inside chunks of 16 batches: like lengths meet, and the epoch stays mixed.
        chunk = 16 * self._size
        ordered: list[int] = []
        for start in range(0, len(usable), chunk):
            part = usable[start : start + chunk]
            ordered += [int(number) for number in part[np.argsort(lengths[part], kind="stable")]]
        batches = [ordered[start : start + self._size] for start in range(0, len(ordered), self._size)]
        return [batches[place] for place in dice.permutation(len(batches))]


def steps_for(items: Sequence[Item], *, rows: int, epochs: float, packed_tokens: int = 0) -> int:
    """Steps that show every item about `epochs` times."""
    count = len(pack(items, packed_tokens)) if packed_tokens else len(items)
    return max(1, math.ceil(epochs * max(1, count // rows)))
