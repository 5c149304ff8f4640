"""What of a model is trained: all of it, or adapters beside it (`peft`)."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.base import Record

Method = Literal["full", "lora", "rslora", "dora", "qlora", "prompt-tuning"]
METHODS: tuple[str, ...] = ("full", "lora", "rslora", "dora", "qlora", "prompt-tuning")


class Adapter(Record, frozen=True):
    """Size of what is trained beside the model."""

    rank: int = 16
    alpha: float = 32.0
    """The update is scaled by alpha / rank; with rslora by alpha / sqrt(rank)."""
    dropout: float = 0.0
    virtual_tokens: int = 16
    """Of prompt tuning."""


def require_method(method: str) -> None:
    """
    Raises:
        ConfigError: no such method.
        UnsupportedError: the machine cannot do it.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method!r} is unknown", hint=f"Choose one of: {', '.join(METHODS)}.")
    if method == "qlora":
        if not torch.cuda.is_available():
            raise UnsupportedError("qlora needs a CUDA GPU, and none is here", hint="Use --method lora.")
        try:
            import bitsandbytes  # noqa: F401
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                "qlora needs bitsandbytes, which is not installed", hint="pip install bitsandbytes"
            ) from error


def require_adapter(adapter: Adapter) -> None:
    """
    Raises:
        ConfigError: a size out of its range.
    """
    for name, count in (("--rank", adapter.rank), ("--virtual-tokens", adapter.virtual_tokens)):
        if count < 1:
            raise ConfigError(f"{name} must be at least 1, not {count}")
    if not (math.isfinite(adapter.alpha) and adapter.alpha > 0):
        raise ConfigError(f"--alpha must be a number above 0, not {adapter.alpha:g}")
    if not 0 <= adapter.dropout < 1:
        raise ConfigError(f"--dropout must be at least 0 and below 1, not {adapter.dropout:g}")


def require_room(method: str, adapter: Adapter, *, width: int, context_tokens: int) -> None:
    """
    Args:
        width: hidden size of the model.

    Raises:
        ConfigError: what is trained is larger than the model can use.
    """
    if method == "prompt-tuning":
        if adapter.virtual_tokens >= context_tokens:
            raise ConfigError(
                f"--virtual-tokens {adapter.virtual_tokens} leaves no room in the model's {context_tokens} tokens"
            )
    elif method != "full" and adapter.rank > width:
        raise ConfigError(f"--rank {adapter.rank} is above the model's hidden size of {width}")


def with_trained_parts(model: Any, method: str, adapter: Adapter) -> Any:
    """The model with gradients where the method wants them; adapters wrap it.

    Sources: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), prompt tuning (Lester et al.
    2021).
    """
    if method == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

    if method == "prompt-tuning":
        config: Any = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=adapter.virtual_tokens)
    else:
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_rslora=method == "rslora",
            use_dora=method == "dora",
            target_modules=_linears(model),
            fan_in_fan_out=_transposed(model),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that the latter gives up
        return get_peft_model(model, config)


def _linears(model: Any) -> list[str]:
    """Names of all matrices but the head, as the last parts of their paths."""
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is not head and type(module).__name__ in ("Linear", "Conv1D", "Linear4bit")
    }
    return sorted(found)


def _transposed(model: Any) -> bool:
    """GPT-2 stores its matrices as inputs by outputs."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def open_quantized(path: str) -> Any:
    """A model in 4-bit NormalFloat for QLoRA (Dettmers et al. 2023), on the GPU."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, device_map={"": 0})
    return prepare_model_for_kbit_training(model)
