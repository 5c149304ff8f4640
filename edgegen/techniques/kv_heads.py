"""Key/value heads: several of them become one, and their queries share it (grouped-query attention).

Ainslie et al. (2023) take the mean of the heads' matrices and train on. Heads that were never meant to agree speak
about the same things in different bases, so the mean of trained heads is close to noise; here they are brought into
the basis that loses least, in closed form, and the queries and the output projection are turned along with them:

- values: v_i ≈ M_i v̂ with v̂ = P v the D dimensions that keep most of what all heads' values v write, weighted by the
  Fisher information of the output (a principal component analysis of √B v); M_i goes into the output projection;
- keys: rotary positions turn dimensions d and d + D/2 of a key as one complex number, so only complex factors can be
  moved from keys to queries: k_i ≈ a_i k̂ for each such pair, k̂ the first principal component of the heads' k_i weighted
  by the energy of the queries that meet them; conj(a_i) goes into the queries. Dimensions that are not rotated are
  treated like values;
- where a norm with weights of its own follows (Qwen3, Gemma 3), nothing can be moved, and keys are averaged.

Equal heads are merged exactly. Which heads share is chosen by how little is lost, query heads are put in that order,
which costs nothing. In the end the output projection is refitted (see `refit`). Caches need one shape, so the number is
the same in every layer.

`Change.values["kv_heads"]`: how many key/value heads there are afterwards.

K key/value heads, m of them become one, D size of a head, H width of the hidden state (and 1 where there are biases).
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import torch

from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.heads import HeadSizes, fused_obstacle, head_sizes
from edgegen.techniques.layout import attention, bias_of, blocks, is_plain, put, weight_of
from edgegen.techniques.refit import refit

NAME = "kv_heads"
TITLE = "fewer key/value heads, shared by more query heads"

_FLOOR = 1e-6
"""Added to weights of principal components, in units of their mean, so that none is zero."""


def obstacle(config: Any, target: Target) -> str:
    """Every runtime takes any number that divides the query heads'."""
    return fused_obstacle(config)


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """All divisors of the present number, largest first."""
    if not is_plain(calibration.model):
        return []
    present = head_sizes(calibration.model.config).kv_heads
    return [
        Change(
            technique=NAME,
            values={"kv_heads": (number,)},
            words=f"{number} key/value heads instead of {present}, the others merged into them",
        )
        for number in range(present - 1, 0, -1)
        if present % number == 0
    ]


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Merge in every layer and refit what is written."""
    (wanted,) = change.values["kv_heads"]
    sizes = head_sizes(model.config)
    layers = range(len(blocks(model)))
    parts = [attention(calibration.model, layer) for layer in layers]
    moments = calibration.moments([f"{part.name}.k_proj" for part in parts], constant=True)
    for layer, part in zip(layers, parts, strict=True):
        _merge_layer(model, layer, sizes, wanted, moments[f"{part.name}.k_proj"], calibration)
        attention(model, layer).module.num_key_value_groups = sizes.heads // wanted
    model.config.num_key_value_heads = wanted
    refit(model, calibration, layers)


class _Layer(msgspec.Struct, frozen=True):
    """One layer's matrices in float64; biases are the last column of `query`, `key` and `value`."""

    query: torch.Tensor
    """(K, G, D, H)."""
    key: torch.Tensor
    """(K, D, H)."""
    value: torch.Tensor
    """(K, D, H)."""
    output: torch.Tensor
    """(R, K, G, D)."""
    moments: torch.Tensor
    """(H, H) E[x xᵀ] of what the first three read."""
    information: torch.Tensor
    """(R, R) Fisher information of what the last writes."""
    rotated: int
    """Of a head's dimensions."""
    normed: bool
    """Whether keys are normalised before they are rotated."""


class _Merged(msgspec.Struct, frozen=True):
    """m heads that became one."""

    query: torch.Tensor
    """(m, G, D, H)."""
    key: torch.Tensor
    """(D, H)."""
    value: torch.Tensor
    """(D, H)."""
    output: torch.Tensor
    """(R, m, G, D)."""
    loss: float
    """Share of the keys' and the values' weighted energy that is lost."""


def _merge_layer(
    model: Any, layer: int, sizes: HeadSizes, wanted: int, moments: torch.Tensor, calibration: Calibration
) -> None:
    part = attention(model, layer)
    owner, shape = part.module, (sizes.kv_heads, sizes.queries, sizes.size)
    biased = bias_of(owner.k_proj) is not None

    def rows(leaf: str) -> torch.Tensor:
        module = getattr(owner, leaf)
        weight, bias = weight_of(module).double(), bias_of(module)
        return weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)

    gradients = calibration.statistics.samples[f"{part.writer_name}.weight"].gradients
    output = weight_of(getattr(owner, part.writer)).double()
    width = weight_of(owner.k_proj).shape[1] + biased
    now = _Layer(
        query=rows("q_proj").unflatten(0, shape),
        key=rows("k_proj").unflatten(0, shape[::2]),
        value=rows("v_proj").unflatten(0, shape[::2]),
        output=output.unflatten(1, shape),
        moments=moments[:width, :width],
        information=(gradients.T @ gradients).double() / len(gradients),
        rotated=getattr(owner, "rotary_ndims", sizes.size),
        normed=hasattr(owner, "k_norm") or hasattr(owner, "k_layernorm"),
    )
    groups = _grouping(now, sizes.kv_heads, sizes.kv_heads // wanted)
    merged = [_merge(now, group) for group in groups]
    found = {
        "q_proj": torch.cat([one.query.flatten(0, 2) for one in merged]),
        "k_proj": torch.cat([one.key for one in merged]),
        "v_proj": torch.cat([one.value for one in merged]),
    }
    for leaf, values in found.items():
        put(owner, leaf, values[:, :-1] if biased else values, values[:, -1] if biased else None)
    put(
        owner,
        part.writer,
        torch.cat([one.output.flatten(1) for one in merged], 1),
        bias_of(getattr(owner, part.writer)),
    )


def _grouping(layer: _Layer, heads: int, together: int) -> list[list[int]]:
    """Which heads become one: neighbours, or the most alike where that loses less."""
    neighbours = [list(range(start, start + together)) for start in range(0, heads, together)]
    alike = [[head] for head in range(heads)]
    while len(alike[0]) < together and together % (2 * len(alike[0])) == 0:
        alike = _pairs(layer, alike)
    if len(alike[0]) < together:
        return neighbours
    return min(neighbours, alike, key=lambda groups: sum(_merge(layer, group).loss for group in groups))


def _pairs(layer: _Layer, groups: list[list[int]]) -> list[list[int]]:
    """Groups joined two by two, those that lose least first."""
    losses = {
        (one, two): _merge(layer, groups[one] + groups[two]).loss
        for one, two in itertools.combinations(range(len(groups)), 2)
    }
    free, joined = set(range(len(groups))), []
    for one, two in sorted(losses, key=lambda pair: losses[pair]):
        if one in free and two in free:
            free -= {one, two}
            joined.append(groups[one] + groups[two])
    return joined


def _merge(layer: _Layer, group: list[int]) -> _Merged:
    key, query, key_loss = _merge_keys(layer, group)
    value, output = layer.value[group], layer.output[:, group]
    # (m, D, D) how much each direction of a head's values matters behind the output projection.
    weights = torch.einsum("rmgd,rs,smge->mde", output, layer.information, output)
    seen = torch.einsum("mdh,hk,nek->mdne", value, layer.moments, value)
    basis, back, value_loss = _joint_basis(seen, weights)
    return _Merged(
        query=query,
        key=key,
        value=torch.einsum("cmd,mdh->ch", basis, value),
        output=torch.einsum("rmgd,mdc->rmgc", output, back),
        loss=key_loss + value_loss,
    )


def _merge_keys(layer: _Layer, group: list[int]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(D, H) keys, (m, G, D, H) queries, and the share of energy that is lost."""
    key, query = layer.key[group], layer.query[group]
    if layer.normed:
        mean = key.mean(0)
        lost, whole = (torch.einsum("mdh,hk,mdk->", x, layer.moments, x) for x in (key - mean, key))
        return mean, query, float(lost / whole)
    half = layer.rotated // 2
    pairs = (slice(0, half), slice(half, layer.rotated))
    k = torch.complex(*(key[:, pair] for pair in pairs))
    q = torch.complex(*(query[:, :, pair] for pair in pairs))
    moments = layer.moments.to(k.dtype)
    seen = torch.einsum("mfh,hk,nfk->fmn", k, moments, k.conj())
    weights = torch.einsum("mgfh,hk,mgfk->fm", q, moments, q.conj()).real
    weights = (weights + _FLOOR * weights.mean()).sqrt()
    values, vectors = torch.linalg.eigh(weights[:, :, None] * seen * weights[:, None, :])
    first = vectors[:, :, -1]
    shared = torch.einsum("fm,mfh->fh", first.conj() * weights, k)
    factors = first / weights
    turned = torch.einsum("fm,mgfh->mgfh", factors.conj(), q)
    kept, whole = float(values[:, -1].sum()), float(values.sum())
    keys, queries = [shared.real, shared.imag], [turned.real, turned.imag]
    if layer.rotated < key.shape[1]:
        k_rest, q_rest = key[:, layer.rotated :], query[:, :, layer.rotated :]
        met = torch.einsum("mgdh,hk,mgek->mde", q_rest, layer.moments, q_rest)
        also = torch.einsum("mdh,hk,nek->mdne", k_rest, layer.moments, k_rest)
        basis, back, _ = _joint_basis(also, met)
        keys.append(torch.einsum("cmd,mdh->ch", basis, k_rest))
        queries.append(torch.einsum("mdc,mgdh->mgch", back, q_rest))
    return torch.cat(keys), torch.cat(queries, 2), 1 - kept / whole


def _joint_basis(seen: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The D dimensions in which m vectors of D dimensions lose least together.

    Args:
        seen: (m, D, m, D) their second moments.
        weights: (m, D, D) how much an error in each matters, positive semidefinite.

    Returns:
        (D, m, D) into the basis, (m, D, D) back out of it, and the share of energy that is lost.
    """
    count, size = weights.shape[:2]
    floor = _FLOOR * weights.diagonal(dim1=1, dim2=2).mean()
    values, vectors = torch.linalg.eigh(weights)
    roots = (values.clamp_min(0) + floor).sqrt()
    forth = torch.einsum("mde,me,mfe->mdf", vectors, roots, vectors)
    inverse = torch.einsum("mde,me,mfe->mdf", vectors, 1 / roots, vectors)
    weighted = torch.einsum("mab,mbnc,ncd->mand", forth, seen, forth).reshape(count * size, count * size)
    energies, directions = torch.linalg.eigh(weighted)
    main = directions[:, -size:].reshape(count, size, size)
    basis = torch.einsum("mac,mab->cmb", main, forth)
    back = torch.einsum("mab,mbc->mac", inverse, main)
    return basis, back, float(1 - energies[-size:].sum() / energies.sum())
