"""Models whose layers have other shapes than their configuration says: derived checkpoints.

Structure shows in the stored tensors. Factorised layers become two linear layers in a row, widths follow the shapes,
shared weights are one parameter, and a layer that adds factors of its own to them is `Relaxed`; tables with short rows
are `thin_tables`'. A derived checkpoint is a folder like any other with `structure.json` beside it, and opens like any
other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import filling
from edgegen.errors import ConfigError
from edgegen.modeling.thin_tables import reshape_tables
from edgegen.records.structure import Structure

STRUCTURE_FILE = "structure.json"
_PART = re.compile(r"\.(?:0|1|up|residual\.[01])(?=\.weight$)")
_ADDED = re.compile(r"\.(?:0|up|residual\.[01])\.weight$")


def whole_name(name: str) -> str:
    """The weight that a part of a layer stands for or beside: `X.weight` of `X.0.weight`; of a whole layer itself."""
    return _PART.sub("", name)


def is_added(name: str) -> bool:
    """Whether a weight is multiplied with in addition to those that the family's own layers have."""
    return _ADDED.search(name) is not None


class Relaxed(torch.nn.Linear):
    """A linear layer with two factors beside its weights, which other layers may use too: x ↦ W x + b + B A x."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.residual = torch.nn.Sequential(
            torch.nn.Linear(inputs, rank, bias=False), torch.nn.Linear(rank, outputs, bias=False)
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        own: torch.Tensor = self.residual(input)
        return super().forward(input) + own


def relax(model: Any, name: str, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Give a named linear layer factors A (r, inputs) and B (outputs, r) beside weights that are to be filled in."""
    old = model.get_submodule(name)
    first, second = factors
    new = Relaxed(first.shape[1], len(second), len(first), bias=old.bias is not None)
    new = new.to(old.weight.dtype)
    with torch.no_grad():
        new.residual[0].weight.copy_(first)
        new.residual[1].weight.copy_(second)
        if old.bias is not None:
            new.bias.copy_(old.bias)
    replace_module(model, name, new.requires_grad_(False).train(old.training))


def read_structure(folder: Path) -> Structure | None:
    """Of a derived checkpoint; None of any other.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / STRUCTURE_FILE
    return load_json(path, Structure) if path.exists() else None


def is_factorised(module: Any) -> bool:
    """Whether a module is a linear layer that was cut into two."""
    return isinstance(module, torch.nn.Sequential) and len(module) == 2


def reshape_layers(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give every linear layer the shape, the two factors or the factors beside it that its tensors have; embedding and
    head too.

    Args:
        shapes: parameter name → (outputs, inputs).
    """
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if module is not head and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"):
            _reshape(model, name, module, shapes)
    reshape_tables(model, shapes)


def _reshape(model: Any, name: str, module: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    first, second, whole = (shapes.get(f"{name}.{part}") for part in ("0.weight", "1.weight", "weight"))
    own = [shapes.get(f"{name}.residual.{part}.weight") for part in (0, 1)]
    bias = module.bias is not None
    if first and second:
        replace_module(
            model,
            name,
            torch.nn.Sequential(
                torch.nn.Linear(first[1], first[0], bias=False), torch.nn.Linear(second[1], second[0], bias=bias)
            ),
        )
    elif own[0] and own[1]:
        replace_module(model, name, Relaxed(own[0][1], own[1][0], own[0][0], bias=bias))
    elif isinstance(module, torch.nn.Linear) and whole and tuple(whole) != (module.out_features, module.in_features):
        replace_module(model, name, torch.nn.Linear(whole[1], whole[0], bias=bias))


def replace_module(model: Any, name: str, module: Any) -> None:
    """Put another module in a named one's place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def share(model: Any, shared: Mapping[str, str]) -> None:
    """Let parameters that are not stored be the same object as those whose weights they use."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, source in shared.items():
        if source not in known or name not in known:
            raise ConfigError(f"{name} shares the weights of {source!r}, which the model has not")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, known[source])


def shared_of(model: Any) -> dict[str, str]:
    """Parameter → the first one that is the same object; a tied table is the configuration's business and left out."""
    first: dict[int, str] = {}
    table = id(model.get_input_embeddings().weight)
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first and id(parameter) != table:
            found[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return found


def changed_layers(model: Any, original: Any, kept: Sequence[int]) -> set[int]:
    """Blocks with other weights, or other shapes, than those that they come from.

    Args:
        kept: the original's number of each of the model's blocks.
    """

    def by_block(some: Any) -> dict[int, dict[str, torch.Tensor]]:
        found: dict[int, dict[str, torch.Tensor]] = {}
        for name, parameter in some.named_parameters(remove_duplicate=False):
            number = re.search(r"\.(?:layers|h|layer)\.(\d+)\.", name)
            if number:
                found.setdefault(int(number[1]), {})[name[number.end() :]] = parameter
        return found

    own, theirs = by_block(model), by_block(original)

    def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)

    return {number for number, block in own.items() if not same(block, theirs[kept[number]])}


def users_of(model: Any) -> dict[int, list[Any]]:
    """id of a weight → the modules that use it, in the order of the model."""
    found: dict[int, list[Any]] = {}
    for module in model.modules():
        if module._parameters.get("weight") is not None:
            found.setdefault(id(module.weight), []).append(module)
    return found


def restructure(model: Any, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The same model with the layers that a derived checkpoint's tensors fit into."""
    reshape_layers(model, shapes)
    share(model, structure.shared)
    return model


def save_derived(model: Any, original: Path, structure: Structure, out: Path) -> None:
    """Write a changed model as a checkpoint that opens like any other; replaced if it exists.

    Args:
        model: its `config` says its depth, heads and largest width.
        original: the folder that tokenizer, templates, card and licence come from.
        structure: `shared` is filled in here.

    Raises:
        DeviceError: the disk is full.
    """
    from safetensors.torch import save_file

    from edgegen.modeling.load import travelling_files

    with filling(out) as folder:
        for path in travelling_files(original):
            shutil.copyfile(path, folder / path.name)
        model.config.save_pretrained(folder)
        tensors = {name: p.detach().float().contiguous().clone() for name, p in model.named_parameters()}
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        known = Structure(
            schema=structure.schema,
            base=structure.base,
            changes=structure.changes,
            shared=shared_of(model),
            healed_tokens=structure.healed_tokens,
        )
        save_json(folder / STRUCTURE_FILE, known)
