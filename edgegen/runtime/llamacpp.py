"""GGUF files on llama.cpp, through the C functions that llama-cpp-python binds.

The `Llama` class of that package keeps a (context, vocabulary) score array, warms up and prints; a measured
device must do none of this. So the C functions are called directly: one model, one context, one batch, logits
copied out chunk by chunk.

Decisions that govern what is measured:

- **Weights are read into memory and rearranged** (`LOAD_MODE`, `USE_EXTRA_BUFTS`): llama.cpp's CPU backend then runs
  its fastest kernels for q4_0, q4_k, iq4_nl and q2_k (decoding 20-30 % faster here). With a mapped file both
  arrangements would stay resident (133 MB instead of 105 for a 57 M model); read into memory, one does.
- **Flash attention is on**: plain attention holds a matrix of (heads, ubatch, context) floats, 7 MB for a width of 768
  with 2,048 tokens, and a quantised value cache exists only with the fused kernel. Plain attention decodes faster only
  where heads are very small (3 times with heads of 8 values, 6 % with 32).
- **Generation computes one row of logits a call** (`n_outputs_max` 1); scoring needs a row for each token, so it has a
  context of its own, opened when it is first asked for.
- **Windows are cached as windows** (`swa_full` off): a session never goes back inside a sequence, it only
  clears.
- **The cache is larger than asked for**: llama.cpp rounds a context up to a multiple of 256 tokens when it
  allocates. A session still refuses what is beyond the asked number, so that a measurement is of the plan's
  context.
- **A LoRA file is loaded before the first context and set on each**: llama.cpp plans a context's memory with the
  adapters that it knows. The base's weights stay as they are; the two narrow products are computed beside them.
- **llama.cpp's log is kept, not printed**: when a file is refused the C function returns NULL, and the reason
  is only in the log.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

import collections
import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits, Session
from edgegen.runtime.checks import check_context, check_settings, require_file

USE_EXTRA_BUFTS = True
"""Whether llama.cpp may rearrange weights for the processor's matrix kernels when it loads them."""

LOAD_MODE = "none"
"""How weights are read: `none` copies them into anonymous memory, `mmap` maps the file."""

_ERROR, _CONTINUED = 4, 5
"""ggml's log levels; 5 continues the line before."""

GGML_TYPES = {"f16": 1, "q8_0": 8, "f32": 0}
"""The cache's types → ggml's numbers."""

_log: collections.deque[tuple[int, str]] = collections.deque(maxlen=400)


class LlamaCpp:
    """The `gguf` target's runtime."""

    name = "llama.cpp"

    def version(self) -> str:
        """llama-cpp-python's version, which pins one llama.cpp.

        Raises:
            UnsupportedError: it is not installed.
        """
        return str(library().__version__)

    def open(self, model: Path, settings: Settings, adapter: Path | None = None) -> LlamaSession:
        """Load a GGUF file for the CPU.

        Args:
            adapter: a LoRA file in GGUF that is put over the model's weights, with the strength that it asks for.

        Raises:
            UnsupportedError: llama-cpp-python is not installed, or an adapter that is more than a LoRA.
            ConfigError: no such file, or settings outside what llama.cpp takes.
            DeviceError: llama.cpp refuses a file or cannot allocate; the message carries its own reason.
        """
        return LlamaSession(model, settings, adapter)

    def open_vocabulary(self, model: Path) -> Vocabulary:
        """Load only the tokenizer of a GGUF file, which may hold no tensors at all.

        Raises:
            UnsupportedError: llama-cpp-python is not installed.
            ConfigError: no such file.
            DeviceError: llama.cpp refuses the metadata; the message carries its own reason.
        """
        return Vocabulary(model)


class Vocabulary:
    """llama.cpp's own tokenizer for one file, without weights. A context manager."""

    def __init__(self, model: Path) -> None:
        self._lib = library()
        self._model: Any = load_model(self._lib, model, vocab_only=True)
        self._cutter = _Cutter(self._lib, self._model)
        self.size = self._cutter.size

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """Token ids of a text without BOS or EOS.

        Args:
            text: any string; the empty one has no tokens.
            parse_special: whether the spelling of a control token stands for that token.

        Raises:
            ConfigError: the vocabulary is closed, or has no tokens for a character.
        """
        if self._model is None:
            raise ConfigError("this vocabulary is closed")
        return self._cutter.tokenize(text, parse_special)

    def close(self) -> None:
        """Free the vocabulary; calling it again does nothing."""
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Vocabulary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LlamaSession(Session):
    """One loaded model with one sequence."""

    def __init__(self, model: Path, settings: Settings, adapter: Path | None = None) -> None:
        self._lib = lib = library()
        check_settings(settings, GGML_TYPES)
        if adapter is not None:
            require_file(adapter)
        self._model: Any = load_model(lib, model)
        self._context: Any = None
        """The one in use, out of `_contexts`."""
        self._contexts: dict[int, Any] = {}
        """Rows of logits a call → context."""
        self._batch: Any = None
        try:
            self._cutter = _Cutter(lib, self._model)
            self.vocab_size = self._cutter.size
            self.context_tokens = settings.context_tokens
            longest = int(lib.llama_model_n_ctx_train(self._model))
            # A learned position table would be read past its end, which ends the process.
            check_context(model, settings.context_tokens, longest)
            self._chunk = min(settings.ubatch_tokens, settings.context_tokens)
            lora = None if adapter is None else _load_adapter(lib, self._model, adapter)
            self._open_context = functools.partial(_new_context, lib, self._model, lora, model, settings, self._chunk)
            self._context = self._contexts[1] = self._open_context(1)
            if not lib.llama_get_memory(self._context):
                raise DeviceError(f"{model}: has no cache and so continues no text: an encoder")
            self._batch = lib.llama_batch_init(self._chunk, 0, 1)
        except BaseException:
            self.close()
            raise
        for index in range(self._chunk):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """Token ids of a text by the file's own tokenizer, without BOS or EOS.

        Raises:
            ConfigError: the session is closed, or the vocabulary has no tokens for a character.
        """
        if self._closed:
            raise ConfigError("this session is closed")
        return self._cutter.tokenize(text, parse_special)

    def _prefill(self, ids: list[int]) -> Logits:
        self._clear(rows=1)
        for start in range(0, len(ids), self._chunk):
            self._compute(ids[start : start + self._chunk], start, every_logit=False)
        return self._last()

    def _decode(self, token: int, position: int) -> Logits:
        self._compute([token], position, every_logit=False)
        return self._last()

    def _score(self, ids: list[int]) -> Logits:
        self._clear(rows=self._chunk)
        logits = np.empty((len(ids), self.vocab_size), dtype=np.float32)
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            self._compute(chunk, start, every_logit=True)
            source = self._lib.llama_get_logits(self._context)
            logits[start : start + len(chunk)] = np.ctypeslib.as_array(source, (len(chunk), self.vocab_size))
        return logits

    def _close(self) -> None:
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        for context in self._contexts.values():
            self._lib.llama_free(context)
        self._contexts.clear()
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def _clear(self, *, rows: int) -> None:
        """Take the context with that many rows of logits and forget the sequence before."""
        if rows not in self._contexts:
            self._contexts[rows] = self._open_context(rows)
        self._context = self._contexts[rows]
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def _compute(self, chunk: Sequence[int], start: int, *, every_logit: bool) -> None:
        """Run at most one ubatch at positions `start`, …; logits of every token or of the last."""
        batch = self._batch
        batch.n_tokens = len(chunk)
        last = len(chunk) - 1
        for index, token in enumerate(chunk):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.logits[index] = every_logit or index == last
        clear_log()
        require_done(self._lib.llama_decode(self._context, batch))

    def _last(self) -> Logits:
        source = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(source, (self.vocab_size,))


@functools.cache
def library() -> Any:
    """The llama_cpp module with its backend started and its log led into `_log`.

    Raises:
        UnsupportedError: llama-cpp-python is not installed or does not load here.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedError(
            f"GGUF files need llama-cpp-python: {error}", hint="Install it with: pip install 'edgegen[gguf]'"
        ) from error
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def _log_callback(llama_cpp: Any) -> Any:
    """The C callback; cached, because C keeps only a pointer to it."""

    def keep(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        if level == _CONTINUED and _log:
            level, before = _log.pop()
            line = before + line
        _log.append((level, line))

    return llama_cpp.llama_log_callback(keep)


def clear_log() -> None:
    """Forget llama.cpp's messages so far, so that `reason` tells of the next call."""
    _log.clear()


def require_done(code: int) -> None:
    """Refuse to go on after a computation that llama.cpp did not end with 0.

    Raises:
        DeviceError: as said, with llama.cpp's own reason.
    """
    if code != 0:
        raise DeviceError(f"llama.cpp could not compute (code {code}){reason()}")


def reason() -> str:
    """`: ` and llama.cpp's error lines since the log was cleared, the innermost cause first; empty if there
    are none."""
    lines: list[str] = []
    for level, text in _log:
        line = text.strip()
        if level == _ERROR and line and line not in lines:
            lines.append(line)
    return ": " + "; ".join(lines[:3]) if lines else ""


def load_model(lib: Any, model: Path, *, vocab_only: bool = False) -> Any:
    """llama.cpp's pointer to a model on the CPU; whoever asks for it frees it.

    Raises:
        ConfigError: no such file.
        DeviceError: llama.cpp refuses it.
    """
    require_file(model)
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    params.use_extra_bufts = USE_EXTRA_BUFTS
    params.load_mode = getattr(lib, f"LLAMA_LOAD_MODE_{LOAD_MODE.upper()}")
    clear_log()
    loaded = lib.llama_model_load_from_file(str(model).encode(), params)
    if not loaded:
        raise DeviceError(f"{model}: llama.cpp refuses this file{reason()}")
    return loaded


def _load_adapter(lib: Any, loaded: Any, adapter: Path) -> Any:
    """A LoRA file for a loaded model, with which it is freed."""
    if not hasattr(lib, "llama_set_adapters_lora"):
        raise UnsupportedError(
            f"llama-cpp-python {lib.__version__} is too old for adapters", hint="Install 0.3.36 or newer."
        )
    _log.clear()
    lora = lib.llama_adapter_lora_init(loaded, str(adapter).encode())
    if not lora:
        raise DeviceError(f"{adapter}: llama.cpp refuses this adapter{reason()}")
    if lib.llama_adapter_get_alora_n_invocation_tokens(lora):
        raise UnsupportedError(
            f"{adapter}: an adapter that some tokens call (aLoRA), and here adapters count from the first token",
            hint="Train a plain LoRA.",
        )
    return lora


def _new_context(lib: Any, loaded: Any, lora: Any, model: Path, settings: Settings, chunk: int, rows: int) -> Any:
    """A context that computes at most `rows` rows of logits a call, with the adapter set if there is one."""
    params = lib.llama_context_default_params()
    params.n_ctx = settings.context_tokens
    params.n_batch = params.n_ubatch = chunk
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = settings.threads
    params.type_k = params.type_v = GGML_TYPES[settings.kv_type]
    params.n_outputs_max = rows
    params.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if settings.kv_type == "f32" else lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    )
    params.swa_full = False
    params.no_perf = True
    clear_log()
    context = lib.llama_init_from_model(loaded, params)
    if not context:
        raise DeviceError(
            f"{model}: llama.cpp cannot start a context of {settings.context_tokens} tokens{reason()}",
            hint="Try a smaller context or another kv_type.",
        )
    if lora is not None:
        adapters, strengths = (lib.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
        if lib.llama_set_adapters_lora(context, adapters, 1, strengths):
            lib.llama_free(context)
            raise DeviceError(f"{model}: llama.cpp cannot set the adapter{reason()}")
    return context


class _Cutter:
    """The tokenizer of a loaded model. It lives as long as the model does."""

    def __init__(self, lib: Any, loaded: Any) -> None:
        self._lib = lib
        self._vocab = lib.llama_model_get_vocab(loaded)
        self.size = int(lib.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """Ids of a text without BOS or EOS.

        Raises:
            ConfigError: a character that the vocabulary cannot write.
        """
        if self._characters is not None:
            lacking = set(text.replace(" ", "▁")) - self._characters
            if lacking:
                raise ConfigError(f"this vocabulary has no tokens for {sorted(lacking)[:5]}, nor all bytes instead")
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, parse_special)
            if count >= 0:
                return list(ids[:count])
            room = -count

    @functools.cached_property
    def _characters(self) -> frozenset[str] | None:
        """Characters with a token of their own, None where every byte has one.

        A SentencePiece-like vocabulary writes unknown characters as bytes; if it lacks one of these tokens,
        llama.cpp ends the process at such a character.
        """
        if self._lib.llama_vocab_type(self._vocab) != self._lib.LLAMA_VOCAB_TYPE_SPM:
            return None
        spelled = {
            (self._lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")
            for token in range(self.size)
        }
        if all(f"<0x{byte:02X}>" in spelled for byte in range(256)):
            return None
        return frozenset(text for text in spelled if len(text) == 1)
