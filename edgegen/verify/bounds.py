"""What a machine allows at best: reading from memory, and multiplying from the cache (the roofline of Williams et al.
2009). Measured beside the model's own speed, since machines are not the same from one minute to the next."""

from __future__ import annotations

from edgegen.errors import DeviceError
from edgegen.records.plan import Terms
from edgegen.records.report import Bounds, Speed
from edgegen.runtime.probe import read_bandwidth, time_kernels

_ARRAY_BYTES = 64 << 20
"""Of each thread: more than a core's share of any cache."""
_ROUNDS = 3
_KERNEL_S = 0.01
"""How long each of a kernel's two heights is repeated."""
_UNTIMED_FRACTION = 0.02
"""Of the weights, that may be in grids whose kernels cannot be timed, as norms are; they count as nothing."""


def find_bounds(terms: Terms, target: str, speed: Speed) -> Bounds | None:
    """Measure this machine and hold a decode speed against it; None where too little memory is free for that.

    Args:
        terms: the work of one token.
    """
    try:
        bandwidth = read_bandwidth(speed.threads, _ARRAY_BYTES, _ROUNDS)
    except DeviceError:
        return None
    timed = time_kernels(target, sorted(terms.weights), _KERNEL_S)
    untimed = sum(count for grid, count in terms.weights.items() if grid not in timed)
    kernels = None
    if timed and untimed <= _UNTIMED_FRACTION * sum(terms.weights.values()):
        seconds = sum(count * timed[grid] for grid, count in terms.weights.items() if grid in timed)
        kernels = speed.threads / seconds
    return Bounds(
        read_bytes=terms.read_bytes,
        bandwidth_bytes_per_s=bandwidth,
        bandwidth_fraction=terms.read_bytes * speed.decode_tokens_per_s / bandwidth,
        kernels_tokens_per_s=kernels,
        kernels_fraction=None if kernels is None else speed.decode_tokens_per_s / kernels,
    )
