"""How a sentence encoder makes one vector of its tokens' vectors, as sentence-transformers wrote it down.

`modules.json` lists the steps after the transformer; `1_Pooling/config.json` says which tokens count. A checkpoint
without them is taken to be a plain encoder, whose token vectors are averaged, and a note says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.model import Pooling

ENCODER_FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta")
"""`model_type`s that turn a text into vectors."""
POOLING_FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
"""What decides an encoder's vector beside the model itself."""
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether a config.json is an encoder's."""
    return config.get("model_type") in ENCODER_FAMILIES


def read_pooling(folder: Path) -> tuple[Pooling, list[str]]:
    """The pooling of a checkpoint, with notes about what was assumed.

    Raises:
        ConfigError: files that are not JSON or not of sentence-transformers' form.
        UnsupportedError: other steps than the transformer, mean or first-token pooling, and normalising.
    """
    steps = _read(folder / "modules.json")
    if steps is None:
        note = (
            "No modules.json of sentence-transformers is there: the mean of all token vectors is taken, not normalised."
        )
        return Pooling(mode="mean", normalize=False), [note]
    try:
        kinds = [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in steps]
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{folder / 'modules.json'}: not a list of modules", hint="Download it again.") from error
    other = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    names = [kind for kind, _ in kinds]
    if other or names[:2] != ["Transformer", "Pooling"] or len(names) > 3:
        raise UnsupportedError(
            f"{folder}: the encoder's steps are {', '.join(names)}",
            hint="Known are Transformer, Pooling and after them Normalize.",
        )
    settings = _read(folder / kinds[1][1] / "config.json")
    if not isinstance(settings, dict):
        raise ConfigError(f"{folder / kinds[1][1] / 'config.json'}: missing or no object", hint="Download it again.")
    return Pooling(mode=_mode(folder, settings), normalize="Normalize" in names), _odd(folder)


def sentence_tokens(folder: Path) -> int | None:
    """The longest text in tokens that sentence-transformers lets the encoder read; None if it does not say."""
    settings = _read(folder / "sentence_bert_config.json")
    length = settings.get("max_seq_length") if isinstance(settings, dict) else None
    return int(length) if length else None


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(B, L, D) token vectors and (B, L) mask of the real tokens → (B, D) one vector a text."""
    if pooling.mode == "cls":
        vectors = hidden[:, 0]
    else:
        weights = mask.to(hidden.dtype)[:, :, None]
        vectors = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vectors, dim=-1) if pooling.normalize else vectors


def _mode(folder: Path, settings: dict[str, Any]) -> Any:
    """Older files have a switch for each way, newer ones name it."""
    chosen = [str(settings["pooling_mode"])] if "pooling_mode" in settings else []
    chosen = chosen or [
        _MODES.get(name, name) for name, on in settings.items() if name.startswith("pooling_mode_") and on
    ]
    if chosen not in (["mean"], ["cls"]):
        raise UnsupportedError(
            f"{folder}: tokens are pooled by {' and '.join(chosen) or 'nothing'}",
            hint="Known are the mean of all tokens and the first token.",
        )
    return chosen[0]


def _odd(folder: Path) -> list[str]:
    settings = _read(folder / "sentence_bert_config.json")
    if isinstance(settings, dict) and settings.get("do_lower_case"):
        return ["sentence_bert_config.json asks for lower case; texts are cut as tokenizer.json does it."]
    return []


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}", hint="Download it again.") from error
