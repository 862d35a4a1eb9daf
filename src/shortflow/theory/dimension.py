"""The intrinsic dimension of data: of the posterior at little noise, and of nearest neighbours as a second opinion.

Near a smooth d-dimensional manifold the posterior of x_0 given x_t is N(·, η² P) with P of rank d and η = σ/α, so

    d̂(η) = tr Cov[x_0 | x_t]/η² = (α/W)² tr Cov[v_c | x_t] → d  as η → 0.

For isolated points it goes to 0 as soon as η is below the distance between them: a finite data set has a plateau at
most, and the same of a learned velocity, by tr Cov[v_c | x] = (W/α)(D σ' − σ div v), tells a network that has learned a
manifold from one that has memorised points. Neighbours: with r_k the distance to the k-th nearest other point,

    TwoNN    d̂ = n/Σ log(r₂/r₁)                       (Facco et al. 2017, arXiv 1803.06992)
    MLE      d̂ = (mean of the means over j < k of log(r_k/r_j))^{-1}   (Levina & Bickel 2004; MacKay & Ghahramani 2005)
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import require
from shortflow.flowmap import FlowMap
from shortflow.tangent import differentiated
from shortflow.theory.estimates import Estimate, mean_of
from shortflow.theory.law import Law
from shortflow.typing import Condition

__all__ = ["learned_dimension", "neighbour_dimension", "neighbour_distances", "posterior_dimension", "two_neighbours"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None

BLOCK = 2**24  # numbers that are worked on together


def posterior_dimension(law: Law, x: State, t: Time, label: Label = None) -> Time:
    """d̂ = (α/W)² tr Cov[v_c | x_t = x] of each row."""
    factor = law.path.alpha(t) / law.path.wronskian(t)
    return factor.square() * law.velocity_variance(x, t, label)


def learned_dimension(
    flow: FlowMap, x: State, t: Time, label: Condition | None = None, generator: torch.Generator | None = None
) -> Time:
    """d̂ = (α/W)(D σ' − σ div v) of each row for the velocity of a network, the divergence with one random sign vector.

    Hutchinson's estimate: without bias, with a variance of 2 Σ_{i≠j} of the squared entries of the symmetric part of
    ∇v.
    """
    path = flow.path
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device, x.dtype) * 2 - 1
    with torch.no_grad():
        rate = differentiated(lambda point: flow.velocity(point, t, label), (x,), (signs,))[1]
    divergence = (rate * signs).flatten(1).sum(1)
    return path.alpha(t) / path.wronskian(t) * (x[0].numel() * path.d_sigma(t) - path.sigma(t) * divergence)


def neighbour_distances(
    queries: Float[Tensor, "m d"], points: Float[Tensor, "n d"], k: int, own: bool = False
) -> Float[Tensor, "m k"]:
    """The distances of each query to its k nearest points, ascending, in blocks.

    Args:
        own: the queries are points themselves: one point at distance 0 is left out.
    """
    wanted = k + own
    require(len(points) >= wanted, f"{len(points)} points have no {k} neighbours; give more points")
    rows, size = max(1, BLOCK // len(points)), max(1, BLOCK // points.shape[1])
    found = []
    for query in queries.split(rows):
        query = query.to(points.device, points.dtype)
        parts = [
            torch.cdist(query, part, compute_mode="use_mm_for_euclid_dist").topk(
                min(wanted + 4, len(part)), largest=False
            )
            for part in points.split(size)
        ]
        firsts = range(0, len(points), size)
        places = torch.cat([part.indices + first for part, first in zip(parts, firsts, strict=True)], 1)
        rough = torch.cat([part.values for part in parts], 1).topk(min(wanted + 4, places.shape[1]), largest=False)
        near = points[places.gather(1, rough.indices)]
        # Again without a matrix product, whose rounding would give copies a distance.
        exact = (near - query[:, None]).square().sum(2).sqrt().sort(1).values
        found.append(exact[:, wanted - k : wanted])
    return torch.cat(found)


def two_neighbours(distances: Float[Tensor, "m k"]) -> Estimate:
    """The TwoNN estimate of the dimension from the distances to the two nearest other points; copies are left out."""
    near = distances[distances[:, 0] > 0].double()
    require(len(near) > 1, "all points have copies of themselves beside them, which have no dimension; remove copies")
    logs = mean_of((near[:, 1] / near[:, 0]).log())
    return _inverse(logs)


def neighbour_dimension(distances: Float[Tensor, "m k"]) -> Estimate:
    """The maximum-likelihood estimate of the dimension from the distances to the k nearest other points, k ≥ 3."""
    require(distances.shape[1] >= 3, f"give the distances to 3 neighbours at least, got {distances.shape[1]}")
    near = distances[distances[:, 0] > 0].double()
    require(len(near) > 1, "all points have copies of themselves beside them, which have no dimension; remove copies")
    k = near.shape[1]
    # The sum has the mean (k − 1)/d: means over points are taken before the inverse (MacKay & Ghahramani 2005).
    logs = (near[:, -1:] / near[:, :-1]).log().sum(1) / (k - 1)
    return _inverse(mean_of(logs))


def _inverse(estimate: Estimate) -> Estimate:
    if estimate.value <= 0:
        return Estimate(math.inf, math.nan)
    return Estimate(1 / estimate.value, estimate.error / estimate.value**2)
