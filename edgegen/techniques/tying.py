"""One table for embedding and head, where a model has two.

Which table is right shows by trying: the embedding's, the head's and their mean are put in both places, and the one
with the least measured distance is proposed if it says nearly what the model said. In a model that was trained with
two they rarely have much in common; a model that was untied by a tool, or trained from a tied one, has two of almost
the same values.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.modeling.thin_tables import has_thin_table
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration

NAME = "tying"
TITLE = "one table for embedding and head"

TABLES = ("embedding", "head", "mean")
MOST_KL = 0.5
"""Nats per token beyond which two tables are no longer taken for one."""


def obstacle(config: Any, target: Target) -> str:
    """See `technique.Technique`."""
    if config.model_type in ENCODER_FAMILIES:
        return "a sentence encoder has no head"
    if config.tie_word_embeddings:
        return "embedding and head are one table already"
    if config.model_type == "phi":
        return "this family's head has a bias, with which runtimes expect a table of its own"
    return ""


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """At most one change: the table that serves both best, if one does; see `technique.Technique`."""
    if has_thin_table(calibration.model):
        return []
    found = []
    for table in TABLES:
        change = Change(technique=NAME, values={table: ()}, words=f"one table for embedding and head: {_WORDS[table]}")
        model = copy.deepcopy(calibration.model)
        apply(model, change, calibration)
        found.append((calibration.distance(model), change))
    distance, best = min(found, key=lambda pair: pair[0])
    return [best] if distance <= MOST_KL else []


_WORDS = {"embedding": "the embedding's", "head": "the head's", "mean": "their mean"}


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Tie; see `technique.Technique`. `values`: one of `TABLES`."""
    (chosen,) = change.values
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        if chosen == "head":
            table.weight.copy_(head.weight)
        elif chosen == "mean":
            table.weight.copy_((table.weight + head.weight) / 2)
    head.weight = table.weight
    model.config.tie_word_embeddings = True
