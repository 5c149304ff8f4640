"""A trained model as a folder that everything here, and transformers, opens like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import TOKENIZER_FILES, quiet_transformers
from edgegen.records.model import ModelRef

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
