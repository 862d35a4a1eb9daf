"""Distances of two point clouds without features, for toys in a few dimensions.

energy distance      E(a, b) = (2 E|X − Y| − E|X − X'| − E|Y − Y'|)^½         (with the square root)
sliced Wasserstein   SW₂(a, b) = (mean over unit vectors θ of W₂²(θᵀX, θᵀY))^½

Both are metrics of laws in the unit of the points. The energy distance takes its means over all pairs, equal ones
included (the V-statistic), so the root is always real; sets of one law differ by O(n^−½) because of it. Sources:
Székely & Rizzo 2013, equation 2.4; Bonneel et al. 2015, definition 1.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from shortflow.errors import MetricError

__all__ = ["energy_distance", "sliced_wasserstein"]

# `m e` in place of `m d` below: unequal dimensions are the caller's mistake and get a `MetricError`.
_BLOCK = 4_000_000


def _checked(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"]) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "m d"]]:
    if len(a) == 0 or len(b) == 0:
        raise MetricError(f"both point clouds must have points, got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise MetricError(f"points of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared")
    a, b = a.detach().cpu().to(torch.float64), b.detach().cpu().to(torch.float64)
    for what, points in (("first", a), ("second", b)):
        if not bool(torch.isfinite(points).all()):
            raise MetricError(f"the {what} point cloud has values that are not finite")
    return a, b


def _mean_distance(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> float:
    rows = max(1, _BLOCK // len(b))
    total = sum(
        float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").sum()) for part in a.split(rows)
    )
    return total / (len(a) * len(b))


def energy_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"]) -> float:
    """The energy distance with its square root, as in `scipy.stats.energy_distance`, for any dimension.

    In one dimension it is (2 ∫ (F_a − F_b)² dx)^½. Costs (n + m)² distances.

    Raises:
        MetricError: if a cloud is empty or not finite, or the dimensions differ.
    """
    a, b = _checked(a, b)
    squared = 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)
    return math.sqrt(max(0.0, squared))


def sliced_wasserstein(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], *, projections: int = 128) -> float:
    """The sliced Wasserstein-2 distance over a fixed set of directions.

    In the plane the directions are the angles πi/projections (a quadrature that is exact for a shift δ: |δ|/√2);
    in other dimensions they are `projections` normalised Gaussian vectors of one fixed seed; on a line there is one.
    Counts may differ: the one-dimensional distances are integrated exactly over the merged quantile levels.

    Raises:
        MetricError: if a cloud is empty or not finite, the dimensions differ, or projections < 1.
    """
    if projections < 1:
        raise MetricError(f"projections must be at least 1, got {projections}")
    a, b = _checked(a, b)
    directions = _directions(a.shape[1], projections)
    return math.sqrt(float(_wasserstein_squared(a @ directions, b @ directions).mean()))


def _directions(dimension: int, projections: int) -> Float64[Tensor, "d p"]:
    if dimension == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if dimension == 2:
        angle = torch.arange(projections, dtype=torch.float64) * (math.pi / projections)
        return torch.stack([torch.cos(angle), torch.sin(angle)])
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(dimension, projections, dtype=torch.float64, generator=generator)
    return vectors / vectors.norm(dim=0)


def _wasserstein_squared(a: Float64[Tensor, "n p"], b: Float64[Tensor, "m p"]) -> Float64[Tensor, "p"]:
    """W₂² of each column: ∫₀¹ (F_a⁻¹(u) − F_b⁻¹(u))² du, both inverses being steps of width 1/n and 1/m."""
    a, b = a.sort(dim=0).values, b.sort(dim=0).values
    n, m = len(a), len(b)
    # In units of 1/(n m) all levels are integers, so the merge is exact.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    width = torch.diff(levels, prepend=torch.zeros(1, dtype=levels.dtype)).to(torch.float64) / (n * m)
    start = levels - 1
    return (width[:, None] * (a[start // m] - b[start // n]).square()).sum(dim=0)
