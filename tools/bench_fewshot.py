"""What synthetic examples buy: a small student with a few real examples of an intent set, with and without a teacher's.

For each seed some real examples are drawn, as many of each intent as of the others; the rest of the pool is never seen.
The teacher studies them as requests written to an intent, writes more in that way, and keeps those that it takes for
requests of that intent itself. Both students start from the same weights and learn for the same number of steps, choose
their best weights and take their last steps on the same small validation split. Judged by the share of unseen requests
whose most likely intent is right.

    python tools/bench_fewshot.py TEACHER --pool train.jsonl --judge test.jsonl --out fewshot/

Rows are {"prompt": request, "completion": intent}. A seed that is done is read back from `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
_TOGETHER = 8


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
    """Share of requests whose most likely intent, as a whole text, is the right one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from edgegen.records.data import Example
    from edgegen.training.batches import collate, encode
    from edgegen.training.losses import counted, logits_of

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    intents = sorted({intent for _, intent in rows})
    right = 0
    for start in range(0, len(rows), _TOGETHER):
        some = rows[start : start + _TOGETHER]
        examples = [
            Example(messages=(("user", prompt), ("assistant", intent)), completion=True)
            for prompt, _ in some
            for intent in intents
        ]
        items = encode(tokenizer, examples, max_tokens=256)
        batch = collate([[item] for item in items], packed=False)
        mask, targets, _ = counted(batch)
        logs = torch.log_softmax(logits_of(model, batch)[mask].float(), dim=-1).gather(-1, targets[:, None])[:, 0]
        sums = torch.stack([part.sum() for part in logs.split([item.tokens for item in items])]).view(len(some), -1)
        right += sum(intents[int(n)] == intent for n, (_, intent) in zip(sums.argmax(-1), some, strict=True))
    return right / len(rows)


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Both students of a draw."""
    from edgegen.prepare.split import content_of
    from edgegen.records.data import Example
    from edgegen.records.task import Filters, Task
    from edgegen.sdk import tuning
    from edgegen.tune.finetune import Data

    pool, judged = read(options.pool), read(options.judge)[: options.rows]
    rows = draw(pool, options.few + options.validation, seed)
    examples = tuple(Example(messages=(("user", p), ("assistant", i)), completion=True) for p, i in rows)
    data = Data(
        source="drawn",
        digest=json.dumps([content_of(example) for example in examples]),
        train=examples[: options.few],
        validation=examples[options.few :],
    )
    task = Task(
        schema=1,
        name="intents",
        format="Request: {prompt}\nIntent: {answer}",
        write="Intent: {answer}\nRequest: {prompt}",
        answers=tuple(sorted({intent for _, intent in pool})),
        shots=0,
        synthetic=options.synthetic,
        tries=options.tries,
        max_new_tokens=32,
        study_steps=options.study,
        synthetic_weight=options.weight,
        temperature=options.temperature,
        filters=Filters(asks=1, min_agreement=1.0, max_similarity=0.7, min_confidence=math.log(0.5)),
    )
    found: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        for name, wanted in (("real", 0), ("with synthetic", options.synthetic)):
            import msgspec

            out, began = Path(scratch) / name.replace(" ", "-"), time.process_time()
            _, report = _teach(tuning, options, data, msgspec.structs.replace(task, synthetic=wanted), out, seed)
            found[name] = accuracy(out, judged)
            took = time.process_time() - began
            print(f"seed {seed} {name:15} {found[name]:.1%} ({took:.0f} s of processor)", file=sys.stderr, flush=True)
            if wanted:
                found["synthetic"] = {"asked": report.asked, "kept": report.kept, "dropped": report.dropped}
                lines = (out / "synthetic.jsonl").read_text().splitlines()
                found["examples"] = [json.loads(line)["messages"] for line in lines[:20]]
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every seed, both ways."""
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("seeds", "out")}
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in options.seeds:
        place = options.out / f"seed-{seed}.json"
        done = json.loads(place.read_text()) if place.is_file() else {}
        if done.get("settings") != settings:
            done = one_seed(options, seed) | {"settings": settings}
            place.write_text(json.dumps(done, indent=1) + "\n")
        found.append(done)
    differences = [one["with synthetic"] - one["real"] for one in found]
    margin: dict[str, Any] = {"mean": statistics.mean(differences)}
    if len(differences) - 1 in _T95:
        half = _T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
        margin |= {"half_interval": half, "clear": margin["mean"] > half}
    return {"seeds": found, "margin": margin}


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
    parser.add_argument("--synthetic", type=int, default=200, help="synthetic examples wanted")
    parser.add_argument("--tries", type=int, default=640, help="most that the teacher is asked for")
    parser.add_argument("--study", type=int, default=100, help="steps that the teacher studies the seeds")
    parser.add_argument("--weight", type=float, default=0.5, help="of a synthetic example")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the teacher")
    parser.add_argument("--steps", type=int, default=120, help="of each student")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate of the student")
    parser.add_argument("--rows", type=int, default=350, help="judged requests")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2], help="draws")
    parser.add_argument("--out", type=Path, default=Path("fewshot"), help="folder for the figures of each seed")
    options = parser.parse_args(argv)
    from edgegen.errors import EdgegenError

    try:
        result = run(options)
    except EdgegenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("| seed | real alone | with synthetic | kept of asked |\n|---|---|---|---|")
    for one in result["seeds"]:
        made = one["synthetic"]
        print(
            f"| {one['seed']} | {one['real']:.1%} | {one['with synthetic']:.1%} | {made['kept']} of {made['asked']} |"
        )
    margin = result["margin"]
    half = f" ± {margin['half_interval']:.1%} (95 %)" if "half_interval" in margin else ""
    print(f"\nmargin {margin['mean']:+.1%}{half}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
