"""Where the intermediate time s = t − ρ (t − r) of a jump lies: ρ = 0 is its start, ρ = 1 its end.

Used by `shortflow.times.Between`. Where a rule gives ρ = 0 exactly, s = t stands for the limit s → t.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.times.base import stage_of
from shortflow.typing import Progress

__all__ = ["Fixed", "Fraction", "Geometric", "Random", "SigmoidDecay", "Step", "Tightening"]


class Fraction(ABC):
    """A rule for ρ ∈ [0, 1], the share of the jump t → r that the first step t → s covers.

    Attributes:
        uniforms: how many uniform numbers a row needs.
        limit: whether ρ = 0 occurs.
    """

    uniforms: int = 0
    limit: bool = False

    @abstractmethod
    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        """ρ of each row; k = `uniforms`. On rows with r = t it has no meaning, and need not be finite."""


@dataclass(frozen=True, kw_only=True)
class Fixed(Fraction):
    """The same ρ for every jump; 1/2 is the midpoint (PSD-M of arXiv 2505.18825)."""

    value: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.value <= 1, f"Fixed: value must be in (0, 1], got {self.value}")

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        return torch.full_like(t, self.value)


@dataclass(frozen=True, kw_only=True)
class Random(Fraction):
    """ρ ~ U(0, 1), that is s ~ U(r, t) (PSD-U of arXiv 2505.18825)."""

    uniforms = 1

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        return 1 - u[:, 0]  # never 0: that would be the limit


@dataclass(frozen=True, kw_only=True)
class Geometric(Fraction):
    """ρ_k = start (end/start)^(k/K): steps that shrink by the same factor in equal times (SoFlow, arXiv 2512.15657)."""

    start: float = 0.1
    end: float = 0.002

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            require(0 < value <= 1, f"Geometric: {name} must be in (0, 1], got {value}")

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        return torch.full_like(t, self.start * (self.end / self.start) ** progress.share)


@dataclass(frozen=True, kw_only=True)
class SigmoidDecay(Fraction):
    """ρ = α = sigmoid(−γ (k/K − middle)/(end_share − start_share)): from flow matching (1) to continuous time (0).

    Before start_share α = 1, after end_share α = 0; where α would be below `clamp` it is 0, above 1 − clamp it is 1.
    With γ = 25 and clamp = .005 only the middle 42 % of the transition are between.
    Source: α-Flow (arXiv 2510.20771) and its code.
    """

    start_share: float = 0.0
    end_share: float = 1.0
    gamma: float = 25.0
    clamp: float = 0.005
    limit = True

    def __post_init__(self) -> None:
        require(
            0 <= self.start_share < self.end_share <= 1,
            "SigmoidDecay needs 0 ≤ start_share < end_share ≤ 1 (shares of the run), "
            f"got {self.start_share} and {self.end_share}",
        )
        require(0 < self.gamma <= 700, f"SigmoidDecay: gamma must be in (0, 700], got {self.gamma}")
        require(0 < self.clamp < 0.5, f"SigmoidDecay: clamp must be in (0, 0.5), got {self.clamp}")

    def alpha(self, progress: Progress) -> float:
        """α at this point of the run."""
        if not self.start_share < progress.share < self.end_share:
            return float(progress.share <= self.start_share)
        middle, length = (self.start_share + self.end_share) / 2, self.end_share - self.start_share
        alpha = 1 / (1 + math.exp(self.gamma * (progress.share - middle) / length))
        return 0.0 if alpha < self.clamp else 1.0 if alpha > 1 - self.clamp else alpha

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        return torch.full_like(t, self.alpha(progress))


@dataclass(frozen=True, kw_only=True)
class Step(Fraction):
    """A first step of fixed length: s = max(t − size, r) (RCGM)."""

    size: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.size <= 1, f"Step: size must be in (0, 1], got {self.size}")

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        return (self.size / (t - r)).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class Tightening(Fraction):
    """s = max(r, t · max(0, 1 − q^−(stage+1) (1 + k sigmoid(−b σ)))), σ = σ_max t: steps that shrink stage by stage.

    For jumps to the data on the variance-exploding path. At first s = r = 0 for low noise: diffusion training.
    The stages are equal parts of the run.
    Source: easy consistency tuning (arXiv 2406.14548) and its code; 8 stages are its 200k iterations.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(self.q > 1, f"Tightening needs q > 1, got {self.q}")
        require(self.k >= 0, f"Tightening needs k ≥ 0, got {self.k}")
        require(self.b >= 0, f"Tightening needs b ≥ 0, got {self.b}")
        require(1 <= self.stages <= 64, f"Tightening: stages must be between 1 and 64, got {self.stages}")
        require(self.sigma_max > 0, f"Tightening needs sigma_max > 0, got {self.sigma_max}")

    def stage(self, progress: Progress) -> int:
        """0 … stages − 1."""
        return stage_of(progress.share, self.stages)

    def __call__(
        self, t: Float[Tensor, "b"], r: Float[Tensor, "b"], u: Float[Tensor, "b k"], progress: Progress
    ) -> Float[Tensor, "b"]:
        shrink = self.q ** -(self.stage(progress) + 1) * (1 + self.k * torch.sigmoid(-self.b * self.sigma_max * t))
        return (shrink * t / (t - r)).clamp(max=1)
