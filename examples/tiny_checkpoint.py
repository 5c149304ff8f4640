"""A tiny random checkpoint and a few rows of data, so that the numbered examples need nothing but themselves.

The model says nothing sensible; it has the shape of a real one (a Llama with a byte-level BPE tokenizer), which is
all that planning, rounding, exporting and verifying need.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SUBJECTS = ("the cat", "a small robot", "our neighbour", "the night train", "an old clock", "the river", "the baker")
_VERBS = ("finds", "follows", "repairs", "remembers", "paints", "sells", "counts", "hides")
_OBJECTS = ("a green door", "seven keys", "the last letter", "warm bread", "a broken radio", "two maps", "the moon")
_PLACES = ("in the garden", "before noon", "near the harbour", "without a word", "on Sunday", "at 7:30", "downstairs")


def make_checkpoint(folder: Path, *, hidden: int = 256, layers: int = 2, vocab: int = 512) -> Path:
    """Save a random Llama with a tokenizer trained on the example's rows; returns `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(400, seed=1), trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Wide enough that rounding shows in the logits, with an embedding strong enough that few of them tie.
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2:
                tensor.normal_(std=0.2 if "embed" in name else 0.7 / tensor.shape[1] ** 0.5)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=256
    ).save_pretrained(folder)
    return folder


def make_data(path: Path, rows: int = 64) -> Path:
    """Write rows of text as JSONL; returns `path`."""
    lines = [json.dumps({"text": text}) for text in sentences(rows, seed=2)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sentences(count: int, *, seed: int) -> list[str]:
    """Short texts of three sentences each; equal seeds give equal texts."""
    dice = random.Random(seed)

    def sentence() -> str:
        words = (dice.choice(choices) for choices in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES))
        text = " ".join(words) + "."
        return text[0].upper() + text[1:]

    return [" ".join(sentence() for _ in range(3)) for _ in range(count)]
