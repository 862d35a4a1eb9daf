"""Precision, recall, density and coverage: how two feature sets lie inside each other's nearest-neighbour balls.

With B(z) the closed ball around z whose radius is the distance to the k-th nearest other point of z's own set,
reference points x_i (i ≤ n) and generated points y_j (j ≤ m):

    precision = share of y_j in some B(x_i)            density  = Σ_ij [y_j ∈ B(x_i)] / (k m)
    recall    = share of x_i in some B(y_j)            coverage = share of B(x_i) that hold some y_j

Precision and recall: Kynkäänniemi et al. 2019, equations 1–3. Density and coverage: Naeem et al. 2020, equations
3 and 5. All four depend on k and on both counts; of two sets drawn from one law with n = m, coverage is 1 − 2^−k
in expectation (.969 for k = 5), which is why a value is always read beside that of held-out real data.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import MetricError

__all__ = ["NeighbourScores", "neighbour_radii", "neighbour_scores"]

# Entries of one block of the distance matrix: 32 MB in float64.
_BLOCK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class NeighbourScores:
    """The four scores; precision, recall and coverage lie in [0, 1], density is around one for matching sets."""

    precision: float
    recall: float
    density: float
    coverage: float


def _distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    # Without matrix products: their cancellation gives copies of one point a distance of 1e-3 in float32, and a
    # collapsed generator is just a set of copies.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _rows(n: int, columns: int) -> list[slice]:
    step = max(1, _BLOCK // columns)
    return [slice(start, start + step) for start in range(0, n, step)]


def _checked(features: Float[Tensor, "n d"], k: int, what: str) -> Float[Tensor, "n d"]:
    if k < 1:
        raise MetricError(f"k must be at least 1, got {k}")
    if len(features) <= k:
        raise MetricError(
            f"the {what} set has {len(features)} points, but the distance to the {k}-th nearest other point needs at "
            f"least {k + 1}; give more samples or a smaller k"
        )
    if not bool(torch.isfinite(features).all()):
        raise MetricError(f"the {what} features are not finite; check the samples for NaN")
    return features if features.dtype in (torch.float32, torch.float64) else features.float()


def neighbour_radii(features: Float[Tensor, "n d"], k: int = 5) -> Float[Tensor, "n"]:
    """The distance of each row to its k-th nearest other row (0 where k other rows equal it).

    Raises:
        MetricError: if k < 1, there are not more than k rows, or a feature is not finite.
    """
    features = _checked(features, k, "given")
    # The row itself is the nearest of all, hence the (k + 1)-th smallest.
    parts = []
    for rows in _rows(len(features), len(features)):
        nearest = _distances(features[rows], features).topk(k + 1, dim=1, largest=False)
        parts.append(nearest.values[:, -1])
    return torch.cat(parts)


def neighbour_scores(
    generated: Float[Tensor, "m e"],
    reference: Float[Tensor, "n d"],
    *,
    k: int = 5,
    reference_radii: Float[Tensor, "n"] | None = None,
) -> NeighbourScores:
    """The four scores of `generated` against `reference`. Distances are Euclidean and computed in blocks, so any
    count fits into memory; time grows with (n + m)². Give equal counts to compare recall with precision.

    Args:
        reference_radii: `neighbour_radii(reference, k)` if it is known already.

    Raises:
        MetricError: if k < 1, a set has not more than k points, a feature is not finite, or dimensions differ.
    """
    generated, reference = _checked(generated, k, "generated"), _checked(reference, k, "reference")
    if generated.shape[1] != reference.shape[1]:
        raise MetricError(f"features of {generated.shape[1]} and {reference.shape[1]} dimensions cannot be compared")
    real_radii = neighbour_radii(reference, k) if reference_radii is None else reference_radii
    fake_radii = neighbour_radii(generated, k)
    inside, recalled, covered = 0, 0, 0
    held = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    for rows in _rows(len(reference), len(generated)):
        distance = _distances(reference[rows], generated)
        in_real_ball = distance <= real_radii[rows, None]
        inside += int(in_real_ball.sum())
        covered += int(in_real_ball.any(dim=1).sum())
        recalled += int((distance <= fake_radii).any(dim=1).sum())
        held |= in_real_ball.any(dim=0)
    return NeighbourScores(
        precision=int(held.sum()) / len(generated),
        recall=recalled / len(reference),
        density=inside / (k * len(generated)),
        coverage=covered / len(reference),
    )
