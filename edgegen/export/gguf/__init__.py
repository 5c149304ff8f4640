"""GGUF files for llama.cpp.

families    what each model family is called there, and which of its settings go where
rope        rotary positions and their scaling rules
tensors     names, row order and shapes
tokenizer   tokenizer.json in GGUF's words
proof       that llama.cpp cuts text into the same tokens
header      the file before its data; exact sizes before writing
export      put together, streamed, renamed into place
"""

from edgegen.export.gguf.export import export_gguf, gguf_overhead_bytes, predict_gguf_bytes
from edgegen.export.gguf.tensors import tensor_bytes

__all__ = ["export_gguf", "gguf_overhead_bytes", "predict_gguf_bytes", "tensor_bytes"]
