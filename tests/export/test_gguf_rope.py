"""Rotary positions against transformers' own formulas."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgegen.errors import UnsupportedError
from edgegen.export.gguf.rope import read_rope

_ALL = frozenset({"default", "linear", "yarn", "llama3", "longrope"})


def test_llama3_divisors_are_those_of_transformers() -> None:
    rope = {
        **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    }
    config = LlamaConfig(hidden_size=512, num_attention_heads=8, rope_parameters=rope)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (np.arange(0, 64, 2) / 64)
    divisors = read_rope({"rope_parameters": rope}, dimensions=64, kinds=_ALL).tensors["rope_freqs.weight"]
    np.testing.assert_allclose(plain / divisors, frequencies.numpy(), rtol=1e-5)
    assert divisors.min() == 1.0
    assert divisors.max() == 32.0


def test_yarn_scales_attention_as_transformers_does() -> None:
    base = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 512}
    for extra in ({}, {"attention_factor": 1.3}, {"mscale": 0.7, "mscale_all_dim": 1.1}):
        rope: dict[str, Any] = {**base, **extra}
        config = LlamaConfig(hidden_size=256, num_attention_heads=8, rope_parameters=rope, max_position_embeddings=4096)
        _, wanted = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        metadata = read_rope({"rope_parameters": rope}, dimensions=32, kinds=_ALL).metadata
        own = 0.1 * np.log(8.0) + 1.0
        assert float(metadata.get("rope.scaling.attn_factor", 1.0)) * own == pytest.approx(wanted)


def test_longrope_factors_must_fit() -> None:
    rope = {"rope_type": "longrope", "long_factor": [1.0] * 3, "short_factor": [1.0] * 3}
    with pytest.raises(UnsupportedError, match="3 values where 8"):
        read_rope({"rope_parameters": rope, "max_position_embeddings": 64}, dimensions=16, kinds=_ALL)


def test_old_names_for_the_same_rules() -> None:
    old = SimpleNamespace(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=3e4)
    rope = read_rope(vars(old), dimensions=16, kinds=_ALL)
    assert rope.metadata == {
        "rope.dimension_count": 16,
        "rope.freq_base": 3e4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 2.0,
    }
