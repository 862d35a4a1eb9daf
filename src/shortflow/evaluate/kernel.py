"""The kernel distance (KID): the squared maximum mean discrepancy of two feature sets under a cubic kernel.

k(x, y) = (xᵀy/d + 1)³,   MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j).

The estimator is unbiased (Bińkowski et al. 2018, equation 4 and section 4), hence free of the sample-size bias of
the Fréchet distance; for two sets of one law it is zero in expectation and often negative.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from shortflow.errors import MetricError

__all__ = ["kernel_distance"]

_ROWS = 1000


def _kernel_sum(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> float:
    """Σ_ij k(a_i, b_j), a block of rows at a time."""
    return sum(float((rows @ b.T / a.shape[1] + 1).pow(3).sum()) for rows in a.split(_ROWS))


def _kernel_diagonal(a: Float64[Tensor, "n d"]) -> float:
    return float((a.square().sum(dim=1) / a.shape[1] + 1).pow(3).sum())


def _unbiased_mmd(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> float:
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _kernel_diagonal(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _kernel_diagonal(b)) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b) / (n * m)


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], *, block: int = 5000) -> float:
    """KID of two feature sets, in float64.

    Sets of at most `block` rows are used whole. Larger ones are cut into B = max(1, ⌊min(n, m)/block⌋) consecutive
    blocks of `block` rows on each side and the B values are averaged, which is unbiased too; rows behind the last
    block are left out. No random number is drawn.

    Raises:
        MetricError: if a side has fewer than two rows, the dimensions differ, a feature is not finite, or block < 2.
    """
    if block < 2:
        raise MetricError(f"block must be at least 2, got {block}")
    if min(len(a), len(b)) < 2:
        raise MetricError(f"the kernel distance needs at least 2 features a side, got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise MetricError(f"features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
    a, b = a.detach().cpu().to(torch.float64), b.detach().cpu().to(torch.float64)
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise MetricError("the kernel distance needs finite features; check the samples for NaN")
    blocks = max(1, min(len(a), len(b)) // block)
    parts = [slice(i * block, (i + 1) * block) for i in range(blocks)]
    return sum(_unbiased_mmd(a[part], b[part]) for part in parts) / blocks
