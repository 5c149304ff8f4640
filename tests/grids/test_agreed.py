"""One rounding in the bytes of three runtimes: each runtime's own reading of them gives equal numbers."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from edgegen import grids
from edgegen.catalog import list_targets
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import agreed, codes, ggml, uniform
from edgegen.runtime import kernels_onnx
from edgegen.runtime.flatmodel import store, stored_values

ROUNDED = ["i4_32", "c8_row"]
COLUMNS = 96


def weights(*, size: float = 1.0, seed: int = 0) -> np.ndarray:
    """Rows of very different heights, one of them of zeros only, one with a single outlier."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((8, COLUMNS)) * np.geomspace(1e-3, 10, 8)[:, None]
    values[3] = 0
    values[5, 7] = -200
    return (values * size).astype(np.float32)


def read_by_ggml(packed: np.ndarray, grid: str) -> np.ndarray:
    return ggml.unpack(packed, grid, COLUMNS)


def read_by_litert(packed: np.ndarray, grid: str) -> np.ndarray:
    """The file's own form, read as the runtime reads it."""
    return stored_values(store(packed, grid, COLUMNS), len(packed), COLUMNS)


def read_by_onnx(packed: np.ndarray, grid: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """ONNX Runtime's product of the unit matrix with packed rows, without rounding of activations."""
    with monkeypatch.context() as patched:
        patched.setattr(kernels_onnx, "_ACCURACY", 1)
        patched.setattr(kernels_onnx.grids, "pack", lambda *_: packed)
        model = kernels_onnx.one_product(grid, len(packed), COLUMNS)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.eye(COLUMNS, dtype=np.float32)})
    return found.T


@pytest.mark.parametrize("size", [1e-6, 1.0, 50.0])
@pytest.mark.parametrize("grid", ROUNDED)
def test_every_runtime_reads_the_same_weights(grid: str, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = grids.pack(weights(size=size), grid)
    wanted = grids.unpack(rounded, grid, COLUMNS)
    readers: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
        "gguf": read_by_ggml,
        "onnx": lambda packed, name: read_by_onnx(packed, name, monkeypatch),
        "litert": read_by_litert,
    }
    for target in list_targets():
        own = agreed.own_grid(grid, target.grid_names)
        packed = agreed.translate(rounded, grid, own, COLUMNS)
        np.testing.assert_array_equal(grids.unpack(packed, own, COLUMNS), wanted)
        np.testing.assert_array_equal(readers[target.name](packed, own), wanted)


@pytest.mark.parametrize("grid", ROUNDED)
def test_there_and_back_is_the_same_bytes(grid: str) -> None:
    names = agreed.EQUAL[grid]
    packed = {name: agreed.translate(grids.pack(weights(), grid), grid, name, COLUMNS) for name in names}
    for source in names:
        for name in names:
            np.testing.assert_array_equal(agreed.translate(packed[source], source, name, COLUMNS), packed[name])


@pytest.mark.parametrize("grid", ROUNDED)
def test_rounding_costs_little_beside_each_runtimes_own(grid: str) -> None:
    values = np.random.default_rng(4).standard_normal((64, 256)).astype(np.float32)

    def error(name: str) -> float:
        return float(np.square(grids.unpack(grids.pack(values, name), name, 256) - values).mean())

    blocks = [name for name in agreed.EQUAL[grid] if codes.levels_of(name).width]
    assert error(grid) <= (1.3 if grid == "i4_32" else 3.5) * min(error(name) for name in blocks)
    if grid == "c8_row":
        assert error(grid) <= 1.001 * error("i8_row")


def test_a_row_scale_is_a_float16_number() -> None:
    scales = uniform.split(grids.pack(weights(), "c8_row"), "c8_row", COLUMNS).scales
    assert (scales > 0).all()
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)


def test_floats_are_handed_on() -> None:
    packed = grids.pack(weights(), "f16")
    assert agreed.translate(packed, "f16", "f16", COLUMNS) is packed


def test_every_target_has_all_of_them() -> None:
    for target in list_targets():
        assert len(agreed.rounded_grids(target.grid_names)) == 3


def test_what_another_grid_cannot_hold_is_refused() -> None:
    blocks = grids.pack(weights(), "q8_0")
    with pytest.raises(UnsupportedError, match="different scales"):
        agreed.translate(blocks, "q8_0", "i8_row", COLUMNS)
    lowest = grids.pack(np.tile(np.float32([-8, 7]), (1, 16)), "s4_32")
    with pytest.raises(UnsupportedError, match="codes from -8 to 7 are beyond i4_32"):
        agreed.translate(lowest, "s4_32", "i4_32", 32)
    fine = grids.pack(np.full((1, 32), 0.3, np.float32), "i8_row")
    with pytest.raises(UnsupportedError, match="no 16-bit numbers"):
        agreed.translate(fine, "i8_row", "q8_0", 32)
    with pytest.raises(ConfigError, match="hold different weights"):
        agreed.translate(blocks, "q8_0", "s4_32", COLUMNS)
    with pytest.raises(ConfigError, match="'q4_k' has no equal"):
        agreed.agreed_of("q4_k")
    with pytest.raises(ConfigError, match="blocks of 32"):
        agreed.translate(grids.pack(np.ones((1, 48), np.float32), "c8_row"), "c8_row", "i8_row", 48)
