"""The whole chain for ONNX: passing receipts from onnxruntime-genai, and from plain ONNX Runtime on the same output."""

from pathlib import Path

import msgspec
import pytest

from edgegen.records.report import Report
from edgegen.sdk.output import measure_output
from tests.flows.command import LOOSE, make_calm, run_cli

GRIDS = ("--grids", "u4_32,s4_64,s8_32,f16")
"""What is offered otherwise leaves random weights no text that looks like one."""
TOKENIZERS = {"llama": "sentencepiece", "qwen2": "qwen2", "qwen3": "qwen2", "gemma": "gemma"}


def check(report: Report) -> None:
    assert report.passed
    assert report.strict is not None and report.strict.kl < 1e-6
    assert report.strict.greedy_prefix == report.strict.greedy_tokens > 0
    assert report.parity is not None and report.parity.kl < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gpt2", "phi3"])
def test_a_passing_receipt(family: str, tiny_data: Path, tmp_path: Path) -> None:
    """A feed-forward width that is no multiple of 32 is not padded here, and neither is the vocabulary."""
    kind = TOKENIZERS.get(family, "bytelevel")
    model = make_calm(family, tmp_path / "model", share=0.04, ffn=100, tokenizer=kind, padding=5)
    out = tmp_path / "out"
    done = run_cli(
        "compress", model, "--data", tiny_data, "--target", "onnx", "--out", out, *LOOSE, *GRIDS, "--json", "-q"
    )
    assert done.code == 0, done.err + done.out
    report = msgspec.json.decode(done.out, type=Report)
    check(report)
    assert report.runtime.startswith("onnxruntime-genai")
    again = measure_output(out, command="", runtime="onnxruntime")
    check(again)
    assert again.runtime == "onnxruntime"
