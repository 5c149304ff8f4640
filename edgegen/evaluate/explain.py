"""Which words of a prompt make the answer.

- **occlusion**: how much less likely the answer is without a word. Needs scores only, so a checkpoint and an artifact
  in its runtime are explained alike and can stand side by side.
- **ablation** (captum's FeatureAblation): the same with the word's tokens replaced by the end-of-text token, so that no
  other word moves. Checkpoints only.
- **integrated-gradients** (Sundararajan et al. 2017; captum's LayerIntegratedGradients on the embedding): from
  end-of-text tokens to the prompt's. Checkpoints only.
- **edits**: the greedy answers to prompts with one word dropped or replaced.

A score tells what moves this answer of this model, not why a word matters. Words are split at spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.evaluate.answers import function_calls, normalized
from edgegen.evaluate.quality import Told
from edgegen.evaluate.scorer import CheckpointScorer, Scorer, continuation, decode, write
from edgegen.records.explanation import Attribution, Edit, Explained, Method

METHODS: tuple[Method, ...] = ("occlusion", "ablation", "integrated-gradients")
MAX_WORDS = 200
_STEPS = 32
_WORD = re.compile(r"\S+")


def words_of(prompt: str) -> list[tuple[int, int]]:
    """Where each word begins and ends.

    Raises:
        ConfigError: no word, or more than 200.
    """
    found = [match.span() for match in _WORD.finditer(prompt)]
    if not found:
        raise ConfigError("the prompt has no words", hint="Give one with --prompt.")
    if len(found) > MAX_WORDS:
        raise ConfigError(f"the prompt has {len(found)} words; at most {MAX_WORDS} are explained one by one")
    return found


def asked(scorer: Scorer, prompt: str) -> tuple[str, list[int], bool]:
    """A prompt as the model reads it: text, ids, and whether special tokens are in the text."""
    tokenizer = scorer.tokenizer
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like
            raise ConfigError(f"the model's chat template refuses the prompt: {str(error)[:200]}") from error
        return text, [int(i) for i in tokenizer.encode(text, add_special_tokens=False)], True
    return prompt, scorer.encode(prompt), False


def greedy_answer(scorer: Scorer, prompt: str, *, max_tokens: int) -> str:
    """What the model answers."""
    return decode(scorer, write(scorer, asked(scorer, prompt)[1], max_tokens=max_tokens))


def answer_nats(scorer: Scorer, prompt: str, answer: str) -> float:
    """Log-probability of an answer, nats."""
    return float(continuation(scorer, asked(scorer, prompt)[1], answer_ids(scorer, answer))[0].sum())


def answer_ids(scorer: Scorer, answer: str) -> list[int]:
    """Ids of an answer, without special tokens.

    Raises:
        ConfigError: it is empty.
    """
    ids = [int(i) for i in scorer.tokenizer.encode(answer, add_special_tokens=False)]
    if not ids:
        raise ConfigError("the answer is empty, so there is nothing to explain", hint="Give one with --answer.")
    return ids


def explain_side(
    scorer: Scorer,
    prompt: str,
    answer: str,
    *,
    methods: Sequence[Method],
    replacements: dict[str, str],
    max_tokens: int,
    told: Told | None = None,
) -> Explained:
    """One model's side.

    Args:
        answer: whose probability is explained.
        methods: those that a runtime cannot do are left out for an artifact.
        replacements: word → another that it is replaced by in one further edit each.
    """
    spans = words_of(prompt)
    tell = told or (lambda done, of, words: None)
    own = greedy_answer(scorer, prompt, max_tokens=max_tokens)
    attributions = []
    for method in methods:
        if method == "occlusion":
            attributions.append(_occlusion(scorer, prompt, spans, answer, tell))
        elif isinstance(scorer, CheckpointScorer):
            found = _integrated if method == "integrated-gradients" else _ablation
            attributions.append(found(scorer, prompt, spans, answer))
    edits = []
    changes = [(place, "") for place in range(len(spans))]
    changes += [
        (place, replacements[word])
        for place, (start, end) in enumerate(spans)
        if (word := _bare(prompt[start:end])) in replacements
    ]
    for number, (place, put) in enumerate(changes):
        edits.append(_edit(scorer, prompt, spans, place, put, own, max_tokens))
        tell(number + 1, len(changes), f"edits with {scorer.judged.source}")
    return Explained(
        judged=scorer.judged,
        answer=own,
        log_prob=answer_nats(scorer, prompt, answer),
        attributions=tuple(attributions),
        edits=tuple(edits),
    )


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three words or scores that are all alike."""
    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()").casefold()


def _changed(prompt: str, spans: Sequence[tuple[int, int]], place: int, put: str) -> str:
    """The prompt with one word replaced, punctuation beside it kept; or dropped with a space beside it."""
    start, end = spans[place]
    if put:
        word = prompt[start:end]
        bare = word.strip(".,;:!?\"'()")
        return prompt[:start] + word.replace(bare, put, 1) + prompt[end:]
    before, after = prompt[:start], prompt[end:]
    if not after.strip():
        return before.rstrip(" ") + after  # a space at the end is a token of its own
    return before + after.lstrip(" ") if not before or before[-1].isspace() else before + after


def _occlusion(scorer: Scorer, prompt: str, spans: Sequence[tuple[int, int]], answer: str, tell: Told) -> Attribution:
    whole = answer_nats(scorer, prompt, answer)
    scores = []
    for place in range(len(spans)):
        scores.append(whole - _nats_without(scorer, prompt, spans, place, answer))
        tell(place + 1, len(spans), f"words with {scorer.judged.source}")
    return Attribution("occlusion", tuple(scores))


def _nats_without(scorer: Scorer, prompt: str, spans: Sequence[tuple[int, int]], place: int, answer: str) -> float:
    return answer_nats(scorer, _changed(prompt, spans, place, ""), answer)


def _edit(
    scorer: Scorer, prompt: str, spans: Sequence[tuple[int, int]], place: int, put: str, own: str, max_tokens: int
) -> Edit:
    answer = greedy_answer(scorer, _changed(prompt, spans, place, put), max_tokens=max_tokens)
    before, after = function_calls(own), function_calls(answer)
    start, end = spans[place]
    return Edit(
        word=place,
        removed=prompt[start:end],
        put=put,
        answer=answer,
        changed=normalized(answer) != normalized(own),
        call_changed=None if before is None and after is None else before != after,
    )


# captum, on a checkpoint


def _places(scorer: Scorer, prompt: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The prompt's ids, and for each the word that it belongs to; -1: none.

    Raises:
        UnsupportedError: the chat template changes the prompt's text.
    """
    text, ids, special = asked(scorer, prompt)
    start = text.rfind(prompt)
    if start < 0:
        raise UnsupportedError(
            "the model's chat template changes the prompt, so its tokens cannot be told apart",
            hint="Use --method occlusion.",
        )
    encoding = scorer.tokenizer(text, add_special_tokens=not special, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"][: len(ids)]
    owners = []
    for low, high in offsets:
        owner = -1
        for place, (begin, end) in enumerate(spans):
            # A token may bring the space before its word along.
            if high > low and low < start + end and high > start + begin:
                owner = place
                break
        owners.append(owner)
    return ids, owners


def _forward(scorer: CheckpointScorer, prompt_tokens: int) -> Any:
    """(B, T) ids of prompt and answer → (B,) log-probability of the answer."""

    def answer_log_prob(ids: torch.Tensor) -> torch.Tensor:
        logits = scorer.model(ids, use_cache=False).logits[:, prompt_tokens - 1 : -1].float()
        targets = ids[:, prompt_tokens:]
        return torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0].sum(dim=-1)

    return answer_log_prob


def _prepared(
    scorer: CheckpointScorer, prompt: str, spans: Sequence[tuple[int, int]], answer: str
) -> tuple[Any, torch.Tensor, torch.Tensor, list[int], int]:
    ids, owners = _places(scorer, prompt, spans)
    after = answer_ids(scorer, answer)
    if len(ids) + len(after) > scorer.context_tokens:
        raise ConfigError(f"{len(ids) + len(after)} tokens do not fit a context of {scorer.context_tokens}")
    blank = scorer.eos_ids[0] if scorer.eos_ids else 0
    whole = torch.tensor([[*ids, *after]])
    empty = torch.tensor([[blank if owner >= 0 else i for i, owner in zip(ids, owners, strict=True)] + after])
    return _captum(), whole, empty, owners, len(ids)


def _integrated(scorer: CheckpointScorer, prompt: str, spans: Sequence[tuple[int, int]], answer: str) -> Attribution:
    captum, whole, empty, owners, count = _prepared(scorer, prompt, spans, answer)
    forward = _forward(scorer, count)
    method = captum.LayerIntegratedGradients(forward, scorer.model.get_input_embeddings())
    found = method.attribute(whole, baselines=empty, n_steps=_STEPS, internal_batch_size=8)
    each = found.sum(dim=-1)[0].detach().double().numpy()
    with torch.no_grad():
        moved = float(forward(whole)[0] - forward(empty)[0])
    return Attribution("integrated-gradients", _by_word(each, owners, len(spans)), gap=float(each.sum()) - moved)


def _ablation(scorer: CheckpointScorer, prompt: str, spans: Sequence[tuple[int, int]], answer: str) -> Attribution:
    captum, whole, empty, owners, count = _prepared(scorer, prompt, spans, answer)
    # One feature a word, and one more for everything that is not the prompt's.
    mask = torch.tensor(
        [[owner if owner >= 0 else len(spans) for owner in owners] + [len(spans)] * (whole.shape[1] - count)]
    )
    with torch.no_grad():
        found = captum.FeatureAblation(_forward(scorer, count)).attribute(whole, baselines=empty, feature_mask=mask)
    scores = [0.0] * len(spans)
    for place, owner in enumerate(owners):
        if owner >= 0:
            scores[owner] = float(found[0, place])  # captum gives each of a feature's tokens the feature's score
    return Attribution("ablation", tuple(scores))


def _by_word(each: Any, owners: Sequence[int], count: int) -> tuple[float, ...]:
    totals = np.zeros(count)
    for value, owner in zip(each, owners, strict=False):
        if owner >= 0:
            totals[owner] += value
    return tuple(float(value) for value in totals)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise UnsupportedError(
            "ablation and integrated gradients need captum", hint="Install it with: pip install 'edgegen[evaluate]'"
        ) from error
    return captum.attr
