"""Distribution functions and their inverses by quadrature, for laws that have neither in closed form.

A `Table` is the law on [low, high] with density ∝ exp(log_density(x)), for densities that are log-concave and smooth in
x. The mass of each of 512 cells is a Gauss–Legendre sum of 16 nodes, and so is the rest of the way inside a cell;
quantiles are Newton steps on that. Where the density hardly bends within a cell both are exact to a few roundings.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Table"]

_CELLS, _NODES, _NEWTON_STEPS = 512, 16, 4
_NEGLIGIBLE = -80.0  # log of a density that no table of float64 can tell from zero


class Table:
    """The law on [low, high] with density ∝ exp(log_density(x)), all in float64 on the CPU.

    Args:
        log_density: smooth and concave, with its maximum on [low, high] at `peak`.
        low, high: the ends; where the density is negligible before them, the table ends there.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], peak: float, low: float, high: float) -> None:
        self.log_density = log_density
        self.peak = log_density(torch.tensor(peak, dtype=torch.float64))
        low, high = self._reach(peak, low), self._reach(peak, high)
        points, weights = np.polynomial.legendre.leggauss(_NODES)
        self.points, self.weights = torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
        self.edges = torch.linspace(low, high, _CELLS + 1, dtype=torch.float64)
        mass = self._mass(self.edges[:-1], self.edges[1:])
        self.total = mass.sum()
        self.below = torch.cat([mass.new_zeros(1), mass.cumsum(0) / self.total])
        self.below[-1] = 1

    def _reach(self, peak: float, end: float) -> float:
        """`end`, or the point on the way there at which the density becomes negligible."""

        def negligible(x: float) -> bool:
            value = self.log_density(torch.tensor(x, dtype=torch.float64)) - self.peak
            return not float(value) > _NEGLIGIBLE

        if end == peak or not negligible(end):
            return end
        inner, outer = peak, end
        for _ in range(100):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if negligible(middle) else (middle, outer)
        return inner

    def _density(self, x: Tensor) -> Tensor:
        return torch.exp(self.log_density(x) - self.peak)

    def _mass(self, low: Tensor, high: Tensor) -> Tensor:
        """∫ density between two points of one cell, not normalised."""
        x = low[..., None] + (high - low)[..., None] * self.points
        return (high - low) * (self._density(x) * self.weights).sum(-1)

    def pdf(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The density at points of [low, high]."""
        return self._density(x) / self.total

    def cdf(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The mass below x: 0 before the low end and 1 beyond the high one."""
        x = x.clamp(self.edges[0], self.edges[-1])
        cell = (torch.searchsorted(self.edges, x.contiguous(), right=True) - 1).clamp(0, _CELLS - 1)
        return (self.below[cell] + self._mass(self.edges[cell], x) / self.total).clamp(0, 1)

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The u-quantile, by Newton's method inside the cell that holds it."""
        cell = (torch.searchsorted(self.below, u.contiguous(), right=True) - 1).clamp(0, _CELLS - 1)
        low, high = self.edges[cell], self.edges[cell + 1]
        share = (u - self.below[cell]) / (self.below[cell + 1] - self.below[cell])
        mass, x = (u - self.below[cell]) * self.total, low + share.clamp(0, 1) * (high - low)
        for _ in range(_NEWTON_STEPS):
            x = torch.clamp(x - (self._mass(low, x) - mass) / self._density(x), low, high)
        return x
