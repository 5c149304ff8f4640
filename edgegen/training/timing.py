"""How long a step of training takes, so that a time budget can become a number of steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgegen.training.batches import Item, Order, collate
from edgegen.training.losses import Loss

_LOGIT_VALUES = 40_000_000
"""Most logits of a part of a batch (160 MB in float32)."""
_TIMED = 3
"""Steps that are timed."""


def seconds_a_step(module: Any, learn: Callable[[], None]) -> float:
    """Seconds that a step of training takes: gradients, and an update that changes no weight.

    Args:
        module: what is trained; it has no gradients afterwards.
        learn: adds gradients to it.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0)
    began = time.perf_counter()
    for number in range(_TIMED + 1):
        if number == 1:  # the first one also warms up
            began = time.perf_counter()
        learn()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / _TIMED


def rows_at_once(items: Sequence[Item], vocabulary: int) -> int:
    """Of a batch, that a part may have so that the logits stay small; at least one."""
    return max(1, _LOGIT_VALUES // (vocabulary * max(len(item.ids) for item in items)))


def seconds_a_batch(model: Any, items: Sequence[Item], loss: Loss, *, batch: int, rows: int, seed: int) -> float:
    """Seconds that a step of training a model on examples takes; it learns nothing by that.

    Args:
        loss: sum over a part of a batch.
        batch: examples a step.
        rows: examples a part.
    """
    order, numbers = Order(items, rows=batch, seed=seed), itertools.count()
    device = next(model.parameters()).device

    def learn() -> None:
        found, weight = order.at(next(numbers))
        for start in range(0, len(found.items), rows):
            part = collate(found.items[start : start + rows], packed=False).to(device)
            (loss(model, part) / weight).backward()

    return seconds_a_step(model, learn)
