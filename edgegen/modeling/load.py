"""Find a checkpoint, check it, and open it.

A model is a folder that `save_pretrained` wrote or a hub id. Everything that can be wrong with it is looked for
here, before minutes of work: missing or damaged weights, tensors of another shape than the configuration says, a
tokenizer with more tokens than the embedding has rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub.errors import StrictDataclassError

from edgegen.common.codec import digest_record
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.pooling import ENCODER_FAMILIES, POOLING_FILES, read_pooling
from edgegen.modeling.structure import STRUCTURE_FILE, read_structure, restructure
from edgegen.records.model import ModelRef, ModelSummary
from edgegen.records.structure import Structure

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_CARD_FILES = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FP32_PARAMETERS = 1_500_000_000
"""Above this many, calibration runs in bfloat16, so that the model is never held at four bytes a weight."""
_REFUSALS = (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError)
"""What transformers raises of a configuration that it does not know, or whose sizes do not go together."""


def find_model(source: str, *, revision: str = "") -> ModelRef:
    """A folder, or a hub id that is downloaded (or found in the local cache).

    Raises:
        ConfigError: neither a folder with a config.json nor a known hub id.
        NetworkError: the hub cannot be reached.
    """
    if not source.strip():
        raise ConfigError("no model is named", hint="Give a folder that save_pretrained wrote, or a hub id.")
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ConfigError(
                f"{folder}: no config.json in it",
                hint="Give a folder that save_pretrained wrote, or a hub id.",
            )
        return ModelRef(source=source, path=str(folder.resolve()), digest=digest_model(folder))
    if folder.exists() or not _HUB_ID.fullmatch(source):
        raise ConfigError(
            f"{source}: {'a file, not a folder' if folder.exists() else 'no such folder'}",
            hint="Give a folder with config.json and model.safetensors, or a hub id like org/name.",
        )
    return _download(source, revision)


def _download(source: str, revision: str) -> ModelRef:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        path = snapshot_download(
            source,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", *_CARD_FILES],
            ignore_patterns=["consolidated*", "*/*"],
        )
        if (Path(path) / "modules.json").exists():  # a sentence encoder says in a folder of its own how it pools
            snapshot_download(source, revision=Path(path).name, allow_patterns=["*_Pooling/config.json"])
    except GatedRepoError as error:
        raise ConfigError(
            f"{source}: the hub gives this model only to accounts that accepted its terms",
            hint="Accept them on its page, then log in with: hf auth login.",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{source}: no such folder, and no such model on the hub", hint="Check the path or the spelling."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise NetworkError(
            f"{source}: not a folder here, and the hub cannot be reached",
            hint="Check the path, or download it first.",
        ) from error
    folder = Path(path)
    return ModelRef(source=source, path=path, revision=folder.name, digest=digest_model(folder))


def digest_model(folder: Path) -> str:
    """`sha256:` over configuration, tokenizer and weights."""
    names = ["config.json", *TOKENIZER_FILES, *POOLING_FILES, STRUCTURE_FILE]
    names = [name for name in names if (folder / name).exists()]
    names += sorted(path.name for path in folder.glob("*.safetensors"))
    return digest_record({name: digest_file(folder / name) for name in names})


def travelling_files(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation settings, model card and licence: what must never be dropped."""
    return [folder / name for name in (*TOKENIZER_FILES, *_CARD_FILES) if (folder / name).exists()]


def read_config(ref: ModelRef) -> dict[str, Any]:
    """config.json as it stands.

    Raises:
        ConfigError: not JSON or no `model_type`.
    """
    path = Path(ref.path) / "config.json"
    try:
        config = json.loads(path.read_bytes())
        config["model_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path}: not a model configuration with a model_type") from error
    return dict(config)


def config_object(config: dict[str, Any]) -> Any:
    """transformers' object of a config.json.

    Raises:
        UnsupportedError: transformers does not read it.
    """
    from transformers import AutoConfig

    with quiet_transformers():
        try:
            return AutoConfig.for_model(**config)
        except _REFUSALS as error:
            raise UnsupportedError(f"transformers cannot read this configuration: {_first_line(error)}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the libraries' own progress bars and advice off stderr; errors still surface as exceptions."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def empty_model(ref: ModelRef) -> Any:
    """The architecture without weights (on torch's meta device).

    Raises:
        UnsupportedError: transformers does not know it as a causal language model or an encoder.
    """
    from transformers import AutoConfig

    structure = read_structure(Path(ref.path))
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(ref.path)
            with torch.device("meta"):
                model = without_pooler(model_class(config.model_type).from_config(config))
                return model if structure is None else restructure(model, structure, Checkpoint(Path(ref.path)).shapes)
        except _REFUSALS as error:
            kind = read_config(ref)["model_type"]
            raise UnsupportedError(
                f"{ref.source}: {kind!r} is no language model that transformers can build: {_first_line(error)}"
            ) from error


def model_class(family: str) -> Any:
    """transformers' class that builds a family's models."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModel if family in ENCODER_FAMILIES else AutoModelForCausalLM


def without_pooler(model: Any) -> Any:
    """The same model without BERT's layer for sentence pairs, which a sentence's vector does not go through."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def memory_needed(parameters: int) -> int:
    """Bytes that calibrating takes with the whole model in memory."""
    return int(parameters * _dtype_of(parameters).itemsize * 1.25) + 500_000_000


def memory_needed_by_blocks(summary: ModelSummary) -> int:
    """Bytes that calibrating takes with one block and one table of tokens in memory at a time."""
    tables = [t.weights for t in summary.tensors if t.role in ("embedding", "head")]
    return 4 * ((summary.parameters - sum(tables)) // summary.layers + max(tables)) + 500_000_000


def require_memory(ref: ModelRef, needed: int) -> None:
    """Refuse what cannot be held.

    Raises:
        DeviceError: fewer bytes are free than needed.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise DeviceError(
            f"{ref.source}: calibrating needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free",
            hint="Close other programs or use a machine with more memory.",
        )


def _dtype_of(parameters: int) -> torch.dtype:
    return torch.float32 if parameters <= _FP32_PARAMETERS else torch.bfloat16


def open_model(ref: ModelRef, *, parameters: int) -> Any:
    """The model with its weights, in evaluation mode, on the CPU.

    fp32 up to 1.5 B parameters, bf16 above. Shards are read one after the other into place.

    Raises:
        DeviceError: the weights would not fit into the free memory.
    """
    dtype = _dtype_of(parameters)
    require_memory(ref, memory_needed(parameters))
    attention = attention_kind(ref)
    structure = read_structure(Path(ref.path))
    with quiet_transformers():
        build = model_class(read_config(ref)["model_type"])
        if structure is None:
            model = build.from_pretrained(ref.path, dtype=dtype, attn_implementation=attention)
        else:
            model = _open_derived(build, ref, structure, dtype, attention)
    return without_pooler(model).eval().requires_grad_(False)


def _open_derived(build: Any, ref: ModelRef, structure: Structure, dtype: torch.dtype, attention: str) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(ref.path)
    checkpoint = Checkpoint(Path(ref.path))
    model = restructure(
        build.from_config(config, dtype=dtype, attn_implementation=attention), structure, checkpoint.shapes
    ).to(dtype)
    names = stored_names(model, checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.read(names[name]))
    return model


def attention_kind(ref: ModelRef) -> str:
    """transformers' name of how attention is computed. Gemma 2 caps scores, which torch's fused kernel cannot do."""
    return "eager" if read_config(ref)["model_type"] == "gemma2" else "sdpa"


def open_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder.

    Raises:
        ConfigError: there is none or it cannot be read.
        UnsupportedError: there is only a slow one.
    """
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not (folder / "tokenizer.json").exists():
        if (folder / "tokenizer.model").exists():
            raise UnsupportedError(
                f"{folder}: only a slow tokenizer (tokenizer.model); a device needs tokenizer.json",
                hint="Write it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
            )
        raise ConfigError(
            f"{folder}: no tokenizer.json in it",
            hint="Save the tokenizer beside the model with tokenizer.save_pretrained(...).",
        )
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers raises whatever its parsers raise
            raise ConfigError(
                f"{folder}: the tokenizer cannot be read: {_first_line(error)}",
                hint="Save the tokenizer beside the model with tokenizer.save_pretrained(...).",
            ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(
            f"{folder}: only fast tokenizers (tokenizer.json) can travel to a device",
            hint="Write one once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    return tokenizer


def check_model(ref: ModelRef, empty: Any, checkpoint: Checkpoint, tokenizer: Any) -> list[str]:
    """Compare the checkpoint with what the configuration promises.

    Returns:
        Notes about what is odd but harmless.

    Raises:
        ConfigError: missing tensors, other shapes, or a tokenizer that does not match the embedding.
    """
    stored = stored_names(empty, checkpoint)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.named_parameters()}
    missing = [name for name in expected if name not in stored]
    if missing:
        raise ConfigError(
            f"{ref.source}: {len(missing)} tensors are missing from its weights, first {missing[0]!r}",
            hint="Download the checkpoint again, or check that config.json belongs to it.",
        )
    for name, shape in expected.items():
        found = checkpoint.shapes[stored[name]]
        if found != shape:
            raise ConfigError(
                f"{ref.source}: tensor {stored[name]!r} is {list(found)}, but config.json makes it {list(shape)}",
                hint="config.json and the weights are of different models.",
            )
    rows = empty.get_input_embeddings().weight.shape[0]
    added = set(tokenizer.added_tokens_decoder)
    highest = max((i for i in tokenizer.get_vocab().values() if i < rows or i not in added), default=-1)
    if highest >= rows:
        raise ConfigError(
            f"{ref.source}: the tokenizer has ids up to {highest} but the embedding has {rows} rows",
            hint="The tokenizer is of another model, or model.resize_token_embeddings was not saved.",
        )
    unused = set(checkpoint.shapes) - set(stored.values())
    if empty.config.tie_word_embeddings:
        unused -= set(_table_names(empty))  # the same table once more
    notes = read_pooling(Path(ref.path))[1] if empty.config.model_type in ENCODER_FAMILIES else []
    if unused:
        notes.append(f"{len(unused)} stored tensors are not used by the architecture and were left out")
    return notes


def stored_names(empty: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Parameter name of the model → name in the files.

    Base models are stored without their prefix (`transformer.`, `model.`) by some, and a tied table under either of
    its two names.
    """
    prefix = empty.base_model_prefix + "."
    tables = _table_names(empty)
    found: dict[str, str] = {}
    for name, _ in empty.named_parameters():
        names = [name, name.removeprefix(prefix), prefix + name]
        if empty.config.tie_word_embeddings and name in tables:
            names += tables
        for candidate in names:
            if candidate in checkpoint.shapes:
                found[name] = candidate
                break
    return found


def _table_names(empty: Any) -> list[str]:
    """What a tied table may be stored as: embedding, head, embedding without the base model's prefix."""
    table = _name_of(empty, empty.get_input_embeddings())
    output = empty.get_output_embeddings()
    head = _name_of(empty, output) if output is not None else table
    return [table, head, table.removeprefix(empty.base_model_prefix + ".")]


def _name_of(model: Any, module: Any) -> str:
    return next(name for name, other in model.named_modules() if other is module) + ".weight"


def _first_line(error: BaseException) -> str:
    if isinstance(error, StrictDataclassError) and error.__cause__:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
