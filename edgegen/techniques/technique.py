"""What a technique is: a module with these members."""

from __future__ import annotations

from typing import Any, Protocol

from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration


class Technique(Protocol):
    """Proposes changes of a structure and carries them out."""

    NAME: str
    """As in `Change.technique` and on the command line."""
    TITLE: str
    """For people, a few words."""

    def obstacle(self, config: Any, target: Target) -> str:
        """Why a target cannot have it, or this family cannot, in one sentence; empty if nothing stands in the way.

        Args:
            config: transformers' object.
        """
        ...

    def propose(self, calibration: Calibration, target: Target) -> list[Change]:
        """Changes worth trying, mildest first, each made to the calibration's own model; empty where nothing can go.

        Args:
            target: whose blocks the widths should fit.
        """
        ...

    def apply(self, model: Any, change: Change, calibration: Calibration) -> None:
        """Carry out a change, with the repair that needs no training.

        Args:
            model: changed in place, its `config` too; a copy of the calibration's model.
            calibration: of the model as it was before.
        """
        ...
