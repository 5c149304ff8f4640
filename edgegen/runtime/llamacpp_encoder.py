"""Sentence encoders as GGUF files on llama.cpp. Decisions about weights, threads and logs are those of `llamacpp`.

A text runs alone and whole: attention looks both ways, so it cannot be cut into micro-batches, and the context's
micro-batch is as long as the longest text. llama.cpp pools as the file says; it stores no normalising, which is done
here where the file asks for it.

Attention is plain in strict mode, since the fused kernel rounds keys and values to 16 bits.

D numbers of a vector.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.base import EncoderSession
from edgegen.runtime.checks import check_context, check_settings
from edgegen.runtime.llamacpp import GGML_TYPES, LlamaCpp, clear_log, library, load_model, reason, require_done

NORMALIZE_KEY = "edgegen.normalize"
"""Key of the file's metadata that says whether vectors are brought to length 1."""
_LEAST_LENGTH = 1e-12
"""Vectors shorter than this are divided by it, as torch does."""


class LlamaEncoderRuntime:
    """The `gguf` target's runtime for encoders."""

    name = "llama.cpp"

    def version(self) -> str:
        """As `LlamaCpp.version`."""
        return LlamaCpp().version()

    def open(self, model: Path, settings: Settings) -> LlamaEncoderSession:
        """Load a GGUF file for the CPU.

        Raises:
            UnsupportedError: llama-cpp-python is not installed.
            ConfigError: no such file, or settings that do not fit the model.
            DeviceError: llama.cpp refuses the file or cannot allocate; the message carries its own reason.
        """
        return LlamaEncoderSession(model, settings)


class LlamaEncoderSession(EncoderSession):
    """One loaded encoder."""

    def __init__(self, model: Path, settings: Settings) -> None:
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._lib = lib = library()
        check_settings(settings, GGML_TYPES)
        self._model = load_model(lib, model)
        try:
            said = _metadata(lib, self._model, NORMALIZE_KEY)
            if said not in ("true", "false"):
                raise DeviceError(f"{model}: not an encoder that edgegen wrote: it has no {NORMALIZE_KEY!r}")
            self._normalize = said == "true"
            check_context(model, settings.context_tokens, int(lib.llama_model_n_ctx_train(self._model)))
            self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
            self.dimension = int(lib.llama_model_n_embd(self._model))
            self.context_tokens = settings.context_tokens
            self._context = _new_context(lib, self._model, model, settings)
            self._batch = lib.llama_batch_init(settings.context_tokens, 0, 1)
        except BaseException:
            self.close()
            raise
        for index in range(settings.context_tokens):
            self._batch.pos[index] = index
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
            self._batch.logits[index] = 1

    def _embed(self, ids: list[int]) -> NDArray[np.float32]:
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
        clear_log()
        require_done(self._lib.llama_encode(self._context, batch))
        found = self._lib.llama_get_embeddings_seq(self._context, 0)
        vector: NDArray[np.float32] = np.ctypeslib.as_array(found, (self.dimension,)).copy()
        if self._normalize:
            vector /= max(float(np.linalg.norm(vector)), _LEAST_LENGTH)
        return vector

    def _close(self) -> None:
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._context is not None:
            self._lib.llama_free(self._context)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None


def _new_context(lib: Any, loaded: Any, model: Path, settings: Settings) -> Any:
    """A context that takes a whole text at once and gives its pooled vector."""
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = settings.context_tokens
    params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = settings.threads
    params.embeddings = True
    strict = settings.kv_type == "f32"
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if strict else lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.no_perf = True
    clear_log()
    context = lib.llama_init_from_model(loaded, params)
    if not context:
        raise DeviceError(
            f"{model}: llama.cpp cannot start a context of {settings.context_tokens} tokens{reason()}",
            hint="Try a smaller context.",
        )
    if lib.llama_pooling_type(context) not in (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS):
        lib.llama_free(context)
        raise DeviceError(f"{model}: does not say how its tokens become one vector", hint="Export it again.")
    return context


def _metadata(lib: Any, loaded: Any, key: str) -> str:
    """A key's value as llama.cpp spells it; empty where the file has none."""
    buffer = ctypes.create_string_buffer(16)
    count = lib.llama_model_meta_val_str(loaded, key.encode(), buffer, len(buffer))
    return buffer.value.decode() if count >= 0 else ""
