"""Healing: a restructured model learns to say again what its original says.

First the changed layers by themselves (`blockwise`), which is cheap and brings each near its place's function; then the
whole model from the original's predictions (logit distillation). Text is all it needs: no labels.

The best weights by the held-out divergence stay, those from before if none is better. A time budget becomes a number of
steps once, by timing some; the number is written down. So a run that was cut off and is called again with the same
folder, model and data does the same sums as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.common.codec import digest_record, load_json, save_json
from edgegen.common.files import disk_errors, remove_tree
from edgegen.errors import ConfigError
from edgegen.modeling.blocks import Blocks
from edgegen.modeling.structure import shared_of
from edgegen.modeling.text import Window
from edgegen.records.base import Record
from edgegen.records.healing import Healed, HealedLayers
from edgegen.techniques.blockwise import HiddenStates, Place, block_loss, groups_of, places_of
from edgegen.techniques.healing_options import (
    HealingOptions,
    cut_items,
    digest_items,
    first_of,
    items_of,
    rate_for,
    require_healing,
    shuffled,
    steps_of,
    tokens_each,
)
from edgegen.techniques.healing_weights import (
    digest_tensors,
    hold_zeros,
    load_weights,
    require_masks,
    save_weights,
    settled,
    zeros_of,
)
from edgegen.training.batches import Item
from edgegen.training.loop import Fitted, Progress, fit, heldout_loss, make_accelerator
from edgegen.training.losses import Loss, in_parts
from edgegen.training.options import Options
from edgegen.training.teacher import LiveTeacher, divergence_loss
from edgegen.training.timing import rows_at_once, seconds_a_batch, seconds_a_step

__all__ = ["HealingOptions", "heal", "items_of", "zeros_of"]

_LAYER_TOKENS = 100_000
"""Counted predictions that layers learn from where only a time is given."""
_HELDOUT_TOKENS = 4096
"""Counted predictions that layers are judged on."""
_CHECKPOINTS = 10
"""Of each stage."""
_RECORD = "healing.json"
_START = "start.safetensors"
_HEALED = "healed.safetensors"


class _State(Record, frozen=True):
    """What a folder knows of a healing that has begun."""

    identity: str
    before: float
    look_seconds: float
    """That measuring the held-out divergence took."""
    spent: float
    """Seconds, to the end of the last stage."""
    layer_tokens: int | None = None
    """Counted predictions that each changed layer is to learn from."""
    layers: tuple[HealedLayers, ...] = ()
    blockwise_tokens: int = 0
    after_blockwise: float | None = None
    steps: int | None = None
    done: Healed | None = None


def heal(
    model: Any,
    original: Any,
    kept: Sequence[int],
    changed: Collection[int],
    items: Sequence[Item],
    heldout: Sequence[Window | Item],
    folder: Path,
    options: HealingOptions,
    *,
    masks: Mapping[str, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> Healed:
    """Train a restructured model in place towards its original; it is as before where that does not succeed.

    A call that was cut off, by an error or a kill, is repeated with a model as it was before; it goes on from `folder`.
    After an error the weights are those from before.

    Args:
        model: the restructured one; its weights are float32 afterwards. Every parameter learns, shared ones and tied
            tables as one.
        original: with the same vocabulary.
        kept: the original's number of each of the model's layers; all of them if none was removed.
        changed: the model's numbers of layers whose weights or shapes changed. With those before a gap of `kept` they
            learn by themselves first.
        items: text to learn from.
        heldout: text to judge on, none of it in `items`.
        folder: for what a second call goes on with, and `healing.json` in the end. Another healing's is emptied.
        masks: parameter → where its weights may be other than zero (bool, its shape), for sparse weights.
        progress: told (steps done, steps, words) of each stage.

    Raises:
        ConfigError: options, layers or masks that do not fit, no text, or training that diverged.
        DeviceError: the disk is full.
    """
    require_healing(options)
    if original.get_input_embeddings().weight.shape[0] != model.get_input_embeddings().weight.shape[0]:
        raise ConfigError("healing needs an original with the model's own vocabulary")
    healing = _Healing(model, original, kept, changed, items, heldout, folder, options, masks or {}, progress)
    return healing.to_the_end()


class _Healing:
    def __init__(
        self,
        model: Any,
        original: Any,
        kept: Sequence[int],
        changed: Collection[int],
        items: Sequence[Item],
        heldout: Sequence[Window | Item],
        folder: Path,
        options: HealingOptions,
        masks: Mapping[str, torch.Tensor],
        progress: Progress | None,
    ) -> None:
        self.model, self.original, self.options, self.folder = settled(model), original, options, folder
        self.items = cut_items(items, options.max_tokens)
        self.heldout = cut_items(items_of(heldout), options.max_tokens)
        if not self.items or not self.heldout:
            raise ConfigError("healing needs text to learn from and other text to judge on")
        self.masks, self.progress = masks, progress or (lambda done, steps, words: None)
        require_masks(model, masks)
        self.blocks, self.original_blocks = Blocks(model), Blocks(original)
        places = places_of(kept, len(self.original_blocks.layers))
        if len(places) != len(self.blocks.layers) or not set(changed) <= set(range(len(places))):
            raise ConfigError(
                f"the model has {len(self.blocks.layers)} layers: kept names {len(places)}, changed {sorted(changed)}"
            )
        self.groups = groups_of(self.blocks.layers, places, changed) if options.blockwise else []
        self.batch = min(options.batch, len(self.items))
        accelerator = make_accelerator(self._options(1, options.rate, 1))
        self.device, self.precision = accelerator.device, accelerator.mixed_precision
        self.begun = False
        """Whether the folder is this healing's."""
        self.mark = time.perf_counter()
        """Until when time is accounted for."""
        self.rows = rows_at_once((*self.items, *self.heldout), model.get_input_embeddings().weight.shape[0])
        teacher = LiveTeacher(original, 1.0)
        self.loss = divergence_loss(teacher, kind=options.loss, alpha=options.alpha)
        self.judge = in_parts(divergence_loss(teacher, kind="forward"), self.rows)
        self.identity = digest_record(
            [
                msgspec.to_builtins(msgspec.structs.replace(options, states_bytes=0)),
                list(kept),
                sorted(changed),
                [digest_items(self.items), digest_items(self.heldout)],
                [digest_tensors(dict(m.named_parameters())) for m in (model, original)],
                digest_tensors(masks),
                shared_of(model),
            ]
        )

    def to_the_end(self) -> Healed:
        homes = [(m, next(m.parameters()).device) for m in (self.model, self.original)]
        hooks: list[Any] = []
        try:
            for module, _ in homes:
                module.to(self.device)
            self.model.requires_grad_(True)
            hooks = hold_zeros(self.model, self.masks)
            return self._healed()
        except BaseException:
            if self.begun and (self.folder / _START).is_file():
                load_weights(self.model, self.folder / _START)
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for module, home in homes:
                module.to(home).eval().requires_grad_(False)

    def _healed(self) -> Healed:
        self._begin()
        self.begun = True
        if self.state.done is not None:
            if self.state.done.kept:
                load_weights(self.model, self.folder / _HEALED)
            return self.state.done
        if self.groups and self.state.after_blockwise is None:
            self._blockwise()
        else:
            self._take_layers()
        return self._end(self._whole())

    # Stages

    def _begin(self) -> None:
        path = self.folder / _RECORD
        found = load_json(path, _State) if path.is_file() else None
        if found is not None and found.identity == self.identity:
            self.state = found
            return
        remove_tree(self.folder)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True)
        save_weights(self.model, self.folder / _START)
        began = time.perf_counter()
        before = self._distance()
        self.state = _State(self.identity, before, time.perf_counter() - began, 0.0)
        self._note()

    def _blockwise(self) -> None:
        if self.state.layer_tokens is None:
            self._note(layer_tokens=self._layer_tokens())
        if not self.state.layer_tokens:
            return
        chosen = first_of(shuffled(self.items, self.options.seed), self.state.layer_tokens)
        judged = first_of(self.heldout, _HELDOUT_TOKENS)
        every = [msgspec.structs.replace(item, index=number) for number, item in enumerate((*chosen, *judged))]
        states = HiddenStates(self.original_blocks, every, self.folder / "states", most_bytes=self.options.states_bytes)
        waiting = list(self.groups)
        while waiting:
            states.advance({boundary for group in waiting for p in group for boundary in (p.start, p.end)})
            for group in [g for g in waiting if max(place.end for place in g) <= states.boundary]:
                self._fit_layers(group, states, every[: len(chosen)], every[len(chosen) :])
                waiting.remove(group)
        remove_tree(self.folder / "states")
        after = self._distance()
        if after >= self.state.before:
            load_weights(self.model, self.folder / _START)
        self._note(after_blockwise=after)

    def _fit_layers(
        self, group: list[Place], states: HiddenStates, items: Sequence[Item], heldout: Sequence[Item]
    ) -> None:
        numbers = tuple(place.layer for place in group)
        modules = torch.nn.ModuleList([self.blocks.layers[number] for number in numbers])
        saved = self._file(numbers)
        if any(entry.layers == numbers for entry in self.state.layers):
            load_weights(modules, saved)
            return
        batch = min(self.options.batch, len(items))
        steps = steps_of(items, self.state.layer_tokens or 0, batch)
        loss = block_loss(self.blocks, group, states)
        rate = rate_for(self.options.blockwise_rate, heldout_loss(modules, heldout, loss=loss))
        options = self._options(steps, rate, batch, spent=self.state.spent)
        words = ("layer " if len(numbers) == 1 else "layers ") + ", ".join(map(str, numbers))
        fitted = self._fit(modules, items, heldout, options, saved.stem, loss, loss, words)
        save_weights(modules, saved)
        entry = HealedLayers(numbers, fitted.steps, fitted.heldout_before or 0.0, fitted.heldout_after or 0.0)
        tokens = max(self.state.blockwise_tokens, fitted.tokens)
        self._note(layers=(*self.state.layers, entry), blockwise_tokens=tokens)
        remove_tree(self.folder / saved.stem)

    def _take_layers(self) -> None:
        """What layers learnt in an earlier call, if it was any good."""
        if self.state.after_blockwise is not None and self.state.after_blockwise < self.state.before:
            for entry in self.state.layers:
                modules = torch.nn.ModuleList([self.blocks.layers[number] for number in entry.layers])
                load_weights(modules, self._file(entry.layers))

    def _whole(self) -> Fitted | None:
        if self.state.steps is None:
            self._note(steps=self._steps())
        steps, options = self.state.steps or 0, self.options
        if not steps:
            return None
        course = self._options(steps, rate_for(options.rate, self._reached()), self.batch, spent=self.state.spent)
        course = msgspec.structs.replace(course, micro_batch=min(self.rows, self.batch))
        return self._fit(self.model, self.items, self.heldout, course, "whole", self.loss, self.judge, "all layers")

    def _end(self, fitted: Fitted | None) -> Healed:
        state = self.state
        reached = self._reached()
        if fitted is not None:
            # In bfloat16 the loop's measurements are coarse: the weights are judged as they will be used.
            measured = fitted.heldout_after if self.precision == "no" else None
            reached = self._distance() if measured is None else measured
        better = reached < state.before
        if better:
            save_weights(self.model, self.folder / _HEALED)
        else:
            load_weights(self.model, self.folder / _START)
        healed = Healed(
            tokens=state.blockwise_tokens + (fitted.tokens if fitted else 0),
            seconds=state.spent + time.perf_counter() - self.mark,
            kl_before=state.before,
            kl_after=reached if better else state.before,
            kept=better,
            blockwise_tokens=state.blockwise_tokens,
            kl_blockwise=state.after_blockwise,
            layers=state.layers,
        )
        self._note(done=healed)
        remove_tree(self.folder / "whole")
        for path in (*self.folder.glob("layers-*.safetensors"), self.folder / _START):
            path.unlink(missing_ok=True)
        return healed

    # Budgets

    def _layer_tokens(self) -> int:
        """Predictions that every changed layer can learn from."""
        options = self.options
        wanted = options.blockwise_share * options.tokens or _LAYER_TOKENS
        if not options.seconds:
            return round(wanted)
        places = [place for group in self.groups for place in group]
        length = round(float(np.mean([len(item.ids) for item in self.items])))
        generator = torch.Generator().manual_seed(options.seed)
        given = torch.randn(self.batch, length, self.model.config.hidden_size, generator=generator).to(self.device)

        def learn() -> None:
            for place in places:
                self.blocks.run(place.layer, given).square().mean().backward()

        modules = torch.nn.ModuleList([self.blocks.layers[place.layer] for place in places])
        step = self.batch * tokens_each(self.items)
        learning = seconds_a_step(modules, learn) / step
        asking = self.state.look_seconds / 2 / sum(item.tokens for item in self.heldout)
        left = options.blockwise_share * options.seconds - self.state.look_seconds
        found = min(wanted, left / (learning + asking))
        return round(found) if found >= step else 0

    def _steps(self) -> int:
        """Of the whole model."""
        options, state = self.options, self.state
        most = steps_of(self.items, max(1, options.tokens - state.blockwise_tokens), self.batch)
        if not options.seconds:
            return most
        seconds = seconds_a_batch(
            self.model, self.items, self.loss, batch=self.batch, rows=self.rows, seed=options.seed
        )
        spent = state.spent + time.perf_counter() - self.mark + (options.looks + 1) * state.look_seconds
        found = max(0, int((options.seconds - spent) / seconds))
        return min(most, found) if options.tokens else found

    # Means

    def _options(self, steps: int, rate: float, batch: int, *, spent: float = 0.0) -> Options:
        """Of a stage. The steps fit the time; should the machine become slower, the stage ends with the time."""
        seconds = self.options.seconds
        return Options(
            steps=steps,
            batch=batch,
            rate=rate,
            weight_decay=0.0,
            max_tokens=self.options.max_tokens,
            seed=self.options.seed,
            evaluate_every=max(1, steps // self.options.looks),
            save_every=max(1, steps // _CHECKPOINTS),
            bf16=self.options.bf16,
            max_seconds=max(1e-3, seconds - spent) if seconds else 0.0,
        )

    def _fit(
        self,
        model: Any,
        items: Sequence[Item],
        heldout: Sequence[Item],
        options: Options,
        stage: str,
        loss: Loss,
        judge: Loss,
        words: str,
    ) -> Fitted:
        began = time.perf_counter()
        accelerator = make_accelerator(options)
        fitted = fit(
            model,
            items,
            heldout,
            options,
            self.folder / stage,
            identity=f"{self.identity} {stage}",
            loss=loss,
            judge=judge,
            progress=lambda done, steps, said: self.progress(done, steps, f"{words}: {said}"),
            accelerator=accelerator,
        )
        for name in ("forward", "_original_forward"):  # what accelerate put before the model's own to compute in bf16
            vars(model).pop(name, None)
        self.mark -= max(0.0, fitted.seconds - (time.perf_counter() - began))  # what a call before this one spent
        return fitted

    def _distance(self) -> float:
        """Mean KL of the original's held-out predictions to the model's, nats per token."""
        return max(0.0, heldout_loss(self.model, self.heldout, loss=self.judge))

    def _reached(self) -> float:
        """The divergence before the whole model learns."""
        after = self.state.after_blockwise
        return self.state.before if after is None else min(self.state.before, after)

    def _file(self, layers: tuple[int, ...]) -> Path:
        return self.folder / f"layers-{'-'.join(map(str, layers))}.safetensors"

    def _note(self, **changes: Any) -> None:
        now = time.perf_counter()
        self.state = msgspec.structs.replace(self.state, **changes, spent=self.state.spent + now - self.mark)
        self.mark = now
        with disk_errors(self.folder):
            save_json(self.folder / _RECORD, self.state)
