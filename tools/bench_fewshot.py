"""What synthetic examples buy: a small student with a few real examples of an intent set, with and without a teacher's.

For each seed some real examples are drawn, as many of each intent as of the others; the rest of the pool is never seen.
Both students start from the same weights and learn for the same number of steps, choose their best weights and take
their last steps on the same small validation split. Judged by the share of unseen requests whose most likely intent is
right.

    python tools/bench_fewshot.py TEACHER --pool train.jsonl --judge test.jsonl --json fewshot.json

Rows are {"prompt": request, "completion": intent}.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


def read(path: Path) -> list[tuple[str, str]]:
    """Requests with their intents."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [(row["prompt"], row["completion"]) for row in rows]


def draw(pool: Sequence[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """`count` rows, as many of each intent as of the others, in random order."""
    dice = random.Random(seed)
    of_intent: dict[str, list[tuple[str, str]]] = {}
    for row in pool:
        of_intent.setdefault(row[1], []).append(row)
    for rows in of_intent.values():
        dice.shuffle(rows)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        for intent in sorted(of_intent):
            if len(found) < count:
                found.append(of_intent[intent].pop())
    dice.shuffle(found)
    return found


def accuracy(folder: Path, rows: Sequence[tuple[str, str]]) -> float:
    """Share of requests whose most likely intent is the right one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgegen.records.data import Example
    from edgegen.training.batches import collate, encode
    from edgegen.training.losses import counted, logits_of

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    intents = sorted({intent for _, intent in rows})
    right = 0
    for prompt, intent in rows:
        examples = [Example(messages=(("user", prompt), ("assistant", i)), completion=True) for i in intents]
        items = encode(tokenizer, examples, max_tokens=256)
        batch = collate([[item] for item in items], packed=False)
        mask, targets, _ = counted(batch)
        logs = torch.log_softmax(logits_of(model, batch)[mask].float(), dim=-1).gather(-1, targets[:, None])[:, 0]
        sums = [float(part.mean()) for part in logs.split([item.tokens for item in items])]
        right += intents[sums.index(max(sums))] == intent
    return right / len(rows)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every seed, both ways."""
    from edgegen.prepare.split import content_of
    from edgegen.records.data import Example
    from edgegen.records.task import Filters, Task
    from edgegen.sdk import tuning
    from edgegen.tune.finetune import Data

    pool, judged = read(options.pool), read(options.judge)[: options.rows]
    intents = tuple(sorted({intent for _, intent in pool}))
    found: dict[str, list[float]] = {"real": [], "with synthetic": []}
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            rows = draw(pool, options.few + options.validation, seed)
            examples = tuple(Example(messages=(("user", p), ("assistant", i)), completion=True) for p, i in rows)
            data = Data(
                source="drawn",
                digest=f"{seed}-{hash(tuple(content_of(e) for e in examples))}",
                train=examples[: options.few],
                validation=examples[options.few :],
            )
            for name, synthetic in (("real", False), ("with synthetic", True)):
                out = Path(scratch) / f"{name}-{seed}".replace(" ", "-")
                task = Task(
                    schema=1,
                    name="intents",
                    format="Request: {prompt}\nIntent: {answer}",
                    answers=intents,
                    synthetic=options.synthetic if synthetic else 1,
                    tries=options.tries,
                    study_steps=options.study,
                    synthetic_weight=options.weight if synthetic else 0.0,
                    temperature=options.temperature,
                    filters=Filters(min_agreement=0.6, max_similarity=0.7, min_confidence=-2.0 if synthetic else -99.0),
                )
                training, report = _teach(tuning, options, data, task, out, seed)
                found[name].append(accuracy(out, judged))
                if synthetic:
                    reports.append({"asked": report.asked, "kept": report.kept, "dropped": report.dropped})
                print(
                    f"seed {seed} {name:15} {found[name][-1]:.1%} ({training.seconds:.0f} s)",
                    file=sys.stderr,
                    flush=True,
                )
    differences = [b - a for a, b in zip(found["real"], found["with synthetic"], strict=True)]
    mean = statistics.mean(differences)
    half = _T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    return {
        "settings": {k: str(v) for k, v in vars(options).items()},
        "accuracy": found,
        "synthetic": reports,
        "margin": {"mean": mean, "half_interval": half, "clear": mean > half},
    }


def _teach(tuning: Any, options: argparse.Namespace, data: Any, task: Any, out: Path, seed: int) -> Any:
    from edgegen.training.options import Options
    from edgegen.tune.fewshot import teach_few
    from edgegen.tune.pupil import Pupil
    from edgegen.tune.student import parse_student

    teacher = tuning.Learner(options.teacher)
    shape = parse_student(options.student, teacher.empty.config)
    pupil = teacher if shape is not None else tuning.Learner(options.student)
    return teach_few(
        teacher.ref,
        teacher.tokenizer,
        Pupil(None if shape is not None else pupil.ref, shape, pupil.tokenizer, pupil.summary.parameters),
        data,
        task,
        teacher_parameters=teacher.summary.parameters,
        few=options.few,
        options=Options(steps=options.steps, batch=16, rate=options.rate, max_tokens=128, seed=seed, evaluate_every=20),
        out=out,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a checkpoint")
    parser.add_argument("--pool", type=Path, required=True, help="rows to draw the few from")
    parser.add_argument("--judge", type=Path, required=True, help="rows to judge on")
    parser.add_argument("--student", default="0.25x", help="as of `edgegen distill`")
    parser.add_argument("--few", type=int, default=32, help="real examples")
    parser.add_argument("--validation", type=int, default=14, help="real examples to choose weights by")
    parser.add_argument("--synthetic", type=int, default=150, help="synthetic examples wanted")
    parser.add_argument("--tries", type=int, default=1200, help="most that the teacher is asked for")
    parser.add_argument("--study", type=int, default=120, help="steps that the teacher studies the seeds")
    parser.add_argument("--weight", type=float, default=0.5, help="of a synthetic example")
    parser.add_argument("--temperature", type=float, default=0.9, help="of the teacher")
    parser.add_argument("--steps", type=int, default=160, help="of each student")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate of the student")
    parser.add_argument("--rows", type=int, default=350, help="judged requests")
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 7), help="draws")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(argv)
    from edgegen.errors import EdgegenError

    try:
        result = run(options)
    except EdgegenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("| student | accuracy of each seed |\n|---|---|")
    for name, values in result["accuracy"].items():
        print(f"| {name} | {' '.join(f'{value:.1%}' for value in values)} |")
    margin = result["margin"]
    print(f"\nmargin {margin['mean']:.1%} ± {margin['half_interval']:.1%} (95 %)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
