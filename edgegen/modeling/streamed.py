"""A causal model of which one block's weights are in memory at a time.

All windows go through the first block, then all through the second; what lies between two blocks is on disk. The
frame around the blocks (tables, last norm, head) stays in memory. It is transformers' own model: its forward pass runs
with blocks that hand their inputs on, which gives every block the masks and rotations that the family wants.

Weights come from the checkpoint in float32, rounded where asked, whenever a block's turn comes.

B windows of a group, L tokens of its longest, N padded tokens of all groups, T counted positions, H hidden size,
V vocabulary entries.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.errors import UnsupportedError
from edgegen.modeling.forward import batch_tokens_for, padded_ids
from edgegen.modeling.load import attention_kind, model_class, quiet_transformers
from edgegen.modeling.simulate import rounding_hook
from edgegen.modeling.source import TensorSource
from edgegen.modeling.structure import read_structure, restructure
from edgegen.modeling.text import Window, batches
from edgegen.records.model import ModelRef

_HEAD_ROWS = 8192
"""Rows of a head that are rounded together."""


class Group(msgspec.Struct):
    """Windows that run together."""

    ids: torch.Tensor
    """(B, L) int64."""
    real: torch.Tensor
    """(B·L,) bool: not padding."""
    counts: torch.Tensor
    """(B, L) bool."""
    start: int
    """Its first of the N rows."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """What each block is called with beside the hidden states."""

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.ids.numel())


class ActivationFile:
    """(N, H) float32 on disk. Read and written, not mapped: a map's pages would count as memory of this process."""

    def __init__(self, path: Path, hidden_size: int) -> None:
        self._path = path
        self._width = hidden_size
        path.touch()

    def write(self, rows: slice, values: torch.Tensor) -> None:
        with self._path.open("r+b") as stream:
            stream.seek(4 * self._width * rows.start)
            stream.write(values.detach().contiguous().numpy().tobytes())

    def read(self, rows: slice) -> torch.Tensor:
        """(rows, H)."""
        count = (rows.stop - rows.start) * self._width
        values = np.fromfile(self._path, dtype=np.float32, count=count, offset=4 * self._width * rows.start)
        return torch.from_numpy(values).view(-1, self._width)


class StreamedModel:
    """The frame, and blocks that come and go.

    Attributes:
        frame: transformers' model; weights of its blocks are on the meta device.
        layers: number of blocks.
    """

    def __init__(self, ref: ModelRef, source: TensorSource) -> None:
        """Read everything but the blocks.

        Raises:
            UnsupportedError: the model has no list of blocks.
            ConfigError: a tensor holds NaN or infinity.
        """
        self._source = source
        self.frame = _frame(ref)
        base = self.frame.base_model
        lists = {name: getattr(base, name, None) for name in ("layers", "h")}
        found = next((name for name, blocks in lists.items() if isinstance(blocks, torch.nn.ModuleList)), "")
        if not found:
            raise UnsupportedError(f"{ref.source}: no list of blocks that could be read one by one")
        self._blocks: list[Any] = list(getattr(base, found))
        self.layers = len(self._blocks)
        prefix = next(name for name, module in self.frame.named_modules() if module is getattr(base, found))
        self._prefixes = [f"{prefix}.{number}." for number in range(self.layers)]
        self._stored: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in self.frame.named_parameters(remove_duplicate=False):
            self._stored[name] = first.setdefault(id(parameter), name)
        self._meta = dict(self.frame.named_parameters(remove_duplicate=False))
        outside = [name for name in self._meta if not name.startswith(tuple(self._prefixes))]
        self._fill(outside, {})

    @contextlib.contextmanager
    def block(self, number: int, grids: Mapping[str, str] | None = None) -> Iterator[Any]:
        """One block with its weights inside, taken out again after.

        Args:
            grids: tensor name → grid that it is rounded to; others stay as they are.
        """
        names = [name for name in self._meta if name.startswith(self._prefixes[number])]
        self._fill(names, grids or {})
        try:
            yield self._blocks[number]
        finally:
            for name in names:
                _put(self.frame, name, self._meta[name])

    def begin(self, windows: list[Window], out: ActivationFile, *, batch_tokens: int | None = None) -> list[Group]:
        """Cut windows into groups and write what the first block gets: N rows."""
        vocab = self.frame.get_input_embeddings().weight.shape[0]
        groups, start = [], 0
        for windows_of_group in batches(windows, batch_tokens=batch_tokens or batch_tokens_for(vocab)):
            ids = padded_ids(windows_of_group)
            real, counts = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
            for row, window in enumerate(windows_of_group):
                real[row, : len(window.ids)] = True
                counts[row, : len(window.ids)] = torch.from_numpy(window.counts)
            group = Group(ids=ids, real=real.flatten(), counts=counts, start=start, calls=[])

            def take(number: int, hidden: Any, args: Any, kwargs: Any, group: Group = group) -> Any:
                if number == 0:
                    out.write(group.rows, hidden.flatten(0, 1))
                group.calls.append((args, kwargs))
                return hidden

            with torch.no_grad(), self._relayed(take):
                self.frame.base_model(ids, use_cache=False)
            groups.append(group)
            start += ids.numel()
        return groups

    def run(self, block: Any, number: int, group: Group, hidden: torch.Tensor) -> torch.Tensor:
        """One group through one block that is in memory: (rows, H) → (rows, H)."""
        args, kwargs = group.calls[number]
        found: torch.Tensor = block(hidden.view(*group.ids.shape, -1), *args, **kwargs)
        return found.flatten(0, 1)

    def finish(self, hidden: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """(rows, H) that the last block gave → logits (*shape, V) float32, through the last norm and the head."""

        def give(number: int, ignored: Any, args: Any, kwargs: Any) -> torch.Tensor:
            return hidden.view(*shape, -1)

        with self._relayed(give):
            logits: torch.Tensor = self.frame(torch.zeros(shape, dtype=torch.long), use_cache=False).logits.float()
        return logits

    def counted_logits(self, hidden: torch.Tensor, *, head_grid: str = "") -> torch.Tensor:
        """(T, H) → (T, V) logits.

        Args:
            head_grid: what the head's rows are rounded to, a few thousand at a time; empty: not at all.
        """
        head = self.frame.get_output_embeddings()
        vocab = head.weight.shape[0]
        pieces = hidden.split(batch_tokens_for(vocab))
        with torch.inference_mode():
            if not head_grid:
                return torch.cat([self.finish(piece, (len(piece), 1))[:, 0] for piece in pieces])
            inputs: list[torch.Tensor] = []
            hook = head.register_forward_hook(lambda module, args, output: inputs.append(args[0][:, 0]))
            for piece in pieces:
                self.finish(piece, (len(piece), 1))
            hook.remove()
            return self.rounded_head(torch.cat(inputs), head_grid)

    def rounded_head(self, inputs: torch.Tensor, grid: str) -> torch.Tensor:
        """(T, H) inputs of the head → (T, V) with its rows on a grid; a soft cap of the family is applied."""
        head = self.frame.get_output_embeddings()
        name = self._stored[_name_of(self.frame, head) + ".weight"]
        logits = torch.empty(len(inputs), head.weight.shape[0])
        for start in range(0, head.weight.shape[0], _HEAD_ROWS):
            rows = head.weight[start : start + _HEAD_ROWS].numpy()
            rounded = torch.from_numpy(self._source.round_rows(name, grid, rows))
            logits[:, start : start + len(rows)] = inputs @ rounded.T
        if getattr(head, "bias", None) is not None:
            logits += head.bias
        cap = getattr(self.frame.config, "final_logit_softcapping", None)
        return logits if not cap else torch.tanh(logits / cap) * cap

    @contextlib.contextmanager
    def rounded_embedding(self, grid: str) -> Iterator[None]:
        """Inside, the rows that are looked up are on a grid."""
        table = self.frame.get_input_embeddings()
        name = self._stored[_name_of(self.frame, table) + ".weight"]
        plain = type(table).forward

        def forward(ids: torch.Tensor) -> torch.Tensor:
            used, places = ids.unique(return_inverse=True)
            rows = torch.from_numpy(self._source.round_rows(name, grid, table.weight[used].numpy()))
            narrow = torch.nn.Parameter(rows, requires_grad=False)
            whole, table.weight = table.weight, narrow
            try:
                found: torch.Tensor = plain(table, places)
            finally:
                table.weight = whole
            return found

        padding, table.padding_idx, table.forward = table.padding_idx, None, forward
        try:
            yield
        finally:
            del table.forward
            table.padding_idx = padding

    @contextlib.contextmanager
    def rounded_inputs(self, activations: Mapping[str, int]) -> Iterator[None]:
        """Inside, inputs of linear layers are rounded to int8 as a runtime does.

        Args:
            activations: tensor name → inputs that share a scale, see `simulate`.
        """
        hooks = []
        table, head = self.frame.get_input_embeddings(), self.frame.get_output_embeddings()
        for name, block in activations.items():
            module = self.frame.get_submodule(name.rpartition(".")[0])
            if module is table:
                module = head if head.weight is table.weight else None
            if module is not None:
                hooks.append(module.register_forward_pre_hook(rounding_hook(block)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def _relayed(self, relay: Callable[[int, Any, Any, Any], Any]) -> Iterator[None]:
        """Inside, a block's call gives what `relay(number, hidden, other arguments, named arguments)` gives."""

        def stand_in(number: int) -> Callable[..., Any]:
            return lambda hidden, *args, **kwargs: relay(number, hidden, args, kwargs)

        for number, block in enumerate(self._blocks):
            block.forward = stand_in(number)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward

    def _fill(self, names: list[str], grids: Mapping[str, str]) -> None:
        def read(stored: str) -> torch.nn.Parameter:
            if stored in grids:
                values = self._source.as_parameter(stored, self._source.rounded(stored, grids[stored]))
            else:
                values = self._source.original_parameter(stored)
            return torch.nn.Parameter(values, requires_grad=False)

        needed = list(dict.fromkeys(self._stored[name] for name in names))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(needed, pool.map(read, needed), strict=True))
        for name in names:
            _put(self.frame, name, found[self._stored[name]])


def _frame(ref: ModelRef) -> Any:
    """The model without weights, but with everything that is computed from its configuration."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    structure = read_structure(Path(ref.path))
    with quiet_transformers(), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(ref.path)
        build = model_class(config.model_type).from_config
        model = build(config, dtype=torch.float32, attn_implementation=attention_kind(ref))
        if structure is not None:
            from edgegen.modeling.checkpoint import Checkpoint

            restructure(model, structure, Checkpoint(Path(ref.path)).shapes)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _put(model: Any, name: str, parameter: torch.nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = parameter


def _name_of(model: Any, module: Any) -> str:
    return next(name for name, other in model.named_modules() if other is module)
