"""Where families keep their blocks, and what in a block can be cut.

A block has two parts that write into the residual stream: attention and feed-forward. Each ends in one matrix, its
writer. Matrices are (outputs, inputs) here, whichever way a family stores them.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import torch
from transformers.pytorch_utils import Conv1D

from edgegen.errors import UnsupportedError
from edgegen.modeling.structure import is_factorised, shared_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "phi", "phi3")
"""Families (`model_type`) whose blocks are known here."""

_WRITERS = ("o_proj", "dense", "down_proj", "fc2", "c_proj")
_READERS = (("gate_proj", "up_proj"), ("gate_up_proj",), ("fc1",), ("c_fc",))
_POST_NORM = "post_feedforward_layernorm"
_PARALLEL = ("phi",)


class Part(msgspec.Struct, frozen=True):
    """One half of a block."""

    name: str
    """Of the module, as in `model.layers.0.mlp`."""
    module: Any
    writer: str
    """Its last matrix: `down_proj`."""
    readers: tuple[str, ...]
    """The matrices that read the block's input; empty of attention, see `attention`."""

    @property
    def writer_name(self) -> str:
        return f"{self.name}.{self.writer}"


def unknown_family(config: Any) -> str:
    """Why a family's blocks cannot be changed here; empty if they are known."""
    if config.model_type in FAMILIES:
        return ""
    return f"how a {config.model_type} arranges its blocks is not known here"


def blocks_name(model: Any) -> str:
    """Name of the list of blocks."""
    return "transformer.h" if model.config.model_type == "gpt2" else "model.layers"


def blocks(model: Any) -> Any:
    """The list of blocks."""
    return model.get_submodule(blocks_name(model))


def attention(model: Any, layer: int) -> Part:
    """A block's attention."""
    return _part(model, layer, "attn" if model.config.model_type == "gpt2" else "self_attn")


def feed_forward(model: Any, layer: int) -> Part:
    """A block's feed-forward network."""
    return _part(model, layer, "mlp")


def _part(model: Any, layer: int, leaf: str) -> Part:
    name = f"{blocks_name(model)}.{layer}.{leaf}"
    module = model.get_submodule(name)
    return Part(
        name=name,
        module=module,
        writer=next(writer for writer in _WRITERS if hasattr(module, writer)),
        readers=next((readers for readers in _READERS if hasattr(module, readers[0])), ()),
    )


def norm_follows(model: Any) -> bool:
    """Whether what the writers write is normalised before it is added to the residual stream."""
    return hasattr(blocks(model)[0], _POST_NORM)


def is_parallel(model: Any) -> bool:
    """Whether attention and feed-forward read the same input."""
    return model.config.model_type in _PARALLEL


def is_plain(model: Any) -> bool:
    """Whether every block has whole matrices of its own: what was cut into factors or is shared stays as it is."""
    return not shared_of(model) and not any(is_factorised(module) for module in blocks(model).modules())


def weight_of(module: Any) -> torch.Tensor:
    """(outputs, inputs).

    Raises:
        UnsupportedError: the matrix was cut into two factors.
    """
    if not isinstance(module, torch.nn.Linear | Conv1D):
        raise UnsupportedError(
            "a matrix that was cut into two factors cannot be narrowed", hint="Narrow first, then cut into factors."
        )
    weight: torch.Tensor = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def bias_of(module: Any) -> torch.Tensor | None:
    """(outputs,); None if the layer adds none."""
    return module.bias


def put(owner: Any, leaf: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Put a layer of the same kind with other values in one's place; the old one stays as it was.

    Args:
        owner: module that has it.
        weight: (outputs, inputs), of any size.
        bias: (outputs,), None as before.
    """
    old = getattr(owner, leaf)
    like = old.weight
    rows, columns = weight.shape
    with torch.device("meta"):
        if isinstance(old, Conv1D):
            made = Conv1D(rows, columns)
        else:
            made = torch.nn.Linear(columns, rows, bias=bias is not None)
    weight = weight.T if isinstance(old, Conv1D) else weight
    made.weight = torch.nn.Parameter(weight.to(like.dtype).contiguous().clone(), requires_grad=False)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.to(like.dtype).clone(), requires_grad=False)
    setattr(owner, leaf, made.train(old.training))


def select_rows(owner: Any, leaf: str, kept: torch.Tensor) -> None:
    """Keep some of a layer's outputs, in a given order.

    Args:
        kept: (K,) numbers of outputs.
    """
    module = getattr(owner, leaf)
    bias = bias_of(module)
    put(owner, leaf, weight_of(module)[kept], None if bias is None else bias[kept])


def select_columns(owner: Any, leaf: str, kept: torch.Tensor) -> None:
    """Keep some of a layer's inputs, in a given order; its bias stays."""
    module = getattr(owner, leaf)
    put(owner, leaf, weight_of(module)[:, kept], bias_of(module))


def copy_structure(model: Any) -> Any:
    """A model of its own whose parameters are the same objects: cheap, for trying a change.

    Parameters must be replaced, never written into.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
