"""A matrix as a product of two thin ones, closest where its inputs are.

With S Sᵀ = E[x xᵀ] the error of an approximation W' at its outputs is

    E|(W - W') x|² = |(W - W') S|²,

so the best W' of rank r is the truncated singular value decomposition of W S, brought back by S⁻¹ (SVD-LLM, Wang
et al. 2024; the same form repairs a rounding error: QERA, Zhang et al. 2024). S is the Cholesky factor of the
moments with a little of their mean added, so that inputs that the text never used do no harm.

R outputs, C inputs, k = min(R, C).
"""

from __future__ import annotations

import msgspec
import torch

DAMPING = 1e-3
"""Added to the moments' diagonal, as a share of its mean."""


class Whitened(msgspec.Struct, frozen=True):
    """W = left · diag(sizes) · right, most important direction first, float64."""

    left: torch.Tensor
    """(R, k), orthonormal columns."""
    sizes: torch.Tensor
    """(k,): what each direction adds to the root mean square of the outputs."""
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


def whiten(weight: torch.Tensor, moment: torch.Tensor) -> Whitened:
    """Decompose W (R, C) for inputs with moments E[x xᵀ] (C, C)."""
    root = torch.linalg.cholesky(damped(moment))
    left, sizes, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    return Whitened(left=left, sizes=sizes, right=torch.linalg.solve_triangular(root, right, upper=False, left=False))


def residual_factors(error: torch.Tensor, moment: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, C) and B (R, r) that repair a layer whose weights became W - `error`: |(error - B A) S| is least.

    For weights rounded to three bits and fewer; above, a finer grid costs less than the factors do.

    Args:
        error: (R, C), the original's weights less what was made of them.
        moment: (C, C), E[x xᵀ] of its inputs.
    """
    return whiten(error, moment).factors(rank)
