"""How far a student's distributions are from a teacher's, where predictions count.

T counted predictions, V vocabulary entries, k entries that are kept of each teacher's distribution. p is the teacher,
q the student, both at temperature τ; every divergence is multiplied with τ², which keeps gradients as large as the
cross entropy's (Hinton et al. 2015).

    forward        KL(p ‖ q)                        covers all that the teacher would say
    reverse        KL(q ‖ p)                        says only what the teacher would (MiniLLM, Gu et al. 2024)
    skew           KL(p ‖ αp + (1-α)q)              forward, bounded where q has nothing (DistiLLM, Ko et al. 2024)
    skew-reverse   KL(q ‖ (1-α)q + αp)
    js             αKL(p ‖ m) + (1-α)KL(q ‖ m), m = αp + (1-α)q      (GKD, Agarwal et al. 2024)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Kind = Literal["forward", "reverse", "skew", "skew-reverse", "js"]
KINDS: tuple[str, ...] = ("forward", "reverse", "skew", "skew-reverse", "js")

_TINY = 1e-20


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Σ_v p (ln p - ln q) of each row; p = 0 adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)


def _mixed(log_p: torch.Tensor, log_q: torch.Tensor, share: float) -> torch.Tensor:
    """ln(share · p + (1 - share) · q)."""
    return torch.logaddexp(
        log_p + torch.log(torch.tensor(max(share, _TINY))), log_q + torch.log(torch.tensor(max(1 - share, _TINY)))
    )


_OF: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "forward": lambda p, q, alpha: _kl(p, q),
    "reverse": lambda p, q, alpha: _kl(q, p),
    "skew": lambda p, q, alpha: _kl(p, _mixed(p, q, alpha)),
    "skew-reverse": lambda p, q, alpha: _kl(q, _mixed(p, q, alpha)),
    "js": lambda p, q, alpha: alpha * _kl(p, _mixed(p, q, alpha)) + (1 - alpha) * _kl(q, _mixed(p, q, alpha)),
}


def divergence(
    log_p: torch.Tensor, logits: torch.Tensor, *, kind: str, temperature: float = 1.0, alpha: float = 0.1
) -> torch.Tensor:
    """Of each counted prediction, nats: (T,).

    Args:
        log_p: (T, V) the teacher's log-probabilities at this temperature.
        logits: (T, V) the student's.
        kind: one of `KINDS`.
        alpha: skew, or the teacher's share of `js`.
    """
    log_q = torch.log_softmax(logits.float() / temperature, dim=-1)
    return _OF[kind](log_p.float(), log_q, alpha) * temperature**2


def divergence_of_top(
    ids: torch.Tensor,
    log_p: torch.Tensor,
    logits: torch.Tensor,
    *,
    kind: str,
    temperature: float = 1.0,
    alpha: float = 0.1,
) -> torch.Tensor:
    """The same where only the teacher's likeliest entries are known: everything else is one event.

    That is a lower bound of the whole divergence (merging events never raises one), exact where k = V.

    Args:
        ids: (T, k) entries.
        log_p: (T, k) their log-probabilities at this temperature.
        logits: (T, V) the student's.
    """
    log_q = torch.log_softmax(logits.float() / temperature, dim=-1)
    top = log_q.gather(-1, ids)
    if ids.shape[-1] < logits.shape[-1]:
        log_p = torch.cat([log_p.float(), _rest(log_p.float())], dim=-1)
        top = torch.cat([top, _rest(top)], dim=-1)
    return _OF[kind](log_p.float(), top, alpha) * temperature**2


def _rest(log_values: torch.Tensor) -> torch.Tensor:
    """ln of what is left to 1, (T, 1)."""
    return torch.log1p(-log_values.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
