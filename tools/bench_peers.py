"""edgegen against the best of other tools, at the same bytes, in one run.

    python tools/bench_peers.py MODEL... --data FILE [--tools llama.cpp,autoround,onnx,litert] [--most 6]

| runtime | the other tool's files                                                                                 |
|---------|--------------------------------------------------------------------------------------------------------|
| gguf    | llama.cpp's quantizer: mixes and uniform types, without and with an importance matrix, and `--pure`    |
| gguf    | AutoRound in an environment made here: two types, rounded (0 steps) and tuned (200), and a bit budget  |
| onnx    | onnxruntime-genai's model builder: int4 (default, rtn, k_quant and its mixes) and int8                 |
| litert  | ai-edge-quantizer on edgegen's graph in float32: its dynamic recipes for int8 and int4                 |

Files of one tool that no other of its files beats are its front. For each of them edgegen compresses the checkpoint
with its default settings to at most the same bytes, and again with each time for tuning that `--times` names. All
files know the same calibration rows (llama.cpp as importance weights that edgegen measured) and are scored on their
runtime on the same tokens of the same held-out rows; that no row is on both sides is checked by hash. Speed is measured
by bench_runtimes.py.

KL is to the original in nats per token. What is done is kept in the working folder, file by file, and not done again;
a tool that cannot be installed or run is named in the table with the reason. Prints Markdown tables and writes
peers.json, peers.md and peers.svg.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from peers.autoround import install, quantize
from peers.exports import build_onnx, gguf_importance, plain_litert, quantize_litert
from peers.plot import draw
from peers.points import Made, Point, Scorer, front, spread
from peers.process import ProgramError, run
from peers.score import THEIRS
from peers.subject import Subject, tell
from peers.tables import tables

from edgegen.common.codec import encode_json
from edgegen.common.units import parse_seconds
from edgegen.errors import EdgegenError
from edgegen.prepare.split import content_of, prepare_data

ROOT = Path(__file__).resolve().parents[1]
MIXES = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q3_K_M", "Q3_K_S", "Q2_K")
UNIFORM = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS")
ONNX = {
    "int4, default": ("int4", ()),
    "int4, rtn": ("int4", ("algo_config=rtn",)),
    "int4, k_quant": ("int4", ("algo_config=k_quant",)),
    "int4, k_quant_last": ("int4", ("algo_config=k_quant_last",)),
    "int4, k_quant_mixed": ("int4", ("algo_config=k_quant_mixed",)),
    "int8, default": ("int8", ()),
    "int8, k_quant": ("int8", ("algo_config=k_quant",)),
}
LITERT = ("dynamic_wi8_afp32", "dynamic_wi4b32_afp32", "dynamic_wi4c_afp32")
TOOLS = {"llama.cpp": "gguf", "autoround": "gguf", "onnx": "onnx", "litert": "litert"}
CONTEXT, UBATCH = 1024, 128


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that is calibrated and, on other rows, judged on")
    parser.add_argument("--out", default="build-bench-peers", help="working folder")
    parser.add_argument("--tools", default=",".join(TOOLS), help="only these")
    parser.add_argument("--most", type=int, default=6, help="files of a tool's front that edgegen is held against")
    parser.add_argument("--vocab", default="keep", help="edgegen's vocabularies: keep, auto, or both by comma")
    parser.add_argument("--times", default="", help="what edgegen has for tuning: like 10m, nothing, or both by comma")
    given = parser.parse_args()
    out = Path(given.out)
    for time in filter(None, given.times.split(",")):
        parse_seconds(time, what="--times")
    rows = check_overlap(given.data)
    points: list[Point] = []
    for model in map(Path, given.models):
        subject = Subject(model, given.data, out / model.name, CONTEXT, UBATCH)
        scorer = Scorer(subject, given.data)
        for tool in given.tools.split(","):
            theirs = list(PEERS[tool](scorer))
            ours = [
                scorer.ours(TOOLS[tool], point, vocab, time)
                for point in spread(front(theirs), given.most)
                for vocab in given.vocab.split(",")
                for time in given.times.split(",")
            ]
            points += [*theirs, *ours]
        check_tokens(points, model.name)
    (out / "peers.json").write_bytes(encode_json({"rows": rows, "points": points}))
    text = "\n".join(tables(points)) + "\n"
    (out / "peers.md").write_text(text)
    draw(points, out / "peers.svg")
    sys.stdout.write(text)
    return 0


def check_overlap(data: str) -> dict[str, int | str]:
    """How many rows calibrate and judge; digests of both sides.

    Raises:
        SystemExit: a row is on both sides.
    """
    split = prepare_data(data)
    sides = {
        name: sorted({hashlib.sha256(content_of(row).encode()).hexdigest() for row in rows})
        for name, rows in (("calibration", split.calibration), ("heldout", split.heldout))
    }
    both = set(sides["calibration"]) & set(sides["heldout"])
    if both:
        sys.exit(f"bench_peers: {len(both)} rows calibrate and judge")
    found: dict[str, int | str] = {f"{name}_rows": len(hashes) for name, hashes in sides.items()}
    return found | {name: hashlib.sha256("".join(hashes).encode()).hexdigest() for name, hashes in sides.items()}


def check_tokens(points: list[Point], model: str) -> None:
    """
    Raises:
        SystemExit: files of a model with the whole vocabulary were scored on different numbers of tokens.
    """
    whole = [p.quality for p in points if p.model == model and p.quality and not p.quality.renormalised]
    if len({quality.tokens for quality in whole}) > 1:
        sys.exit(f"bench_peers: {model}: files were scored on different tokens")


def llama_points(scorer: Scorer) -> Iterator[Point]:
    """llama.cpp's quantizer."""
    importance = scorer.place / "importance-gguf.npz"
    if not importance.exists():
        np.savez(importance, allow_pickle=False, **gguf_importance(scorer.base))
    cases = [(name, weighted, False) for name in (*MIXES, *UNIFORM) for weighted in (False, True)]
    cases += [(name, True, False) for name in NEED_IMPORTANCE]
    cases += [(name, True, True) for name in (*MIXES, *UNIFORM, *NEED_IMPORTANCE) if not name.endswith("_M")]
    for name, weighted, pure in cases:
        words = [name, *(["imatrix"] if weighted else []), *(["pure"] if pure else [])]

        def make(place: Path, name: str = name, weighted: bool = weighted, pure: bool = pure) -> Made:
            command = [sys.executable, "-m", "peers.llama", str(scorer.source), str(place / "model.gguf"), name]
            return Made(("model.gguf",), run([*command, str(importance) if weighted else "", str(int(pure))]))

        yield scorer.peer("gguf", "llama.cpp", " ".join(words), make)


def autoround_points(scorer: Scorer) -> Iterator[Point]:
    """AutoRound; one point with the reason where it cannot be installed."""
    model = scorer.subject.model.name
    try:
        python = install(scorer.place.parent / "venv-autoround", ROOT / "constraints.txt")
    except ProgramError as error:
        tell(f"AutoRound cannot be installed: {error}")
        yield Point(model=model, target="gguf", tool="AutoRound", name="-", error=f"cannot be installed: {error}")
        return
    cases: dict[str, tuple[str, ...]] = {}
    for steps in ("0", "200"):
        for kind in ("q4_0", "q4_k_s"):
            scheme = f"GGUF:{kind.upper()}"
            cases[f"{kind.upper()}, {steps} steps"] = ("--scheme", scheme, "--format", f"gguf:{kind}", "--iters", steps)
    options = "GGUF:Q4_K_S,GGUF:Q8_0"
    cases["5 bits, 0 steps"] = ("--target_bits", "5", "--options", options, "--format", "gguf:q4_k_s", "--iters", "0")
    for name, arguments in cases.items():

        def make(place: Path, arguments: tuple[str, ...] = arguments) -> Made:
            cost, size = quantize(python, scorer.subject, scorer.source, place / "model.gguf", arguments)
            return Made(("model.gguf",), cost, size)

        yield scorer.peer("gguf", "AutoRound", name, make)


def onnx_points(scorer: Scorer) -> Iterator[Point]:
    """onnxruntime-genai's model builder."""
    for name, (precision, options) in ONNX.items():

        def make(place: Path, precision: str = precision, options: tuple[str, ...] = options) -> Made:
            (place / THEIRS).touch()
            return Made(("model.onnx", "model.onnx.data"), build_onnx(scorer.subject, place, precision, options))

        yield scorer.peer("onnx", "onnxruntime-genai", name, make)


def litert_points(scorer: Scorer) -> Iterator[Point]:
    """Google's quantizer."""
    plain = plain_litert(scorer.subject)
    for recipe in LITERT:

        def make(place: Path, recipe: str = recipe) -> Made:
            return Made(("model.tflite",), quantize_litert(plain, place / "model.tflite", recipe))

        yield scorer.peer("litert", "ai-edge-quantizer", recipe, make)


PEERS = {"llama.cpp": llama_points, "autoround": autoround_points, "onnx": onnx_points, "litert": litert_points}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_peers: {error} {error.hint}")
