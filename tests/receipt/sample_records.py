"""Realistic records of one run: a small Llama-like model, 8 blocks of 7 matrices, planned and verified.

Plain functions, so that other tests can take the records and `msgspec.structs.replace` what they need.
"""

from __future__ import annotations

import math
from typing import Literal

from edgegen.records.compressed import Rounding
from edgegen.records.data import DataRef
from edgegen.records.model import ModelRef, ModelSummary, Role, TensorInfo
from edgegen.records.plan import (
    FrontPoint,
    Option,
    Plan,
    Prediction,
    Settings,
    TensorChoice,
    VocabularyChoice,
)
from edgegen.records.profile import Budgets, Device, Number, Profile, Workload
from edgegen.records.report import (
    Bounds,
    Check,
    Emulated,
    Interval,
    Machine,
    Memory,
    Parity,
    Quality,
    Report,
    Sample,
    Speed,
    TaskScore,
)

GRIDS = (("q2_k", 2.625), ("q3_k", 3.4375), ("q4_0", 4.5), ("q5_0", 5.5), ("q6_k", 6.5625), ("q8_0", 8.5))
_HIDDEN, _FFN, _VOCABULARY = 256, 768, 8192
_MATRICES: tuple[tuple[str, Role, int, int], ...] = (
    ("self_attn.q_proj", "attention_in", _HIDDEN, _HIDDEN),
    ("self_attn.k_proj", "attention_in", _HIDDEN // 2, _HIDDEN),
    ("self_attn.v_proj", "attention_in", _HIDDEN // 2, _HIDDEN),
    ("self_attn.o_proj", "attention_out", _HIDDEN, _HIDDEN),
    ("mlp.gate_proj", "ffn_in", _FFN, _HIDDEN),
    ("mlp.up_proj", "ffn_in", _FFN, _HIDDEN),
    ("mlp.down_proj", "ffn_out", _HIDDEN, _FFN),
)


def sample_summary(layers: int = 8) -> ModelSummary:
    """The model's tensors: a tied embedding, `layers` x 7 matrices and the final norm."""
    tensors = [
        TensorInfo(name="model.embed_tokens.weight", role="embedding", layer=-1, rows=_VOCABULARY, columns=_HIDDEN)
    ]
    for layer in range(layers):
        for place, role, rows, columns in _MATRICES:
            name = f"model.layers.{layer}.{place}.weight"
            tensors.append(TensorInfo(name=name, role=role, layer=layer, rows=rows, columns=columns))
    tensors.append(
        TensorInfo(name="model.norm.weight", role="vector", layer=-1, rows=1, columns=_HIDDEN, quantizable=False)
    )
    return ModelSummary(
        family="llama",
        tensors=tuple(tensors),
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        layers=layers,
        heads=8,
        kv_heads=4,
        head_size=32,
        ffn_size=_FFN,
        context_tokens=1024,
        tied=True,
        dtype="bfloat16",
        bytes=2 * sum(tensor.weights for tensor in tensors),
        license="Apache-2.0",
    )


def sample_profile() -> Profile:
    return Profile(
        schema=1,
        name="pi-5-8gb",
        title="Raspberry Pi 5, 8 GB",
        device=Device(
            cpu="Broadcom BCM2712",
            arch="aarch64",
            isa="neon-dotprod",
            cores=4,
            clock_ghz=Number(value=2.4, source="datasheet"),
            ram_bytes=Number(value=8e9, source="datasheet"),
            storage_bytes=Number(value=32e9, source="assumed", note="A common SD card."),
            bandwidth_bytes_per_s=Number(value=9.3e9, source="measured", note="STREAM-like read over 4 cores."),
            cpu_model="cortex-a76",
        ),
        targets=("gguf",),
        budgets=Budgets(
            max_bytes=6_000_000,
            max_rss_bytes=120_000_000,
            min_tokens_per_s=60.0,
            max_ttft_ms=400.0,
            max_kl=0.05,
        ),
        workload=Workload(context_tokens=1024),
    )


def sample_plan(layers: int = 8) -> Plan:
    """A plan within the budgets; the grids vary with layer and role so that every kind of cell appears."""
    summary = sample_summary(layers)
    tensors = tuple(_choice(tensor, place) for place, tensor in enumerate(summary.tensors))
    size = sum(tensor.bytes for tensor in tensors) + 310_272
    kl = sum(tensor.kl for tensor in tensors) * 1.08 + 0.0021
    weights = summary.parameters
    profile = sample_profile()
    front = [
        FrontPoint(
            bytes=round(size * scale),
            kl=kl * scale**-4.2,
            vocab_size=_VOCABULARY,
            bits_per_weight=8 * size * scale / weights,
        )
        for scale in (0.72, 0.78, 0.85, 0.93, 1.0, 1.09, 1.2, 1.34, 1.5, 1.72)
    ]
    return Plan(
        schema=1,
        model=ModelRef(
            source="example/tiny-stories-8m",
            path="/models/tiny",
            revision="0a1b2c3d",
            digest="sha256:" + "ab" * 32,
        ),
        summary=summary,
        original=summary,
        data=DataRef(
            source="generic",
            digest="sha256:" + "cd" * 32,
            rows=412,
            calibration_rows=330,
            heldout_rows=82,
            characters=611_904,
            kind="text",
            duplicates=3,
            generic=True,
        ),
        target="gguf",
        profile=profile,
        budgets=profile.budgets,
        prefer="quality",
        vocabulary=VocabularyChoice(
            original_size=10_240,
            size=_VOCABULARY,
            kl=0.0021,
            lost_mass_fraction=0.00087,
            tokens_per_byte_ratio=1.0132,
            why="Dropping 2,048 rare tokens frees 295 kB, which buys more quality in the blocks.",
        ),
        tensors=tensors,
        settings=Settings(context_tokens=1024, ubatch_tokens=128, threads=4, kv_type="q8_0"),
        prediction=_prediction(size, kl, weights),
        baseline=_prediction(2 * weights + 310_272, 0.0, weights),
        front=tuple(front),
        calibration={"q4_0": 1.043, "q6_k": 0.981, "joint": 1.08},
        binding="max_bytes",
        notes=("Generic calibration text was used: quality on your own text is unknown.",),
        seconds=73.4,
    )


def sample_report(plan: Plan | None = None) -> Report:
    """What a workstation, not the device, measured of `sample_plan`'s artifact: everything passes."""
    plan = plan or sample_plan()
    size = plan.prediction.bytes + 1_184
    expected = plan.prediction
    return Report(
        schema=1,
        passed=True,
        model="example/tiny-stories-8m",
        target="gguf",
        runtime="llama.cpp",
        profile="pi-5-8gb",
        command="edgegen run example/tiny-stories-8m --profile pi-5-8gb --target gguf --out out/tiny",
        created="2026-03-01T14:05:09+00:00",
        seconds=148.62,
        checks=(
            _check("loads", detail="llama.cpp opened the file in 41 ms"),
            _check("intact", detail="4 of 4 digests equal"),
            _check("tokenizer", 1.0, 1.0, None, unit="fraction", detail="82 of 82 held-out texts"),
            _check("parity_kl", 0.001, 8.21e-05, None, unit="nats/token"),
            _check("parity_top1", 0.99, 0.99725, None, unit="fraction"),
            _check("sane_text", detail="3 of 3 samples neither empty nor stuck in a loop"),
            _check("max_bytes", 6_000_000, size, expected.bytes, unit="bytes"),
            _check("max_rss", 120_000_000, 81_264_640, expected.rss_bytes, unit="bytes"),
            _check("min_tok_s", 60.0, 612.7, expected.decode_tokens_per_s, unit="tok/s", basis="predicted"),
            _check("max_ttft", 400.0, 31.8, expected.ttft_ms, unit="ms", basis="predicted"),
            _check("max_kl", 0.05, 0.03417, expected.kl, unit="nats/token"),
        ),
        parity=Parity(
            tokens=4096,
            top1_fraction=0.99725,
            max_abs_logit_difference=0.0841,
            kl=8.21e-05,
            greedy_prefix=61,
            greedy_tokens=100,
        ),
        strict=Parity(
            tokens=4096,
            top1_fraction=0.99975,
            max_abs_logit_difference=0.0000913,
            kl=3.12e-09,
            greedy_prefix=97,
            greedy_tokens=99,
        ),
        quality=Quality(
            tokens=20_480,
            windows=40,
            kl=Interval(value=0.03417, low=0.03268, high=0.03571),
            kl_median=0.01184,
            kl_p99=0.3127,
            kl_p999=1.0934,
            top1_fraction=Interval(value=0.91342, low=0.90871, high=0.91798),
            ln_ppl_ratio=Interval(value=0.02231, low=0.01874, high=0.02602),
            bits_per_byte=Interval(value=0.73418, low=0.71922, high=0.74981),
            original_bits_per_byte=0.72611,
            renormalised=True,
            lost_mass_nats=0.00091,
        ),
        speed=Speed(
            threads=2,
            repeats=5,
            load_ms=41.3,
            ttft_ms=31.8,
            prefill_tokens_per_s=2210.4,
            decode_tokens_per_s=612.7,
            decode_spread_fraction=0.043,
            prompt_tokens=64,
            decode_tokens=64,
        ),
        memory=Memory(peak_rss_bytes=81_264_640, baseline_rss_bytes=44_118_016),
        bounds=Bounds(
            read_bytes=4_711_936.0,
            bandwidth_bytes_per_s=17_904_000_000.0,
            bandwidth_fraction=0.1613,
            kernels_tokens_per_s=2_044.5,
            kernels_fraction=0.2997,
        ),
        rounding=Rounding(bits_per_weight=4.63, error_fraction=0.00241, gap_db=4.71),
        task=TaskScore(
            requests=60,
            exact_fraction=Interval(value=0.7833, low=0.6667, high=0.8667),
            call_fraction=Interval(value=0.85, low=0.75, high=0.9333),
            original_exact_fraction=0.8,
            original_call_fraction=0.8667,
        ),
        samples=(
            Sample(
                prompt="Once upon a time, there was a little fox who",
                original=" lived in a big forest. She loved to play with her friends. One day she got lost.",
                artifact=" lived in a big forest. She loved to run. One day, she found a shiny stone.",
            ),
            Sample(
                prompt='Turn on the lights in the kitchen. Answer with {"call": …}.',
                original='{"call": "lights_on", "room": "kitchen"}',
                artifact='{"call": "lights_on", "room": "kitchen"}',
                expected='{"call": "lights_on", "room": "kitchen"}',
            ),
        ),
        machine=Machine(
            cpu="AMD EPYC 7B13",
            arch="x86_64",
            cores=2,
            ram_bytes=8_342_036_480,
            system="Linux 6.1",
            is_device=False,
        ),
        versions={"edgegen": "0.1.0", "llama-cpp-python": "0.3.30", "python": "3.11.7", "torch": "2.6.0"},
        digests={"model.gguf": "sha256:" + "12" * 32, "tokenizer.json": "sha256:" + "34" * 32},
        artifact_bytes=size,
        emulated=(
            Emulated(
                cpu_model="cortex-a76",
                emulated_as="cortex-a76",
                runtime="litert",
                version="2.3.0",
                change="",
                passed=False,
                planned=None,
                host=None,
                planned_vectors=None,
                host_vectors=None,
                seconds=2.31,
                fault="the runtime ended (Illegal instruction, signal 4): compiled with lse enabled",
                remedy="Remove one library.",
            ),
            Emulated(
                cpu_model="cortex-a76",
                emulated_as="cortex-a76",
                runtime="litert",
                version="2.3.0",
                change="without one library",
                passed=True,
                planned=Parity(
                    tokens=128,
                    top1_fraction=0.9765,
                    max_abs_logit_difference=0.2797,
                    kl=0.000723,
                    greedy_prefix=15,
                    greedy_tokens=16,
                ),
                host=Parity(
                    tokens=127,
                    top1_fraction=0.9844,
                    max_abs_logit_difference=0.1281,
                    kl=0.000341,
                    greedy_prefix=13,
                    greedy_tokens=14,
                ),
                planned_vectors=None,
                host_vectors=None,
                seconds=8.12,
            ),
        ),
        notes=(
            "Speed and memory were measured on AMD EPYC 7B13, not on Raspberry Pi 5, 8 GB.",
            "Generic calibration text was used: quality on your own text is unknown.",
        ),
    )


def bare_report() -> Report:
    """A failing report in which everything that may be missing is."""
    return Report(
        schema=1,
        passed=False,
        model="model",
        target="gguf",
        runtime="llama.cpp",
        profile="pi-5-8gb",
        command="edgegen verify out",
        created="2026-03-01T14:05:09Z",
        seconds=0.4,
        checks=(
            _check("loads", passed=False, detail="magic number is wrong"),
            _check("max_rss", None, None, None, unit="bytes", passed=False),
            _check("min_tok_s", 60.0, None, None, unit="tok/s", passed=False, basis="predicted"),
        ),
        parity=None,
        strict=None,
        quality=None,
        speed=None,
        memory=None,
        task=None,
        samples=(),
        machine=Machine(cpu="", arch="x86_64", cores=1, ram_bytes=1, system="Linux", is_device=True),
        versions={},
        digests={},
        artifact_bytes=0,
    )


def _check(
    name: str,
    limit: float | None = None,
    measured: float | None = None,
    predicted: float | None = None,
    *,
    unit: str = "",
    passed: bool = True,
    basis: Literal["measured", "predicted"] = "measured",
    detail: str = "",
) -> Check:
    return Check(
        name=name, limit=limit, measured=measured, predicted=predicted,
        unit=unit, passed=passed, basis=basis, detail=detail,
    )  # fmt: skip


def _choice(tensor: TensorInfo, place: int) -> TensorChoice:
    if tensor.role == "vector":
        return TensorChoice(
            name=tensor.name, role=tensor.role, layer=tensor.layer, rows=tensor.rows, columns=tensor.columns,
            grid="f32", bytes=4 * tensor.weights, kl=0.0, why="Vectors stay in full precision.",
        )  # fmt: skip
    sensitive = tensor.role in ("embedding", "ffn_out") or tensor.name.endswith("v_proj.weight")
    level = min(4, 1 + (place * 7) % 3 + (1 if sensitive else 0))
    grid, bits = GRIDS[level]
    return TensorChoice(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        rows=tensor.rows,
        columns=tensor.columns,
        grid=grid,
        bytes=_size(tensor, bits),
        kl=_cost(tensor, bits),
        smaller=_option(tensor, level - 1),
        larger=_option(tensor, level + 1),
        why=f"{grid}: a byte more here buys less quality than elsewhere, a byte less costs more.",
    )


def _option(tensor: TensorInfo, level: int) -> Option:
    grid, bits = GRIDS[level]
    return Option(grid=grid, bytes=_size(tensor, bits), kl=_cost(tensor, bits))


def _size(tensor: TensorInfo, bits: float) -> int:
    return math.ceil(tensor.weights * bits / 8)


def _cost(tensor: TensorInfo, bits: float) -> float:
    return 0.011 * math.pow(4.0, 2 - bits) * (1 + tensor.rows / _VOCABULARY)


def _prediction(size: int, kl: float, weights: int) -> Prediction:
    return Prediction(
        bytes=size,
        kl=kl,
        rss_bytes=size + 71_303_168,
        decode_tokens_per_s=0.62 * 9.3e9 / (size * 6.5),
        prefill_tokens_per_s=1220.0,
        ttft_ms=64 / 1220.0 * 1000 + 9.1,
        bits_per_weight=8 * (size - 310_272) / weights,
        decode_bound="kernels",
    )
