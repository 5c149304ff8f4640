"""A subject on a device's runtime: what planning, rounding and exporting work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import __version__
from edgegen.common.codec import canonical_json
from edgegen.export.registry import exporter_for
from edgegen.modeling.hessians import Hessians
from edgegen.modeling.source import TensorSource
from edgegen.records.plan import Settings
from edgegen.records.profile import Profile
from edgegen.records.target import Target
from edgegen.sdk.subject import Subject, require_family

HESSIANS = "hessians"
"""Folder that `measure` saves layers' Hessians in where rounding is to be compensated."""


class Job:
    """One subject, one device, one runtime.

    Attributes:
        exporter: what the runtime's file format can say.
        source: the subject's tensors as they will be exported.
    """

    def __init__(
        self, subject: Subject, profile: Profile, target: Target, grids: tuple[str, ...] | None = None
    ) -> None:
        """Check that the runtime can express the subject.

        Args:
            grids: those that the user allows; where none of them has blocks, nothing is padded to fit blocks.

        Raises:
            UnsupportedError: it cannot.
        """
        self.subject = subject
        self.profile = profile
        self.target = target
        require_family(subject.ref, subject.config, [target])
        self.exporter = exporter_for(target.name)
        # Also refuses, before any work, what the format cannot say about this configuration.
        self._expressible_tokens = self.exporter.context_tokens(subject.config)
        blocks = [g.block for g in target.grids if not g.partial and (grids is None or g.name in grids)]
        self.source = TensorSource(subject.empty, subject.checkpoint, subject.summary, pad=max(blocks, default=1) > 1)

    def use_statistics(self, folder: Path, *, compensated: bool) -> None:
        """Round with what `measure` saved about the layers' inputs.

        Args:
            compensated: whether rounding errors are made good where a layer's Hessian allows it.
        """
        self.source.use_importance(read_importance(folder / "importance.npz"))
        self.source.use_hessians(Hessians(folder / HESSIANS) if compensated else None)

    @property
    def settings(self) -> Settings:
        """How the runtime is to be started on the profile's device."""
        workload, summary = self.profile.workload, self.subject.summary
        context = min(workload.context_tokens, summary.context_tokens, self._expressible_tokens)
        return Settings(
            context_tokens=context,
            # An encoder reads a text as a whole.
            ubatch_tokens=context if summary.task == "encoder" else workload.ubatch_tokens,
            threads=workload.threads or self.profile.device.cores,
            kv_type=next(iter(self.target.kv_bits)),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what measuring this model on this data gives, as plain values."""
        return {
            "edgegen": __version__,
            "model": self.subject.ref.digest,
            "data": self.subject.split.ref.digest,
            "target": canonical_json(self.target).decode(),
        }


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Tensor name → (C,) importance weights, as `measure` saved them."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
