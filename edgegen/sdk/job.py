"""What a command works on, opened only as far as it needs.

Checking a model and reading its tensors' names is quick; loading its weights is not, so that waits until a stage has
to run. A finished output is therefore recognised in a second or two.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen import __version__
from edgegen.common.codec import canonical_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.families import translate
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import (
    check_model,
    empty_model,
    find_model,
    open_model,
    open_tokenizer,
    read_config,
)
from edgegen.modeling.source import TensorSource
from edgegen.modeling.summary import summarize
from edgegen.prepare.split import Split, prepare_data
from edgegen.records.model import ModelRef, ModelSummary
from edgegen.records.plan import Settings
from edgegen.records.profile import Profile
from edgegen.records.target import Target


class Job:
    """A model, a data set, a device and a runtime.

    Attributes:
        ref: the checkpoint.
        summary: its sizes.
        source: its tensors as they will be exported.
        notes: what is odd but harmless.
        eos_ids: where answers end, original ids.
    """

    def __init__(
        self, model: str, data: str | None, profile: Profile, target: Target, grids: tuple[str, ...] | None = None
    ) -> None:
        """Find and check model and data; no weights are loaded.

        Args:
            grids: those that the user allows; where none of them has blocks, nothing is padded to fit blocks.

        Raises:
            ConfigError, UnsupportedError, NetworkError: whatever is wrong with them.
        """
        self.ref: ModelRef = find_model(model)
        self.profile = profile
        self.target = target
        self.config: dict[str, Any] = read_config(self.ref)
        family = self.config["model_type"]
        if family not in target.families:
            raise UnsupportedError(
                f"{model}: family {family!r} cannot be written for target {target.name}",
                hint="Known: " + ", ".join(target.families) + ".",
            )
        self._checkpoint = checkpoint = Checkpoint(Path(self.ref.path))
        self._empty = empty_model(self.ref)
        self.tokenizer = open_tokenizer(Path(self.ref.path))
        self.notes = check_model(self.ref, self._empty, checkpoint, self.tokenizer)
        self.summary: ModelSummary = summarize(self._empty, checkpoint)
        # Also refuses, before any work, what the format cannot say about this configuration.
        self._expressible_tokens = translate(self.config).context_tokens
        blocks = [g.block for g in target.grids if grids is None or g.name in grids]
        self.source = TensorSource(self._empty, checkpoint, self.summary, pad=max(blocks, default=1) > 1)
        self.eos_ids = _eos_ids(Path(self.ref.path), self.config, self.tokenizer)
        self.split: Split = prepare_data(data)

    @functools.cached_property
    def model(self) -> Any:
        """The model with its weights.

        Raises:
            ConfigError: a tensor holds NaN or infinity.
            DeviceError: too little memory.
        """
        for _ in self._checkpoint.check_finite():
            pass
        return open_model(self.ref, parameters=self.summary.parameters)

    @property
    def settings(self) -> Settings:
        """How the runtime is to be started on the profile's device."""
        workload = self.profile.workload
        return Settings(
            context_tokens=min(workload.context_tokens, self.summary.context_tokens, self._expressible_tokens),
            ubatch_tokens=workload.ubatch_tokens,
            threads=workload.threads or self.profile.device.cores,
            kv_type=next(iter(self.target.kv_bits)),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what measuring this model on this data gives, as plain values."""
        return {
            "edgegen": __version__,
            "model": self.ref.digest,
            "data": self.split.ref.digest,
            "target": canonical_json(self.target).decode(),
        }


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> tuple[int, ...]:
    """Where answers end: the generation settings' ids, else the configuration's, else the tokenizer's."""
    generation = folder / "generation_config.json"
    found: Any = None
    if generation.exists():
        try:
            found = json.loads(generation.read_bytes()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{generation}: not a JSON object", hint="Mend it or remove it.") from error
    if found is None:
        found = config.get("eos_token_id")
    if found is None:
        found = tokenizer.eos_token_id
    values = found if isinstance(found, list) else [found]
    return tuple(int(value) for value in values if value is not None)


def read_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Tensor name → (C,) importance weights, as `measure` saved them."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
