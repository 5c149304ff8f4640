"""Random LoRA files for tiny GGUF models."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def make_adapter(
    path: Path, model: Path, *, strength: float = 4.0, wider: int = 0, seed: int = 0, **pairs: str
) -> Path:
    """A LoRA of rank 2 for the feed-forward matrices of a model.

    Args:
        model: its GGUF file.
        strength: the larger, the more answers change.
        wider: rows too many, which fit no model.
        pairs: metadata instead of the usual: `arch` and `kind`.
    """
    dice = np.random.default_rng(seed)
    reader = gguf.GGUFReader(model)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, pairs.get("arch", arch))
    writer.add_type("adapter")
    writer.add_string("adapter.type", pairs.get("kind", "lora"))
    writer.add_float32("adapter.lora.alpha", 2.0)
    for tensor in reader.tensors:
        if ".ffn_" not in tensor.name or not tensor.name.endswith(".weight") or len(tensor.shape) != 2:
            continue
        columns, rows = (int(n) for n in tensor.shape)
        writer.add_tensor(f"{tensor.name}.lora_a", dice.normal(size=(2, columns)).astype(np.float32))
        wide = dice.normal(scale=strength, size=(rows + wider, 2)).astype(np.float32)
        writer.add_tensor(f"{tensor.name}.lora_b", wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
