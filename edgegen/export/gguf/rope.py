"""What a checkpoint says about rotary positions, in llama.cpp's terms.

Newer configurations hold `rope_parameters` (one set, or one for `full_attention` and one for
`sliding_attention` layers), older ones `rope_theta` with `rope_scaling`. Both are read: a missed theta of
500,000 would become 10,000 without a word.

llama.cpp reads YaRN's ramp (`beta_fast`, `beta_slow`) only for two architectures that are not written here;
for all others it takes 32 and 1. So other values are refused instead of being dropped.

References: RoPE, arXiv 2104.09864; position interpolation (linear), arXiv 2306.15595; YaRN, arXiv 2309.00071;
LongRoPE, arXiv 2402.13753; the `llama3` rule is in Meta's and transformers' Llama 3.1 code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import UnsupportedError

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rope:
    """Metadata (without the architecture's prefix) and extra tensors that carry rotary positions."""

    metadata: dict[str, Value]
    tensors: dict[str, Floats]
    """GGUF tensor name → (rotary dimensions / 2,) float32 divisors of the frequencies."""
    notes: tuple[str, ...] = ()


def read_rope(config: Mapping[str, Any], *, dimensions: int, kinds: frozenset[str]) -> Rope:
    """Translate a configuration's rotary settings.

    Args:
        config: the checkpoint's configuration, with the family's defaults filled in.
        dimensions: how many of a head's values are rotated, even.
        kinds: scaling rules that the architecture can express; `default` is always one of them.

    Raises:
        UnsupportedError: a rule, or a parameter of it, that the architecture has no place for.
    """
    full, sliding = _layers(config)
    kind = str(full.get("rope_type") or full.get("type") or "default")
    kind = {"su": "longrope", "mrope": "mrope"}.get(kind, kind)
    if kind not in kinds:
        raise UnsupportedError(
            f"rope type {kind!r} cannot be written for this architecture",
            hint="Known here: " + ", ".join(sorted(kinds)) + ".",
        )
    theta = float(full.get("rope_theta", config.get("rope_theta", 10_000.0)))
    metadata: dict[str, Value] = {"rope.dimension_count": dimensions, "rope.freq_base": theta}
    if sliding is not None:
        local = str(sliding.get("rope_type") or "default")
        if local != "default":
            raise UnsupportedError(f"rope type {local!r} on sliding layers cannot be written")
        metadata["rope.freq_base_swa"] = float(sliding.get("rope_theta", 10_000.0))
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(full["factor"])}
    elif kind == "yarn":
        metadata |= _yarn(full, config)
    elif kind == "llama3":
        return Rope(metadata, {"rope_freqs.weight": _llama3(full, theta, dimensions)})
    elif kind == "longrope":
        return _longrope(full, config, metadata, dimensions)
    return Rope(metadata, {})


def _layers(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The settings of full layers, and of sliding layers where they have their own."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "full_attention" in given or "sliding_attention" in given:
        full, sliding = given.get("full_attention") or {}, given.get("sliding_attention")
        return full, sliding
    local = config.get("rope_local_base_freq")
    return given, None if local is None else {"rope_theta": local}


def _yarn(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Value]:
    """YaRN's keys. llama.cpp itself scales attention by 0.1 ln(factor) + 1; a checkpoint that wants another
    scale gets the quotient of both."""
    factor = float(given["factor"])
    for name, fixed in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
        value = given.get(name)
        if value is not None and value != fixed:
            raise UnsupportedError(f"yarn with {name}={value} cannot be written: llama.cpp takes {fixed} here")
    own = _mscale(factor, 1.0)
    wanted = given.get("attention_factor") or given.get("attn_factor")
    if wanted is None:
        over, under = given.get("mscale"), given.get("mscale_all_dim")
        wanted = _mscale(factor, over) / _mscale(factor, under) if over and under else own
    original = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    metadata: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(original),
    }
    if not math.isclose(wanted, own, rel_tol=1e-6):
        metadata["rope.scaling.attn_factor"] = float(wanted / own)
    return metadata


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _llama3(given: Mapping[str, Any], theta: float, dimensions: int) -> Floats:
    """Divisor of each frequency: 1 for short wavelengths, `factor` for long ones, a smooth step between."""
    factor = float(given["factor"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    original = float(given["original_max_position_embeddings"])
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _longrope(given: Mapping[str, Any], config: Mapping[str, Any], metadata: dict[str, Value], dimensions: int) -> Rope:
    longest = int(config["max_position_embeddings"])
    original = int(
        given.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest
    )
    factor = float(given.get("factor") or longest / original)
    scale = given.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    metadata |= {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(scale),
    }
    tensors = {}
    for name in ("long", "short"):
        values = np.asarray(given[f"{name}_factor"], dtype=np.float32)
        if values.shape != (dimensions // 2,):
            raise UnsupportedError(f"rope {name}_factor has {values.size} values where {dimensions // 2} are rotated")
        tensors[f"rope_factors_{name}.weight"] = values
    return Rope(
        metadata,
        tensors,
        (f"in a context above {original} tokens llama.cpp uses the long rope factors for short texts too",),
    )
