"""Tables with short rows: the embedding's and the head's V·D weights as V·r and a product with r·D (`thin_tables`).

With E the table (V, D) and E ≈ A B, a change δ_v of entry v's row costs, by the Fisher quadratic,

    as head        ½ w_v E[(h δ_v)²],    w_v = E[p_v (1 - p_v)],    h the states that the head reads,
    as embedding   ½ f_v E[(g δ_v)²],    f_v how often v is read,    g gradients at the embedding's output,

(correlations between entries and of g with v left out). With S Sᵀ = E[h hᵀ] or E[g gᵀ] the best A of rank r for one
use is E P with P = S U, U the r largest eigenvectors of Sᵀ Eᵀ W E S. A table with both uses takes the eigenvectors of
both metrics side by side, [S_h S_g], with entries weighted by w/Σw + f/Σf; then each use has the product that is best
for it, B = (Aᵀ W A)⁻¹ Aᵀ W E, W its own weights.

Ranks are multiples of 32, so that every grid's blocks fit.

V vocabulary entries, D hidden size, r rank, T counted tokens, N tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from edgegen.modeling.forward import batch_tokens_for, padded_ids
from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.modeling.text import batches
from edgegen.modeling.thin_tables import has_thin_table, scale_of, thin_tables
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.factors import damped

NAME = "factorized_embedding"
TITLE = "embedding and head with shorter rows"

RANK_STEP = 32
_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
"""Of the hidden size that proposals keep."""
_TOKENS = 8192
"""Of calibration text that gradients are taken on."""


class Use(msgspec.Struct, frozen=True):
    """What a table is used for, and how much its entries matter there."""

    moment: torch.Tensor
    """(D, D) float64: of the states or gradients that meet a row."""
    entries: torch.Tensor
    """(V,) float64, all positive."""


def obstacle(config: Any, target: Target) -> str:
    """See `technique.Technique`."""
    if config.model_type in ENCODER_FAMILIES:
        return "short rows are fitted to models that continue text; sentence encoders keep whole tables"
    if target.file_suffix == ".gguf":
        return "llama.cpp reads the model's width off the embedding's rows"
    if config.model_type == "phi":
        return "this family's head has a bias, with which runtimes expect one whole product"
    return ""


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """Rows of about 7/8, 3/4, 5/8 and half of the hidden size that save weights; see `technique.Technique`."""
    model = calibration.model
    if has_thin_table(model):
        return []
    entries, width = model.get_input_embeddings().weight.shape
    tables = 1 if model.config.tie_word_embeddings else 2
    ranks = dict.fromkeys(int(share * width) // RANK_STEP * RANK_STEP for share in _SHARES)
    return [
        Change(
            technique=NAME,
            values={"rank": (rank,)},
            words=f"rows of the embedding and the head of {rank} instead of {width}",
        )
        for rank in ranks
        if rank and tables * entries * rank + 2 * rank * width < tables * entries * width
    ]


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Cut both tables; see `technique.Technique`. `values["rank"]`: length of a row."""
    (rank,) = change.values["rank"]
    own = calibration.model
    if NAME not in calibration.remembered:
        calibration.remembered[NAME] = uses_of(calibration)
    embedding, head = calibration.remembered[NAME]
    tables = [own.get_input_embeddings().weight.detach().double(), own.get_output_embeddings().weight.detach().double()]
    thin_tables(model, rank)
    table, low = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        if own.config.tie_word_embeddings:
            rows, (up, down) = shorten(tables[0], (embedding, head), rank)
            table.weight.copy_(rows)
        else:
            rows, (up,) = shorten(tables[0], (embedding,), rank)
            table.weight.copy_(rows)
            rows, (down,) = shorten(tables[1], (head,), rank)
            low[1].weight.copy_(rows)
        table.up.weight.copy_(up.T)
        low[0].weight.copy_(down)


def shorten(table: torch.Tensor, uses: tuple[Use, ...], rank: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A (V, r), and for each use B (r, D) with A B ≈ the table (V, D); float64."""
    weights = sum((use.entries / use.entries.sum() for use in uses), torch.zeros(len(table), dtype=torch.float64))
    inner = torch.cat([torch.linalg.cholesky(damped(u.moment)) * u.entries.sum().sqrt() for u in uses], 1)
    spread = inner.T @ (table.T @ (weights[:, None] * table)) @ inner
    _, vectors = torch.linalg.eigh(spread)
    rows = table @ (inner @ vectors[:, -rank:].flip(1))
    products = []
    for use in uses:
        weighted = (use.entries[:, None] * rows).T
        products.append(torch.linalg.solve(damped(weighted @ rows, 1e-9), weighted @ table))
    return rows, products


def uses_of(calibration: Calibration) -> tuple[Use, Use]:
    """How a model's embedding and head are used, from one pass forward and backward over some of the text."""
    model = calibration.model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    entries, width = table.weight.shape
    generator = torch.Generator().manual_seed(0)
    read = torch.ones(entries, dtype=torch.float64)  # each once more than it was, so that none is free
    said = torch.zeros(entries, dtype=torch.float64)
    states, gradients = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    seen: dict[str, torch.Tensor] = {}

    def look(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen["embedded"] = output.requires_grad_()
        output.retain_grad()

    hooks = [
        table.register_forward_hook(look),
        head.register_forward_pre_hook(lambda module, inputs: seen.update(state=inputs[0].detach())),
    ]
    counted = tokens = 0
    try:
        for group in batches(calibration.windows, batch_tokens=batch_tokens_for(entries)):
            ids = padded_ids(group)
            real, counts = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(2))
            for row, window in enumerate(group):
                real[row, : len(window.ids)] = True
                counts[row, : len(window.ids)] = torch.from_numpy(window.counts)
            with torch.enable_grad():
                log_probs = torch.log_softmax(model(ids, use_cache=False).logits[counts].float(), -1)
                labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
                log_probs.gather(1, labels).sum().backward()
            chance = log_probs.detach().exp()
            said += (chance * (1 - chance)).sum(0, dtype=torch.float64)
            read += torch.bincount(ids[real], minlength=entries)
            state, gradient = seen["state"][counts].double(), seen["embedded"].grad[real].double()
            states += state.T @ state
            gradients += gradient.T @ gradient
            counted += len(state)
            tokens += len(gradient)
            if tokens >= _TOKENS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    # Gradients are of sums over texts; per counted token, and of rows before the family's own factor.
    gradients *= scale_of(table) ** 2 / counted
    floor = 1e-12 * float(said.sum())
    return (
        Use(moment=gradients, entries=read / read.sum()),
        Use(moment=states / counted, entries=(said + floor) / counted),
    )
