"""Tiny random checkpoints of every family, with real trained tokenizers, and the shortest way to a compressed
folder.

The models mean nothing, but their weights are spread so that logits differ by whole nats: a wrong head order,
norm or rotation then shows.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from edgegen import grids
from edgegen.common.codec import save_json
from edgegen.common.files import digest_file
from edgegen.export import exporter_for
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.model import ModelSummary, TensorInfo
from edgegen.records.plan import Settings

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "phi", "phi3")

_WORDS = (
    "the a one two cat dog bird fish tree house river lamp kitchen garden light door window morning",
    "evening small big red blue green happy quiet quick old new walked ran jumped opened closed",
    "looked found gave took said asked turned on off up down in under over near with and but because",
    "when then so it was is there they she he we you I'll don't can't it's 12 345 2024 7:30 50%",
    'hello, yes! no? maybe; well: (ok) "good" under_score semi-final',
)


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")


def sample_texts(count: int, *, seed: int = 0, words: int = 30) -> list[str]:
    """Sentences of common words, numbers and punctuation with a line break now and then."""
    dice = random.Random(seed)
    known = " ".join(_WORDS).split()
    texts = []
    for _ in range(count):
        picked = [dice.choice(known) for _ in range(words)]
        joined = [word + dice.choice([" "] * 12 + ["\n", "  ", ". "]) for word in picked]
        texts.append("".join(joined).strip())
    return texts


def make_tokenizer(kind: str = "bytelevel", *, size: int = 400) -> Tokenizer:
    """Train a small BPE tokenizer.

    Args:
        kind: `bytelevel`, `smollm`, `qwen2`, `llama3` (byte-level with their splitting steps),
            `sentencepiece` (byte fallback, a space before the text) or `gemma` (byte fallback, none).
        size: number of tokens, special ones included.
    """
    if kind in ("sentencepiece", "gemma"):
        return _sentencepiece(size, gemma=kind == "gemma")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = {
        "bytelevel": plain,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2), "isolated"), bare]),
        "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), bare]),
    }
    tokenizer.pre_tokenizer = steps[kind]
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_texts(200, seed=1), trainer)
    return tokenizer


def _sentencepiece(size: int, *, gemma: bool) -> Tokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    spaces = normalizers.Replace(" ", "▁")
    normalizer = spaces if gemma else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizer
    # Words are only cut while learning, so that no merge spans the space between two of them.
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learned = size - len(special) - 256
    learner.train_from_iterator(sample_texts(200, seed=1), trainers.BpeTrainer(vocab_size=learned, show_progress=False))
    state = json.loads(learner.to_str())["model"]
    pieces = sorted(state["vocab"], key=state["vocab"].__getitem__)
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(tokens)},
            merges=[tuple(merge) for merge in state["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizer
    bos = "<bos>" if gemma else "<s>"
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back if gemma else [*back, decoders.Strip(" ", 1, 0)])
    return tokenizer


_SPECIAL = {
    "sentencepiece": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "llama3": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
}
_BYTELEVEL_SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def make_tiny(
    family: str,
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    context: int = 256,
    vocab: int = 400,
    padding: int = 0,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
    tokenizer: str = "bytelevel",
    chat_template: str | None = None,
    **overrides: Any,
) -> Path:
    """Save a random checkpoint with a trained tokenizer.

    Args:
        family: transformers' `model_type`.
        vocab: tokens of the tokenizer; the embedding has `padding` rows more.
        tied: whether embedding and head are one table; None: as the family usually is.
        shards: how many safetensors files to spread the weights over.
        tokenizer: a kind that `make_tokenizer` knows.
        overrides: further keys of the configuration.

    Returns:
        `folder`.
    """
    trained = make_tokenizer(tokenizer, size=vocab)
    names = _SPECIAL.get(tokenizer, _BYTELEVEL_SPECIAL)
    ids = {f"{role}_id": trained.token_to_id(text) for role, text in names.items() if role != "unk_token"}
    rows = trained.get_vocab_size() + padding
    if tied is None:
        tied = family in ("gemma", "gemma2", "gemma3_text", "gpt2")
    settings: dict[str, Any] = {
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **ids,
    }
    if family == "gpt2":
        settings |= {
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": heads,
            "n_positions": context,
            "n_inner": ffn,
        }
    else:
        settings |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads if family == "phi" else kv_heads,
            "intermediate_size": ffn,
            "max_position_embeddings": context,
        }
    if family.startswith("gemma"):
        settings |= {
            "head_dim": hidden // heads,
            "query_pre_attn_scalar": hidden // heads,
            "sliding_window": 32,
        }
    if family == "qwen3":
        settings |= {"head_dim": hidden // heads}
    if family in ("mistral", "phi3"):
        settings |= {"sliding_window": None}
    config = AutoConfig.for_model(family, **(settings | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32)
    _spread(model)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(dtype)
    total = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=total // shards + 4096 if shards > 1 else "5GB")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=context, **names)
    if chat_template is not None:
        wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return folder


def _spread(model: PreTrainedModel) -> None:
    """Give every parameter a size at which a mistake in it changes the logits by whole nats."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif "emb" in name or "wte" in name or "wpe" in name or "lm_head" in name:
                tensor.copy_(torch.randn_like(tensor) * (2.0 / tensor.shape[-1] ** 0.5))
            else:
                fan_in = tensor.shape[0] if "c_" in name else tensor.shape[1]
                tensor.copy_(torch.randn_like(tensor) * (1.5 / fan_in**0.5))


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The original model's logits in float32 with plain attention: (T, V)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits: np.ndarray[Any, np.dtype[np.float32]] = model(torch.tensor([ids])).logits[0].float().numpy()
    return logits


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    """All stored tensors of a checkpoint."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    return state


_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def pack_uniform(hf_folder: Path, out: Path, grid: str = "f32", *, only_head: bool = False) -> Path:
    """Make a compressed folder with one grid for all matrices; f16 where a row does not fit the grid's block.

    Args:
        only_head: store a tied table under `lm_head.weight`, as some checkpoints do.

    Returns:
        `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((hf_folder / "config.json").read_text())
    tensors, infos, offset = [], [], 0
    with (out / "weights.bin").open("wb") as stream:
        for name, tensor in load_state(hf_folder).items():
            values = tensor.float().numpy()
            if (
                config["model_type"] == "gpt2"
                and name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")
                and values.ndim == 2
            ):
                values = values.T
            if only_head and name == "model.embed_tokens.weight":
                name = "lm_head.weight"
            vector = values.ndim == 1
            values = np.ascontiguousarray(np.atleast_2d(values))
            chosen = "f32" if vector else grid
            if values.shape[1] % grids.block_columns(chosen):
                chosen = "f16"
            if "wpe" in name and chosen != "f32":
                chosen = "f16"
            packed = grids.pack(values, chosen)
            rows, columns = values.shape
            tensors.append(PackedTensor(name, chosen, rows, columns, offset, packed.size))
            infos.append(TensorInfo(name, "vector" if vector else "ffn_in", -1, rows, columns, not vector))
            stream.write(packed.tobytes())
            offset += packed.size
    for name in (*_COMPANIONS, "chat_template.jinja", "config.json", "README.md", "LICENSE"):
        if (hf_folder / name).is_file():
            (out / name).write_bytes((hf_folder / name).read_bytes())
    save_json(out / "compressed.json", _record(out, config, tensors, infos))
    return out


def _record(out: Path, config: dict[str, Any], tensors: list[PackedTensor], infos: list[TensorInfo]) -> Compressed:
    hidden = config.get("hidden_size", config.get("n_embd"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    summary = ModelSummary(
        family=config["model_type"],
        tensors=tuple(infos),
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        layers=config.get("num_hidden_layers", config.get("n_layer")),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        ffn_size=config.get("intermediate_size", config.get("n_inner")) or 4 * hidden,
        context_tokens=config.get("max_position_embeddings", config.get("n_positions")),
        tied=bool(config.get("tie_word_embeddings")),
        dtype="float32",
        bytes=sum(info.weights for info in infos) * 4,
    )
    return Compressed(
        schema=1,
        summary=summary,
        tensors=tuple(tensors),
        digest=digest_file(out / "weights.bin"),
        steps=("packed with one grid",),
        files=tuple(sorted(p.name for p in out.iterdir() if p.name not in ("weights.bin", "compressed.json"))),
    )


def export_tiny(hf_folder: Path, folder: Path, grid: str = "f32", **settings: Any) -> Artifact:
    """Pack a checkpoint with one grid and write `folder / "artifact"` as GGUF."""
    compressed = pack_uniform(hf_folder, folder / "compressed", grid)
    chosen = Settings(**({"context_tokens": 128, "ubatch_tokens": 48, "threads": 1, "kv_type": "f16"} | settings))
    return exporter_for("gguf").export(compressed, folder / "artifact", chosen, prove_texts=sample_texts(12, seed=5))


def make_tiny_encoder(
    folder: Path,
    family: str = "bert",
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    ffn: int = 128,
    context: int = 96,
    vocab: int = 300,
    sentence_tokens: int | None = 64,
    pooling: str = "mean",
    normalize: bool = True,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Save a random sentence encoder with a trained WordPiece tokenizer, as sentence-transformers lays it out.

    Args:
        family: bert, distilbert or roberta.
        sentence_tokens: longest text; None leaves sentence-transformers' files out.
        pooling: `mean` or `cls`.
        overrides: further keys of the configuration.

    Returns:
        `folder`.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=special, show_progress=False)
    trained.train_from_iterator(sample_texts(200, seed=1), trainer)
    trained.decoder = decoders.WordPiece()
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(text, trained.token_to_id(text)) for text in ("[CLS]", "[SEP]")]
    )
    sizes = {"dim": hidden, "n_layers": layers, "n_heads": heads, "hidden_dim": ffn}
    if family != "distilbert":
        sizes = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": ffn,
        }
    before = 1 if family == "roberta" else 0
    config = AutoConfig.for_model(
        family,
        vocab_size=trained.get_vocab_size(),
        max_position_embeddings=context + before,
        pad_token_id=0,
        **(sizes | overrides),
    )
    torch.manual_seed(seed)
    model = AutoModel.from_config(config, attn_implementation="eager").to(torch.float32)
    _spread(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_max_length=context,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    if sentence_tokens is not None:
        steps = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
        listed = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(steps)
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        switches = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": hidden, **switches}))
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": sentence_tokens, "do_lower_case": False})
        )
    return folder
