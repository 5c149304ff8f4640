"""The comparison of targets, as lines and as a page."""

from pathlib import Path
from typing import Literal

import msgspec

from edgegen.common.codec import load_json, save_json
from edgegen.receipt import comparison_lines, write_comparison
from edgegen.records.bakeoff import BakeOff, Contender, ParityPair, SameWeights

FOUND = BakeOff(
    schema=1,
    model="./my-model",
    profile="raspberry-pi-5-8gb",
    created="2026-03-01T14:05:09+00:00",
    command="edgegen compress ./my-model --target gguf,onnx,litert",
    contenders=(
        Contender(
            target="gguf",
            passed=True,
            runtime="llama.cpp",
            bytes=3_370_000,
            kl=0.0355,
            rss_bytes=63_800_000,
            predicted_tokens_per_s=608.0,
            measured_tokens_per_s=1328.0,
            load_ms=12.5,
            ttft_ms=6.58,
        ),
        Contender(target="onnx", passed=False, failure="misses max_kl", exit_code=5, bytes=4_000_000),
        Contender(target="litert", passed=False, failure="short by 1 MB <script>\x1b[2J", exit_code=4),
    ),
    pairs=(
        ParityPair(
            first="torch", second="gguf", mode="strict", tokens=512, kl=1.6e-12, top1_fraction=1.0,
            greedy_prefix=100, greedy_tokens=100,
        ),
        ParityPair(first="gguf", second="onnx", mode="shipped", missing="their vocabularies differ"),
    ),
    recommended="gguf",
    why="gguf is the fastest that keeps every limit.",
    fastest="gguf",
    smallest="gguf",
    best_quality="gguf",
)  # fmt: skip


def test_lines_say_what_was_made_what_failed_and_what_to_ship() -> None:
    text = "\n".join(comparison_lines(FOUND))
    assert "3.37 MB" in text and "0.0355" in text and "608" in text and "1,328" in text
    assert "✗ onnx: misses max_kl" in text and "✗ litert: short by 1 MB" in text
    assert "torch / gguf" in text and "100 of 100" in text and "their vocabularies differ" in text
    assert comparison_lines(FOUND)[-1].startswith("recommended  gguf: gguf is the fastest")


def test_the_same_weights_are_said_with_how_well_runtimes_agree(tmp_path: Path) -> None:
    def pair(mode: Literal["strict", "shipped"], difference: float) -> ParityPair:
        return ParityPair(first="gguf", second="onnx", mode=mode, kl=1e-12, logit_difference=difference)

    same = SameWeights(targets=("gguf", "onnx"), tensors=20, digest="sha256:" + "ab" * 32)
    pairs = (pair("strict", 1.5e-5), pair("strict", 2.5e-5), pair("shipped", 0.25))
    found = msgspec.structs.replace(FOUND, same_weights=same, pairs=pairs)
    assert found.logit_difference == 2.5e-5
    said = "20 tensors are equal in gguf, onnx (sha256:abababababab…); in strict mode logits differ by at most 2.50e-05"
    assert f"same weights  {said}" in comparison_lines(found)
    write_comparison(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert said in page and "because their grids differ" not in page
    write_comparison(tmp_path / "page.html", FOUND)
    assert "because their grids differ" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_no_winner_is_said() -> None:
    none = msgspec.structs.replace(FOUND, recommended="", why="None of the targets keeps every limit.", pairs=())
    assert comparison_lines(none)[-1] == "recommended  none: None of the targets keeps every limit."


def test_hostile_text_does_nothing(tmp_path: Path) -> None:
    assert all("\x1b" not in line for line in comparison_lines(FOUND))
    write_comparison(tmp_path / "page.html", FOUND)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "\x1b" not in page and "&lt;script&gt;" in page


def test_the_page_links_to_receipts_that_exist_only(tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", FOUND)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'href="gguf/report.html"' in page and 'href="onnx/report.html"' in page
    assert 'href="litert/report.html"' not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_record_round_trips(tmp_path: Path) -> None:
    save_json(tmp_path / "bakeoff.json", FOUND)
    assert load_json(tmp_path / "bakeoff.json", BakeOff) == FOUND
