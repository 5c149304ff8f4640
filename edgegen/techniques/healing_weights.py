"""Weights of a model that is being healed: written, read, told apart, and held at zero where they are sparse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgegen.common.files import disk_errors, replacing
from edgegen.errors import ConfigError


def zeros_of(model: Any) -> dict[str, torch.Tensor]:
    """A mask for `heal` that keeps the zeros of every matrix that has some: parameter → where it is not zero."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            mask = parameter.detach() != 0
            if not bool(mask.all()):
                found[name] = mask
    return found


def settled(model: Any) -> Any:
    """The same model with parameters that can be trained and written: float32, in one piece of memory each."""
    model.float()
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


def require_masks(model: Any, masks: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        ConfigError: a mask of no parameter, of another shape, or over weights that are not zero.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in known or known[name].shape != mask.shape:
            raise ConfigError(f"a mask for {name}, which the model does not have in this shape")
        if bool((known[name].detach().cpu()[~mask.bool().cpu()] != 0).any()):
            raise ConfigError(f"the mask of {name} asks for zeros that are none yet")


def hold_zeros(model: Any, masks: Mapping[str, torch.Tensor]) -> list[Any]:
    """Let no gradient reach masked weights: without one, Adam does not move a zero.

    Returns:
        Handles, to remove in the end.
    """
    known = dict(model.named_parameters(remove_duplicate=False))

    def masked(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda gradient: gradient * mask

    return [known[name].register_hook(masked(mask.to(known[name].device))) for name, mask in masks.items()]


def save_weights(module: Any, path: Path) -> None:
    """Write a module's parameters, shared ones once, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: p.detach().cpu().contiguous().clone() for name, p in module.named_parameters()}
    with disk_errors(path.parent), replacing(path) as temporary:
        save_file(tensors, str(temporary))


def load_weights(module: Any, path: Path) -> None:
    """Read what `save_weights` wrote into the same module."""
    from safetensors.torch import load_file

    found = load_file(path)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(found[name])


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tuple(values.shape)}".encode())
        sha.update(values.flatten().view(torch.uint8).numpy())
    return sha.hexdigest()
