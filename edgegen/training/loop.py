"""The loop: steps, looks at the held-out loss, checkpoints, and the best weights in the end.

It stands on `accelerate`: one process on a CPU or GPU, several under `accelerate launch` (DDP or FSDP), the same code.
The batch of a step is the same however many processes share it, and so is its loss: each process sums its own rows,
divides by the whole batch's weight, and gradients are added up.

A checkpoint is a folder that is renamed into place when it is whole. It holds the trained parameters, the optimiser,
the random generators and what was measured; the data's order follows from the step. A run that was killed and taken
up again does the same sums as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import disk_errors, remove_tree
from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.training import Measured
from edgegen.training.batches import Item, Order, collate
from edgegen.training.losses import Loss, cross_entropy
from edgegen.training.options import Options

Progress = Callable[[int, int, str], None]
"""(steps done, steps, words)."""

_STATE = "state.json"
_HELDOUT_TOKENS = 4096
"""Padded tokens of a held-out batch."""


class State(Record, frozen=True):
    """What a checkpoint knows besides tensors."""

    identity: str
    """Digest of everything that decides the run's result."""
    step: int
    tokens: int
    seconds: float
    losses: tuple[Measured, ...]
    best_step: int
    best: float | None
    """Least held-out loss; None before the first look, and where nothing is held out."""
    since_best: int
    """Looks since then."""
    resumed: int
    running: float = 0.0
    """Sum of the steps' losses since the last look."""
    seen: int = 0
    """Steps since then."""


class Fitted(msgspec.Struct, frozen=True):
    """How a run went. The model holds the weights of `best_step`."""

    steps: int
    tokens: int
    seconds: float
    losses: tuple[Measured, ...]
    heldout_before: float | None
    heldout_after: float | None
    best_step: int
    stopped: str
    resumed: int
    processes: int
    device: str

    @property
    def tokens_per_s(self) -> float:
        """Counted tokens learnt from a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def make_accelerator(options: Options, *, cpu: bool = False) -> Any:
    """The machinery of one process or several, as `accelerate launch` says.

    Those made before are of no use any more if they computed in another type: accelerate has one state for all.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    bf16 = torch.cuda.is_available() if options.bf16 is None else options.bf16
    precision = "bf16" if bf16 else "no"
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=precision)


def fit(
    model: Any,
    items: Sequence[Item],
    heldout: Sequence[Item],
    options: Options,
    folder: Path,
    *,
    identity: str,
    loss: Loss = cross_entropy,
    judge: Loss = cross_entropy,
    progress: Progress | None = None,
    accelerator: Any = None,
) -> Fitted:
    """Train a model's parameters that want gradients, in place.

    Args:
        items: to learn from; their `index` is their place.
        heldout: to judge on; empty: the last weights are kept.
        folder: for checkpoints; one of the same `identity` is taken up, another's is thrown away.
        identity: digest of everything that decides the result besides the options.
        loss: of a batch, see `losses`.
        judge: the loss of held-out batches, by which the best weights are chosen.

    Raises:
        ConfigError: the data is smaller than a batch, or the loss is not finite any more: the step is named, and the
            last checkpoint stays.
        DeviceError: the disk is full; the last checkpoint stays.
    """
    run = _Run(model, items, heldout, options, folder, identity, loss, judge, accelerator or make_accelerator(options))
    return run.to_the_end(progress or (lambda done, steps, words: None))


def heldout_loss(model: Any, items: Sequence[Item], accelerator: Any = None, loss: Loss = cross_entropy) -> float:
    """Mean loss of counted predictions, nats per token; weights of rows do not count here."""
    processes, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    device = accelerator.device if accelerator else next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    plain = [msgspec.structs.replace(item, weight=1.0, shares=None) for item in items]
    ordered = sorted(plain, key=lambda item: (len(item.ids), item.index))[rank::processes]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for group in _groups(ordered):
            batch = collate([[item] for item in group], packed=False).to(device)
            total[0] += loss(model, batch).double()
            total[1] += sum(item.tokens for item in group)
    model.train(was_training)
    if processes > 1:
        total = accelerator.reduce(total, reduction="sum")
    return float(total[0] / total[1])


def _groups(ordered: Sequence[Item]) -> list[list[Item]]:
    groups: list[list[Item]] = []
    for item in ordered:
        if groups and len(item.ids) * (len(groups[-1]) + 1) <= _HELDOUT_TOKENS:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


class _Run:
    def __init__(
        self,
        model: Any,
        items: Sequence[Item],
        heldout: Sequence[Item],
        options: Options,
        folder: Path,
        identity: str,
        loss: Loss,
        judge: Loss,
        accelerator: Any,
    ) -> None:
        self.options, self.heldout, self.folder, self.loss = options, heldout, folder, loss
        self.identity, self.judge, self.accelerator = identity, judge, accelerator
        self.order = Order(
            items,
            rows=options.batch,
            seed=options.seed,
            packed_tokens=options.max_tokens if options.packed else 0,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        torch.manual_seed(options.seed)
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(model, options))
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self.trained:
            raise ConfigError("the model has no parameter to train")
        accelerator.register_save_state_pre_hook(self._only_trained)
        accelerator.register_load_state_pre_hook(self._load_trained)
        self.state = State(identity, 0, 0, 0.0, (), 0, None, 0, 0)

    def to_the_end(self, progress: Progress) -> Fitted:
        options, last = self.options, self.options.steps
        self._resume()
        if self.heldout and not self.state.losses:
            first = heldout_loss(self.model, self.heldout, self.accelerator, self.judge)
            self._note(Measured(0, first, first), first)
            self._keep_best()
        began, before = time.perf_counter(), self.state.seconds
        stopped = ""
        self.model.train()
        step = self.state.step
        while step < last and not stopped:
            value, tokens, overtime = self._step(step, before + time.perf_counter() - began)
            step += 1
            self.state = msgspec.structs.replace(
                self.state,
                step=step,
                tokens=self.state.tokens + tokens,
                seconds=before + time.perf_counter() - began,
                running=self.state.running + value,
                seen=self.state.seen + 1,
            )
            words = f"loss {value:.4f}"
            if overtime:
                stopped = "time"
            if step % options.look_every == 0 or step == last or stopped:
                found = heldout_loss(self.model, self.heldout, self.accelerator, self.judge) if self.heldout else None
                self._note(Measured(step, self.state.running / self.state.seen, found), found)
                words += f", held out {found:.4f}" if found is not None else ""
                if self.state.best_step == step:
                    self._keep_best()
                if options.patience and self.state.since_best >= options.patience:
                    stopped = stopped or "early stop"
                before_any = self.state.losses[0].heldout
                if options.worst and found is not None and before_any is not None:
                    stopped = stopped or ("worse" if found > options.worst * before_any else "")
                self.model.train()
            progress(step, last, words)
            if step % options.keep_every == 0 and step < last and not stopped:
                self._save()
        self._take_best()
        return self._fitted(stopped)

    def _fitted(self, stopped: str) -> Fitted:
        state = self.state
        looks = [entry for entry in state.losses if entry.heldout is not None]
        return Fitted(
            steps=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            losses=state.losses,
            heldout_before=looks[0].heldout if looks else None,
            heldout_after=state.best if looks else None,
            best_step=state.best_step if looks else state.step,
            stopped=stopped,
            resumed=state.resumed,
            processes=self.accelerator.num_processes,
            device=str(self.accelerator.device),
        )

    def _step(self, step: int, seconds: float) -> tuple[float, int, bool]:
        """Learn from one batch: its mean loss, its counted tokens, whether the time is over."""
        options, accelerator = self.options, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(step, options)
        batch, weight = self.order.at(step)
        size = options.micro_batch or options.batch
        parts = [batch.items[start : start + size] for start in range(0, len(batch.items), size)]
        total = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        for number, part in enumerate(parts):
            piece = collate(part, packed=options.packed).to(accelerator.device)
            with accelerator.no_sync(self.model) if number + 1 < len(parts) else contextlib.nullcontext():
                with accelerator.autocast():
                    summed = self.loss(self.model, piece)
                # Gradients of processes are averaged: times their number they are added up.
                accelerator.backward(summed / weight * accelerator.num_processes)
            total[0] += summed.detach().double()
            total[1] += sum(item.tokens for row in part for item in row)
        total[2] = float(0 < options.max_seconds <= seconds)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, reduction="sum")
        value = float(total[0]) / weight
        if not math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)
            raise ConfigError(
                f"training diverged: the loss of step {step + 1} is {value}",
                hint=f"Lower --rate (now {options.rate:g}); the weights of step {self._saved()} are kept.",
            )
        norm = accelerator.clip_grad_norm_(self.model.parameters(), options.clip)
        if not math.isfinite(float(norm)):
            raise ConfigError(
                f"training diverged: the gradient of step {step + 1} is not finite",
                hint=f"Lower --rate (now {options.rate:g}); the weights of step {self._saved()} are kept.",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value, int(total[1]), bool(total[2])

    def _note(self, measured: Measured, heldout: float | None) -> None:
        state = self.state
        better = heldout is not None and (state.best is None or heldout < state.best)
        self.state = msgspec.structs.replace(
            state,
            losses=(*state.losses, measured),
            best=heldout if better else state.best,
            best_step=measured.step if better else state.best_step,
            since_best=0 if better else state.since_best + 1,
            running=0.0,
            seen=0,
        )

    # Checkpoints

    def _only_trained(self, models: list[Any], weights: list[Any], _: str) -> None:
        """Frozen parameters come from the base model: a checkpoint need not hold them."""
        for number, state in enumerate(weights):
            weights[number] = {name: value for name, value in state.items() if name in self.trained}

    def _load_trained(self, models: list[Any], folder: str) -> None:
        from safetensors.torch import load_file

        while models:
            model = models.pop()
            found = load_file(Path(folder) / "model.safetensors")
            self.accelerator.unwrap_model(model).load_state_dict(found, strict=False)

    def _saved(self) -> int:
        path = self.folder / "checkpoint" / _STATE
        return load_json(path, State).step if path.is_file() else 0

    def _save(self) -> None:
        place, new = self.folder / "checkpoint", self.folder / "checkpoint.tmp"
        accelerator = self.accelerator
        with disk_errors(self.folder):
            if accelerator.is_main_process:
                remove_tree(new)
                new.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(new))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                save_json(new / _STATE, self.state)
                old = self.folder / "checkpoint.old"
                remove_tree(old)
                if place.exists():
                    place.replace(old)
                new.replace(place)
                remove_tree(old)
            accelerator.wait_for_everyone()

    def _resume(self) -> None:
        place, old = self.folder / "checkpoint", self.folder / "checkpoint.old"
        if self.accelerator.is_main_process:
            if not place.exists() and old.exists():  # killed between two renames
                old.replace(place)
            found = load_json(place / _STATE, State) if (place / _STATE).is_file() else None
            if found is None or found.identity != self.identity:
                remove_tree(self.folder)
        self.accelerator.wait_for_everyone()
        if (place / _STATE).is_file():
            found = load_json(place / _STATE, State)
            self.accelerator.load_state(str(place))
            self.state = msgspec.structs.replace(found, resumed=found.resumed + 1)

    def _keep_best(self) -> None:
        from safetensors.torch import save_file

        state = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            kept = {n: v.detach().cpu().contiguous().clone() for n, v in state.items() if n in self.trained}
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                temporary = self.folder / "best.tmp"
                save_file(kept, temporary, metadata={"step": str(self.state.best_step)})
                temporary.replace(self.folder / f"best-{self.state.best_step}.safetensors")
                wanted = {self.state.best_step, self._best_saved()}  # the checkpoint may still speak of the one before
                for path in self.folder.glob("best-*.safetensors"):
                    if path.name not in {f"best-{step}.safetensors" for step in wanted}:
                        path.unlink()

    def _best_saved(self) -> int:
        path = self.folder / "checkpoint" / _STATE
        return load_json(path, State).best_step if path.is_file() else -1

    def _take_best(self) -> None:
        from safetensors.torch import load_file

        self.accelerator.wait_for_everyone()
        if not self.heldout or self.state.best_step == self.state.step:
            return
        found = load_file(self.folder / f"best-{self.state.best_step}.safetensors")
        self.accelerator.unwrap_model(self.model).load_state_dict(found, strict=False)


def rate_at(step: int, options: Options) -> float:
    """The learning rate of a step: a linear rise, then a cosine down to `least_rate` of the highest."""
    rise = max(1, round(options.steps * options.warmup))
    if step < rise:
        return options.rate * (step + 1) / rise
    done = (step - rise) / max(1, options.steps - rise)
    return options.rate * (options.least_rate + (1 - options.least_rate) * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(model: Any, options: Options) -> torch.optim.Optimizer:
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in wanted if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=options.rate, betas=options.betas)
