"""What goes into each linear layer, column by column: H = E[x xᵀ], kept in a folder.

Layers that are fed the same tensor (query, key and value; gate and up) share one H. A head of its own has one too; a
table that is embedding and head at once has none, because its rows are also looked up as they are. A folder holds the
upper triangle of each as a float32 .npy file and `hessians.json`, which says whose it is.

Wide layers take much memory: at most `PASS_BYTES` are gathered at a time, in as many passes over the text as that
needs, and at most `STORED_BYTES` are kept. Where that is too little the layers with the widest inputs go without, and
a note says so.

C inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import filling
from edgegen.modeling.forward import padded_ids
from edgegen.modeling.text import Window, batches
from edgegen.records.base import Record
from edgegen.records.model import ModelSummary, TensorInfo

Floats = NDArray[np.float32]

PASS_BYTES = 1_000_000_000
STORED_BYTES = 2_000_000_000
_BATCH_TOKENS = 1024


class Owners(Record, frozen=True):
    """`hessians.json`."""

    schema: int
    columns: dict[str, int]
    """Number of a file → C."""
    files: dict[str, str]
    """Tensor name → number of its file."""


class Hessians:
    """A folder of them, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `save_hessians` wrote.

        Raises:
            ConfigError: it is missing or broken.
        """
        self._folder = folder
        self._owners = load_json(folder / "hessians.json", Owners)

    def __contains__(self, name: str) -> bool:
        """Whether a tensor has one."""
        return name in self._owners.files

    def file_of(self, name: str) -> str:
        """The same for tensors that share a Hessian."""
        return self._owners.files[name]

    def read(self, number: str) -> Floats:
        """(C, C), by the number that `file_of` gives."""
        columns = self._owners.columns[number]
        found = np.zeros((columns, columns), dtype=np.float32)
        found[np.triu_indices(columns)] = np.load(self._folder / f"{number}.npy", allow_pickle=False)
        return found + np.triu(found, 1).T


def save_hessians(
    model: Any,
    summary: ModelSummary,
    windows: list[Window],
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Run the windows through the model, forward only, and write the folder; one that is there is replaced.

    Args:
        model: not changed.
        windows: calibration windows; all their tokens count.
        progress: called with (windows done, windows in all passes).

    Returns:
        Notes on what was left out.

    Raises:
        DeviceError: the disk is full.
    """
    linear = [t for t in summary.tensors if t.quantizable and (t.layer >= 0 or t.role in ("head", "projection"))]
    shared = _shared(model, linear, windows[0])
    widths = {t.name: t.columns for t in linear}
    owners = sorted(set(shared.values()), key=lambda name: (widths[name], list(widths).index(name)))
    kept, stored = [], 0
    for owner in owners:
        stored += 2 * widths[owner] * (widths[owner] + 1)
        if stored <= STORED_BYTES:
            kept.append(owner)
    passes: list[list[str]] = [[]]
    for owner in kept:
        if passes[-1] and 4 * sum(widths[o] ** 2 for o in (*passes[-1], owner)) > PASS_BYTES:
            passes.append([])
        passes[-1].append(owner)
    with filling(folder) as building:
        for number, group in enumerate(passes):

            def tell(done: int, earlier: int = number * len(windows)) -> None:
                if progress:
                    progress(earlier + done, len(passes) * len(windows))

            found = _gather(model, group, windows, tell)
            for owner in group:
                matrix = found.pop(owner).numpy()
                np.save(building / f"{kept.index(owner)}.npy", matrix[np.triu_indices(len(matrix))])
        record = Owners(
            schema=1,
            columns={str(index): widths[owner] for index, owner in enumerate(kept)},
            files={name: str(kept.index(owner)) for name, owner in shared.items() if owner in kept},
        )
        save_json(building / "hessians.json", record)
    lost = len(shared) - len(record.files)
    if not lost:
        return ()
    return (
        f"{lost} of {len(shared)} matrices are rounded without error compensation: what goes into them would take "
        f"more than {STORED_BYTES / 1e9:g} GB.",
    )


def _shared(model: Any, linear: list[TensorInfo], window: Window) -> dict[str, str]:
    """Tensor name → the first tensor that the same input goes into."""
    found: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs[0] is not last[0]:
                last[:] = [inputs[0], name]
            found[name] = last[1]

        return hook

    hooks = [_module(model, t.name).register_forward_pre_hook(watch(t.name)) for t in linear]
    try:
        with torch.no_grad():
            model(torch.from_numpy(window.ids)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _gather(
    model: Any, names: list[str], windows: list[Window], tell: Callable[[int], None]
) -> dict[str, torch.Tensor]:
    """Tensor name → (C, C) mean of x xᵀ over all tokens."""
    sums: dict[str, torch.Tensor] = {}
    real: list[torch.Tensor] = []

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)[real[0]].float()
            if name in sums:
                sums[name].addmm_(x.T, x)
            else:
                sums[name] = x.T @ x

        return hook

    hooks = [_module(model, name).register_forward_pre_hook(watch(name)) for name in names]
    done = 0
    try:
        for group in batches(windows, batch_tokens=_BATCH_TOKENS):
            ids = padded_ids(group)
            mask = torch.zeros(ids.shape, dtype=torch.bool)
            for row, window in enumerate(group):
                mask[row, : len(window.ids)] = True
            real[:] = [mask.flatten().nonzero().squeeze(1)]
            with torch.no_grad():
                model(ids, use_cache=False)
            done += len(group)
            tell(done)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(len(window.ids) for window in windows)
    return {name: value.div_(total) for name, value in sums.items()}


def _module(model: Any, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])
