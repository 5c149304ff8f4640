"""Every family, odd sizes and changed structure as LiteRT files, against torch with the same rounded weights.

A conversion takes some fifteen seconds, so all of this is slow.
"""

from pathlib import Path

import pytest

from edgegen.common.codec import load_json
from edgegen.errors import UnsupportedError
from edgegen.export.folder import map_weights, read_config
from edgegen.export.litert.carry import Source, carry_weights
from edgegen.export.litert.export import LiteRtExporter
from edgegen.records.compressed import Compressed
from edgegen.runtime.flatmodel import read_model
from tests.export.packed_models import IDS, SETTINGS, check_strict, mean_kl, pack_surgery, score, torch_logits
from tests.tiny_models import FAMILIES, make_tiny, pack_uniform

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Strict: the same numbers; as shipped: int8 activations apart. The size is what was expected, or a little less."""
    compressed = pack_uniform(make_tiny(family, tmp_path / "hf"), tmp_path / "c", "i8_row")
    artifact = check_strict(compressed, tmp_path, target="litert")
    assert mean_kl(torch_logits(compressed, IDS), score(tmp_path / "a")) < 5e-3
    exporter, record = LiteRtExporter(), load_json(compressed / "compressed.json", Compressed)
    weights = sum(exporter.tensor_bytes(t.grid, t.rows, t.columns) for t in record.tensors)
    expected = weights + exporter.overhead_bytes(read_config(compressed), compressed, record.tensors, SETTINGS)
    assert 0 <= expected - artifact.model_bytes < 2_500


def test_odd_sizes(tmp_path: Path) -> None:
    """One key/value head, heads of 8, a feed-forward width and a vocabulary that are no multiples of 32."""
    hf = make_tiny("llama", tmp_path / "hf", hidden=48, heads=6, kv_heads=1, ffn=100, padding=3, tied=False)
    check_strict(pack_uniform(hf, tmp_path / "c", "i4_row"), tmp_path, target="litert")


def test_factors_widths_and_shared_weights(tmp_path: Path) -> None:
    compressed = pack_surgery(tmp_path, lambda name: "i8_row" if "embed" in name or "k_proj" in name else "i4_32")
    check_strict(compressed, tmp_path, target="litert")
    model = read_model(tmp_path / "s" / "model.tflite")
    record = load_json(compressed / "compressed.json", Compressed)
    weights = map_weights(compressed, record)
    sources = {
        t.name: Source(tensor=t, packed=weights[t.offset : t.offset + t.bytes].reshape(t.rows, -1))
        for t in record.tensors
        if t.rows > 1
    }
    # A matrix that nobody packed would silently stay in float32: it is refused.
    del sources["model.layers.0.self_attn.v_proj.weight"]
    with pytest.raises(UnsupportedError, match="no packed weight"):
        carry_weights(model, sources)
