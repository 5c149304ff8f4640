"""How long a step of training takes, so that a time budget can become a number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

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
