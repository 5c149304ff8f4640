"""Run the original once on held-out text and keep what it said, so that verifying needs no torch.

`reference/` holds

- `reference.json`: windows of token ids (in the artifact's vocabulary), which predictions count, prompts with the
  original's greedy answers;
- `quality.npy`: (T, K) float16 log-probabilities of the original at the counted positions, over the artifact's
  vocabulary, *not* renormalised: what is missing to 1 is the mass on dropped tokens;
- `parity.npy`: (P, K) float32 logits of the torch model with the artifact's own rounded weights on the first windows.
  Activations are not rounded: the runtime's strict-accuracy mode has to agree with these almost exactly, and what its
  shipped mode differs by is the price of int8 activations.

float16 keeps about three digits of a log-probability; its error in a mean KL is below 1e-6 nats, because errors of
the two signs cancel after renormalisation.

K entries of the artifact's vocabulary, T counted positions, P parity positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.codec import save_json
from edgegen.common.files import filling, require_free_bytes
from edgegen.modeling.forward import counted_log_probs, counted_targets
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.source import TensorSource
from edgegen.modeling.text import WINDOW_TOKENS, Window, make_windows, prompt_ids
from edgegen.records.data import Example
from edgegen.records.reference import GreedyRun, Reference, ReferencePrompt, ReferenceWindow

_QUALITY_BYTES = 160_000_000
_LEAST_QUALITY_TOKENS = 4096
"""Sixteen full windows: fewer would give no interval worth the name, however large the vocabulary."""
_QUALITY_TOKENS = 16_384
PARITY_BYTES = 24_000_000
_PARITY_TOKENS = 512
ANSWER_TOKENS = 96
_GREEDY_RUNS, _GREEDY_PROMPT, _GREEDY_TOKENS = 2, 8, 100


def save_reference(
    model: Any,
    source: TensorSource,
    *,
    tokenizer: Any,
    artifact_tokenizer: Any,
    kept: NDArray[np.int64] | None,
    grids: dict[str, str],
    heldout: tuple[Example, ...],
    prompts: int,
    eos_ids: tuple[int, ...],
    context_tokens: int,
    out: Path,
    base: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Score held-out text and answer prompts with the original; score a part with the rounded weights.

    Args:
        model: the original.
        source: the tensors of the model whose weights were rounded.
        tokenizer: the original's.
        artifact_tokenizer: the plan's (trimmed) one.
        kept: (K,) ids of the plan's vocabulary in the original's; None if nothing was trimmed.
        grids: tensor name → grid, all tensors.
        heldout: rows that nothing was calibrated on.
        prompts: how many of them to answer; rows whose request does not fit the context are passed over.
        eos_ids: where answers end, original ids.
        context_tokens: what the artifact's runtime will hold.
        out: folder to write; replaced if it exists.
        base: the model whose weights were rounded, where the structure was changed; None: `model`. Changed here and
            restored.

    Raises:
        DeviceError: the disk is full.
    """
    vocab_rows = model.get_input_embeddings().weight.shape[0]
    columns = len(kept) if kept is not None else vocab_rows
    cut = {"max_tokens": quality_tokens(columns), "window_tokens": min(WINDOW_TOKENS, context_tokens)}
    windows = make_windows(artifact_tokenizer, heldout, **cut)
    asked = _requests(tokenizer, artifact_tokenizer, heldout, prompts, context_tokens)
    total = sum(window.tokens for window in windows)
    require_free_bytes(out.parent, total * columns * 2 + PARITY_BYTES * 2)
    keep = torch.from_numpy(kept) if kept is not None else None
    steps = len(windows) + len(asked)

    def tell(done: int) -> None:
        if progress:
            progress(done, steps)

    with filling(out) as building:
        _save_quality(model, windows, kept, total, building / "quality.npy", tell)
        plain = make_windows(tokenizer, heldout, **cut)
        plain_nats = _nats(model, plain)
        parity_windows = first_windows(windows, parity_tokens(columns))
        base = model if base is None else base
        with rounded_model(base, source, source.changed(grids), {}):
            logits = torch.cat([_logits(base, _in_original(window, kept)) for window in parity_windows])
            runs = [_greedy_run(base, window, kept, context_tokens) for window in parity_windows[:_GREEDY_RUNS]]
        parity = logits if keep is None else logits[:, keep]
        np.save(building / "parity.npy", parity.numpy().astype(np.float32))
        answered = []
        for request in asked:
            answered.append(_answer(model, tokenizer, request, eos_ids))
            tell(len(windows) + len(answered))
        record = Reference(
            schema=1,
            vocab_size=columns,
            windows=tuple(
                ReferenceWindow(ids=tuple(int(i) for i in w.ids), counts=stretches(w.counts), bytes=w.bytes)
                for w in windows
            ),
            parity_windows=len(parity_windows),
            greedy=tuple(runs),
            prompts=tuple(answered),
            original_bits_per_byte=plain_nats / math.log(2) / sum(w.bytes for w in plain),
            trimmed=kept is not None,
        )
        save_json(building / "reference.json", record)
    return record


def quality_tokens(columns: int) -> int:
    """Counted positions that are scored, for a vocabulary of so many entries."""
    return int(np.clip(_QUALITY_BYTES // (2 * columns), _LEAST_QUALITY_TOKENS, _QUALITY_TOKENS))


def parity_tokens(columns: int) -> int:
    """Positions whose logits are kept."""
    return int(np.clip(PARITY_BYTES // (4 * columns), 64, _PARITY_TOKENS))


def _save_quality(
    model: Any,
    windows: list[Window],
    kept: NDArray[np.int64] | None,
    total: int,
    path: Path,
    tell: Callable[[int], None],
) -> None:
    """Write (T, K) float16 log-probabilities a few windows at a time.

    Plain writes, not a memory map: on a full disk a map ends the process, a write raises.
    """
    columns = len(kept) if kept is not None else model.get_input_embeddings().weight.shape[0]
    header = {"descr": "<f2", "fortran_order": False, "shape": (total, columns)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(windows), 16):
            group = [_in_original(window, kept) for window in windows[start : start + 16]]
            log_probs = counted_log_probs(model, group)
            part = log_probs if kept is None else log_probs[:, torch.from_numpy(kept)]
            stream.write(part.clamp_min(-60_000).to(torch.float16).numpy().astype("<f2").tobytes())
            tell(min(start + 16, len(windows)))


def _in_original(window: Window, kept: NDArray[np.int64] | None) -> Window:
    return window if kept is None else Window(ids=kept[window.ids], counts=window.counts, bytes=window.bytes)


def _nats(model: Any, windows: list[Window]) -> float:
    total = 0.0
    for start in range(0, len(windows), 16):
        group = windows[start : start + 16]
        log_probs = counted_log_probs(model, group)
        total -= float(log_probs.gather(1, counted_targets(group)[:, None]).sum(dtype=torch.float64))
    return total


def first_windows(windows: list[Window], tokens: int) -> list[Window]:
    """The first ones that have no more tokens together; at least one."""
    chosen: list[Window] = []
    for window in windows:
        if chosen and sum(len(w.ids) for w in chosen) + len(window.ids) > tokens:
            break
        chosen.append(window)
    return chosen


def _logits(model: Any, window: Window) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(window.ids)[None], use_cache=False).logits[0].float()


def _greedy_run(model: Any, window: Window, kept: NDArray[np.int64] | None, context_tokens: int) -> GreedyRun:
    """How the model goes on after a window's first tokens, over the kept tokens only; nothing ends it."""
    prompt = _in_original(window, kept).ids[:_GREEDY_PROMPT]
    tokens = min(_GREEDY_TOKENS, context_tokens - len(prompt))
    produced = greedy(model, [int(i) for i in prompt], max_tokens=tokens, eos_ids=(), kept=kept)
    if kept is not None:
        produced = [int(i) for i in np.searchsorted(kept, produced)]
    return GreedyRun(ids=tuple(int(i) for i in window.ids[:_GREEDY_PROMPT]), tokens=tuple(produced))


def stretches(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """True stretches as (start, end) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))


class _Request(msgspec.Struct, frozen=True):
    """What to ask, in both vocabularies."""

    shown: str
    expected: str
    ids: list[int]
    artifact_ids: list[int]


def _requests(
    tokenizer: Any, artifact_tokenizer: Any, heldout: tuple[Example, ...], number: int, context_tokens: int
) -> list[_Request]:
    """The first rows' requests that leave the context room for an answer."""
    found: list[_Request] = []
    for example in heldout:
        if len(found) == number:
            break
        request = _request(tokenizer, artifact_tokenizer, example)
        if 0 < max(len(request.ids), len(request.artifact_ids)) < context_tokens:
            found.append(request)
    return found


def _request(tokenizer: Any, artifact_tokenizer: Any, example: Example) -> _Request:
    """A row's request; of plain text, the opening words."""
    if example.completion:
        ids, artifact_ids = prompt_ids(tokenizer, example), prompt_ids(artifact_tokenizer, example)
        shown = example.messages[-2][1] if len(example.messages) > 1 else ""
        return _Request(shown=shown, expected=example.messages[-1][1], ids=ids, artifact_ids=artifact_ids)
    text = example.text or "\n".join(content for _, content in example.messages)
    shown = _opening(text)
    ids, artifact_ids = ([int(i) for i in t.encode(shown)] for t in (tokenizer, artifact_tokenizer))
    return _Request(shown=shown, expected="", ids=ids, artifact_ids=artifact_ids)


def _answer(model: Any, tokenizer: Any, request: _Request, eos_ids: tuple[int, ...]) -> ReferencePrompt:
    """The original's greedy answer."""
    produced = greedy(model, request.ids, max_tokens=ANSWER_TOKENS, eos_ids=eos_ids)
    return ReferencePrompt(
        prompt=request.shown,
        ids=tuple(request.artifact_ids),
        answer=tokenizer.decode(produced, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        answer_tokens=len(produced),
        expected=request.expected,
    )


def _opening(text: str, words: int = 12) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


def greedy(
    model: Any, ids: list[int], *, max_tokens: int, eos_ids: tuple[int, ...], kept: NDArray[np.int64] | None = None
) -> list[int]:
    """Greedy continuation with a key/value cache, without the end token; never past the model's context.

    Args:
        kept: (K,) ids that may be chosen; None: all.
    """
    produced: list[int] = []
    cache = None
    step = torch.tensor([ids or [0]])
    room = int(getattr(model.config, "max_position_embeddings", None) or 2048) - len(ids)
    with torch.inference_mode():
        for _ in range(min(max_tokens, room)):
            output = model(step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = output.logits[0, -1]
            token = int(logits.argmax()) if kept is None else int(kept[int(logits[torch.from_numpy(kept)].argmax())])
            if token in eos_ids:
                break
            produced.append(token)
            step = torch.tensor([[token]])
    return produced
