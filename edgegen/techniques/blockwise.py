"""Blockwise local distillation (BLD, Puzzle: Bercovich et al. 2024): each changed decoder layer learns by itself to
give what the original gives at its place, from what the original gets there.

    loss of a token = |y - t|² / |t|²        y: the layer's output, t: the original's hidden state after its place

It is relative token by token, as the norm of the next layer sees it: the few tokens with enormous states (attention
sinks) weigh no more than others. Where layers were removed, the one before the gap has the place of all of them and
learns the output after the gap (the first of all, if nothing is before it).

The original is run once, layer by layer over all text, with its hidden states between layers in memory or, above a
limit, on disk; states that no layer has yet to learn from are dropped. Layers that share a parameter learn together,
all others one after another, so that only their own gradients and moments are in memory.

N tokens of all items, d width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.files import disk_errors, remove_tree, require_free_bytes
from edgegen.errors import ConfigError
from edgegen.modeling.blocks import Blocks
from edgegen.training.batches import Batch, Item
from edgegen.training.losses import Loss

_PASS_TOKENS = 4096
"""Padded tokens that the original is run on at once."""
_MULTIPLE = 16
"""Rows are padded to multiples of this many tokens: few lengths, few tables of positions."""
_TINY = 1e-12


class Place(msgspec.Struct, frozen=True):
    """A layer of the changed model, and the layers of the original that it stands for."""

    layer: int
    start: int
    """First layer of the original."""
    end: int
    """The one after the last."""


def places_of(kept: Sequence[int], layers: int) -> list[Place]:
    """Which of the original's layers each of the changed model's stands for.

    Args:
        kept: the original's number of each layer of the changed model, ascending.
        layers: of the original.

    Raises:
        ConfigError: numbers that do not ascend, or are none of the original's.
    """
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layers:
        raise ConfigError(f"kept layers must ascend within the original's {layers}, not {list(kept)}")
    starts, ends = [0, *kept[1:]], [*kept[1:], layers]
    return [Place(number, start, end) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]


def groups_of(model_layers: Sequence[Any], places: Sequence[Place], changed: Collection[int]) -> list[list[Place]]:
    """The layers that have to learn, those that share a parameter together, by their first place.

    They are the changed ones, those that stand for more than one layer of the original, and whoever shares a parameter
    with one of them.
    """
    groups: list[tuple[set[int], list[Place]]] = []
    wanted = {place.layer for place in places if place.layer in changed or place.end - place.start > 1}
    for place in places:
        parameters = {id(p) for p in model_layers[place.layer].parameters()}
        meeting = [group for group in groups if group[0] & parameters]
        groups = [group for group in groups if not group[0] & parameters]
        merged = (parameters.union(*(g[0] for g in meeting)), [p for g in meeting for p in g[1]] + [place])
        groups.append(merged)
    found = [sorted(places, key=lambda p: p.layer) for _, places in groups if any(p.layer in wanted for p in places)]
    return sorted(found, key=lambda group: group[0].layer)


class HiddenStates:
    """The original's residual stream over all items, between its layers.

    Attributes:
        items: in the order of their `index`.
    """

    def __init__(self, blocks: Blocks, items: Sequence[Item], folder: Path, *, most_bytes: int) -> None:
        """
        Args:
            items: `index` is the place of each.
            folder: for states on disk; emptied.
            most_bytes: states of more than this are on disk.
        """
        self.items = items
        self._blocks, self._folder, self._most = blocks, folder, most_bytes
        self._starts = np.concatenate([[0], np.cumsum([len(item.ids) for item in items])])
        self._longest = max(len(item.ids) for item in items)
        self._states: dict[int, NDArray[np.float32]] = {}
        remove_tree(folder)

    def advance(self, needed: Collection[int]) -> None:
        """Compute the states after one layer more: those that flow into the first come first.

        Args:
            needed: boundaries whose states are kept; boundary b lies before the original's layer b.
        """
        last = max(self._states, default=-1)
        place = last + 1
        for chosen in self._groups():
            padded, real = self._padded(chosen)
            if last < 0:
                ids = torch.zeros(padded, dtype=torch.long)
                ids[real] = torch.from_numpy(np.concatenate([self.items[i].ids for i in chosen]))
                out = self._blocks.entered(ids)
            else:
                with torch.no_grad():
                    out = self._blocks.run(last, self.at(last, chosen)[0])
            if place not in self._states:
                self._states[place] = self._room(place, out.shape[-1])
            values = out.cpu()[real].numpy()
            for item, rows in zip(chosen, np.split(values, np.cumsum(self._lengths(chosen))[:-1]), strict=True):
                self._states[place][self._starts[item] : self._starts[item + 1]] = rows
        for boundary in [b for b in self._states if b != place and b not in needed]:
            del self._states[boundary]
            self._file(boundary).unlink(missing_ok=True)

    @property
    def boundary(self) -> int:
        """The last one computed, -1 at first."""
        return max(self._states, default=-1)

    def at(self, boundary: int, chosen: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """States of some items, (B, L, d) float32 padded on the right, and which tokens are real, (B, L)."""
        padded, real = self._padded(chosen)
        state = self._states[boundary]
        found = torch.zeros(*padded, state.shape[-1])
        found[real] = torch.from_numpy(
            np.concatenate([state[self._starts[item] : self._starts[item + 1]] for item in chosen])
        )
        device = next(self._blocks.layers[0].parameters()).device
        return found.to(device), real.to(device)

    def _lengths(self, chosen: Sequence[int]) -> list[int]:
        return [len(self.items[item].ids) for item in chosen]

    def _padded(self, chosen: Sequence[int]) -> tuple[tuple[int, int], torch.Tensor]:
        lengths = torch.tensor(self._lengths(chosen))
        longest = min(self._longest, -(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE)
        return (len(chosen), longest), torch.arange(longest)[None] < lengths[:, None]

    def _groups(self) -> Iterator[list[int]]:
        """All items, those of like length together."""
        group: list[int] = []
        for item in sorted(range(len(self.items)), key=lambda i: len(self.items[i].ids)):
            if group and (len(group) + 1) * (len(self.items[item].ids) + _MULTIPLE) > _PASS_TOKENS:
                yield group
                group = []
            group.append(item)
        yield group

    def _room(self, boundary: int, width: int) -> NDArray[np.float32]:
        shape = (int(self._starts[-1]), width)
        size = shape[0] * width * 4
        held = sum(state.nbytes for state in self._states.values() if not isinstance(state, np.memmap))
        if held + size <= self._most:
            return np.zeros(shape, dtype=np.float32)
        require_free_bytes(self._folder, size)
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            return np.lib.format.open_memmap(self._file(boundary), mode="w+", dtype=np.float32, shape=shape)

    def _file(self, boundary: int) -> Path:
        return self._folder / f"{boundary:05d}.npy"


def block_loss(blocks: Blocks, group: Sequence[Place], states: HiddenStates) -> Loss:
    """How far a group's layers are from what the original gives at their places: the mean over an item's tokens and the
    group's layers, times what the item weighs.

    Args:
        blocks: of the changed model.
    """

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        model.eval()  # no dropout: the original has none
        chosen = [item.index for row in batch.items for item in row]
        masses = torch.tensor([item.mass for row in batch.items for item in row], device=batch.ids.device)
        total = torch.zeros((), device=batch.ids.device)
        for place in group:
            given, real = states.at(place.start, chosen)
            target, _ = states.at(place.end, chosen)
            made = blocks.run(place.layer, given)
            error = (made - target).square().sum(-1) / target.square().sum(-1).clamp(min=_TINY)
            of_items = (error * real).sum(-1) / real.sum(-1)
            total = total + (of_items * masses).sum()
        return total / len(group)

    return loss
