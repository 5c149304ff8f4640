"""Heads: whole groups of query heads go, each with its key/value head, as many in every layer.

A layer's groups are taken one after the other, each time the one whose loss, together with those taken already, costs
least by the Fisher quadratic, ½ E[(Σ_groups (W_group x_group)ᵀ g)²] over the output projection's samples. What the
others can say of the lost ones' part is refitted into the output projection (see `refit`).

Caches need the same shape in every layer, so the number is uniform; which groups go is each layer's own matter.

`Change.values["kv_heads"]`: how many key/value heads stay.

D size of a head, K key/value heads, G query heads of each.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from edgegen.errors import UnsupportedError
from edgegen.modeling.load import config_object
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.layout import (
    attention,
    blocks,
    is_plain,
    select_columns,
    select_rows,
    unknown_family,
    weight_of,
)
from edgegen.techniques.refit import refit

NAME = "heads"
TITLE = "fewer groups of attention heads"

_GGUF_SQUARE = ("qwen2", "phi")
"""Families of which llama.cpp wants heads times head size to be the hidden size."""
_MOST = 4


class HeadSizes(msgspec.Struct, frozen=True):
    """Of a model's attention."""

    heads: int
    kv_heads: int
    size: int

    @property
    def queries(self) -> int:
        """Query heads of one key/value head."""
        return self.heads // self.kv_heads


def head_sizes(config: Any) -> HeadSizes:
    """Sizes in a configuration."""
    heads = config.num_attention_heads
    return HeadSizes(
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        size=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def fused_obstacle(config: Any) -> str:
    """Why a family's heads cannot be changed; empty if they can."""
    if config.model_type in ("gpt2", "phi3"):
        return f"queries, keys and values of a {config.model_type} are one matrix, whose heads are not changed here"
    return unknown_family(config)


def obstacle(config: Any, target: Target) -> str:
    """llama.cpp ties the number of heads to the hidden size in some families."""
    if target.name == "gguf" and config.model_type in _GGUF_SQUARE:
        return f"llama.cpp wants heads times head size to be the hidden size of a {config.model_type}"
    if getattr(config, "qk_layernorm", False):
        return "the norms of its queries and keys are sized by the hidden size and the number of heads"
    return fused_obstacle(config)


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """Up to four numbers of groups, at least half of them, that the family's configuration can say."""
    if not is_plain(calibration.model):
        return []
    sizes = head_sizes(calibration.model.config)
    most = sizes.kv_heads // 2
    lost = [number for number in range(1, most + 1) if _can_say(calibration.model.config, sizes.kv_heads - number)]
    step = max(1, -(-len(lost) // _MOST))
    return [
        Change(
            technique=NAME,
            values={"kv_heads": (sizes.kv_heads - number,)},
            words=f"{(sizes.kv_heads - number) * sizes.queries} of {sizes.heads} attention heads kept, "
            f"with {sizes.kv_heads - number} of {sizes.kv_heads} key/value heads",
        )
        for number in lost[::step]
    ]


def _can_say(config: Any, left: int) -> bool:
    """Whether transformers takes a number of groups: a Llama's heads have to divide its hidden size."""
    try:
        config_object({**config.to_dict(), **_said(config, left)})
    except UnsupportedError:
        return False
    return True


def _said(config: Any, left: int) -> dict[str, int]:
    """What a configuration says of its heads when some groups are left."""
    sizes = head_sizes(config)
    return {"num_attention_heads": left * sizes.queries, "num_key_value_heads": left, "head_dim": sizes.size}


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Drop the groups and refit what is written."""
    (left,) = change.values["kv_heads"]
    sizes, said = head_sizes(model.config), _said(model.config, left)
    layers = range(len(blocks(model)))
    for layer in layers:
        keep_groups(model, layer, sizes, groups_to_keep(calibration, layer, left))
    for name, value in said.items():
        setattr(model.config, name, value)
    refit(model, calibration, layers)


def groups_to_keep(calibration: Calibration, layer: int, left: int) -> torch.Tensor:
    """(left,) numbers of a layer's groups that stay, ascending."""
    part = attention(calibration.model, layer)
    sample = calibration.statistics.samples[f"{part.writer_name}.weight"]
    weight = weight_of(getattr(part.module, part.writer))
    groups = head_sizes(calibration.model.config).kv_heads
    # (S, K) what each group adds to the log-likelihood, to first order.
    shares = (sample.inputs * (sample.gradients @ weight)).unflatten(-1, (groups, -1)).sum(-1)
    lost = torch.zeros(len(shares))
    stay = list(range(groups))
    while len(stay) > left:
        gone = min(stay, key=lambda group: float((lost + shares[:, group]).square().mean()))
        lost = lost + shares[:, gone]
        stay.remove(gone)
    return torch.tensor(stay)


def keep_groups(model: Any, layer: int, sizes: HeadSizes, kept: torch.Tensor) -> None:
    """Keep some groups of one layer, in a given order, in place; the configuration is not touched.

    Args:
        kept: numbers of groups.
    """
    part = attention(model, layer)
    keys = spread(kept, sizes.size)
    queries = spread(kept, sizes.size * sizes.queries)
    for leaf in ("k_proj", "v_proj"):
        select_rows(part.module, leaf, keys)
    select_rows(part.module, "q_proj", queries)
    select_columns(part.module, part.writer, queries)


def spread(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of numbered runs of `size` rows each."""
    return (numbers[:, None] * size + torch.arange(size)).flatten()
