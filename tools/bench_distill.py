"""What distilling buys: a student of at most a quarter of the smart-home teacher, taught by it and by labels alone.

Both start from the same derived weights, see the same rows in the same order for the same number of steps, and are
judged on the same held-out requests: share of calls that are exactly right, and cross entropy of the right answer.
Each seed draws its own rows and order. The margin is the mean of the seeds' differences with its 95 % interval (t).

    python tools/bench_distill.py --json distill.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TEACHER = REPOSITORY / "examples" / "smart_home" / "teacher"
_T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""


def grammar() -> Any:
    """The example's grammar module."""
    spec = importlib.util.spec_from_file_location("grammar", REPOSITORY / "examples" / "smart_home" / "grammar.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grammar"] = module
    spec.loader.exec_module(module)
    return module


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Requests with their calls, as `edgegen` reads them."""
    found = grammar().generate(rows, seed, "train")
    path.write_text("".join(json.dumps({"messages": list(row["messages"])}) + "\n" for row in found))


def judge(folder: Path, rows: int) -> dict[str, float]:
    """Share of exactly right calls, and nats per answer token, on held-out requests."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgegen.modeling.text import prompt_ids
    from edgegen.records.data import Example
    from edgegen.training.batches import encode
    from edgegen.training.loop import heldout_loss

    module = grammar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    examples = [
        Example(messages=tuple((m["role"], m["content"]) for m in row["messages"]), completion=True)
        for row in module.generate(rows, 1009, "heldout")
    ]
    right = 0
    for example in examples:
        ids = torch.tensor([prompt_ids(tokenizer, example)])
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=96,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answer = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        call = module.parse_answer(answer)
        right += call is not None and call == module.parse_answer(example.messages[-1][1])
    loss = heldout_loss(model, encode(tokenizer, examples, max_tokens=512))
    return {"exact": right / len(examples), "loss": loss, "parameters": sum(p.numel() for p in model.parameters())}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every seed, both ways."""
    import torch

    import edgegen
    from edgegen.tune.distill import Distilling

    torch.set_num_threads(options.threads)
    ways = {
        "labels": Distilling(labels=1.0),
        "distilled": Distilling(loss=options.loss, labels=options.labels, temperature=options.temperature),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            data = Path(scratch) / f"rows-{seed}.jsonl"
            write_rows(data, options.rows, 100 + seed)
            for name, how in ways.items():
                out = Path(scratch) / f"{name}-{seed}"
                started = time.perf_counter()
                edgegen.distill(
                    str(TEACHER),
                    student=options.student,
                    data=str(data),
                    out=out,
                    how=how,
                    steps=options.steps,
                    batch=options.batch,
                    rate=options.rate,
                    seed=seed,
                    max_tokens=256,
                    evaluate_every=max(1, options.steps // 4),
                )
                scores = judge(out, options.judge)
                scores["seconds"] = time.perf_counter() - started
                found[name].append(scores)
                print(f"seed {seed} {name:10} exact {scores['exact']:.1%} loss {scores['loss']:.4f}", file=sys.stderr)
        teacher = judge(TEACHER, options.judge)
    margins = {}
    for metric, sign in (("exact", 1.0), ("loss", -1.0)):
        differences = [sign * (b[metric] - a[metric]) for a, b in zip(found["labels"], found["distilled"], strict=True)]
        mean = statistics.mean(differences)
        half = _T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
        margins[metric] = {"margin": mean, "half_interval": half, "clear": mean > half}
    return {"settings": vars(options), "teacher": teacher, "students": found, "margins": margins}


def table(result: dict[str, Any]) -> str:
    """The README's rows."""
    lines = ["| model | parameters | calls exactly right | nats per answer token |", "|---|---|---|---|"]
    teacher = result["teacher"]
    lines.append(f"| teacher | {teacher['parameters']:,.0f} | {teacher['exact']:.1%} | {teacher['loss']:.4f} |")
    for name, runs in result["students"].items():
        exact = " ".join(f"{entry['exact']:.1%}" for entry in runs)
        loss = " ".join(f"{entry['loss']:.4f}" for entry in runs)
        lines.append(f"| student, {name} | {runs[0]['parameters']:,.0f} | {exact} | {loss} |")
    for metric, margin in result["margins"].items():
        lines.append(f"\nmargin in {metric}: {margin['margin']:.4f} ± {margin['half_interval']:.4f} (95 %)")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="0.25x", help="share of the teacher's parameters, or sizes")
    parser.add_argument("--rows", type=int, default=400, help="training rows of each seed")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run")
    parser.add_argument("--batch", type=int, default=32, help="rows a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 7), help="runs of each kind")
    parser.add_argument("--judge", type=int, default=200, help="held-out requests")
    parser.add_argument("--loss", default="forward", help="divergence")
    parser.add_argument("--labels", type=float, default=0.1, help="share of labels when distilling")
    parser.add_argument("--temperature", type=float, default=2.0, help="of both distributions")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(argv)
    result = run(options)
    result["settings"]["json"] = str(options.json or "")
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
