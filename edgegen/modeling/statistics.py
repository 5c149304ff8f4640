"""One pass over calibration text: how large each input is, and which way each output matters.

For every linear layer W (R, C) with inputs x and outputs y:

- importance (C,): mean of x², the diagonal of the layer's Hessian E[x xᵀ]; rounding weights errors by it.
- a sample of pairs (x_t, g_t) with g_t the gradient of the log-likelihood with respect to y_t, where the labels are
  *drawn from the model's own prediction*. Then E[g gᵀ] is the Fisher information of the output, and a small change
  D of the weights costs

      KL ≈ ½ E_t[(g_tᵀ D x_t)²]   nats per counted token,

  the second-order expansion of the KL divergence (Amari 1998; used for quantization in e.g. HAWQ and SqueezeLLM).
  Correlations between different tokens' terms are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.forward import padded_ids
from edgegen.modeling.structure import users_of
from edgegen.modeling.text import Window, batches
from edgegen.modeling.thin_tables import last_product
from edgegen.records.model import ModelSummary

SAMPLE_BYTES = 800_000_000
"""Of all layers' samples together."""


class LayerSample(msgspec.Struct, frozen=True):
    """Paired samples of one linear layer, S tokens."""

    inputs: torch.Tensor
    """(S, C) float32."""
    gradients: torch.Tensor
    """(S, R) float32; (K, S, R) where each token has K of them."""
    groups: torch.Tensor | None = None
    """(S,) what is one answer together: the text that a token belongs to, where its tokens share one output, or the
    token, where several layers use the weights."""


class Statistics(msgspec.Struct, frozen=True):
    """What the calibration pass found."""

    importance: dict[str, NDArray[np.float32]]
    """Tensor name → (C,), summed over the layers that use it. A tied table has its use as head."""
    samples: dict[str, LayerSample]
    """Tensor name → pairs; linear layers inside the blocks only."""
    weight: float
    """What a mean over the sample must be multiplied with to be per counted token."""


def collect_statistics(
    model: Any,
    summary: ModelSummary,
    windows: list[Window],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Forward and backward over the windows.

    Args:
        model: not changed; its parameters need no gradients.
        windows: calibration windows; all their tokens give importance, a random part of them the sample.
        seed: of the drawn labels and the sampled positions.
        progress: called with (windows done, windows in all).
    """
    generator = torch.Generator().manual_seed(seed)
    linear = [t for t in summary.tensors if t.quantizable and t.layer >= 0]
    users = users_of(model)
    modules = {t.name: users[id(model.get_parameter(t.name))] for t in linear}
    total_tokens = sum(len(w.ids) for w in windows)
    wanted = int(np.clip(SAMPLE_BYTES / (4 * sum(t.rows + t.columns for t in linear)), 96, 2048))
    share = min(1.0, wanted / total_tokens)
    squares: dict[str, torch.Tensor] = {}
    uses = [(name, use) for name, layers in modules.items() for use in range(len(layers))]
    kept_inputs: dict[tuple[str, int], list[torch.Tensor]] = {use: [] for use in uses}
    kept_gradients: dict[tuple[str, int], list[torch.Tensor]] = {use: [] for use in uses}
    state: dict[str, Any] = {}

    def watch(name: str, use: int) -> Any:
        def forward_hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2)[state["real"]].float()
            squares[name] = squares.get(name, 0) + x.square().sum(0)
            kept_inputs[name, use].append(x[state["sampled"]])
            rows = state["real"][state["sampled"]]
            output.register_hook(lambda g: kept_gradients[name, use].append(g.flatten(0, -2)[rows].float()))

        return forward_hook

    def head_hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)[state["real"]].float()
        squares["head"] = squares.get("head", 0) + x.square().sum(0)

    hooks = [modules[name][use].register_forward_hook(watch(name, use)) for name, use in uses]
    hooks.append(last_product(model.get_output_embeddings()).register_forward_hook(head_hook))
    # Gradients flow from here on without any weight needing one.
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda m, i, output: output.requires_grad_()))
    done = 0
    try:
        for group in batches(windows, batch_tokens=_batch_tokens(summary)):
            ids = padded_ids(group)
            flat = torch.zeros(ids.shape, dtype=torch.bool)
            counts = torch.zeros(ids.shape, dtype=torch.bool)
            for row, window in enumerate(group):
                flat[row, : len(window.ids)] = True
                counts[row, : len(window.ids)] = torch.from_numpy(window.counts)
            state["real"] = flat.flatten().nonzero().squeeze(1)
            number = max(1, round(share * len(state["real"])))
            state["sampled"] = torch.randperm(len(state["real"]), generator=generator)[:number]
            with torch.enable_grad():
                logits = model(ids, use_cache=False).logits[counts].float()
                log_probs = torch.log_softmax(logits, dim=-1)
                labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
                log_probs.gather(1, labels).sum().backward()
            done += len(group)
            if progress:
                progress(done, len(windows))
    finally:
        for hook in hooks:
            hook.remove()
    counted = sum(window.tokens for window in windows)
    importance = {name: (squares[name] / total_tokens).numpy() for name in modules}
    head = next((t.name for t in summary.tensors if t.role == "head"), None)
    table = next(t.name for t in summary.tensors if t.role == "embedding")
    if head or summary.tied:
        importance[head or table] = (squares["head"] / total_tokens).numpy()
    # Autograd runs the layers backwards but each layer's batches in order, so the two lists pair up.
    samples = {
        name: _joined(
            [
                LayerSample(inputs=torch.cat(kept_inputs[name, use]), gradients=torch.cat(kept_gradients[name, use]))
                for use in range(len(layers))
            ]
        )
        for name, layers in modules.items()
    }
    return Statistics(importance=importance, samples=samples, weight=total_tokens / counted)


def _joined(uses: list[LayerSample]) -> LayerSample:
    """Weights that several layers use: what a change does to a token at each use adds up before it is squared."""
    if len(uses) == 1:
        return uses[0]
    return LayerSample(
        inputs=torch.cat([use.inputs for use in uses]),
        gradients=torch.cat([use.gradients for use in uses]),
        groups=torch.arange(len(uses[0].inputs)).repeat(len(uses)),
    )


def _batch_tokens(summary: ModelSummary) -> int:
    """Small enough that a batch's activations and logits stay below about a gigabyte."""
    per_token = 4 * (4 * summary.vocab_size + summary.layers * (20 * summary.hidden_size + 6 * summary.ffn_size))
    return int(np.clip(1_000_000_000 / per_token, 256, 4096))


def fisher_kl(sample: LayerSample, change: torch.Tensor, weight: float) -> float:
    """½ E[(gᵀ D x)²] for a change D (R, C) of the weights; tokens of a group are summed before squaring.

    In nats per counted token, or, of an encoder, in units of cosine similarity per text.
    """
    response = (sample.inputs @ change.T * sample.gradients).sum(-1)
    if sample.groups is not None:
        texts = int(sample.groups.max()) + 1
        response = response.new_zeros(*response.shape[:-1], texts).index_add_(-1, sample.groups, response)
    return 0.5 * weight * float(response.square().mean())
