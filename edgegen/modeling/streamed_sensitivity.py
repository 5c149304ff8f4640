"""Prices of grids for a model larger than memory: the statistics and the sweep of `statistics` and `sensitivity`, block
by block.

Statistics take two passes over the blocks. Forward, inputs are counted and every block's input is kept on disk.
Backward, block by block from the last, each block runs once more and hands its gradient down (gradient checkpointing,
Chen et al., arXiv 1604.06174): that is the same Fisher sample as a whole backward pass gives. A block's grids are
priced while its sample is there, on some of its rows where it has many: rounding errors of two rows hang together by
chance only, so the rows' costs are summed and scaled up.

What is measured by running the model rounded runs in one more pass in which all variants go through a block together.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.forward import batch_tokens_for, mean_kl
from edgegen.modeling.sensitivity import Sensitivity, anchors_of, common_activation, factor_of, interpolated
from edgegen.modeling.simulate import ACTIVATION_BLOCKS
from edgegen.modeling.source import TensorSource
from edgegen.modeling.statistics import SAMPLE_BYTES, LayerSample, fisher_kl
from edgegen.modeling.streamed import ActivationFile, Group, StreamedModel
from edgegen.modeling.text import Window
from edgegen.records.model import ModelSummary, TensorInfo
from edgegen.records.target import Target

_PRICED_ROWS = 256
_ALL_ROWS = 1024
"""Up to so many rows all are priced, of more `_PRICED_ROWS`."""
_MEASURED_ANCHORS, _MEASURED_TABLE_GRIDS = 2, 2

Tell = Callable[[], None]
Sample = Callable[[dict[str, LayerSample], float], None]


class Variant(msgspec.Struct):
    """A model that differs from the original in how it is rounded."""

    grids: dict[str, str] = {}
    """Of tensors inside the blocks."""
    activations: dict[str, int] = {}
    """Tensor → inputs that share a scale when they are rounded to int8."""
    embedding: str = ""
    head: str = ""
    """Grids of the tables; empty: as they are."""


def streamed_importance(
    stream: StreamedModel,
    summary: ModelSummary,
    windows: list[Window],
    scratch: Path,
    use: Callable[[dict[str, NDArray[np.float32]]], None],
    see: Sample,
    *,
    seed: int = 0,
    tell: Tell = lambda: None,
) -> None:
    """What `statistics.collect_statistics` finds, without the model in memory.

    Args:
        use: called once with tensor name → (C,) mean square of each input, before any sample.
        see: called for each block, the last one first, with its samples and the weight of `fisher_kl`.
        tell: called after each of the 2 · layers + 1 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    files = [ActivationFile(scratch / f"block{n}", summary.hidden_size) for n in range(stream.layers + 1)]
    slope = ActivationFile(scratch / "gradient", summary.hidden_size)
    groups = stream.begin(windows, files[0], batch_tokens=batch_tokens_for(summary.vocab_size))
    by_layer: dict[int, list[TensorInfo]] = {}
    for tensor in summary.tensors:
        if tensor.quantizable and tensor.layer >= 0:
            by_layer.setdefault(tensor.layer, []).append(tensor)
    total = sum(int(group.real.sum()) for group in groups)
    squares: dict[str, torch.Tensor] = {}
    for number in range(stream.layers):
        with stream.block(number) as block, _watched(stream, by_layer.get(number, []), squares) as state:
            for group in groups:
                state["real"] = group.real
                with torch.no_grad():
                    files[number + 1].write(
                        group.rows, stream.run(block, number, group, files[number].read(group.rows))
                    )
        tell()
    sampled = _slopes(stream, groups, files[-1], slope, squares, by_layer, total, generator)
    use({name: (values / total).numpy() for name, values in _named(squares, summary).items()})
    tell()
    counted = sum(window.tokens for window in windows)
    for number in reversed(range(stream.layers)):
        with stream.block(number) as block:
            samples = _backward(stream, block, number, groups, sampled, by_layer.get(number, []), files[number], slope)
        see(samples, total / counted)
        tell()


@contextlib.contextmanager
def _watched(
    stream: StreamedModel, tensors: list[TensorInfo], squares: dict[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    state: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2)[state["real"]]
            squares[name] = squares.get(name, torch.zeros(())) + x.square().sum(0)

        return hook

    hooks = [
        stream.frame.get_submodule(t.name.rpartition(".")[0]).register_forward_hook(watch(t.name)) for t in tensors
    ]
    try:
        yield state
    finally:
        for hook in hooks:
            hook.remove()


def _named(squares: dict[str, torch.Tensor], summary: ModelSummary) -> dict[str, torch.Tensor]:
    """The head's inputs go to the table that is the head."""
    head = next((t.name for t in summary.tensors if t.role == "head"), None)
    table = next(t.name for t in summary.tensors if t.role == "embedding")
    found = {name: values for name, values in squares.items() if name != "head"}
    return found | ({head or table: squares["head"]} if head or summary.tied else {})


def _slopes(
    stream: StreamedModel,
    groups: list[Group],
    last: ActivationFile,
    slope: ActivationFile,
    squares: dict[str, torch.Tensor],
    by_layer: Mapping[int, list[TensorInfo]],
    total: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Gradients of drawn labels' log-likelihood by the last block's outputs; gives each group's sampled tokens."""
    widest = max(sum(t.rows + t.columns for t in tensors) for tensors in by_layer.values())
    wanted = int(np.clip(SAMPLE_BYTES / (4 * widest), 96, 2048))
    share, sampled = min(1.0, wanted / total), []
    state: dict[str, torch.Tensor] = {}

    def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)[state["real"]]
        squares["head"] = squares.get("head", torch.zeros(())) + x.square().sum(0)

    handle = stream.frame.get_output_embeddings().register_forward_hook(hook)
    for group in groups:
        state["real"] = group.real
        positions = group.real.nonzero().squeeze(1)
        number = max(1, round(share * len(positions)))
        sampled.append(positions[torch.randperm(len(positions), generator=generator)[:number]])
        hidden = last.read(group.rows).requires_grad_()
        with torch.enable_grad():
            log_probs = torch.log_softmax(stream.finish(hidden, tuple(group.ids.shape))[group.counts], dim=-1)
            labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
            (gradient,) = torch.autograd.grad(log_probs.gather(1, labels).sum(), hidden)
        slope.write(group.rows, gradient)
    handle.remove()
    return sampled


def _backward(
    stream: StreamedModel,
    block: Any,
    number: int,
    groups: list[Group],
    sampled: list[torch.Tensor],
    tensors: list[TensorInfo],
    inputs: ActivationFile,
    slope: ActivationFile,
) -> dict[str, LayerSample]:
    """One block's sample; `slope` becomes the gradient by its inputs."""
    modules = {t.name: stream.frame.get_submodule(t.name.rpartition(".")[0]) for t in tensors}
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    slopes: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    state: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows = state["rows"]
            kept[name].append(args[0].detach().flatten(0, -2)[rows])
            output.register_hook(lambda g: slopes[name].append(g.flatten(0, -2)[rows]))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    for group, rows in zip(groups, sampled, strict=True):
        state["rows"] = rows
        hidden = inputs.read(group.rows).requires_grad_()
        with torch.enable_grad():
            output = stream.run(block, number, group, hidden)
            (gradient,) = torch.autograd.grad(output, hidden, slope.read(group.rows))
        slope.write(group.rows, gradient)
    for hook in hooks:
        hook.remove()
    return {name: LayerSample(inputs=torch.cat(kept[name]), gradients=torch.cat(slopes[name])) for name in modules}


def run_variants(
    stream: StreamedModel,
    windows: list[Window],
    variants: list[Variant],
    scratch: Path,
    *,
    every: bool = False,
    tell: Tell = lambda: None,
) -> list[torch.Tensor]:
    """What the last block gives at the counted positions, of each variant: (T, H), shorter windows first.

    Args:
        every: give all positions instead, padding left out.
        tell: called after each block.
    """
    hidden_size = stream.frame.get_input_embeddings().weight.shape[1]
    files = [ActivationFile(scratch / f"variant{n}", hidden_size) for n in range(len(variants))]
    groups: list[Group] = []
    for variant, file in zip(variants, files, strict=True):
        inside = stream.rounded_embedding(variant.embedding) if variant.embedding else contextlib.nullcontext()
        with inside:
            groups = stream.begin(windows, file)
    together: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, variant in enumerate(variants):
        together.setdefault(tuple(sorted(variant.grids.items())), []).append(number)
    for number in range(stream.layers):
        for chosen, members in together.items():
            with stream.block(number, dict(chosen)) as block:
                for member in members:
                    with torch.inference_mode(), stream.rounded_inputs(variants[member].activations):
                        for group in groups:
                            after = stream.run(block, number, group, files[member].read(group.rows))
                            files[member].write(group.rows, after)
        tell()
    return [torch.cat([file.read(g.rows)[g.real if every else g.counts.flatten()] for g in groups]) for file in files]


def distance(stream: StreamedModel, original: torch.Tensor, hidden: torch.Tensor, variant: Variant) -> float:
    """Mean KL between the predictions of two models by what their last blocks gave, nats per token."""
    total, piece = 0.0, batch_tokens_for(stream.frame.get_output_embeddings().weight.shape[0])
    with stream.rounded_inputs(variant.activations):
        # A rounded head is rounded once, for all positions.
        whole = stream.counted_logits(hidden, head_grid=variant.head) if variant.head else None
    for start in range(0, len(original), piece):
        some = slice(start, start + piece)
        expected = torch.log_softmax(stream.counted_logits(original[some]), dim=-1)
        with stream.rounded_inputs(variant.activations):
            logits = stream.counted_logits(hidden[some]) if whole is None else whole[some]
        total += len(expected) * mean_kl(expected, torch.log_softmax(logits, dim=-1))
    return total / max(1, len(original))


def measure_streamed(
    stream: StreamedModel,
    source: TensorSource,
    windows: list[Window],
    scored: list[Window],
    target: Target,
    fits: dict[str, tuple[str, ...]],
    scratch: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Sensitivity, dict[str, NDArray[np.float32]]]:
    """Price every grid of every tensor.

    Args:
        source: gets the importance of inputs.
        windows: calibration text.
        scored: text that is not among it.
        fits: tensor name → its grids.
        scratch: folder for activations: 4 (layers + 2 + variants) · N · H bytes.
        progress: called with (steps done, steps in all).

    Returns:
        The prices, and tensor name → (C,) importance of its inputs.
    """
    summary = source.original
    tensors = [t for t in summary.tensors if t.quantizable]
    blocks, tables = [t for t in tensors if t.layer >= 0], [t for t in tensors if t.layer < 0]
    total, done = 3 * stream.layers + 2, 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    importance: dict[str, NDArray[np.float32]] = {}
    prices: dict[str, dict[str, float]] = {}

    def use(found: dict[str, NDArray[np.float32]]) -> None:
        importance.update(found)
        source.use_importance(found)

    def see(samples: dict[str, LayerSample], weight: float) -> None:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            work = {name: pool.submit(_priced, source, name, s, fits[name], weight) for name, s in samples.items()}
            prices.update({name: task.result() for name, task in work.items()})

    streamed_importance(stream, summary, windows, scratch, use, see, tell=tell)
    activation = {g.name: g.activation for g in target.grids}
    anchors = _spread(anchors_of(fits, blocks, target), _MEASURED_ANCHORS)
    measured_grids = {t.name: _spread(fits[t.name], _MEASURED_TABLE_GRIDS) for t in tables}
    finest = {name: next((g for g in grids if activation[g] != "float"), "") for name, grids in fits.items()}
    common = ACTIVATION_BLOCKS.get(common_activation(finest, activation))
    floor = Variant(activations={} if common is None else {t.name: common for t in tensors if finest[t.name]})
    variants = [Variant(), floor]
    variants += [Variant(grids={t.name: grid for t in blocks if grid in fits[t.name]}) for grid in anchors]
    for table in tables:
        is_head = table.role == "head" or summary.tied
        for grid in measured_grids[table.name]:
            variants.append(Variant(embedding="" if table.role == "head" else grid, head=grid if is_head else ""))
    hidden = run_variants(stream, scored, variants, scratch, tell=tell)
    found = [distance(stream, hidden[0], h, v) for h, v in zip(hidden[1:], variants[1:], strict=True)]
    factors = {}
    for grid, kl in zip(anchors, found[1:], strict=False):
        summed = sum(prices[t.name][grid] for t in blocks if grid in fits[t.name])
        if summed > 1e-6:
            factors[grid] = float(np.clip(kl / summed, 0.3, 5.0))
    for tensor in blocks:
        prices[tensor.name] = {g: kl * factor_of(factors, g, target) for g, kl in prices[tensor.name].items()}
    rest = iter(found[1 + len(anchors) :])
    for table in tables:
        known = {grid: next(rest) for grid in measured_grids[table.name]}
        prices[table.name] = _table_prices(stream, source, table, known, fits[table.name])
    tell()
    return Sensitivity(kl=prices, factors=factors, floor=found[0]), importance


def _priced(
    source: TensorSource, name: str, sample: LayerSample, grids: tuple[str, ...], weight: float
) -> dict[str, float]:
    """Grid → nats of one tensor."""
    whole = source.matrix(name)
    count, columns = sample.gradients.shape[1], sample.inputs.shape[1]
    if count <= _ALL_ROWS:
        changes = {g: torch.from_numpy((source.round_rows(name, g, whole) - whole)[:count, :columns]) for g in grids}
        return {grid: fisher_kl(sample, change, weight) for grid, change in changes.items()}
    rows = np.sort(np.random.default_rng(0).choice(count, _PRICED_ROWS, replace=False))
    some = np.ascontiguousarray(whole[rows])
    del whole
    found = {}
    for grid in grids:
        change = torch.from_numpy((source.round_rows(name, grid, some) - some)[:, :columns])
        cost = (sample.inputs @ change.T * sample.gradients[:, torch.from_numpy(rows)]).square().sum(-1).mean()
        found[grid] = 0.5 * weight * float(cost) * count / len(rows)
    return found


def _table_prices(
    stream: StreamedModel, source: TensorSource, table: TensorInfo, known: dict[str, float], grids: tuple[str, ...]
) -> dict[str, float]:
    """Measured where it was, else interpolated over the error of some of the rows."""
    module = stream.frame.get_output_embeddings() if table.role == "head" else stream.frame.get_input_embeddings()
    places = np.sort(np.random.default_rng(0).choice(table.rows, min(table.rows, 2 * _ALL_ROWS), replace=False))
    rows = module.weight[torch.from_numpy(places)].numpy()
    norm = float(np.square(rows).mean()) or 1.0
    errors = {g: float(np.square(source.round_rows(table.name, g, rows) - rows).mean()) / norm for g in grids}
    return {grid: known[grid] if grid in known else interpolated(known, errors, grid) for grid in grids}


def _spread(items: Sequence[str], count: int) -> list[str]:
    """The first, the last and evenly some between, `count` at most."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[int(place)] for place in places]
