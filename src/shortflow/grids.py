"""Grids of noise levels for discrete consistency training: the levels, how many of them, and which pair is drawn."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.typing import Progress

__all__ = ["ConstantCount", "DoublingCount", "KarrasGrid", "LogNormalIndex", "SquareRootCount", "UniformIndex"]


@dataclass(frozen=True, kw_only=True)
class KarrasGrid:
    """Noise levels σ_i = (σ_max^{1/ρ} + i/(N−1)(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, i = 0…N−1, from noisy to clean."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            f"KarrasGrid needs 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}",
        )
        require(self.rho > 0, f"KarrasGrid needs rho > 0, got {self.rho}")

    def levels(self, n: int) -> Float[Tensor, "n"]:
        """The n noise levels in float64, decreasing."""
        require(n >= 2, f"KarrasGrid needs at least 2 levels, got {n}")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma = (high + torch.linspace(0, 1, n, dtype=torch.float64) * (low - high)) ** self.rho
        sigma[0], sigma[-1] = self.sigma_max, self.sigma_min  # without the rounding of the powers: t = 1 exactly
        return sigma


@dataclass(frozen=True, kw_only=True)
class ConstantCount:
    """N = n grid points throughout (consistency distillation: 18 on CIFAR-10, 40 on ImageNet-64)."""

    n: int = 18

    def __post_init__(self) -> None:
        require(self.n >= 2, f"ConstantCount needs n ≥ 2, got {self.n}")

    def __call__(self, progress: Progress) -> int:
        return self.n


@dataclass(frozen=True, kw_only=True)
class SquareRootCount:
    """N = ⌈√(k/K((s₁+1)² − s₀²) + s₀²) − 1⌉ + 1 grid points (consistency training, Song et al. 2023)."""

    s0: int = 2
    s1: int = 150

    def __post_init__(self) -> None:
        require(2 <= self.s0 <= self.s1, f"SquareRootCount needs 2 ≤ s0 ≤ s1, got {self.s0} and {self.s1}")

    def __call__(self, progress: Progress) -> int:
        return math.ceil(math.sqrt(progress.share * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1


@dataclass(frozen=True, kw_only=True)
class DoublingCount:
    """N = min(s₀ 2^⌊k/K'⌋, s₁) + 1 with K' = K/(log₂⌊s₁/s₀⌋ + 1) (improved consistency training)."""

    s0: int = 10
    s1: int = 1280

    def __post_init__(self) -> None:
        require(1 <= self.s0 <= self.s1, f"DoublingCount needs 1 ≤ s0 ≤ s1, got {self.s0} and {self.s1}")

    def __call__(self, progress: Progress) -> int:
        stages = math.floor(math.log2(self.s1 // self.s0)) + 1
        return min(self.s0 * 2 ** math.floor(progress.share * stages), self.s1) + 1


@dataclass(frozen=True, kw_only=True)
class UniformIndex:
    """Every pair of neighbours equally likely."""

    def probabilities(self, sigma: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        return torch.full((len(sigma) - 1,), 1 / (len(sigma) - 1), dtype=sigma.dtype)


@dataclass(frozen=True, kw_only=True)
class LogNormalIndex:
    """P(pair) ∝ erf((log σ_noisy − m)/(√2 s)) − erf((log σ_clean − m)/(√2 s)): a discretised log-normal law of σ."""

    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self) -> None:
        require(self.std > 0, f"LogNormalIndex needs std > 0, got {self.std}")

    def probabilities(self, sigma: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        erf = torch.special.erf((torch.log(sigma) - self.mean) / (math.sqrt(2) * self.std))
        return (erf[:-1] - erf[1:]) / (erf[0] - erf[-1])
