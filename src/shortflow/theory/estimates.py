"""Monte-Carlo estimates with their standard errors."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require

__all__ = ["Estimate", "log_slope", "mean_of", "ratio_of"]


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    def scaled(self, factor: float) -> "Estimate":
        """factor · value."""
        return Estimate(factor * self.value, abs(factor) * self.error)

    def root(self) -> "Estimate":
        """√value of a value that cannot be negative but for its error, with the error to first order."""
        root = math.sqrt(max(0.0, self.value))
        return Estimate(root, self.error / (2 * root) if root > 0 else math.sqrt(self.error))


def mean_of(values: Float[Tensor, "n"]) -> Estimate:
    """The mean of independent values and its standard error; NaN where there is one value only."""
    values = values.detach().double()
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else torch.tensor(math.nan)
    return Estimate(float(values.mean()), float(error))


def ratio_of(above: Float[Tensor, "n"], below: Float[Tensor, "n"]) -> Estimate:
    """E above/E below of independent pairs; the error by the delta method, that of (above − ratio · below)/E below."""
    above, below = above.detach().double(), below.detach().double()
    mean = float(below.mean())
    require(mean != 0, "a ratio needs a mean below the line that is not 0")
    ratio = float(above.mean()) / mean
    return Estimate(ratio, mean_of(above - ratio * below).error / abs(mean))


def log_slope(sizes: Float[Tensor, "n"], values: Float[Tensor, "n"]) -> float:
    """The least-squares slope of log value against log size: the order with which the values vanish."""
    require(len(sizes) > 1 and bool((sizes > 0).all() and (values > 0).all()), "a slope needs two positive values")
    a, b = sizes.double().log(), values.double().log()
    a = a - a.mean()
    return float((a * (b - b.mean())).sum() / (a * a).sum())
