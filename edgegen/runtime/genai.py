"""ONNX folders on onnxruntime-genai.

onnxruntime-genai generates; which token comes next is chosen by edgegen, as for every runtime, so tokens go in one by
one and logits come out. Two things it does not offer are done around it:

- **Scoring**: it hands out the logits of a prompt's last token, because that is what the graph computes (see
  `export/onnx/builder.py`). Every token's logits come from the same file in a session of the ONNX Runtime that
  onnxruntime-genai itself runs on, opened when it is first asked for; generation never goes through it.
- **Prompts longer than a micro-batch** go in piece by piece, which bounds the memory of activations.

The cache is allocated for the whole context when a sequence begins.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.common.codec import read_bytes
from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits, Session
from edgegen.runtime.checks import check_context, check_settings, require_file
from edgegen.runtime.onnx import FATAL, KV_TYPES, OnnxSession, reason


class OnnxGenai:
    """The `onnx` target's usual runtime."""

    name = "onnxruntime-genai"

    def version(self) -> str:
        """onnxruntime-genai's version.

        Raises:
            UnsupportedError: it is not installed.
        """
        return str(_library().__version__)

    def open(self, model: Path, settings: Settings) -> GenaiSession:
        """Load a folder's graph for the CPU.

        Raises:
            UnsupportedError: onnxruntime-genai is not installed.
            ConfigError: no such file, no genai_config.json beside it, or settings that do not fit the model.
            DeviceError: onnxruntime-genai refuses the file; the message carries its own reason.
        """
        return GenaiSession(model, settings)


class GenaiSession(Session):
    """One loaded folder with one sequence."""

    def __init__(self, model: Path, settings: Settings) -> None:
        og = _library()
        check_settings(settings, KV_TYPES)
        require_file(model)
        described = _described(model.with_name("genai_config.json"))
        check_context(model, settings.context_tokens, described.context_length)
        self._path, self._settings = model, settings
        self._model: Any = None
        self._generator: Any = None
        self._scorer: OnnxSession | None = None
        self.vocab_size = described.vocab_size
        self.context_tokens = settings.context_tokens
        self._chunk = min(settings.ubatch_tokens, settings.context_tokens)
        options = {
            "intra_op_num_threads": settings.threads,
            "inter_op_num_threads": 1,
            "log_severity_level": FATAL,
        }
        try:
            config = og.Config(str(model.parent))
            config.overlay(json.dumps({"model": {"decoder": {"filename": model.name, "session_options": options}}}))
            self._model = og.Model(config)
            self._parameters = og.GeneratorParams(self._model)
            self._parameters.set_search_options(max_length=settings.context_tokens, do_sample=False)
        except Exception as error:  # the library raises bare exceptions
            raise DeviceError(f"{model}: onnxruntime-genai refuses this file: {reason(error)}") from error

    def _prefill(self, ids: list[int]) -> Logits:
        self._generator = None  # its cache goes before the next one's is allocated
        self._generator = self._try(lambda: _library().Generator(self._model, self._parameters))
        for start in range(0, len(ids), self._chunk):
            self._append(ids[start : start + self._chunk])
        return self._last()

    def _decode(self, token: int, position: int) -> Logits:
        self._append([token])
        return self._last()

    def _score(self, ids: list[int]) -> Logits:
        if self._scorer is None:
            self._scorer = OnnxSession(self._path, self._settings)
        return self._scorer.score(ids)

    def _close(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
        self._scorer = self._generator = self._parameters = self._model = None

    def _append(self, ids: list[int]) -> None:
        self._try(lambda: self._generator.append_tokens(np.array(ids, dtype=np.int32)))

    def _last(self) -> Logits:
        logits: Logits = self._try(lambda: self._generator.get_logits()).reshape(-1)
        return logits

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # the library raises bare exceptions
            raise DeviceError(f"onnxruntime-genai could not compute: {reason(error)}") from error


class _Described(msgspec.Struct, frozen=True):
    """What is read of genai_config.json."""

    vocab_size: int
    context_length: int


def _described(path: Path) -> _Described:
    """Sizes out of genai_config.json.

    Raises:
        ConfigError: it is missing or broken.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="The artifact is incomplete; export it again.")
    try:
        return msgspec.convert(json.loads(read_bytes(path))["model"], type=_Described)
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: not a genai_config.json: {error}") from error


@functools.cache
def _library() -> Any:
    """The onnxruntime_genai module, silent and without telemetry.

    Raises:
        UnsupportedError: it is not installed or does not load here.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"ONNX folders need onnxruntime-genai: {error}", hint="Install it with: pip install 'edgegen[onnx]'"
        ) from error
    onnxruntime_genai.set_log_options(enabled=False)
    return onnxruntime_genai
