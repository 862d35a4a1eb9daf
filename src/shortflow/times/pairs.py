"""Laws of (t, r) whose intermediate time stands for the limit s → t: flow matching and jumps in continuous time."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.laws import Law, LogitNormal, TrigLogNormal, Uniform
from shortflow.times.base import LEAST_GAP, Count, TimeSampler, apart, check_ratio, chosen, number
from shortflow.typing import Progress, Times

__all__ = ["Diagonal", "GapThenEnd", "Gradual", "Independent", "Nested", "Sorted", "ToData", "Triangle"]


@dataclass(frozen=True, kw_only=True)
class Diagonal(TimeSampler):
    """r = s = t ~ law: flow matching. The span is that of a uniform law, and [0, 1] for all others."""

    law: Law = Uniform()
    uniforms = 1
    gap = "zero"
    ends = "diagonal"

    @property
    def span(self) -> tuple[float, float]:
        return (self.law.low, self.law.high) if isinstance(self.law, Uniform) else (0.0, 1.0)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t = self.law.icdf(u[:, 0])
        return Times(t, t, t)


@dataclass(frozen=True, kw_only=True)
class ToData(TimeSampler):
    """t ~ law, r = 0 and s → t: continuous-time consistency training."""

    law: Law = TrigLogNormal()
    uniforms = 1
    gap = "positive"
    ends = "zero"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t = self.law.icdf(u[:, 0]).clamp(min=LEAST_GAP)
        return Times(t, t, torch.zeros_like(t))


# ------------------------------------------------------------------------------------------- some of the rows jump


@dataclass(frozen=True, kw_only=True)
class Sorted(TimeSampler):
    """t and r are the larger and the smaller of two draws of `law`; r := t except on a share `ratio` of the rows.

    Note the naming: here `ratio` = P(r < t). The density of t is 2 f(t) F(t), that of r given r < t is
    2 f(r)(1 − F(r)), with f and F the density and the distribution function of `law`.
    Source: MeanFlow (arXiv 2505.13447), section 4.3.
    """

    law: Law = LogitNormal(mu=-0.4, sigma=1.0)
    ratio: float = 0.25
    count: Count = "bernoulli"
    uniforms = 3
    gap = "mixed"
    ends = "any"

    def __post_init__(self) -> None:
        check_ratio("Sorted", self.ratio, self.count)

    def jumping(self, n: int) -> int | None:
        return number(self.ratio, self.count, n)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        first, second = self.law.icdf(u[:, 0]), self.law.icdf(u[:, 1])
        t, r = torch.maximum(first, second), torch.minimum(first, second)
        r = torch.where(chosen(u[:, 2], self.ratio, self.count), r, t)
        return Times(t, t, r)


@dataclass(frozen=True, kw_only=True)
class Gradual(TimeSampler):
    """`Sorted`, but early in training most jumps go all the way to the data: r := 0 with probability p.

    p = (2/π) arccos(min(1, k/K)) falls from 1 to 0 over the first `ramp` of the run (K of all the steps).
    Source: ESC (arXiv 2512.11831), gradual time sampler; the arccos form is that of the published code.
    """

    law: Law = LogitNormal(mu=-0.4, sigma=1.0)
    ratio: float = 0.25
    ramp: float = 1 / 30
    count: Count = "bernoulli"
    uniforms = 4
    gap = "mixed"
    ends = "any"

    def __post_init__(self) -> None:
        check_ratio("Gradual", self.ratio, self.count)
        require(0 <= self.ramp <= 1, f"Gradual: ramp is a share of the run and must be in [0, 1], got {self.ramp}")

    def jumping(self, n: int) -> int | None:
        return number(self.ratio, self.count, n)

    def probability(self, progress: Progress) -> float:
        """p, the probability that a jump ends at the data."""
        return (2 / math.pi) * math.acos(progress.along(self.ramp))

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t, s, r = Sorted(law=self.law, ratio=1.0).times(u[:, [0, 1, 2]], progress)
        r = torch.where(u[:, 3] < self.probability(progress), torch.zeros_like(r), r)
        r = torch.where(chosen(u[:, 2], self.ratio, self.count), r, t)
        return Times(t, s, r)


@dataclass(frozen=True, kw_only=True)
class Independent(TimeSampler):
    """t ~ start and r ~ end independently; r := t except on a share `ratio`, then r := min(r, t − least).

    With least = 0 the share of flow-matching rows is therefore larger than 1 − ratio. With least > 0 also t ≥ least,
    the share is 1 − ratio, and with ratio = 1 every row jumps: the gap is "positive".
    Source: the second version of MeanFlow's PyTorch code (least = 0); SoFlow (arXiv 2512.15657) with least = 1e-4.
    """

    start: Law = LogitNormal(mu=-0.6, sigma=1.6)
    end: Law = LogitNormal(mu=-4.0, sigma=1.6)
    ratio: float = 0.75
    least: float = 0.0
    count: Count = "bernoulli"
    uniforms = 3
    gap = "mixed"
    ends = "any"

    def __post_init__(self) -> None:
        check_ratio("Independent", self.ratio, self.count)
        require(
            self.least == 0 or LEAST_GAP <= self.least < 1,
            f"Independent: least is the shortest jump and must be 0 (none) or in [{LEAST_GAP:g}, 1), got {self.least}",
        )
        if self.least > 0 and self.ratio == 1:
            self._settle(gap="positive")

    def jumping(self, n: int) -> int | None:
        return number(self.ratio, self.count, n) if self.least > 0 else None

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t, r = apart(self.start.icdf(u[:, 0]), self.end.icdf(u[:, 1]), self.least)
        return Times(t, t, torch.where(chosen(u[:, 2], self.ratio, self.count), r, t))


# ------------------------------------------------------------------------------------------------ every row jumps


@dataclass(frozen=True, kw_only=True)
class Triangle(TimeSampler):
    """(t, r) uniform on the triangle 0 ≤ r < t ≤ 1: t = √u, r ~ U(0, t). Gaps are at least 1e-6.

    Source: the jumps of flow-map self-distillation (arXiv 2505.18825); put them into `WithDiagonal`.
    """

    uniforms = 2
    gap = "positive"
    ends = "any"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        start = torch.sqrt(u[:, 0])
        t, r = apart(start, start * u[:, 1])
        return Times(t, t, r)


@dataclass(frozen=True, kw_only=True)
class Nested(TimeSampler):
    """t ~ start, r ~ U(0, t). Gaps are at least 1e-6. Source: RCGM; α-Flow offers it, too."""

    start: Law = Uniform()
    uniforms = 2
    gap = "positive"
    ends = "any"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        start = self.start.icdf(u[:, 0])
        t, r = apart(start, start * u[:, 1])
        return Times(t, t, r)


@dataclass(frozen=True, kw_only=True)
class GapThenEnd(TimeSampler):
    """The length of the jump first: g ~ gap, r ~ end given r ≤ 1 − g, and t = r + g. Gaps are at least 1e-6.

    Source: terminal velocity matching (arXiv 2511.19797) and its code.
    """

    length: Law = LogitNormal(mu=-0.8, sigma=1.0)
    end: Law = LogitNormal(mu=-0.4, sigma=1.0)
    uniforms = 2
    gap = "positive"
    ends = "any"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        gap = self.length.icdf(u[:, 0]).clamp(LEAST_GAP, 1)
        r = self.end.icdf(u[:, 1] * self.end.cdf(1 - gap))
        t = (r.clamp(max=1 - gap) + gap).clamp(max=1)
        return Times(t, t, torch.minimum(r, t - gap))
