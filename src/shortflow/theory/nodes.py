"""Times by noise level: η_t = σ_t/α_t grows from 0 at data to σ_1/α_1 at noise on every path.

Equal levels are equal amounts of noise whatever the path calls them, so measurements of several paths are compared at
levels, and integrals over time are taken in log η, where their integrands are smooth: dt = (α σ/W) dlog η. On the
linear path with unit noise log η is the logit of t.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.paths import Path

__all__ = ["REACH", "level_of", "noise_nodes", "times_of"]

Time = Float[Tensor, "k"]

REACH = 7.0
"""Largest |log η| of a node: on the linear path the times from 9e-4 to 1 − 9e-4."""


def level_of(path: Path, t: Time) -> Time:
    """η_t = σ_t/α_t; infinite where α_t = 0."""
    return path.sigma(t) / path.alpha(t)


def times_of(path: Path, levels: Time, steps: int = 80) -> Time:
    """The times of noise levels, by bisection; 1 for all levels that the path does not reach."""
    share = levels / (1 + levels)
    low, high = torch.zeros_like(levels), torch.ones_like(levels)
    for _ in range(steps):
        middle = (low + high) / 2
        alpha, sigma = path.alpha(middle), path.sigma(middle)
        below = sigma / (alpha + sigma) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def noise_nodes(path: Path, low: float = 0.0, high: float = 1.0, count: int = 32) -> tuple[Time, Time]:
    """(times, weights) of a quadrature ∫_low^high f(t) dt, both in float64, the times decreasing.

    Gauss–Legendre nodes in log η, cut at ±`REACH`; what is cut off belongs to the node beside it, so that the weights
    sum to high − low up to the error of the quadrature, and no part of the interval is left out.
    """
    require(0 <= low < high <= 1, f"an interval of times needs 0 ≤ low < high ≤ 1, got {low} and {high}")
    require(count >= 2, f"a quadrature needs 2 nodes or more, got {count}")
    ends = torch.tensor([low, high], dtype=torch.float64)
    bottom, top = (float(level.clamp(math.exp(-REACH), math.exp(REACH)).log()) for level in level_of(path, ends))
    places, weights = np.polynomial.legendre.leggauss(count)
    half = (top - bottom) / 2
    log_level = torch.from_numpy(bottom + half * (places + 1))
    t = times_of(path, log_level.exp())
    weight = torch.from_numpy(weights) * half * path.alpha(t) * path.sigma(t) / path.wronskian(t)
    cut = times_of(path, torch.tensor([bottom, top], dtype=torch.float64).exp())
    weight[0] += max(0.0, float(cut[0]) - low)
    weight[-1] += max(0.0, high - float(cut[1]))
    return t.flip(0), weight.flip(0)
