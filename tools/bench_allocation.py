"""Planned grids against llama.cpp's uniform types and its Q4_K_M mix, at the same bytes.

    python tools/bench_allocation.py MODEL... --data FILE [--out FOLDER] [--shares 100,75,50]

For each model: llama.cpp's own quantizer writes every type from one F32 file with the importance weights that edgegen
measured (the same calibration text); each file is scored on the same held-out rows. Then edgegen compresses the model
to 100 %, 75 % and 50 % of the bytes of Q4_K_M, with the whole vocabulary and free to trim it, and to exactly the bytes
of the best uniform type within that budget.

KL is the mean over held-out tokens in nats per token. For a trimmed vocabulary it is KL to the original renormalised
over the kept tokens plus the mean -ln of their mass, so that dropped tokens count. "next type up" is the smallest
uniform type with at least as many bytes, "best that fits" the best with at most the budget's.

Prints a Markdown table and writes allocation.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes
from edgegen.errors import EdgegenError, InfeasibleError
from edgegen.export.gguf.families import family_of, translate
from edgegen.export.gguf.tensors import place
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Settings
from edgegen.records.reference import Reference
from edgegen.runtime.registry import runtime_for
from edgegen.sdk import pipeline
from edgegen.verify.worker import score_against

UNIFORM = ("Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q5_K_S", "Q4_1", "Q4_0", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q3_K_S", "IQ3_XXS")
UNIFORM_LOW = ("Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS")
MIXES = ("Q4_K_M",)
PROFILE = "raspberry-pi-4-4gb"


class _Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that is calibrated and, on other rows, judged on")
    parser.add_argument("--out", default="build-bench", help="working folder")
    parser.add_argument("--shares", default="100,75,50", help="percent of Q4_K_M's bytes")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in given.models:
        rows += bench(
            model, given.data, Path(given.out) / Path(model).name, [float(s) for s in given.shares.split(",")]
        )
    (Path(given.out) / "allocation.json").write_text(json.dumps(rows, indent=2))
    print("\n".join(table(rows)))
    return 0


def bench(model: str, data: str, out: Path, shares: list[float]) -> list[dict[str, Any]]:
    """All rows of one model."""
    whole = pipeline.compress(
        model, profile=PROFILE, data=data, out=out / "f32", grids=("f32",), vocab="keep", max_kl=1.0, prefer="size"
    )
    reference = load_json(out / "f32" / "reference" / "reference.json", Reference)
    importance = gguf_importance(out / "f32")
    peers: dict[str, dict[str, float]] = {}
    for name in (*UNIFORM, *UNIFORM_LOW, *MIXES):
        path = out / f"{name}.gguf"
        if not quantize(whole.model_file, path, name, importance, pure=name not in MIXES):
            continue
        kl = score(path, out / "f32" / "reference", reference, whole.plan.settings)
        peers[name] = {"bytes": path.stat().st_size, "kl": kl}
        print(f"{model} {name}: {peers[name]['bytes']:,} bytes, KL {kl:.5f}", file=sys.stderr, flush=True)
        path.unlink()
    uniform = {name: peer for name, peer in peers.items() if name not in MIXES}
    rows = []
    for share in shares:
        budget = int(peers["Q4_K_M"]["bytes"] * share / 100)
        fits = best_that_fits(uniform, budget)
        # At the share itself, and at exactly the bytes of the best uniform type that fits, so that it has no fewer.
        for limit, vocab in ((budget, "keep"), (budget, "auto"), (fits.get("fits_bytes"), "keep")):
            if limit is None:
                continue
            row: dict[str, Any] = {"model": Path(model).name, "share": share, "budget": limit, "vocab": vocab} | fits
            row |= ours(model, data, out / vocab, limit, vocab)
            if "bytes" in row:
                row |= next_type_up(uniform, row["bytes"])
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return [*rows, {"model": Path(model).name, "peers": peers}]


def ours(model: str, data: str, out: Path, budget: int, vocab: str) -> dict[str, Any]:
    """edgegen's artifact within a budget."""
    try:
        result = pipeline.compress(model, profile=PROFILE, data=data, out=out, max_bytes=budget, vocab=vocab)
    except InfeasibleError as error:
        return {"infeasible": str(error)}
    quality = result.report.quality
    assert quality is not None, "a verified artifact has a quality"
    assert result.report.memory is not None, "and a memory"
    return {
        "bytes": result.report.artifact_bytes,
        "kl": quality.kl.value + quality.lost_mass_nats,
        "predicted_bytes": result.plan.prediction.bytes,
        "predicted_kl": result.plan.prediction.kl,
        "measured_kl": quality.kl.value,
        "predicted_rss": result.plan.prediction.rss_bytes,
        "measured_rss": result.report.memory.peak_rss_bytes,
        "vocab_size": result.plan.vocabulary.size,
        "bits_per_byte": quality.bits_per_byte.value,
        "original_bits_per_byte": quality.original_bits_per_byte,
        "top1": quality.top1_fraction.value,
    }


def gguf_importance(out: Path) -> dict[str, Any]:
    """GGUF tensor name → importance weights, from an edgegen output."""
    config = json.loads((out / "compressed" / "config.json").read_bytes())
    compressed = load_json(out / "compressed" / "compressed.json", Compressed)
    placed = place(family_of(config), config, translate(config), compressed.tensors)
    with np.load(out / "importance.npz") as stored:
        found = {tensor.name: stored[tensor.source] for tensor in placed if tensor.source in stored.files}
    columns = {tensor.name: tensor.columns for tensor in placed}
    found = {
        name: np.pad(values, (0, columns[name] - len(values))).astype(np.float32) for name, values in found.items()
    }
    if "token_embd.weight" in found:
        found.setdefault("output.weight", found["token_embd.weight"])
    return found


def quantize(source: Path, out: Path, name: str, importance: dict[str, Any], *, pure: bool) -> bool:
    """Let llama.cpp's own quantizer write a type; False if it refuses."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = 2
    params.pure = pure
    entries = (_Importance * (len(importance) + 1))()
    kept = []
    for index, (tensor, values) in enumerate(importance.items()):
        data = np.ascontiguousarray(np.maximum(values, values.mean() * 1e-6 + 1e-20), dtype=np.float32)
        kept.append(data)
        entries[index].name = tensor.encode()
        entries[index].data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[index].size = data.size
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    runtime_for("gguf").version()  # starts the backend with its log kept quiet
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if code != 0:
        print(f"llama.cpp does not write {name} for this model (code {code})", file=sys.stderr)
        out.unlink(missing_ok=True)
    return bool(code == 0)


def score(path: Path, folder: Path, reference: Reference, settings: Settings) -> float:
    """Mean KL of a file on the reference's held-out windows."""
    session = runtime_for("gguf").open(path, settings)
    try:
        return score_against(session, folder, reference)[1].kl.value
    finally:
        session.close()


def best_that_fits(uniform: dict[str, dict[str, float]], budget: int) -> dict[str, Any]:
    """The uniform type with the lowest KL within the budget."""
    fitting = [(peer["kl"], name) for name, peer in uniform.items() if peer["bytes"] <= budget]
    if not fitting:
        return {}
    kl, name = min(fitting)
    return {"fits": name, "fits_bytes": uniform[name]["bytes"], "fits_kl": kl}


def next_type_up(uniform: dict[str, dict[str, float]], size: int) -> dict[str, Any]:
    """The smallest uniform type with at least as many bytes; of equals the best."""
    above = sorted((peer["bytes"], peer["kl"], name) for name, peer in uniform.items() if peer["bytes"] >= size)
    return {"up": above[0][2], "up_bytes": above[0][0], "up_kl": above[0][1]} if above else {}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The README's table."""
    lines = [
        "| model | at most | edgegen's file | KL | best uniform type that fits | its KL | next type up | its KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "peers" in row:
            continue
        whole = row["vocab"] == "keep"
        exact = row["budget"] == row.get("fits_bytes")
        limit = f"{format_bytes(row['budget'])} ({'= ' + row['fits'] if exact else format(row['share'], 'g') + ' %'})"
        if "bytes" in row:
            what = "all tokens" if whole else f"{row['vocab_size']:,} tokens"
            mine = f"{format_bytes(row['bytes'])}, {what} | **{row['kl']:.4f}**"
        else:
            mine = f"no plan fits, {'all tokens' if whole else 'trimmed'} | –"
        fits = (
            f"{row['fits']}, {format_bytes(row['fits_bytes'])} | {row['fits_kl']:.4f}" if "fits" in row else "none | –"
        )
        up = f"{row['up']}, {format_bytes(row['up_bytes'])} | {row['up_kl']:.4f}" if "up" in row else "– | –"
        lines.append(f"| {row['model']} | {limit} | {mine} | {fits} | {up} |")
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_allocation: {error} {error.hint}")
