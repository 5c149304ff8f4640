"""Fine-tune a model on examples: adapters through `peft`, or all of it.

The result is a folder like the base model's: adapters are merged into the weights, and kept beside them in `adapter/`
as `peft` writes them. Where an example ends with an answer only the answer is learnt.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgegen.common.codec import digest_record, load_json
from edgegen.common.files import require_place
from edgegen.modeling.load import open_model
from edgegen.records.base import Record
from edgegen.records.data import Example
from edgegen.records.model import ModelRef
from edgegen.records.training import TRAINING_FILE, Training
from edgegen.training.batches import encode
from edgegen.training.loop import Fitted, Progress, fit, make_accelerator
from edgegen.training.options import Options
from edgegen.tune.adapters import Adapter, open_quantized, require_method, with_trained_parts
from edgegen.tune.save import copy_companions, publish, save_model, stored_dtype


class Data(Record, frozen=True):
    """What is learnt from, and what is judged on."""

    source: str
    digest: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    lineage: str = ""


def finetune(
    ref: ModelRef,
    tokenizer: Any,
    data: Data,
    *,
    parameters: int,
    method: str,
    adapter: Adapter,
    options: Options,
    out: Path,
    progress: Progress | None = None,
) -> Training:
    """Train and write the model to `out`; work is kept beside it, so that the same call goes on where it was.

    Args:
        parameters: of the model, to see whether it fits the memory.
        method: one of `METHODS`.

    Raises:
        ConfigError: an unknown method, too little data, or training that diverged.
        UnsupportedError: the method cannot be had here.
        DeviceError: memory or disk does not suffice.
    """
    require_method(method)
    identity = digest_record([ref.digest, data.digest, method, msgspec.to_builtins(adapter), result_of(options)])
    if (done := finished(out, identity)) is not None:
        return done
    items = encode(tokenizer, data.train, max_tokens=options.max_tokens)
    heldout = encode(tokenizer, data.validation, max_tokens=options.max_tokens) if data.validation else []
    model = open_quantized(ref.path) if method == "qlora" else open_model(ref, parameters=parameters)
    torch.manual_seed(options.seed)
    model = with_trained_parts(model, method, adapter)
    accelerator = make_accelerator(options)
    work = out.with_name(out.name + ".training")
    fitted = fit(model, items, heldout, options, work, identity=identity, progress=progress, accelerator=accelerator)
    notes = []
    if method == "prompt-tuning":
        notes.append(
            "soft prompts are kept as a peft adapter only: no runtime here takes vectors for tokens, so compress needs "
            "the base model, or another method"
        )
    training = training_of(
        fitted,
        model,
        parameters=parameters,
        method=method,
        ref=ref,
        data=data,
        options=options,
        settings={} if method == "full" else {k: str(v) for k, v in msgspec.to_builtins(adapter).items()},
        notes=tuple(notes),
        identity=identity,
    )
    return publish(
        out, training, lambda folder: _write(model.cpu(), ref, method, folder), accelerator=accelerator, work=(work,)
    )


def _write(model: Any, ref: ModelRef, method: str, folder: Path) -> None:
    base = Path(ref.path)
    if method == "full":
        save_model(model, base, folder, dtype=stored_dtype(ref))
        return
    if method == "prompt-tuning":
        model.save_pretrained(folder / "adapter")
        copy_companions(base, folder)
        return
    model.save_pretrained(folder / "adapter")
    if method == "qlora":  # merged into the unrounded weights
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(whole, folder / "adapter")
    save_model(model.merge_and_unload(), base, folder, dtype=stored_dtype(ref))


def training_of(
    fitted: Fitted,
    model: Any,
    *,
    parameters: int,
    method: str,
    ref: ModelRef,
    data: Data,
    options: Options,
    settings: dict[str, str],
    identity: str,
    notes: tuple[str, ...] = (),
    teacher: ModelRef | None = None,
) -> Training:
    """The record of a run."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Training(
        schema=1,
        method=method,
        base=ref.source,
        base_digest=ref.digest,
        data=data.source,
        data_digest=data.digest,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        steps=fitted.steps,
        tokens=fitted.tokens,
        trained_parameters=trained,
        parameters=parameters,
        heldout_before=fitted.heldout_before,
        heldout_after=fitted.heldout_after,
        best_step=fitted.best_step,
        losses=fitted.losses,
        seconds=fitted.seconds,
        tokens_per_s=fitted.tokens_per_s,
        processes=fitted.processes,
        device=fitted.device,
        stopped=fitted.stopped,
        resumed=fitted.resumed,
        settings={**{k: str(v) for k, v in msgspec.to_builtins(options).items()}, **settings},
        teacher=teacher.source if teacher else "",
        teacher_digest=teacher.digest if teacher else "",
        notes=notes,
        lineage=data.lineage,
        identity=identity,
    )


def finished(out: Path, identity: str) -> Training | None:
    """The record of this very run, where it is done already.

    Raises:
        ConfigError: something else is at `out`, which the run would not replace.
    """
    require_place(out, mark=TRAINING_FILE, what="trained model")
    if not (out / TRAINING_FILE).is_file():
        return None
    found = load_json(out / TRAINING_FILE, Training)
    return found if found.identity == identity else None


def result_of(options: Options) -> dict[str, Any]:
    """The options that decide a run's result; how often it saves, and what is in memory at once, do not."""
    said: dict[str, Any] = msgspec.to_builtins(options)
    for name in ("micro_batch", "save_every", "max_seconds"):
        said.pop(name)
    return said
