"""A compressed folder in another runtime's grids: other bytes, the same numbers, the same companions."""

from pathlib import Path

import msgspec
import pytest

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.compress.execute import compress_model
from edgegen.compress.translate import digest_of_weights, translate_model
from edgegen.errors import UnsupportedError
from edgegen.grids import agreed
from edgegen.modeling.load import read_config
from edgegen.modeling.source import TensorSource
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Plan
from tests.modeling.opened import Opened, open_all

EQUAL = {"q4_0": "i4_32", "q8_0": "i8_row", "f16": "f16", "f32": "f32"}
"""GGUF's grids → LiteRT's."""


@pytest.fixture(scope="module")
def opened(tiny_llama: Path) -> Opened:
    return open_all(tiny_llama)


def plan_of(base: Plan, opened: Opened, rounded: dict[str, str]) -> Plan:
    """For GGUF: some tensors on `rounded` grids, other matrices in 16 bits."""
    choices = [
        msgspec.structs.replace(choice, grid=rounded.get(choice.name, "f16" if choice.role != "vector" else "f32"))
        for choice in base.tensors
    ]
    return msgspec.structs.replace(base, model=opened.ref, tensors=tuple(choices))


def for_litert(plan: Plan) -> Plan:
    choices = [msgspec.structs.replace(choice, grid=EQUAL[choice.grid]) for choice in plan.tensors]
    return msgspec.structs.replace(plan, target="litert", tensors=tuple(choices), lineage="another")


@pytest.fixture
def plan(finished: Path, opened: Opened) -> Plan:
    rounded = {"model.embed_tokens.weight": "q8_0", "model.layers.0.mlp.up_proj.weight": "q4_0"}
    return plan_of(load_json(finished / "plan.json", Plan), opened, rounded)


def test_other_bytes_of_the_same_numbers(plan: Plan, opened: Opened, tmp_path: Path) -> None:
    source = TensorSource(opened.empty, opened.checkpoint, opened.summary, is_agreed=True)
    before = compress_model(plan, source, read_config(opened.ref), None, tmp_path / "gguf")
    steps: list[tuple[int, int]] = []
    own = for_litert(plan)
    after = translate_model(
        tmp_path / "gguf", own, tmp_path / "litert", progress=lambda done, total: steps.append((done, total))
    )
    assert after == load_json(tmp_path / "litert" / "compressed.json", Compressed)
    assert after.digest == digest_file(tmp_path / "litert" / "weights.bin") != before.digest
    assert after.files == before.files and after.summary == before.summary and after.lineage == "another"
    for name in after.files:
        assert (tmp_path / "litert" / name).read_bytes() == (tmp_path / "gguf" / name).read_bytes()
    assert [tensor.grid for tensor in after.tensors] == [EQUAL[tensor.grid] for tensor in before.tensors]
    assert digest_of_weights(tmp_path / "gguf") == digest_of_weights(tmp_path / "litert")
    assert digest_of_weights(tmp_path / "gguf")[0] == len(plan.tensors) == steps[-1][0]
    for tensor in after.tensors:
        assert agreed.agreed_of(tensor.grid) == agreed.agreed_of(
            next(c.grid for c in plan.tensors if c.name == tensor.name)
        )


def test_rows_that_were_rounded_for_one_runtime_are_refused(plan: Plan, opened: Opened, tmp_path: Path) -> None:
    compress_model(plan, opened.source, read_config(opened.ref), None, tmp_path / "gguf")
    with pytest.raises(UnsupportedError, match="different scales"):
        translate_model(tmp_path / "gguf", for_litert(plan), tmp_path / "litert")
    assert not (tmp_path / "litert").exists()
