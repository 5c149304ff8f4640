"""Floats are stored as the runtimes store them, bit for bit as ggml does."""

import numpy as np
import pytest

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import floats, ggml

VALUES = np.concatenate(
    [np.random.default_rng(0).standard_normal(500), [0.0, -0.0, 1e-7, -65504.0, 1.00048828125, 2.0**-14, 2.0**-24]]
).astype(np.float32)[None]


@pytest.mark.parametrize("grid", ["f32", "f16", "bf16"])
def test_the_bytes_are_ggmls(grid: str) -> None:
    np.testing.assert_array_equal(floats.pack(VALUES, grid), ggml.pack(VALUES, grid))
    np.testing.assert_array_equal(
        floats.unpack(floats.pack(VALUES, grid), grid, VALUES.shape[1]),
        ggml.unpack(ggml.pack(VALUES, grid), grid, VALUES.shape[1]),
    )


def test_what_a_float_cannot_hold_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="f16"):
        floats.pack(np.full((1, 2), 70000, np.float32), "f16")
    for grid in floats.NAMES:
        for bad in (np.nan, np.inf):
            with pytest.raises(UnsupportedError):
                floats.pack(np.full((1, 2), bad, np.float32), grid)
        with pytest.raises(ConfigError):
            floats.row_bytes(grid, 0)
