"""The hand-written ONNX graph computes what the grid says, and its time is a time."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgegen import grids
from edgegen.errors import UnsupportedError
from edgegen.runtime.kernels_onnx import OnnxKernels, one_product


@pytest.mark.parametrize("grid", ["f32", "u4_32", "s4_128", "u8_64", "s8_16", "u2_64"])
def test_the_graph_is_valid_and_multiplies(grid: str) -> None:
    model = one_product(grid, 16, 128)
    onnx.checker.check_model(onnx.load_from_string(model))
    inputs = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": inputs})
    weights = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    exact = inputs @ np.tile(grids.unpack(grids.pack(weights, grid), grid, 128), (2, 1)).T
    # int8 activations cost about a hundredth of the products' spread
    np.testing.assert_allclose(found, exact, atol=0.05 * exact.std())


def test_times_are_plausible() -> None:
    kernels = OnnxKernels()
    for tokens in (1, 64):
        assert 0.0005 < kernels.ns_per_weight("u4_32", tokens, 0.01) < 100
    assert "widened" in kernels.note("f16") and kernels.note("u4_32") == ""


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError) as caught:
        OnnxKernels()
    assert "edgegen[onnx]" in caught.value.hint
