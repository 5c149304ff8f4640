"""A matrix as a product of two thin ones, closest where its inputs are.

With S Sᵀ = E[x xᵀ] the error of an approximation W' at its outputs is

    E|(W - W') x|² = |(W - W') S|²,

so the best W' of rank r is the truncated singular value decomposition of W S, brought back by S⁻¹ (SVD-LLM, Wang
et al. 2024; the same form repairs a rounding error: QERA, Zhang et al. 2024). S is the Cholesky factor of the
moments with a little of their mean added, so that inputs that the text never used do no harm.

Outputs do not matter alike either. With L Lᵀ = E[g gᵀ] of the gradients g at the outputs, |Lᵀ (W - W') S|² is the
Fisher KL of the change but for the dependence of g on x. A few thousand sampled gradients are noisy, so as much as
their mean is added to the diagonal of their moments; on two models that makes the KL 1 to 14 % less than without.

R outputs, C inputs, k = min(R, C).
"""

from __future__ import annotations

import msgspec
import torch

DAMPING = 1e-3
"""Added to the diagonal of inputs' moments, as a share of its mean."""

_OUTPUT_DAMPING = 1.0
"""The same of gradients' moments."""


class Whitened(msgspec.Struct, frozen=True):
    """W = left · diag(sizes) · right, most important direction first, float64."""

    left: torch.Tensor
    """(R, k)."""
    sizes: torch.Tensor
    """(k,): how much each direction matters."""
    right: torch.Tensor
    """(k, C)."""

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, C) and B (R, r) with B A ≈ W, float32, of like sizes."""
        root = self.sizes[:rank].sqrt()
        return (root[:, None] * self.right[:rank]).float(), (self.left[:, :rank] * root).float()


def damped(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """(C, C) moments, positive definite."""
    extra = damping * float(moment.diagonal().mean()) or 1.0
    return moment.double() + extra * torch.eye(len(moment), dtype=torch.float64)


def whiten(weight: torch.Tensor, moment: torch.Tensor, gradients: torch.Tensor | None = None) -> Whitened:
    """Decompose W (R, C) for inputs with moments E[x xᵀ] (C, C).

    Args:
        gradients: (…, R), sampled at the outputs; None: all outputs matter alike.
    """
    inner = torch.linalg.cholesky(damped(moment))
    if gradients is None:
        left, sizes, right = torch.linalg.svd(weight.double() @ inner, full_matrices=False)
    else:
        rows = gradients.flatten(0, -2).double()
        outer = torch.linalg.cholesky(damped(rows.T @ rows / len(rows), _OUTPUT_DAMPING)).T
        left, sizes, right = torch.linalg.svd(outer @ weight.double() @ inner, full_matrices=False)
        left = torch.linalg.solve_triangular(outer, left, upper=True)
    right = torch.linalg.solve_triangular(inner, right, upper=False, left=False)
    return Whitened(left=left, sizes=sizes, right=right)


def residual_factors(error: torch.Tensor, moment: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, C) and B (R, r) that repair a layer whose weights became W - `error`: |(error - B A) S| is least.

    For weights rounded to three bits and fewer; above, a finer grid costs less than the factors do.

    Args:
        error: (R, C), the original's weights less what was made of them.
        moment: (C, C), E[x xᵀ] of its inputs.
    """
    return whiten(error, moment).factors(rank)
