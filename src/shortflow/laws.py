"""Laws of one time in [0, 1], given by their inverse distribution functions: a law is a map from uniform numbers."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require

__all__ = ["GridLaw", "Law", "LogitNormal", "TrigLogNormal", "Uniform"]


class Law(ABC):
    """A law of one time in [0, 1], given by its inverse distribution function."""

    @abstractmethod
    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The u-quantile, u ∈ [0, 1]."""

    @abstractmethod
    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """P(T ≤ t)."""

    @abstractmethod
    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The density at t (for a law on a grid: the probability of the grid point t)."""


def _normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Uniform(Law):
    """t ~ U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.low < self.high <= 1, f"Uniform needs 0 ≤ low < high ≤ 1, got {self.low} and {self.high}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self.low + (self.high - self.low) * u

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return ((t - self.low) / (self.high - self.low)).clamp(0, 1)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return ((t >= self.low) & (t <= self.high)).to(t.dtype) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Law):
    """t = sigmoid(μ + σZ), Z standard normal."""

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"LogitNormal needs sigma > 0, got {self.sigma}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.special.ndtr((torch.logit(t) - self.mu) / self.sigma)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        density = _normal_pdf((torch.logit(t) - self.mu) / self.sigma) / (self.sigma * t * (1 - t))
        return torch.where((t > 0) & (t < 1), density, 0.0)


@dataclass(frozen=True, kw_only=True)
class TrigLogNormal(Law):
    """t = (2/π) atan(exp(m + sZ)/σ_data): log-normal noise level seen through the TrigFlow angle θ = πt/2."""

    mean: float = -1.0
    std: float = 1.4
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(self.std > 0, f"TrigLogNormal needs std > 0, got {self.std}")
        require(self.sigma_data > 0, f"TrigLogNormal needs sigma_data > 0, got {self.sigma_data}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return (2 / math.pi) * torch.atan(sigma / self.sigma_data)

    def _z(self, t: Tensor) -> Tensor:
        # The cosine of π/2 is slightly negative in fp32; there z is +∞.
        angle = t * (math.pi / 2)
        ratio = torch.sin(angle) / torch.cos(angle).clamp(min=0)
        return (torch.log(self.sigma_data * ratio) - self.mean) / self.std

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.special.ndtr(self._z(t))

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        # d log tan(πt/2)/dt = π/sin(πt)
        density = _normal_pdf(self._z(t)) * math.pi / (self.std * torch.sin(math.pi * t))
        return torch.where((t > 0) & (t < 1), density, 0.0)


@dataclass(frozen=True, kw_only=True)
class GridLaw(Law):
    """t uniform on {1/n, 2/n, …, 1}."""

    n: int = 128

    def __post_init__(self) -> None:
        require(self.n >= 1, f"GridLaw needs n ≥ 1, got {self.n}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return (torch.floor(u * self.n) + 1).clamp(max=self.n) / self.n

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return (torch.floor(t * self.n + 1e-6) / self.n).clamp(0, 1)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        on_grid = ((t * self.n - torch.round(t * self.n)).abs() < 1e-4) & (t > 0) & (t <= 1)
        return on_grid.to(t.dtype) / self.n
