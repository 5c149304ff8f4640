"""Bytes, memory and time of a device small enough to work out by hand."""

from __future__ import annotations

import msgspec
import pytest

from edgegen.catalog import load_profile, load_target
from edgegen.planner.cost import Device, constant_rss, copies, device_of, kv_bytes, predict
from edgegen.planner.problem import column
from edgegen.records.model import ModelSummary
from edgegen.records.plan import Prediction
from tests.planner.problems import DEVICE, SETTINGS, case_of, graded_options, summary_of, tensor

EMBED = tensor("embed", "embedding", rows=16, columns=8)
BLOCK = tensor("block", "ffn_in", rows=8, columns=8)
NORM = tensor("norm", "vector", rows=1, columns=8)
SIZES = {"embed": 68, "block": 64, "norm": 32}


def price(grids: dict[str, str], *, tied: bool = True, device: Device = DEVICE, prompt_tokens: int = 20) -> Prediction:
    return predict(
        summary_of((EMBED, BLOCK, NORM), tied=tied),
        SETTINGS,
        device,
        {"norm": "f32", **grids},
        SIZES,
        overhead_bytes=50,
        kl=0.25,
        prompt_tokens=prompt_tokens,
    )


def test_bytes_and_bits() -> None:
    found = price({"embed": "q8", "block": "q8"})
    assert found.bytes == 50 + 68 + 64 + 32
    assert found.bits_per_weight == pytest.approx(8 * (68 + 64 + 32) / (128 + 64 + 8))
    assert found.kl == 0.25


def test_decoding_is_bound_by_the_slower_of_reading_and_computing() -> None:
    # 128 + 64 weights of q8 at 4 us, 8 of f32 at 8 us, on two threads; 164 bytes at a million a second.
    found = price({"embed": "q8", "block": "q8"})
    kernels_s, reading_s, dispatch_s = (192 * 4e-6 + 8 * 8e-6) / 2, 164 / 1e6, 2e-3
    assert kernels_s > reading_s
    assert found.decode_tokens_per_s == pytest.approx(1 / (kernels_s + dispatch_s))
    assert found.decode_bound == "dispatch"
    slow = msgspec.structs.replace(DEVICE, bandwidth_bytes_per_s=1e4, dispatch_s=1e-5)
    found = price({"embed": "q8", "block": "q8"}, device=slow)
    assert found.decode_tokens_per_s == pytest.approx(1 / (164 / 1e4 + 2e-5))
    assert found.decode_bound == "bandwidth"
    busy = msgspec.structs.replace(DEVICE, threads=1, dispatch_s=1e-5)
    assert price({"embed": "q8", "block": "q8"}, device=busy).decode_bound == "kernels"


def test_an_untied_input_table_is_not_read_in_decoding() -> None:
    found = price({"embed": "q8", "block": "q8"}, tied=False)
    assert found.decode_tokens_per_s == pytest.approx(1 / ((64 * 4e-6 + 8 * 8e-6) / 2 + 2e-3))


def test_the_prompt_leaves_tables_out_and_pays_dispatch_once_a_micro_batch() -> None:
    found = price({"embed": "q8", "block": "q4"})
    each_s = (64 * 1e-6 + 8 * 8e-6) / 2 + 2e-3 / 16
    token_s = max((128 * 4e-6 + 64 * 2e-6 + 8 * 8e-6) / 2, 164 / 1e6) + 2e-3
    assert found.prefill_tokens_per_s == pytest.approx(1 / each_s)
    assert found.ttft_ms == pytest.approx(1000 * (20 * each_s + token_s))


def test_a_prompt_shorter_than_a_micro_batch() -> None:
    each_s = (64 * 1e-6 + 8 * 8e-6) / 2 + 2e-3 / 4
    found = price({"embed": "q8", "block": "q4"}, prompt_tokens=4)
    assert found.prefill_tokens_per_s == pytest.approx(1 / each_s)


def test_resident_memory() -> None:
    summary = summary_of((EMBED, BLOCK, NORM))
    # 300 tokens of context are rounded up to 512; 2 layers, 1 head of 4, keys and values of 16 bits.
    assert kv_bytes(summary, SETTINGS, DEVICE) == 2 * 2 * 1 * 4 * 512 * 2
    narrow = tensor("model.layers.1.self_attn.k_proj.weight", "attention_in", rows=2)
    fewer = summary_of((EMBED, BLOCK, NORM, msgspec.structs.replace(narrow, layer=1)))
    assert kv_bytes(fewer, SETTINGS, DEVICE) == (4 + 4 + 2 + 4) * 512 * 2
    constant = 1000 + 100 + 16384 + 16 * 8 * 2 + 16 * 8 * 3 + 16 * 10 + 16 * 16 * 0.5
    assert constant_rss(summary, SETTINGS, DEVICE) == constant
    assert price({"embed": "q8", "block": "q8"}).rss_bytes == constant + 50 + 68 + 64 + 32


def test_a_tied_table_in_a_rearranged_grid_is_resident_twice() -> None:
    once, twice = price({"embed": "q8", "block": "q4"}), price({"embed": "q4", "block": "q4"})
    assert twice.rss_bytes - once.rss_bytes == 68
    assert twice.bytes == once.bytes


def test_encoders_have_overheads_of_their_own_where_the_target_names_them() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    for name, rows_of_logits in (("gguf", 4.0), ("litert", None)):
        target = load_target(name)
        settings = msgspec.structs.replace(SETTINGS, kv_type=next(iter(target.kv_bits)))
        causal, encoder = device_of(profile, target, settings), device_of(profile, target, settings, "encoder")
        if rows_of_logits is None:
            assert encoder == causal
        else:
            assert encoder.bytes_per_ubatch_vocab == rows_of_logits and causal.bytes_per_ubatch_vocab == 0


@pytest.mark.parametrize(
    ("rows", "tied", "grid", "role", "expected"),
    [
        (16, True, "q4", "embedding", 2),
        (15, True, "q4", "embedding", 1),
        (16, False, "q4", "embedding", 1),
        (16, True, "q8", "embedding", 1),
        (16, True, "q4", "ffn_in", 1),
    ],
)
def test_what_is_kept_twice(rows: int, tied: bool, grid: str, role: str, expected: int) -> None:
    each = tensor("it", role, rows=rows)  # type: ignore[arg-type]
    assert copies(summary_of((each,), tied=tied), each, grid, DEVICE) == expected


def test_columns_add_up_to_the_prediction() -> None:
    tensors = (EMBED, BLOCK)
    case = case_of({t.name: graded_options(t.weights, 0.1) for t in tensors}, tensors)
    summary: ModelSummary = case.summary
    for index, grid in enumerate(("q2", "q4", "q8")):
        sizes = {t.name: case.options[t.name][index].bytes for t in tensors}
        found = predict(
            summary, SETTINGS, DEVICE, dict.fromkeys(sizes, grid), sizes, overhead_bytes=0, kl=0.0, prompt_tokens=20
        )

        def add(what: str, at: int = index) -> float:
            return sum(float(own[at]) for own in column(case, what, DEVICE))

        assert found.bytes == add("bytes")
        assert found.rss_bytes == int(constant_rss(summary, SETTINGS, DEVICE) + add("resident_bytes"))
        token_s = max(add("kernel_s") / 2, add("read_bytes") / 1e6) + 2e-3
        assert found.decode_tokens_per_s == pytest.approx(1 / token_s)
        assert found.prefill_tokens_per_s == pytest.approx(1 / (add("prompt_s") / 2 + 2e-3 / 16))


def test_a_runtime_that_reads_its_whole_cache_pays_for_it_at_every_token() -> None:
    slow = msgspec.structs.replace(DEVICE, seconds_per_cached_number=1e-6)
    summary = summary_of((EMBED, BLOCK, NORM))
    numbers = 2 * summary.layers * summary.kv_heads * summary.head_size * 512  # 300 tokens, in steps of 256
    before, after = price({"embed": "q8", "block": "q8"}), price({"embed": "q8", "block": "q8"}, device=slow)
    added_s = numbers * 1e-6 / 2
    assert 1 / after.decode_tokens_per_s == pytest.approx(1 / before.decode_tokens_per_s + added_s)
    assert after.ttft_ms == pytest.approx(before.ttft_ms + 1000 * added_s)
    assert after.prefill_tokens_per_s == before.prefill_tokens_per_s
    assert after.decode_bound == "attention"
