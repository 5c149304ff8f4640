"""What a choice of grids costs on a device: bytes, resident memory, seconds.

Decoding one token reads every weight but the input table's once, so with threads p

    t = max(bytes read / bandwidth,  Σ weights · ns(grid) / p)  +  cache · ns / p  +  layers · dispatch

(the roofline of Williams et al. 2009, plus attention where a runtime reads its whole cache, plus a fixed cost per
block). Resident memory is

    process + weights + key/value cache + compute buffers(micro-batch, hidden, ffn, scores) + tables(vocabulary).

An encoder reads a text of L tokens as a whole, as others read a prompt, and has no cache:

    t = L · Σ weights · ns of a prompt's token / p  +  layers · dispatch.

A table that is both embedding and head is resident twice where the runtime rearranges its grid's weights for the
matrix kernels. All coefficients come from the target's and the profile's files.

What a model is apart from the device are its `Terms`; what turns them into times are `token_parts` and `prefill_s`.
`learn` holds measurements against the same two.
"""

from __future__ import annotations

import re

import msgspec

from edgegen.errors import ConfigError
from edgegen.records.model import ModelSummary, Task, TensorInfo
from edgegen.records.plan import Prediction, Settings, Terms
from edgegen.records.profile import Profile
from edgegen.records.target import Target

_CACHED = re.compile(r"\.(k|v)_proj(?:\.1)?\.weight$")
"""Matrices whose outputs are cached; where they are one with the queries', all layers have the same heads."""


class Device(msgspec.Struct, frozen=True):
    """A profile and a target boiled down to coefficients."""

    bandwidth_bytes_per_s: float
    threads: int
    seconds_per_weight: dict[str, float]
    """Grid → seconds per weight and decoded token on one core."""
    prefill_seconds_per_weight: dict[str, float]
    """The same for each token of a micro-batch of a prompt."""
    rearranged: frozenset[str]
    """Grids that the runtime rearranges on this processor."""
    dispatch_s: float
    """Per block and token."""
    process_bytes: float
    fixed_buffer_bytes: float
    bytes_per_ubatch_hidden: float
    bytes_per_ubatch_ffn: float
    bytes_per_ubatch_vocab: float
    bytes_per_vocab_entry: float
    resident_fraction: float
    kv_bits: float
    """Of one cached element, all its copies together."""
    context_step_tokens: int
    bytes_per_ubatch_head_context: float = 0.0
    seconds_per_cached_number: float = 0.0
    """Of the whole context's keys and values, for each decoded token on one core."""
    resident_ratio: dict[str, float] = {}
    """Grid → resident bytes over bytes in the file; 1 where it is not named."""
    read_ratio: dict[str, float] = {}
    """Grid → bytes that decoding reads over bytes in the file; 1 where it is not named."""
    rss_offset_bytes: float = 0.0
    """Resident bytes that devices have beyond all the others; may be below 0."""
    load_bytes_per_s: float | None = None
    """None: nobody has measured how fast models are opened."""

    def resident_bytes(self, grid: str, file_bytes: float) -> float:
        """What one copy of a tensor takes in memory."""
        return file_bytes * self.resident_ratio.get(grid, 1.0)

    def read_bytes(self, grid: str, file_bytes: float) -> float:
        """What decoding one token reads of a tensor that it reads whole."""
        return file_bytes * self.read_ratio.get(grid, 1.0)


def device_of(profile: Profile, target: Target, settings: Settings, task: Task = "causal") -> Device:
    """Coefficients of a device; what the profile measured wins over the target's table.

    Args:
        task: what models it is for.

    Raises:
        ConfigError: the target has no kernel costs for the profile's instruction set.
    """
    clock = profile.device.clock_ghz.value
    isa = profile.device.isa
    costs, prefill = {}, {}
    for grid in target.grids:
        if isa not in grid.cycles_per_weight:
            raise ConfigError(
                f"profile {profile.name}: target {target.name} has no kernel costs for isa {isa!r}",
                hint="Known: " + ", ".join(sorted(grid.cycles_per_weight)) + ".",
            )
        cycles = grid.cycles_per_weight[isa]
        # Numbers without rounding exist in every runtime, with kernels of its own; those measured are llama.cpp's.
        known = target.name == "gguf" or grid.activation != "float"
        measured = profile.kernel_ns_per_weight.get(grid.name) if known else None
        costs[grid.name] = measured.value * 1e-9 if measured else cycles / (clock * 1e9)
        timed = profile.prefill_ns_per_weight.get(grid.name) if known else None
        scaled = costs[grid.name] * grid.prefill_cycles_per_weight.get(isa, cycles) / cycles
        prefill[grid.name] = timed.value * 1e-9 if timed else scaled
    overheads = target.overheads_of(task)
    dispatch = profile.overhead_s_per_layer_token.get(target.name)
    attention = profile.attention_s_per_cached_number.get(target.name)
    offset = profile.rss_offset_bytes.get(target.name)
    loading = profile.load_bytes_per_s.get(target.name)
    return Device(
        bandwidth_bytes_per_s=profile.device.bandwidth_bytes_per_s.value,
        threads=settings.threads,
        seconds_per_weight=costs,
        prefill_seconds_per_weight=prefill,
        resident_ratio={grid.name: grid.resident_ratio for grid in target.grids},
        read_ratio={grid.name: grid.read_ratio for grid in target.grids},
        bytes_per_ubatch_head_context=overheads.buffer_bytes_per_ubatch_head_context,
        rearranged=frozenset(g.name for g in target.grids if isa in g.repacked_isas),
        dispatch_s=dispatch.value if dispatch else overheads.seconds_per_layer_token / clock,
        seconds_per_cached_number=(
            attention.value if attention else overheads.cycles_per_cached_number / (clock * 1e9)
        ),
        rss_offset_bytes=offset.value if offset else 0.0,
        load_bytes_per_s=loading.value if loading else None,
        process_bytes=overheads.process_bytes,
        fixed_buffer_bytes=overheads.fixed_buffer_bytes,
        bytes_per_ubatch_hidden=overheads.buffer_bytes_per_ubatch_hidden,
        bytes_per_ubatch_ffn=overheads.buffer_bytes_per_ubatch_ffn,
        bytes_per_vocab_entry=overheads.bytes_per_vocab_entry,
        bytes_per_ubatch_vocab=overheads.buffer_bytes_per_ubatch_vocab,
        resident_fraction=overheads.weights_resident_fraction,
        kv_bits=target.kv_bits[settings.kv_type] * overheads.kv_copies,
        context_step_tokens=overheads.context_step_tokens,
    )


def kv_bytes(summary: ModelSummary, settings: Settings, device: Device) -> float:
    """Keys and values of every layer for the whole context, rounded up as the runtime does; none of an encoder."""
    return _cached_numbers(summary, settings, device) * device.kv_bits / 8


def attention_s(summary: ModelSummary, settings: Settings, device: Device) -> float:
    """Seconds a decoded token for reading the cache, of runtimes that read all of it."""
    return _cached_numbers(summary, settings, device) * device.seconds_per_cached_number / device.threads


def _cached_numbers(summary: ModelSummary, settings: Settings, device: Device) -> float:
    if summary.task == "encoder":
        return 0.0
    tokens = -(-settings.context_tokens // device.context_step_tokens) * device.context_step_tokens
    return _cached_per_token(summary) * tokens


def _cached_per_token(summary: ModelSummary) -> int:
    """Numbers of all layers' keys and values; a layer may have fewer heads than the model's number of them."""
    usual = summary.kv_heads * summary.head_size
    rows = {(t.layer, found[1]): t.rows for t in summary.tensors if (found := _CACHED.search(t.name))}
    return sum(rows.get((layer, part), usual) for layer in range(summary.layers) for part in "kv")


def constant_rss(summary: ModelSummary, settings: Settings, device: Device) -> float:
    """Resident bytes that do not depend on the grids."""
    ubatch = min(settings.ubatch_tokens, settings.context_tokens)
    return (
        device.process_bytes
        + device.fixed_buffer_bytes
        + kv_bytes(summary, settings, device)
        + ubatch * summary.hidden_size * device.bytes_per_ubatch_hidden
        + ubatch * summary.ffn_size * device.bytes_per_ubatch_ffn
        + summary.vocab_size * device.bytes_per_vocab_entry
        + ubatch * summary.vocab_size * device.bytes_per_ubatch_vocab
        + ubatch * summary.heads * settings.context_tokens * device.bytes_per_ubatch_head_context
        + device.rss_offset_bytes
    )


def terms_of(
    summary: ModelSummary,
    settings: Settings,
    device: Device,
    grids: dict[str, str],
    tensor_bytes: dict[str, int],
    *,
    overhead_bytes: int,
) -> Terms:
    """What a choice is apart from the device's speed; arguments as `predict`."""
    weights: dict[str, int] = {}
    prompt: dict[str, int] = {}
    for t in summary.tensors:
        grid = grids[t.name]
        if is_read(summary, t.role):
            weights[grid] = weights.get(grid, 0) + t.weights
        if in_prompt(t.role):
            prompt[grid] = prompt.get(grid, 0) + t.weights
    resident = overhead_bytes + sum(
        device.resident_bytes(grids[t.name], tensor_bytes[t.name]) * copies(summary, t, grids[t.name], device)
        for t in summary.tensors
    )
    constant = constant_rss(summary, settings, device) - device.rss_offset_bytes
    return Terms(
        layers=summary.layers,
        read_bytes=sum(
            device.read_bytes(grids[t.name], tensor_bytes[t.name]) for t in summary.tensors if is_read(summary, t.role)
        ),
        weights=weights,
        prompt_weights=prompt,
        cached_numbers=_cached_numbers(summary, settings, device),
        model_bytes=overhead_bytes + sum(tensor_bytes.values()),
        rss_bytes=constant + device.resident_fraction * resident,
        task=summary.task,
    )


def token_parts(terms: Terms, device: Device, *, prompt_tokens: int) -> dict[str, float]:
    """What one decoded token takes, seconds: `bandwidth` or `kernels`, whichever is longer, and all the others.

    An encoder decodes nothing: of it, what one token of a text of `prompt_tokens` takes.
    """
    if terms.task == "encoder":
        return {
            "kernels": _kernels_s(terms.prompt_weights, device.prefill_seconds_per_weight, device.threads),
            "dispatch": terms.layers * device.dispatch_s / max(1, prompt_tokens),
        }
    return {
        "bandwidth": terms.read_bytes / device.bandwidth_bytes_per_s,
        "kernels": _kernels_s(terms.weights, device.seconds_per_weight, device.threads),
        "dispatch": terms.layers * device.dispatch_s,
        "attention": terms.cached_numbers * device.seconds_per_cached_number / device.threads,
    }


def token_s_of(parts: dict[str, float]) -> float:
    """The parts of a token put together."""
    rest = sum(seconds for part, seconds in parts.items() if part not in ("bandwidth", "kernels"))
    return max(parts.get("bandwidth", 0.0), parts["kernels"]) + rest


def prefill_s(terms: Terms, device: Device, *, together: int) -> float:
    """Seconds for each token of a prompt, read in pieces of `together` tokens."""
    kernels = _kernels_s(terms.prompt_weights, device.prefill_seconds_per_weight, device.threads)
    return kernels + terms.layers * device.dispatch_s / max(1, together)


def _kernels_s(weights: dict[str, int], seconds_per_weight: dict[str, float], threads: int) -> float:
    return sum(count * seconds_per_weight[grid] for grid, count in weights.items()) / threads


def predict(
    summary: ModelSummary,
    settings: Settings,
    device: Device,
    grids: dict[str, str],
    tensor_bytes: dict[str, int],
    *,
    overhead_bytes: int,
    kl: float,
    prompt_tokens: int,
) -> Prediction:
    """The whole price of a choice.

    Args:
        grids: tensor name → grid, for every tensor.
        tensor_bytes: tensor name → bytes in the file.
        overhead_bytes: the rest of the file: header, metadata, tokenizer.
        kl: nats per token, as estimated elsewhere.
        prompt_tokens: length of the prompt that time to first token is for.
    """
    terms = terms_of(summary, settings, device, grids, tensor_bytes, overhead_bytes=overhead_bytes)
    parts = token_parts(terms, device, prompt_tokens=prompt_tokens)
    encoder = summary.task == "encoder"
    each_s = prefill_s(terms, device, together=prompt_tokens if encoder else min(settings.ubatch_tokens, prompt_tokens))
    token_s = token_s_of(parts)
    # An encoder's text takes as long as its tokens do; of others the first token comes after the prompt.
    first_s = prompt_tokens * each_s + (0.0 if encoder else token_s)
    weights = sum(t.weights for t in summary.tensors)
    return Prediction(
        bytes=terms.model_bytes,
        kl=kl,
        rss_bytes=max(0, int(terms.rss_bytes + device.rss_offset_bytes)),
        decode_tokens_per_s=1 / token_s,
        prefill_tokens_per_s=1 / each_s,
        ttft_ms=1000 * first_s,
        bits_per_weight=8 * sum(tensor_bytes.values()) / weights,
        decode_bound=max(parts, key=lambda part: parts[part]),
        load_s=terms.model_bytes / device.load_bytes_per_s if device.load_bytes_per_s else None,
    )


def is_read(summary: ModelSummary, role: str) -> bool:
    """Whether decoding reads a whole tensor: all but an input table, of which it reads one row.

    A tied table is read whole, as the head.
    """
    return role not in ("embedding", "position") or (role == "embedding" and summary.tied)


def in_prompt(role: str) -> bool:
    """Whether each prompt token multiplies with a tensor: all but the tables; the head works on the last token only."""
    return role not in ("embedding", "position", "head")


def copies(summary: ModelSummary, tensor: TensorInfo, grid: str, device: Device) -> int:
    """How often a tensor's bytes are resident."""
    twice = tensor.role == "embedding" and summary.tied and grid in device.rearranged and tensor.rows % 8 == 0
    return 2 if twice else 1
