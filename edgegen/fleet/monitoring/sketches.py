"""Quantiles of many numbers in a few bytes: KLL sketches of Apache DataSketches.

Karnin, Lang and Liberty, "Optimal Quantile Approximation in Streams" (FOCS 2016). With k = 200 a quantile's rank is off
by at most 1.3 % (99 % confidence) however many sketches were merged; up to some 200 values it is exact. A sketch of one
value takes 12 bytes, of a million about 2 kB. Values are 32-bit floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from edgegen.errors import UnsupportedError

K = 200


@cache
def _library() -> Any:
    """
    Raises:
        UnsupportedError: the library is not installed.
    """
    try:
        import datasketches
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "a fleet's figures need datasketches, which is not installed", hint="pip install 'edgegen[server]'"
        ) from error
    return datasketches


def require_sketches() -> None:
    """
    Raises:
        UnsupportedError: the library is not installed.
    """
    _library()


def add_values(sketch: bytes | None, values: Sequence[float]) -> bytes | None:
    """A sketch with more values in it; None: of no values. NaN is left out."""
    known = [value for value in values if value == value]
    if not known:
        return sketch
    found = _library().kll_floats_sketch(K) if sketch is None else _library().kll_floats_sketch.deserialize(sketch)
    for value in known:
        found.update(value)
    return bytes(found.serialize())


def merge(sketches: Iterable[bytes | None]) -> Any | None:
    """All values of some sketches as one, for `quantile`; None: no values."""
    kind = _library().kll_floats_sketch
    total = None
    for data in sketches:
        if data is None:
            continue
        if total is None:
            total = kind.deserialize(data)
        else:
            total.merge(kind.deserialize(data))
    return total


def quantile(sketches: Iterable[bytes | None], fraction: float) -> float | None:
    """The quantile at a fraction of all values; None: there are none."""
    total = merge(sketches)
    return None if total is None else float(total.get_quantile(fraction))
