"""Layers that are run one by one give what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgegen.errors import UnsupportedError
from edgegen.modeling.blocks import Blocks, decoder_layers
from edgegen.modeling.load import find_model, open_model
from tests.tiny_models import make_tiny


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi"])
def test_layers_one_by_one_are_the_model(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family, layers=3)
    model = open_model(find_model(str(folder)), parameters=100_000).requires_grad_(True)
    ids = torch.randint(0, 200, (3, 40), generator=torch.Generator().manual_seed(0))
    seen = []
    handle = decoder_layers(model)[-1].register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    blocks = Blocks(model)
    hidden = blocks.entered(ids)
    for layer in range(3):
        hidden = blocks.run(layer, hidden)
    assert torch.allclose(hidden, seen[0], atol=1e-4)
    hidden.sum().backward()
    assert all(p.grad is not None for p in blocks.layers[0].parameters())


def test_a_model_without_such_a_list_is_refused(tmp_path: Path) -> None:
    model = open_model(find_model(str(make_tiny("llama", tmp_path / "model"))), parameters=100_000)
    model.config.num_hidden_layers = 7
    with pytest.raises(UnsupportedError, match="7 decoder layers"):
        decoder_layers(model)
