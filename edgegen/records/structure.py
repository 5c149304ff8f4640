"""What was changed of a model's structure before its weights are rounded."""

from __future__ import annotations

from edgegen.records.base import Record


class Change(Record, frozen=True):
    """One step of one technique."""

    technique: str
    """A registered technique's name."""
    values: dict[str, tuple[int, ...]]
    """What the technique needs to carry it out, in its own words: removed layers, widths, ranks."""
    words: str
    """For people: `layers 3 to 4 of 8 removed`."""


class Structure(Record, frozen=True):
    """`structure.json` of a derived checkpoint: a folder like any other, but for shapes that its configuration does not
    say and weights that several layers use.

    A linear layer `X.weight` that was cut into two is stored as `X.0.weight` (r, inputs) and `X.1.weight` (outputs, r),
    and so is a head whose table has short rows; such an embedding has `X.up.weight` (outputs, r) beside its table.
    Factors beside a layer's weights are `X.residual.0.weight` and `X.residual.1.weight`. Feed-forward widths are what
    the stored tensors have.
    """

    schema: int
    base: str
    """Digest of the original."""
    changes: tuple[Change, ...]
    """In the order in which they were made."""
    shared: dict[str, str] = {}
    """Parameter that is not stored → the stored parameter whose weights it uses too."""
    healed_tokens: int = 0
    """Predictions that it was trained on afterwards, to say what the original says."""


_ROUNDED = "rounded"


def rounded_key(grid: str, layer: str) -> str:
    """The name in `Change.values` of a layer whose weights the change puts on a grid."""
    return f"{_ROUNDED}.{grid}.{layer}"


def rounded_layers(changes: tuple[Change, ...]) -> dict[str, str]:
    """Layer → grid of those whose rounding is part of a change."""
    named = (name.split(".", 2) for change in changes for name in change.values if name.startswith(f"{_ROUNDED}."))
    return {layer: grid for _, grid, layer in named}


def kept_layers(layers: int, changes: tuple[Change, ...]) -> tuple[int, ...]:
    """The original's number of each block that is left; techniques name blocks that go in `values["removed"]`."""
    kept = list(range(layers))
    for change in changes:
        gone = set(change.values.get("removed", ()))
        kept = [number for place, number in enumerate(kept) if place not in gone]
    return tuple(kept)


class Tried(Record, frozen=True):
    """A changed structure that was looked at."""

    name: str
    changes: tuple[Change, ...]
    parameters: int
    kl: float
    """To the original before its weights are rounded, nats per token; before healing."""
    estimate: float | None
    """Of what planning optimises (KL, bytes or seconds a token), from the original's sensitivities; None: no plan keeps
    the budgets."""
    healed_kl: float | None = None
    healed_tokens: int = 0
    finalist: bool = False
    """Whether it was healed to the end, measured and planned like the original."""


class Considered(Record, frozen=True):
    """What became of a technique."""

    technique: str
    title: str
    taken: bool
    why: str


class Search(Record, frozen=True):
    """`structures.json`: what was looked at within a time budget."""

    schema: int
    seconds: float
    """Budget."""
    tried: tuple[Tried, ...]
    obstacles: dict[str, str]
    """Technique → why the target or the family cannot have it."""
    titles: dict[str, str]
    """Technique → for people."""
    late: tuple[str, ...] = ()
    """Techniques that the time did not reach."""
    more: str = ""
    """What more time would buy."""
    unspent_s: float = 0.0
    """Of the budget: nothing was left that could be expected to be better, and tuning gets it."""
