"""edgegen's artifacts against each runtime's own default export, at the same bits, in one run.

    python tools/bench_runtimes.py MODEL... --data FILE [--random-llama 100M] [--targets gguf,onnx,litert]

| runtime | its own way                                                   | edgegen's artifact                    |
|---------|---------------------------------------------------------------|---------------------------------------|
| gguf    | llama.cpp's quantizer: `Q4_0`, `Q4_K_M`, `Q8_0`               | the type that it chose, tensor by tensor |
| onnx    | onnxruntime-genai's model builder: `-p int4`, `-p int8`       | s4_32, s8_32 everywhere               |
| litert  | ai-edge-quantizer: `dynamic_wi4b32_afp32`, `dynamic_wi8_afp32` | i4_32, i8_row everywhere              |

The LiteRT quantizer gets edgegen's graph as the converter makes it in float32: the files of litert-torch's own export
have other signatures, which no session here runs. Weights are rounded without importance, because how fast a runtime
multiplies does not depend on their values; for the same reason a random model will do. Both of a pair run in the same
session with the same settings, every measurement in a process of its own, all in turn (see `edgegen.verify.bench`).

The table shows medians. A machine's speed drifts over minutes, so each run is compared with its neighbour, the other of
the pair in the same round, and a ratio is the median of those. GGUF pairs have the same types tensor by tensor: what
they differ by is noise, and shows how much of it there is.

Prints a Markdown table with the ratios edgegen/own and writes runtimes.json. Exit code 1 if a file is larger or a speed
is below 0.95 of the runtime's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from peers.exports import build_onnx, plain_litert, quantize_litert
from peers.llama import quantize_gguf
from peers.process import ProgramError
from peers.subject import Subject, tell

from edgegen.common.codec import encode_json
from edgegen.common.units import format_bytes
from edgegen.errors import EdgegenError
from edgegen.export.gguf.families import family_of, translate
from edgegen.export.gguf.tensors import place
from edgegen.prepare.split import prepare_data
from edgegen.records.bench import Bench, BenchRow, Spread
from edgegen.records.compressed import PackedTensor
from edgegen.verify.bench import BenchRequest, Case, run_bench

GGUF_TYPES = ("Q4_0", "Q4_K_M", "Q8_0")
ONNX_PRECISIONS = {"int4": "s4_32", "int8": "s8_32"}
LITERT_RECIPES = {"dynamic_wi4b32_afp32": "i4_32", "dynamic_wi8_afp32": "i8_row"}
LEAST_RATIO = 0.95


class Pair(NamedTuple):
    """Two artifact folders of the same bits."""

    name: str
    ours: Path
    own: Path


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="*", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that tokenizers are proven on (and trained, if random)")
    parser.add_argument("--random-llama", choices=("100M",), help="also a random Llama of this size")
    parser.add_argument("--targets", default="gguf,onnx,litert")
    parser.add_argument("--out", default="build-bench-runtimes", help="working folder")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--ubatch", type=int, default=128, help="prompt tokens at once")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    out = Path(given.out)
    models = [Path(model) for model in given.models]
    if given.random_llama:
        models.append(make_random_llama(out / f"llama-{given.random_llama}", given.data))
    found: dict[str, Bench] = {}
    for model in models:
        subject = Subject(model, given.data, out / "made" / model.name, given.context, given.ubatch)
        pairs = [pair for target in given.targets.split(",") for pair in PAIRS[target](subject)]
        found[model.name] = measure(pairs, [int(n) for n in given.threads.split(",")], given.repeats)
        (out / "runtimes.json").write_bytes(encode_json(found))  # what is measured is kept if a later model fails
    print("\n".join(table(found)))
    failures = [line for name, bench in found.items() for line in misses(name, bench)]
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def gguf_pairs(subject: Subject) -> Iterator[Pair]:
    """llama.cpp's quantizer decides a type for each tensor; edgegen's file takes the same."""
    import gguf

    whole = subject.artifact("gguf", "f32", lambda info: "f32")
    for name in GGUF_TYPES:
        own = subject.beside(whole, f"llama.cpp-{name}", lambda place, name=name: _quantize_gguf(whole, place, name))  # type: ignore[misc]
        types = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(own / "model.gguf").tensors}
        config = subject.config
        stored = [PackedTensor(i.name, "f32", i.rows, i.columns, 0, 4 * i.weights) for i in subject.summary.tensors]
        placed = place(family_of(config), config, translate(config), stored)
        grids = {tensor.source: types[tensor.name] for tensor in placed if tensor.source}
        yield Pair(f"gguf {name}", subject.artifact("gguf", name, lambda info, grids=grids: grids[info.name]), own)  # type: ignore[misc]


def _quantize_gguf(whole: Path, place: Path, name: str) -> tuple[str, ...]:
    quantize_gguf(whole / "model.gguf", place / "model.gguf", name)
    return ("model.gguf",)


def onnx_pairs(subject: Subject) -> Iterator[Pair]:
    """onnxruntime-genai's model builder as its own command line runs it."""
    for precision, grid in ONNX_PRECISIONS.items():
        ours = subject.artifact("onnx", grid, lambda info, grid=grid: grid)  # type: ignore[misc]

        def build(place: Path, precision: str = precision) -> tuple[str, ...]:
            build_onnx(subject, place, precision)
            return ("model.onnx", "model.onnx.data")

        yield Pair(f"onnx {precision}", ours, subject.beside(ours, f"onnxruntime-genai-{precision}", build))


def litert_pairs(subject: Subject) -> Iterator[Pair]:
    """Google's quantizer on edgegen's graph in float32."""
    plain = plain_litert(subject)
    for recipe, grid in LITERT_RECIPES.items():
        ours = subject.artifact("litert", grid, lambda info, grid=grid: grid)  # type: ignore[misc]

        def quantize(place: Path, recipe: str = recipe) -> tuple[str, ...]:
            quantize_litert(plain, place / "model.tflite", recipe)
            return ("model.tflite",)

        yield Pair(f"litert {recipe}", ours, subject.beside(ours, f"ai-edge-quantizer-{recipe}", quantize))


PAIRS = {"gguf": gguf_pairs, "onnx": onnx_pairs, "litert": litert_pairs}


def make_random_llama(folder: Path, data: str) -> Path:
    """A Llama of 100 million random weights with a byte-level tokenizer that was trained on the data."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = 32_000
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=rows,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row.text for row in prepare_data(data).calibration), trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def measure(pairs: list[Pair], threads: list[int], repeats: int) -> Bench:
    """All artifacts in turn."""
    cases = []
    for pair in pairs:
        cases.append(Case(name=f"{pair.name}, edgegen", artifact=str(pair.ours), runtime=""))
        cases.append(Case(name=f"{pair.name}, own", artifact=str(pair.own), runtime=""))
    request = BenchRequest(
        cases=tuple(cases),
        threads=tuple(threads),
        prompt_tokens=(64, 512),
        decode_tokens=128,
        repeats=repeats,
        command=" ".join(sys.argv),
    )
    return run_bench(request, lambda done, total: tell(f"measured {done} of {total}") if done % 10 == 0 else None)


def table(found: dict[str, Bench]) -> list[str]:
    """A row an artifact, numbers at each number of threads beside each other, ratios under edgegen's name."""
    threads = sorted({row.threads for bench in found.values() for row in bench.rows})
    beside = " / ".join(map(str, threads))
    heads = [
        "model",
        "artifact",
        "size",
        "peak memory",
        "load",
        f"first token (64), ms, {beside} threads",
        "prefill (512), tok/s",
        "decode, tok/s",
        "edgegen / own: size, memory, prefill, decode",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for model, bench in found.items():
        for name in dict.fromkeys(row.name for row in bench.rows):
            rows = [row for row in bench.rows if row.name == name]
            lines.append(f"| {model} | {' | '.join(_cells(rows, _partners(bench, rows)))} |")
    return lines


def _partners(bench: Bench, rows: list[BenchRow]) -> list[BenchRow]:
    """The runtime's own rows for edgegen's, none for its own."""
    name = rows[0].name
    if not name.endswith(", edgegen"):
        return []
    return [row for row in bench.rows if row.name == name.removesuffix("edgegen") + "own"]


def _cells(rows: list[BenchRow], own: list[BenchRow]) -> list[str]:
    if any(row.error for row in rows):
        return [rows[0].name, format_bytes(rows[0].bytes), rows[0].error, *[""] * 5]

    def beside(pick: Callable[[BenchRow], float], form: str = ",.0f") -> str:
        return " / ".join(format(pick(row), form) for row in rows)

    cells = [
        rows[0].name,
        format_bytes(rows[0].bytes),
        format_bytes(_median(rows[0].peak_rss_bytes)),
        f"{_median(rows[0].load_ms):,.0f} ms",
        beside(lambda row: row.prompts[0].ttft_ms.median, ",.1f"),
        beside(lambda row: _prefill(row).median),
        beside(lambda row: _decode(row).median),
    ]
    if not own or any(row.error for row in own):
        return [*cells, ""]
    ratios = [f"{rows[0].bytes / own[0].bytes:.3f}", f"{_memory(rows[0]) / _memory(own[0]):.2f}"]
    for pick in (_prefill, _decode):
        ratios.append(" / ".join(f"{_ratio(pick(a), pick(b)):.2f}" for a, b in zip(rows, own, strict=True)))
    return [*cells, ", ".join(ratios)]


def misses(model: str, bench: Bench) -> list[str]:
    """Where edgegen's artifact is larger or slower than the runtime's own, or could not be measured."""
    found = [f"{model}: {row.name}: {row.error}" for row in bench.rows if row.error]
    for row in bench.rows:
        for own in _partners(bench, [row]):
            if row.error or own.error or own.threads != row.threads:
                continue
            if row.bytes > own.bytes:
                found.append(f"{model}: {row.name}: {row.bytes:,} bytes, its own {own.bytes:,}")
            for what, pick in (("prefill", _prefill), ("decode", _decode)):
                ratio = _ratio(pick(row), pick(own))
                if ratio < LEAST_RATIO:
                    found.append(f"{model}: {row.name}: {what} at {ratio:.2f} of its own, {row.threads} threads")
    return list(dict.fromkeys(found))


def _prefill(row: BenchRow) -> Spread:
    return row.prompts[-1].tokens_per_s


def _decode(row: BenchRow) -> Spread:
    assert row.decode_tokens_per_s is not None, "a row without an error has all numbers"
    return row.decode_tokens_per_s


def _ratio(ours: Spread, own: Spread) -> float:
    """Median of the ratios of neighbours."""
    return statistics.median(a / b for a, b in zip(ours.values, own.values, strict=True))


def _memory(row: BenchRow) -> float:
    return _median(row.peak_rss_bytes)


def _median(spread: Spread | None) -> float:
    assert spread is not None, "a row without an error has all numbers"
    return spread.median


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_runtimes: {error} {error.hint}")
    except ProgramError as error:
        sys.exit(f"bench_runtimes: {error}")
