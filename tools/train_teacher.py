"""Trains the smart-home teacher: a byte-level BPE tokenizer and a small Llama model, on a CPU, from nothing.

The example compresses a real model, so one has to exist that is small enough to ship and good enough that a
loss of quality shows. This tool makes it from the grammar in `examples/smart_home/grammar.py` alone: no
download, a fixed seed, and the loop that fine-tuning uses, so that an interrupted run goes on. The finished folder
loads with `AutoModelForCausalLM` and `AutoTokenizer`. The run ends with the accuracy on held-out requests.

    python tools/train_teacher.py --out examples/smart_home/teacher --rows 128000 --steps 2000 --seed 7
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from edgegen.common.codec import digest_record
from edgegen.errors import EdgegenError
from edgegen.training.batches import Item
from edgegen.training.loop import fit
from edgegen.training.options import Options

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


def tokenize_rows(rows: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Item]:
    """Tokenizes one-turn chats.

    Args:
        rows: Rows of the grammar.
        tokenizer: The teacher's tokenizer.

    Returns:
        One item per row: tokens of the answer weigh 1, those of the request `USER_WEIGHT`.
    """
    prompts = [f"{USER}{row['messages'][0]['content']}{ASSISTANT}" for row in rows]
    answers = [f"{row['messages'][1]['content']}{END}" for row in rows]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    items = []
    for index, (prompt, answer) in enumerate(zip(prompt_ids, answer_ids, strict=True)):
        counts = np.ones(len(prompt) + len(answer), dtype=bool)
        counts[-1] = False
        shares = np.full(len(counts), USER_WEIGHT, dtype=np.float32)
        shares[len(prompt) - 1 :] = 1.0
        items.append(Item(np.array(prompt + answer, dtype=np.int64), counts, index=index, shares=shares))
    return items


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
    """Trains, saves and judges the teacher; cut off, the same command goes on.

    Args:
        options: Parsed command line.

    Returns:
        Exact-match accuracy in [0, 1] on held-out requests.

    Raises:
        ConfigError: If the training diverges.
    """
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    grammar = load_grammar()
    rows = list(grammar.generate(options.rows, options.seed, "train"))
    tokenizer = train_tokenizer([message["content"] for row in rows[:TOKENIZER_ROWS] for message in row["messages"]])
    items = tokenize_rows(rows, tokenizer)
    model = build_model(tokenizer, options.layers)
    heldout = list(grammar.generate(options.judge, HELDOUT_SEED, "heldout"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    mean_length = sum(len(item.ids) for item in items) / len(items)
    print(f"{len(items)} rows, {mean_length:.1f} tokens each; {parameters} parameters", flush=True)
    wanted = Options(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        warmup=min(WARMUP_STEPS, max(options.steps // 10, 1)) / options.steps,
        least_rate=0.02,
        weight_decay=0.05,
        max_tokens=CONTEXT,
        seed=options.seed,
        evaluate_every=options.save_every,
    )
    identity = digest_record([options.rows, options.seed, options.batch, options.steps, options.rate, options.layers])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=options.steps)
        fitted = fit(
            model,
            items,
            [],
            wanted,
            options.out.with_name(options.out.name + ".training"),
            identity=identity,
            progress=lambda done, steps, words: progress.update(task, completed=done, description=words),
        )
    print(f"{fitted.tokens_per_s:,.0f} tokens of answers and requests a second", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    save_teacher(model, tokenizer, options.out)
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
    except (EdgegenError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
