"""A subject on a device's runtime: what planning, rounding and exporting work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import __version__
from edgegen.common.codec import canonical_json
from edgegen.errors import ConfigError
from edgegen.export.registry import exporter_for
from edgegen.grids import block_columns
from edgegen.modeling.hessians import Hessians
from edgegen.modeling.source import CACHE_BYTES, TensorSource
from edgegen.records.plan import Settings
from edgegen.records.profile import Profile
from edgegen.records.target import Target
from edgegen.sdk.subject import CheckedModel, Subject, require_family

STRUCTURES = "structures"
"""Folder of derived checkpoints in a workspace."""

PLANS = "plans"
"""Folder of the first target's workspace with all targets' plans, where one choice was made for all."""

HESSIANS = "hessians"
"""Folder that `measure` saves layers' Hessians in where rounding is to be compensated."""


class Job:
    """One subject, one device, one runtime.

    Attributes:
        base: whose weights are rounded: the subject, or what was derived from it. Judged is always against the subject.
        exporter: what the runtime's file format can say.
        source: the base's tensors as they will be exported.
    """

    def __init__(
        self,
        subject: Subject,
        profile: Profile,
        target: Target,
        grids: tuple[str, ...] | None = None,
        base: CheckedModel | None = None,
        source: TensorSource | None = None,
    ) -> None:
        """Check that the runtime can express the subject.

        Args:
            grids: those that the user allows; where none of them has blocks, nothing is padded to fit blocks.
            base: the subject with another structure, whose weights are rounded in its stead.
            source: the base's tensors where several runtimes share their rounding; None: rounded for this one.

        Raises:
            UnsupportedError: it cannot.
            ConfigError: the target has no cache of the profile's `kv_type`, or the model's heads do not fit it.
        """
        self.subject = subject
        self.profile = profile
        self.target = target
        _require_kv_type(profile.workload.kv_type, target, subject.summary.head_size)
        self.base: CheckedModel = subject if base is None else base
        require_family(subject.ref, subject.config, [target])
        self.exporter = exporter_for(target.name)
        # Also refuses, before any work, what the format cannot say about this configuration.
        self._expressible_tokens = self.exporter.context_tokens(self.base.config)
        blocks = [g.block for g in target.grids if not g.partial and (grids is None or g.name in grids)]
        self.source = source or TensorSource(
            self.base.empty,
            self.base.checkpoint,
            self.base.summary,
            pad=max(blocks, default=1) > 1,
            cache_bytes=0 if subject.is_streamed else CACHE_BYTES,
        )

    def use_statistics(self, folder: Path, *, compensated: bool) -> None:
        """Round with what `measure` saved about the layers' inputs.

        Args:
            compensated: whether rounding errors are made good where a layer's Hessian allows it.
        """
        self.source.use_importance(read_importance(folder / "importance.npz"))
        self.source.use_hessians(Hessians(folder / HESSIANS) if compensated else None)

    def cap_context(self, tokens: int) -> None:
        """Start the runtime with a context of at most so many tokens."""
        self._expressible_tokens = min(self._expressible_tokens, tokens)

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
            kv_type=workload.kv_type or next(iter(self.target.kv_bits)),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what measuring this model on this data gives, as plain values."""
        return {
            "edgegen": __version__,
            "model": self.subject.ref.digest,
            **({} if self.base is self.subject else {"structure": self.base.ref.digest}),
            "data": self.subject.split.ref.digest,
            "target": canonical_json(self.target).decode(),
            **({"streamed": True} if self.subject.is_streamed else {}),
        }


def _require_kv_type(kv_type: str, target: Target, head_size: int) -> None:
    if kv_type not in ("", *target.kv_bits):
        raise ConfigError(
            f"{target.name} keeps no keys and values in {kv_type!r}", hint="Known: " + ", ".join(target.kv_bits) + "."
        )
    if kv_type and head_size % (block := block_columns(kv_type)):
        raise ConfigError(
            f"keys and values in {kv_type} come in blocks of {block}, and this model's heads have {head_size} numbers",
            hint="Leave out --kv-type.",
        )


def measured_folder(folder: Path, structure: str) -> Path:
    """Where a workspace keeps what was measured of a structure; empty: the original's."""
    return folder / STRUCTURES / structure if structure else folder


def derived_job(job: Job, folder: Path, structure: str, grids: tuple[str, ...] | None) -> Job:
    """The same job with a derived checkpoint of the workspace as its base; the job itself for the original."""
    if not structure:
        return job
    base = CheckedModel(str(measured_folder(folder, structure) / "checkpoint"), [job.target])
    return Job(job.subject, job.profile, job.target, grids, base)


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Tensor name → (C,) importance weights, as `measure` saved them."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
