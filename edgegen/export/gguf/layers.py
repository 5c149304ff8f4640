"""Widths and heads that differ from layer to layer.

Most of llama.cpp's architectures read one feed-forward width and one number of heads for all layers. `deci` reads them
per layer and computes otherwise what `llama` computes, with or without biases of queries, keys and values: so a
Llama-like model whose layers differ is written as `deci`, and one whose layers are alike in its own architecture.
`deci` rotates neighbouring values, whichever order the family's own architecture wants.

llama.cpp drops the attention of a `deci` layer without a feed-forward network, so every layer has both here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgegen.catalog import load_target
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.families import as_deci, family_of, translate
from edgegen.export.gguf.family import Config, Family, Translation
from edgegen.export.gguf.tensors import Stored, name_tensors


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the shapes of the stored tensors say, per layer."""

    ffn: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]

    @property
    def alike(self) -> bool:
        return all(len(set(counts)) == 1 for counts in (self.ffn, self.heads, self.kv_heads))


def describe(config: Config, stored: Sequence[Stored]) -> tuple[Family, Translation]:
    """How a model with these tensors is written: its family's own architecture, or `deci` if its layers differ.

    Raises:
        UnsupportedError: layers differ in a family that `deci` cannot say, or as `translate` and `name_tensors`.
        ConfigError: shapes that contradict each other or config.json, or as `translate` and `name_tensors`.
    """
    family, translation = family_of(config), translate(config)
    named = name_tensors(family, translation, stored)
    layered = load_target("gguf").layered_families
    if config["model_type"] not in layered:
        _require_alike(config, translation.layers, named, layered)
        return family, translation
    sizes = _sizes(family, translation, named)
    if sizes.alike:
        _require_as_said(config, translation, sizes)
        return family, translation
    deci = as_deci(family)
    base = translate(config, deci)
    arrays = {
        f"{deci.arch}.feed_forward_length": list(sizes.ffn),
        f"{deci.arch}.attention.head_count": list(sizes.heads),
        f"{deci.arch}.attention.head_count_kv": list(sizes.kv_heads),
    }
    note = f"written as llama.cpp's {deci.arch}: its layers have different widths"
    return deci, replace(
        base,
        metadata=base.metadata | arrays,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        notes=(*base.notes, note),
    )


def _sizes(family: Family, translation: Translation, named: Mapping[str, Stored]) -> _Sizes:
    """Heads and widths by the shapes of the tensors of each layer."""
    head_size = translation.metadata[f"{family.arch}.attention.key_length"]
    assert isinstance(head_size, int)
    ffn, heads, kv_heads = [], [], []
    for layer in range(translation.layers):
        q, k, v, out = (named[f"blk.{layer}.attn_{part}.weight"] for part in ("q", "k", "v", "output"))
        gate, up, down = (named[f"blk.{layer}.ffn_{part}.weight"] for part in ("gate", "up", "down"))
        for one, other in ((q.rows, out.columns), (k.rows, v.rows), (gate.rows, up.rows), (up.rows, down.columns)):
            if one != other:
                raise ConfigError(f"layer {layer}: tensors of {one} and of {other} outputs cannot belong together")
        if q.rows % head_size or k.rows % head_size or q.rows % k.rows:
            raise ConfigError(
                f"layer {layer}: {q.rows} query and {k.rows} key outputs are no whole groups of heads of {head_size}"
            )
        ffn.append(down.columns)
        heads.append(q.rows // head_size)
        kv_heads.append(k.rows // head_size)
    return _Sizes(tuple(ffn), tuple(heads), tuple(kv_heads))


def _require_as_said(config: Config, translation: Translation, sizes: _Sizes) -> None:
    """llama.cpp refuses a file whose keys say other sizes than its tensors have."""
    said = (int(config["intermediate_size"]), translation.heads[0], translation.kv_heads[0])
    for name, one, other in zip(
        ("feed-forward channels", "heads", "key heads"),
        said,
        (sizes.ffn[0], sizes.heads[0], sizes.kv_heads[0]),
        strict=True,
    ):
        if one != other:
            raise ConfigError(f"every layer has {other} {name} and config.json says {one}")


def _require_alike(config: Config, layers: int, named: Mapping[str, Stored], layered: Sequence[str]) -> None:
    for name, first in named.items():
        if not name.startswith("blk.0."):
            continue
        for layer in range(1, layers):
            tensor = named.get(f"blk.{layer}.{name.removeprefix('blk.0.')}")
            if tensor is not None and (tensor.rows, tensor.columns) != (first.rows, first.columns):
                shapes = f"{first.rows} × {first.columns} in layer 0 and {tensor.rows} × {tensor.columns} in {layer}"
                raise UnsupportedError(
                    f"{config['model_type']}: GGUF cannot say layers of different widths: {name[6:]} is {shapes}",
                    hint="Choose one width for all layers; llama.cpp takes several of " + ", ".join(layered) + ".",
                )
