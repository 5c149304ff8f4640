"""What a teacher says of each counted prediction: asked while the student learns, or once and kept on disk.

The cache holds the likeliest k entries of each distribution, about 6 k bytes a prediction: a teacher runs once, however
often its answers are used. It is made in shards that are whole or not there, so that a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import disk_errors, remove_tree, replacing, require_free_bytes
from edgegen.records.base import Record
from edgegen.training.batches import Batch, Item, collate
from edgegen.training.divergence import divergence, divergence_of_top
from edgegen.training.losses import Loss, counted, logits_of

_SHARD_ITEMS = 256
_RECORD = "cache.json"
Progress = Callable[[int, int], None]


class Teacher(Protocol):
    """Whoever a student learns from."""

    def distance(self, batch: Batch, logits: torch.Tensor, *, kind: str, alpha: float) -> torch.Tensor:
        """(T,) divergence of each counted prediction from (T, V) logits of the student, nats."""


class LiveTeacher:
    """A teacher in memory."""

    def __init__(self, model: Any, temperature: float) -> None:
        self._model, self._temperature = model.eval().requires_grad_(False), temperature

    def distance(self, batch: Batch, logits: torch.Tensor, *, kind: str, alpha: float) -> torch.Tensor:
        mask, _, _ = counted(batch)
        with torch.no_grad():
            said = logits_of(self._model, batch)[mask].float()
            log_p = torch.log_softmax(said / self._temperature, dim=-1)[:, : logits.shape[-1]]
        return divergence(log_p, logits, kind=kind, temperature=self._temperature, alpha=alpha)


def divergence_loss(teacher: Teacher, *, kind: str, alpha: float = 0.0) -> Loss:
    """A loss that is the teacher's divergence alone, for `fit`. The model learns without dropout, as a teacher speaks.

    Args:
        kind: one of `divergence.KINDS`.
    """

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        model.eval()
        mask, _, weights = counted(batch)
        distance = teacher.distance(batch, logits_of(model, batch)[mask].float(), kind=kind, alpha=alpha)
        return (distance * weights).sum()

    return loss


class _About(Record, frozen=True):
    identity: str
    items: int
    k: int
    temperature: float


class CachedTeacher:
    """A teacher's kept answers."""

    def __init__(self, folder: Path, items: Sequence[Item]) -> None:
        """Open what `keep_answers` wrote.

        Args:
            items: the same ones.
        """
        about = load_json(folder / _RECORD, _About)
        self._temperature = about.temperature
        self._start = np.concatenate([[0], np.cumsum([item.tokens for item in items])])
        shards = [folder / f"shard-{number:05d}" for number in range(-(-len(items) // _SHARD_ITEMS))]
        self._ids = [np.load(shard / "ids.npy", mmap_mode="r") for shard in shards]
        self._log_p = [np.load(shard / "log_p.npy", mmap_mode="r") for shard in shards]

    def _of(self, item: Item) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        shard = item.index // _SHARD_ITEMS
        first = self._start[shard * _SHARD_ITEMS]
        place = slice(self._start[item.index] - first, self._start[item.index + 1] - first)
        return self._ids[shard][place], self._log_p[shard][place]

    def distance(self, batch: Batch, logits: torch.Tensor, *, kind: str, alpha: float) -> torch.Tensor:
        found = [self._of(item) for row in batch.items for item in row]
        ids = torch.from_numpy(np.concatenate([ids for ids, _ in found]).astype(np.int64)).to(logits.device)
        log_p = torch.from_numpy(np.concatenate([log for _, log in found]).astype(np.float32)).to(logits.device)
        return divergence_of_top(ids, log_p, logits, kind=kind, temperature=self._temperature, alpha=alpha)


def keep_answers(
    model: Any,
    items: Sequence[Item],
    folder: Path,
    *,
    identity: str,
    k: int,
    temperature: float,
    vocab: int,
    progress: Progress | None = None,
) -> None:
    """Ask a teacher about every item and keep its likeliest entries; what is there already is not asked again.

    Args:
        items: whose `index` is their place.
        identity: digest of the teacher and the data.
        k: entries of each distribution; at most the vocabulary's size.
        vocab: entries that the student knows; others are left out.

    Raises:
        DeviceError: the disk is too small.
    """
    k = min(k, vocab)
    about = _About(identity=identity, items=len(items), k=k, temperature=temperature)
    if (folder / _RECORD).is_file() and load_json(folder / _RECORD, _About) != about:
        remove_tree(folder)
    require_free_bytes(folder, sum(item.tokens for item in items) * k * 6)
    model = model.eval()
    count = -(-len(items) // _SHARD_ITEMS)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _RECORD).is_file():
        save_json(folder / _RECORD, about)
    for number in range(count):
        shard = folder / f"shard-{number:05d}"
        if not (shard / "log_p.npy").is_file():
            part = items[number * _SHARD_ITEMS : (number + 1) * _SHARD_ITEMS]
            ids, log_p = _ask(model, part, k, temperature, vocab)
            for name, values in (("ids", ids), ("log_p", log_p)):
                with replacing(shard / f"{name}.npy") as temporary, temporary.open("wb") as stream:
                    np.save(stream, values)
        if progress:
            progress(number + 1, count)


def _ask(
    model: Any, items: Sequence[Item], k: int, temperature: float, vocab: int
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """(T, k) entries and their log-probabilities, of the items one after another."""
    device = next(model.parameters()).device
    ids, log_p = [], []
    for item in items:
        batch = collate([[item]], packed=False).to(device)
        mask = torch.from_numpy(item.counts).to(device)[None]
        with torch.no_grad():
            said = logits_of(model, batch)[mask].float()
            top = torch.log_softmax(said / temperature, dim=-1)[:, :vocab].topk(k, dim=-1)
        ids.append(top.indices.to(torch.int32).cpu().numpy())
        log_p.append(top.values.to(torch.float16).cpu().numpy())
    return np.concatenate(ids), np.concatenate(log_p)
