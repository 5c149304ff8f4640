"""Tables with short rows: an embedding that a product makes as wide as the model, a head that one makes narrow for it.

A vocabulary's table takes V·D weights; a product of V·r and r·D says nearly the same where D is more than the words
need (factorized embeddings, ALBERT, Lan et al. 2020). Where embedding and head are one table, the short rows stay one
too, and each use has a product of its own.

V vocabulary entries, D hidden size, r length of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class ThinTable(torch.nn.Embedding):
    """An embedding in two: id ↦ scale · U row(id), rows (V, r), U (D, r)."""

    def __init__(self, entries: int, rank: int, width: int, *, scale: float = 1.0) -> None:
        """
        Args:
            scale: that the family's own embedding multiplies rows with.
        """
        super().__init__(entries, rank)
        self.up = torch.nn.Linear(rank, width, bias=False)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.up(super().forward(input))
        return found if self.scale == 1 else found * self.scale


class ThinHead(torch.nn.Sequential):
    """A head in two: h ↦ A (D h), D (r, D) and the table A (V, r)."""

    def __init__(self, width: int, rank: int, entries: int) -> None:
        super().__init__(torch.nn.Linear(width, rank, bias=False), torch.nn.Linear(rank, entries, bias=False))

    @property
    def weight(self) -> torch.nn.Parameter:
        """The table (V, r), where a whole head has its own."""
        found: torch.nn.Parameter = self[1].weight
        return found


def has_thin_table(model: Any) -> bool:
    """Whether a model's embedding was cut in two."""
    return isinstance(model.get_input_embeddings(), ThinTable)


def scale_of(table: Any) -> float:
    """What an embedding multiplies its rows with: 1, but for some families."""
    return float(table.scale if isinstance(table, ThinTable) else getattr(table, "scalar_embed_scale", 1.0))


def last_product(head: Any) -> Any:
    """The layer of a head that multiplies with the table."""
    return head[1] if isinstance(head, ThinHead) else head


def thin_tables(model: Any, rank: int) -> None:
    """Put an embedding and a head with rows of a given length in place of a model's, tied as those are; not filled."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    entries, width = table.weight.shape
    like = {"dtype": table.weight.dtype, "device": table.weight.device}
    thin = ThinTable(entries, rank, width, scale=scale_of(table)).to(**like).train(table.training)
    low = ThinHead(width, rank, entries).to(**like).train(head.training)
    if model.config.tie_word_embeddings:
        low[1].weight = thin.weight
    model.set_input_embeddings(thin.requires_grad_(False))
    model.set_output_embeddings(low.requires_grad_(False))


def reshape_tables(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Cut embedding and head as a derived checkpoint's tensors are.

    Args:
        shapes: parameter name → (outputs, inputs).
    """
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    up = shapes.get(f"{name}.up.weight")
    if up is not None:
        thin_tables(model, up[1])
