"""How a model is healed and how much: options, and the text and the steps that a budget buys."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from edgegen.errors import ConfigError
from edgegen.modeling.text import Window
from edgegen.records.base import Record
from edgegen.training.batches import Item
from edgegen.training.divergence import KINDS

_LEAST_DISTANCE = 1e-6


class HealingOptions(Record, frozen=True):
    """How a model is healed, and how much."""

    tokens: int = 300_000
    """Counted predictions to learn from, with repetitions; 0: as many as the seconds allow."""
    seconds: float = 0.0
    """Longest time; 0: no limit."""
    rate: float = 8e-4
    """Highest learning rate of the whole model where it is 1 nat or more from the original; less where it is nearer,
    see `rate_for`."""
    batch: int = 4
    """Sequences a step."""
    max_tokens: int = 256
    """Longest sequence; longer ones are cut."""
    seed: int = 0
    blockwise: bool = True
    """Changed layers learn by themselves first."""
    blockwise_share: float = 1 / 3
    """Of the tokens and the seconds: for layers by themselves, if any changed."""
    blockwise_rate: float = 1.3e-2
    """Highest learning rate there, of a layer whose output is wrong by its own size; less where it is nearer."""
    loss: str = "forward"
    """Divergence of the original's predictions to learn, one of `training.divergence.KINDS`."""
    alpha: float = 0.1
    """Its skew, where it has one."""
    looks: int = 4
    """How often the held-out divergence is measured on the way."""
    bf16: bool | None = None
    """Compute in bfloat16, weights stay float32; None: on GPUs."""
    states_bytes: int = 1 << 30
    """Hidden states in memory; more go to the disk. The result does not depend on it."""


def require_healing(options: HealingOptions) -> None:
    """
    Raises:
        ConfigError: an option out of its range.
    """
    if options.loss not in KINDS:
        raise ConfigError(f"the healing loss {options.loss!r} is unknown", hint=f"Choose one of: {', '.join(KINDS)}.")
    if options.tokens < 0 or options.seconds < 0 or not (options.tokens or options.seconds):
        raise ConfigError("healing needs a budget: tokens, seconds or both")
    if not 0 < options.blockwise_share < 1:
        raise ConfigError(f"the share of blockwise healing must lie between 0 and 1, not {options.blockwise_share:g}")
    for name in ("rate", "blockwise_rate", "batch", "looks"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"healing needs a {name} above 0, not {getattr(options, name):g}")
    if options.max_tokens < 2:
        raise ConfigError(f"healing needs sequences of 2 tokens or more, not {options.max_tokens}")


def items_of(windows: Iterable[Window | Item]) -> list[Item]:
    """Calibration windows as items to learn from; their `index` is their place."""
    return [
        msgspec.structs.replace(window, index=number)
        if isinstance(window, Item)
        else Item(window.ids, window.counts, index=number)
        for number, window in enumerate(windows)
    ]


def cut_items(items: Sequence[Item], length: int) -> list[Item]:
    """Items of at most `length` tokens that have a prediction."""
    found: list[Item] = []
    for item in items:
        counts = item.counts[:length].copy()
        counts[-1] = False
        if counts.any() and item.weight > 0:
            shares = None if item.shares is None else item.shares[:length]
            found.append(Item(item.ids[:length], counts, weight=item.weight, index=len(found), shares=shares))
    return found


def digest_items(items: Sequence[Item]) -> str:
    """SHA-256 of tokens, what counts and what it weighs."""
    sha = hashlib.sha256()
    for item in items:
        sha.update(f"{len(item.ids)} {item.weight}".encode())
        for values in (item.ids, item.counts, item.shares):
            if values is not None:
                sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def rate_for(rate: float, distance: float) -> float:
    """The learning rate for what is at a distance from its aim: `rate` at 1 and beyond, less below, by its root.

    Distances are quadratic in how far weights are off, and a step of Adam moves each by about the rate: at one rate for
    all, what is almost right would be thrown far from it.
    """
    return rate * min(1.0, math.sqrt(max(distance, _LEAST_DISTANCE)))


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """In an order that the seed decides."""
    return [items[number] for number in np.random.default_rng(seed).permutation(len(items))]


def first_of(items: Sequence[Item], tokens: int) -> list[Item]:
    """As many of the first as have this many counted predictions; all if they have fewer."""
    total = 0
    for number, item in enumerate(items, 1):
        total += item.tokens
        if total >= tokens:
            return list(items[:number])
    return list(items)


def tokens_each(items: Sequence[Item]) -> float:
    """Counted predictions of an item, on the average."""
    return sum(item.tokens for item in items) / len(items)


def steps_of(items: Sequence[Item], tokens: int, batch: int) -> int:
    """Steps of `batch` items that show about this many counted predictions; at least one."""
    return max(1, math.ceil(tokens / (tokens_each(items) * batch)))
