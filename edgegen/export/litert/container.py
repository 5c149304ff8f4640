"""A finished LiteRT artifact as one `.litertlm` file beside it, for LiteRT-LM and the apps that are built on it.

Such a file holds the model, the tokenizer and what an engine has to know: where texts begin and answers end, the
context's length and the chat template. Nothing is converted a second time. The model inside is the artifact's own
`model.tflite` with two changes to its list of signatures, none to graphs and weights:

- caches are called `kv_cache_k_0` instead of `k_0`, by which the engine finds them. It needs no mask as an input where
  a graph makes its own, and reads the context's length off the cache then;
- the signature for scoring is left out.

The engine differs from transformers in how it renders templates, so a few lines are put before the model's own:

- a turn's content is a list of parts there, which templates for text alone would print as JSON;
- `bos_token` and its kin are unknown there. BOS is put before a conversation by the engine, so it is empty in the
  template; the others are given.

A prompt is run in chunks of a fixed size, and the engine refuses one whose last chunk would reach over the cache's
end. Where the context is a multiple of the chunk, as in all of edgegen's profiles, prompts may fill it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import load_json, read_bytes, save_json
from edgegen.common.files import disk_errors, replacing, require_free_bytes
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export.folder import describe_files
from edgegen.records.artifact import Artifact
from edgegen.runtime.flatmodel import read_model, write_model
from edgegen.runtime.litertlm import CONTAINER_FILE, longest_prompt
from edgegen.runtime.text import Text

_METADATA, _TOKENIZER, _MODEL = "LlmMetadataProto", "HF_Tokenizer_Zlib", "TFLiteModel"
"""The file's sections, in this order."""

_PLAIN_TURNS = (
    "{%- set edgegen = namespace(turns=[]) -%}{%- for turn in messages -%}"
    "{%- set edgegen.turns = edgegen.turns + [dict(turn, content=(turn.content if turn.content is string or "
    "turn.content is none else turn.content | map(attribute='text') | join('')))] -%}"
    "{%- endfor -%}{%- set messages = edgegen.turns -%}"
)
_KEEP_SPACE = "{{ '' }}"
"""What a template begins with is not stripped behind an expression."""


def add_container(folder: Path) -> Artifact:
    """Write `model.litertlm` into an artifact's folder and enter it in artifact.json.

    It is no part of the model's files, so limits on size and all measurements stay those of `model.tflite`. Its header
    holds the time of making, so two of them differ there.

    Args:
        folder: a finished LiteRT artifact of a model that continues text.

    Returns:
        The artifact's new record.

    Raises:
        UnsupportedError: an artifact of another kind, or of a model without a token that ends answers.
        DeviceError: no space on the disk, or the file does not hold what was put into it.
    """
    artifact = load_json(folder / "artifact.json", Artifact)
    if artifact.target != "litert" or artifact.task != "causal":
        kind = f"{artifact.target} artifacts" if artifact.target != "litert" else "encoders"
        raise UnsupportedError(f"{kind} cannot be packed as .litertlm", hint="LiteRT-LM runs models that write text.")
    if not artifact.eos_ids:
        raise UnsupportedError(
            "LiteRT-LM needs a token that ends answers, and this model names none",
            hint="Give it an eos_token_id in generation_config.json, or leave --litertlm out.",
        )
    text = Text(folder)
    said = engine_metadata(text).SerializeToString()
    require_free_bytes(folder, 2 * (folder / artifact.model).stat().st_size + 1_000_000)
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".litertlm-", suffix=".tmp") as s:
        scratch = Path(s)
        (scratch / "metadata.pb").write_bytes(said)
        write_model(engine_view(read_model(folder / artifact.model)), scratch / artifact.model)
        with replacing(folder / CONTAINER_FILE) as temporary:
            _write(temporary, scratch / "metadata.pb", folder / "tokenizer.json", scratch / artifact.model)
            held = read_sections(temporary)
            put = {
                _METADATA: said,
                _TOKENIZER: read_bytes(folder / "tokenizer.json"),
                _MODEL: read_bytes(scratch / artifact.model),
            }
            if held != put:
                raise DeviceError(f"{CONTAINER_FILE}: does not hold what was put into it", hint="Export again.")
    changed = msgspec.structs.replace(
        artifact,
        files=tuple(file for file in describe_files(folder) if file.path != "artifact.json"),
        notes=(*artifact.notes, *_notes(artifact)),
    )
    save_json(folder / "artifact.json", changed)
    return changed


def engine_view(model: Any) -> Any:
    """A `ModelT` with the signatures that the engine knows; changed and returned."""
    model.signatureDefs = [found for found in model.signatureDefs if not _name(found.signatureKey).startswith("score_")]
    for signature in model.signatureDefs:
        for tensor in (*signature.inputs, *signature.outputs):
            name = _name(tensor.name)
            if re.fullmatch(r"[kv]_\d+", name):
                tensor.name = f"kv_cache_{name}"
    return model


def engine_metadata(text: Text) -> Any:
    """What the engine has to know of an artifact, as an `LlmMetadata` message."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    artifact = text.artifact
    found = llm_metadata_pb2.LlmMetadata()
    start = _start(text)
    if start:  # the engine ends the process over one that is there and empty
        found.start_token.token_ids.ids.extend(start)
    for token in artifact.eos_ids:
        found.stop_tokens.add().token_ids.ids.append(token)
    found.max_num_tokens = artifact.context_tokens
    # Other kinds lay out tools and pictures in ways of their own; this one follows the template alone.
    found.llm_model_type.generic_model.SetInParent()
    if text.has_template:
        found.jinja_prompt_template = engine_template(text.template, text.special_texts, puts_bos=bool(start))
    return found


def engine_template(template: str, special: dict[str, str], *, puts_bos: bool) -> str:
    """A chat template that the engine renders as transformers renders the given one.

    Args:
        special: `bos_token` and its kin.
        puts_bos: whether BOS comes from the engine.
    """
    known = {**special, "bos_token": ""} if puts_bos else special
    given = "".join(f"{{%- set {name} = {json.dumps(text)} -%}}" for name, text in sorted(known.items()))
    body = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)  # marks for training
    body = re.sub(r"\.get\(\s*('[^']+'|\"[^\"]+\")\s*\)", r"[\1]", body)  # a method of Python's
    return _PLAIN_TURNS + given + _KEEP_SPACE + body


def read_sections(path: Path) -> dict[str, bytes]:
    """A file's sections by kind; the tokenizer uncompressed.

    Raises:
        DeviceError: not such a file.
    """
    from litert_lm_builder import litertlm_peek
    from litert_lm_builder.litertlm_core import any_section_data_type_to_string

    try:
        sections = litertlm_peek.read_litertlm_header(str(path), io.StringIO()).SectionMetadata()
        listed = [sections.Objects(index) for index in range(sections.ObjectsLength())]
        data = path.read_bytes()
        found = {
            any_section_data_type_to_string(section.DataType()): data[section.BeginOffset() : section.EndOffset()]
            for section in listed
        }
        if _TOKENIZER in found:  # its length comes first, 8 bytes
            found[_TOKENIZER] = zlib.decompress(found[_TOKENIZER][8:])
    except Exception as error:  # the parser has no errors of its own
        raise DeviceError(f"{path}: not a .litertlm file: {error}") from error
    return found


def _write(path: Path, metadata: Path, tokenizer: Path, model: Path) -> None:
    import litert_lm_builder as library

    def said(key: str, value: str) -> Any:
        return library.Metadata(key=key, value=value, dtype=library.DType.STRING)

    builder = library.LitertLmFileBuilder()
    builder.add_system_metadata(said("Authors", "edgegen"))
    builder.add_llm_metadata(str(metadata))
    builder.add_hf_tokenizer(str(tokenizer))
    # Unless told otherwise the engine asks for 16-bit activations, which nothing here was verified with.
    precise = [said("prefer_activation_type", "fp32")]
    builder.add_tflite_model(str(model), library.TfLiteModelType.PREFILL_DECODE, additional_metadata=precise)
    with path.open("wb") as stream:
        builder.build(stream)


def _start(text: Text) -> list[int]:
    """The tokens that the engine puts before every text: BOS, if conversations begin with it, or plain texts where the
    model holds none."""
    bos = text.artifact.bos_id
    if bos is None:
        return []
    if text.has_template:
        with contextlib.suppress(ConfigError):  # a template may refuse a lone turn
            return [bos] if text.conversation([{"role": "user", "content": "x"}])[:1] == [bos] else []
    return [bos] if text.artifact.add_bos else []


def _notes(artifact: Artifact) -> list[str]:
    chunk = artifact.settings.ubatch_tokens
    whole = longest_prompt(artifact.context_tokens, chunk)
    if whole == artifact.context_tokens:
        return []
    return [
        f"LiteRT-LM takes prompts of up to {whole} tokens with {CONTAINER_FILE}: it runs them in chunks of {chunk}, "
        f"and the context of {artifact.context_tokens} is no multiple of that."
    ]


def _name(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)
