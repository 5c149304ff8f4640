"""Trains the smart-home teacher: a byte-level BPE tokenizer and a small Llama model, on a CPU, from nothing.

The example compresses a real model, so one has to exist that is small enough to ship and good enough that a
loss of quality shows. This tool makes it from the grammar in `examples/smart_home/grammar.py` alone: no
download, a fixed seed, and a checkpoint from which an interrupted run resumes. The finished folder loads with
`AutoModelForCausalLM` and `AutoTokenizer`. The run ends with the accuracy on held-out requests.

    python tools/train_teacher.py --out examples/smart_home/teacher --rows 128000 --steps 2000 --seed 7
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

REPOSITORY = Path(__file__).resolve().parents[1]
GRAMMAR = REPOSITORY / "examples" / "smart_home" / "grammar.py"
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
ENDOFTEXT, PAD, USER, ASSISTANT, END = SPECIAL_TOKENS
VOCABULARY_SIZE = 2048
TOKENIZER_ROWS = 8000
CONTEXT = 512
USER_WEIGHT = 0.1
WARMUP_STEPS = 100
HELDOUT_SEED = 1009
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{%- else -%}{{ raise_exception('this model knows only the roles user and assistant') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Example:
    """One tokenized row: token ids and the index of the first token of the answer."""

    tokens: list[int]
    answer_start: int


def load_grammar() -> ModuleType:
    """Loads the corpus grammar from its file, because `examples` is not an installed package."""
    spec = importlib.util.spec_from_file_location("smart_home_grammar", GRAMMAR)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {GRAMMAR}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE tokenizer on rows of the corpus and on plain English.

    The English is the help text that comes with Python. It gives the vocabulary words that smart-home
    requests hardly use, as the vocabulary of any general model has them.

    Args:
        texts: Corpus texts without special tokens.

    Returns:
        A tokenizer of `VOCABULARY_SIZE` tokens that adds none on encoding and carries the chat template.
    """
    from pydoc_data.topics import topics

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    english = (" ".join(text.split()) for _, text in sorted(topics.items()))
    bpe.train_from_iterator(itertools.chain(texts, english), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=ENDOFTEXT,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlamaForCausalLM:
    """Builds the untrained model.

    Args:
        tokenizer: Tokenizer whose size and special tokens the model takes.
        layers: Number of decoder layers.

    Returns:
        A float32 model with tied embeddings.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def tokenize_rows(rows: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Tokenizes one-turn chats.

    Args:
        rows: Rows of the grammar.
        tokenizer: The teacher's tokenizer.

    Returns:
        One example per row.
    """
    prompts = [f"{USER}{row['messages'][0]['content']}{ASSISTANT}" for row in rows]
    answers = [f"{row['messages'][1]['content']}{END}" for row in rows]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [Example(prompt + answer, len(prompt)) for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Yields batches of similar length for ever, in an order that depends on the seed alone.

    Args:
        examples: Training examples.
        size: Examples per batch.
        seed: Seed of the order.

    Yields:
        Lists of `size` examples. One epoch shows every example at most once.
    """
    rng = random.Random(seed)
    while True:
        order = list(range(len(examples)))
        rng.shuffle(order)
        order.sort(key=lambda index: len(examples[index].tokens))
        starts = list(range(0, max(len(order) - size, 0) + 1, size))
        rng.shuffle(starts)
        for start in starts:
            yield [examples[index] for index in order[start : start + size]]


def batch_loss(model: LlamaForCausalLM, batch: Sequence[Example], pad_id: int) -> torch.Tensor:
    """Computes the weighted next-token loss of one batch.

    Args:
        model: Model in training.
        batch: Examples; they are padded on the right, which causal attention never sees.
        pad_id: Token id of the padding.

    Returns:
        Scalar mean cross-entropy in nats per weighted token. Tokens of the answer weigh 1, those of the
        request `USER_WEIGHT` and padding 0.
    """
    length = max(len(example.tokens) for example in batch)
    tokens = torch.full((len(batch), length), pad_id)
    weights = torch.zeros(len(batch), length)
    for index, example in enumerate(batch):
        tokens[index, : len(example.tokens)] = torch.tensor(example.tokens)
        weights[index, : example.answer_start] = USER_WEIGHT
        weights[index, example.answer_start : len(example.tokens)] = 1.0
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    target_weights = weights[:, 1:].flatten()
    return (losses * target_weights).sum() / target_weights.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Gives the learning rate of a step: a linear warm-up, then a cosine down to a fiftieth of the peak."""
    warmup = min(WARMUP_STEPS, max(steps // 10, 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: LlamaForCausalLM, rate: float) -> torch.optim.AdamW:
    """Builds AdamW with weight decay on the matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Sequence[Example], rate: float
) -> float:
    """Takes one optimiser step, with the gradient clipped to norm 1.

    Args:
        model: Model in training; changed in place.
        optimizer: Its optimiser.
        batch: Examples of the step.
        rate: Learning rate of the step.

    Returns:
        The loss before the step, in nats per weighted token.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = batch_loss(model, batch, model.config.pad_token_id)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def save_teacher(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the folder that ships: bfloat16 weights, configurations and tokenizer.

    Args:
        model: Model in training; it is left as it is.
        tokenizer: The teacher's tokenizer.
        out: Folder to write.
    """
    config = LlamaConfig.from_dict(model.config.to_dict())
    copy = LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=96,
    )
    copy.save_pretrained(out)
    tokenizer.backend_tokenizer.no_padding()  # judging pads, and the setting would be saved
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint so that an interruption leaves the old one or the new one, never half a file."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def exact_match(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Any],
    grammar: ModuleType,
    batch_size: int = 50,
) -> tuple[float, list[tuple[str, str]]]:
    """Measures how often greedy decoding gives exactly the right call.

    Args:
        model: Model to judge.
        tokenizer: Its tokenizer.
        rows: Rows of the grammar.
        grammar: The grammar module, for reading answers.
        batch_size: Requests decoded at once.

    Returns:
        Share of rows in [0, 1] whose parsed call equals the reference, and the failures as (request, answer).
    """
    model.eval()
    failures: list[tuple[str, str]] = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        prompts = [
            tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
            for row in chunk
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=96,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, answer in zip(chunk, answers, strict=True):
            call = grammar.parse_answer(answer)
            if call is None or call != grammar.parse_answer(row["messages"][1]["content"]):
                failures.append((row["messages"][0]["content"], answer))
    model.train()
    return 1.0 - len(failures) / len(rows), failures


def train(options: argparse.Namespace) -> float:
    """Trains, saves and judges the teacher.

    Args:
        options: Parsed command line.

    Returns:
        Exact-match accuracy in [0, 1] on held-out requests.

    Raises:
        ValueError: If the options contradict each other or the checkpoint.
    """
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    checkpoint: Path = options.checkpoint or options.out.with_name(options.out.name + ".ckpt")
    if options.resume and not checkpoint.is_file():
        raise ValueError(f"--resume: there is no checkpoint at {checkpoint}")
    grammar = load_grammar()
    rows = list(grammar.generate(options.rows, options.seed, "train"))
    tokenizer = train_tokenizer([message["content"] for row in rows[:TOKENIZER_ROWS] for message in row["messages"]])
    examples = tokenize_rows(rows, tokenizer)
    model = build_model(tokenizer, options.layers)
    optimizer = make_optimizer(model, options.rate)
    first = 0
    if options.resume:
        state = torch.load(checkpoint, weights_only=True)
        if state["rows"] != options.rows or state["seed"] != options.seed or state["batch"] != options.batch:
            raise ValueError("--resume needs the --rows, --seed and --batch of the checkpoint")
        if state["step"] > options.steps:
            raise ValueError(f"the checkpoint is already at step {state['step']}, past --steps {options.steps}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    heldout = list(grammar.generate(options.judge, HELDOUT_SEED, "heldout"))
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save_checkpoint(checkpoint, {**state, "rows": options.rows, "seed": options.seed, "batch": options.batch})
        save_teacher(model, tokenizer, options.out)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    mean_length = sum(len(example.tokens) for example in examples) / len(examples)
    print(f"{len(examples)} rows, {mean_length:.1f} tokens each; {parameters} parameters", flush=True)
    stream = itertools.islice(batches(examples, options.batch, options.seed), first, options.steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    model.train()
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=options.steps, completed=first)
        for step, batch in enumerate(stream, start=first):
            loss = train_step(model, optimizer, batch, learning_rate(step, options.steps, options.rate))
            progress.update(task, advance=1, description=f"loss {loss:.4f}")
            if (step + 1) % options.save_every == 0 and step + 1 < options.steps:
                save(step + 1)
                accuracy, _ = exact_match(model, tokenizer, heldout[:50], grammar)
                print(f"step {step + 1}: loss {loss:.4f}, {accuracy:.0%} of 50 held-out calls exact", flush=True)
    save(options.steps)
    shipped = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    accuracy, failures = exact_match(shipped, tokenizer, heldout, grammar)
    for request, answer in failures[:20]:
        print(json.dumps({"request": request, "answer": answer}))
    print(f"exact-match accuracy on {len(heldout)} held-out requests: {accuracy:.1%}")
    return float(accuracy)


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 and the message."""
        self.exit(2, f"error: {message}\n")


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad argument ends the program with one line."""
    parser = _Parser(description="Train the smart-home teacher on the CPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished teacher")
    parser.add_argument("--rows", type=int, default=128_000, help="distinct training rows (default 128000)")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps (default 2000)")
    parser.add_argument("--seed", type=int, default=7, help="seed of data, weights and order (default 7)")
    parser.add_argument("--batch", type=int, default=64, help="rows per step (default 64)")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (default 0.002)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--judge", type=int, default=200, help="held-out requests to judge on (default 200)")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints (default 250)")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint file (default: OUT with .ckpt added)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    options = parser.parse_args(argv)
    for name in ("rows", "steps", "batch", "layers", "threads", "judge", "save_every"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < options.rate < 1:
        raise ValueError("--rate must lie between 0 and 1")
    if options.out.is_file():
        raise ValueError(f"--out {options.out} is a file, not a folder")
    if options.rows < options.batch:
        raise ValueError("--rows must not be smaller than --batch")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool and returns the process exit code."""
    try:
        train(parse_options(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
