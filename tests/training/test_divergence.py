"""Divergences against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from edgegen.training.divergence import KINDS, divergence, divergence_of_top


def drawn(rows: int, entries: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, entries, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_against_scipy(kind: str, temperature: float) -> None:
    teacher, student, alpha = drawn(6, 30, 1), drawn(6, 30, 2), 0.3
    p, q = (scipy_softmax(x.double().numpy() / temperature, axis=-1) for x in (teacher, student))
    m = alpha * p + (1 - alpha) * q
    wanted = {
        "forward": rel_entr(p, q),
        "reverse": rel_entr(q, p),
        "skew": rel_entr(p, m),
        "skew-reverse": rel_entr(q, m),
        "js": alpha * rel_entr(p, m) + (1 - alpha) * rel_entr(q, m),
    }[kind].sum(-1) * temperature**2
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    found = divergence(log_p, student, kind=kind, temperature=temperature, alpha=alpha)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_entries_bound_from_below_and_are_exact_when_all_are_kept(kind: str) -> None:
    log_p, student = torch.log_softmax(drawn(8, 40, 3), dim=-1), drawn(8, 40, 4)
    whole = divergence(log_p, student, kind=kind)
    last = torch.zeros(8)
    for k in (1, 5, 20, 40):
        top = log_p.topk(k, dim=-1)
        found = divergence_of_top(top.indices, top.values, student, kind=kind)
        assert (found <= whole + 1e-4).all() and (found >= last - 1e-4).all()
        last = found
    assert torch.allclose(last, whole, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_is_zero_and_its_gradient_too(kind: str) -> None:
    student = drawn(3, 12, 5).requires_grad_(True)
    found = divergence(torch.log_softmax(student.detach(), dim=-1), student, kind=kind).sum()
    found.backward()
    assert abs(float(found.detach())) < 1e-5 and float(student.grad.abs().max()) < 1e-5


def test_impossible_entries_give_no_nan() -> None:
    log_p = torch.tensor([[0.0, -math.inf, -math.inf]])
    student = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    for kind in ("forward", "skew"):
        found = divergence(log_p, student, kind=kind)
        assert torch.isfinite(found).all()
    assert float(divergence(log_p, student, kind="forward").detach()) == pytest.approx(math.log(3), rel=1e-5)
