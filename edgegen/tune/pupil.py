"""Who learns from a teacher: a checkpoint of its own, or a shape that is derived from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgegen.modeling.load import open_model
from edgegen.records.model import ModelRef
from edgegen.training.batches import Item
from edgegen.tune.save import save_model, stored_dtype
from edgegen.tune.student import Shape, derive_student


class Pupil(msgspec.Struct, frozen=True):
    """One of both."""

    ref: ModelRef | None
    shape: Shape | None
    tokenizer: Any
    parameters: int
    """Of the checkpoint; of a derived student, the teacher's."""

    @property
    def identity(self) -> str:
        """What distinguishes it from others of the same teacher."""
        return self.ref.digest if self.ref else str(self.shape)

    def origin(self, teacher: ModelRef) -> ModelRef:
        """The checkpoint that its weights and its tokenizer come from."""
        return self.ref or teacher

    def open(self, master: Callable[[], Any], items: Sequence[Item]) -> Any:
        """The model, all of whose parameters want gradients.

        Args:
            master: opens the teacher, where the student is derived from it.
            items: text to see what of the teacher is active.

        Raises:
            ConfigError, UnsupportedError: the shape cannot be had.
            DeviceError: too little memory.
        """
        if self.ref is not None:
            student = open_model(self.ref, parameters=self.parameters)
        else:
            assert self.shape is not None
            student = derive_student(master(), self.shape, items)
        return student.requires_grad_(True)

    def save(self, student: Any, teacher: ModelRef, folder: Path) -> None:
        """Write it with its tokenizer and licence."""
        origin = self.origin(teacher)
        save_model(student.cpu(), Path(origin.path), folder, dtype=stored_dtype(origin))
