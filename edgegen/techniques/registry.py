"""Technique name → technique. A new one is a module and one entry here, or one call of `register`."""

from __future__ import annotations

from edgegen.errors import ConfigError
from edgegen.techniques import (
    depth,
    factorized_embedding,
    heads,
    kv_heads,
    layer_width,
    low_rank,
    residual,
    sharing,
    sparsity,
    tying,
    width,
)
from edgegen.techniques.technique import Technique

_TECHNIQUES: dict[str, Technique] = {
    module.NAME: module
    for module in (
        tying,
        factorized_embedding,
        depth,
        width,
        layer_width,
        heads,
        kv_heads,
        low_rank,
        residual,
        sharing,
        sparsity,
    )
}


def register(technique: Technique) -> None:
    """Make a technique known.

    Raises:
        ConfigError: another one has its name.
    """
    if _TECHNIQUES.setdefault(technique.NAME, technique) is not technique:
        raise ConfigError(f"a technique {technique.NAME!r} is registered already")


def technique_named(name: str) -> Technique:
    """A registered technique.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _TECHNIQUES:
        raise ConfigError(f"unknown technique {name!r}", hint="Known: " + ", ".join(_TECHNIQUES) + ".")
    return _TECHNIQUES[name]


def techniques() -> tuple[Technique, ...]:
    """All of them, in the order in which they are tried."""
    return tuple(_TECHNIQUES.values())
