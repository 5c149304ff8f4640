"""A trained model as a folder that everything here, and transformers, opens like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgegen.common.codec import save_json
from edgegen.common.files import building, remove_tree
from edgegen.common.host import user_name
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import TOKENIZER_FILES, digest_model, quiet_transformers
from edgegen.records.model import ModelRef
from edgegen.records.training import TRAINING_FILE, Training

_CARDS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")


def save_model(model: Any, companions: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write weights and configuration, with the tokenizer, template and licence of another folder beside them.

    The model's own numbers are left as they are.

    Args:
        companions: folder whose tokenizer and licence travel along, byte for byte.
        dtype: of the stored weights.
    """
    kept = {name: value.detach().to(dtype) for name, value in model.state_dict().items()}
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=kept)
    config = folder / "config.json"
    said = json.loads(config.read_bytes())
    said.pop("torch_dtype", None)
    said["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    copy_companions(companions, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, generation settings and licence, byte for byte."""
    for name in (*TOKENIZER_FILES, *_CARDS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def stored_dtype(ref: ModelRef) -> torch.dtype:
    """The type that a checkpoint's weights are stored in."""
    found: torch.dtype = getattr(torch, Checkpoint(Path(ref.path)).dtype)
    return found


def publish(
    out: Path, training: Training, write: Callable[[Path], None], *, accelerator: Any, work: Sequence[Path]
) -> Training:
    """Put a trained model into its place, whole or not at all, by the first of several processes.

    Args:
        write: fills a folder with the model's files.
        work: folders that are needed no more.

    Returns:
        The record as it was written.
    """
    if accelerator.is_main_process:
        with building(out, mark=TRAINING_FILE, what="trained model") as folder:
            write(folder)
            training = seal(folder, training)
        for place in work:
            remove_tree(place)
    accelerator.wait_for_everyone()
    return training


def seal(folder: Path, training: Training) -> Training:
    """Write the record and the card of a model whose files are all there; the record with the model's digest."""
    sealed = msgspec.structs.replace(training, model_digest=digest_model(folder), by=user_name())
    save_json(folder / TRAINING_FILE, sealed)
    (folder / "README.md").write_text(model_card(sealed))
    return sealed


def model_card(training: Training) -> str:
    """A model in words, in the form that model hubs read."""
    before, after = training.heldout_before, training.heldout_after
    lines = [
        "---",
        "tags: [edgegen]",
        f"base_model: {training.base}",
        "---",
        "",
        f"# {training.method} of {training.base}",
        "",
        "| | |",
        "|---|---|",
        f"| made | {training.created[:10]} by {training.by or 'unknown'} |",
        f"| base | `{training.base}` `{training.base_digest[:19]}` |",
    ]
    if training.teacher:
        lines.append(f"| teacher | `{training.teacher}` `{training.teacher_digest[:19]}` |")
    lines += [
        f"| data | `{training.data}` `{training.data_digest[:19]}` |",
        f"| parameters | {training.parameters:,}, trained {training.trained_parameters:,} |",
        f"| steps | {training.steps:,} on {training.tokens:,} tokens, best {training.best_step:,}"
        + (f", stopped: {training.stopped}" if training.stopped else "")
        + " |",
        f"| seed | {training.seed} |",
    ]
    if before is not None and after is not None:
        lines.append(f"| held-out loss | {before:.4f} → {after:.4f} nats per token |")
    lines += ["", "## Settings", "", ", ".join(f"{k} {v}" for k, v in sorted(training.settings.items())) + "."]
    if training.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in training.notes)]
    lines += [
        "",
        "## Limits",
        "",
        "It was judged on held-out rows of the data above and on nothing else. Its card says of whom they speak.",
    ]
    return "\n".join(lines) + "\n"
