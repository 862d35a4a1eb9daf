"""Joint samplers of (t, s, r) with r ≤ s ≤ t, built from laws of one time (`shortflow.laws`).

Every law is a map from uniform numbers to times (its inverse distribution function), and every joint sampler a pure
function `times(u, progress)` of a table of uniforms. Random draws, stratified grids and tests all use the same map.

A sampler also says what it trains, for compatibility checks and for the samplers of images:
    gap      "zero" (r = t always), "positive" (r < t always) or "mixed";
    ends     "diagonal" (only r = t is trained), "zero" (only the data end), "any", or "dyadic" (jumps of length 2⁻ʲ);
    span     the earliest and latest time the network sees, (0, 1) unless the method cuts the ends;
    continuous  whether s = t stands for the limit s → t.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortflow.errors import ShortflowError, require
from shortflow.grids import DoublingCount, KarrasGrid, LogNormalIndex, SquareRootCount, UniformIndex
from shortflow.laws import GridLaw, Law, LogitNormal, TrigLogNormal, Uniform
from shortflow.typing import Progress, Times

__all__ = [
    "Diagonal",
    "DoublingCount",
    "Dyadic",
    "Gradual",
    "GridLaw",
    "GridPairs",
    "GroupedJumps",
    "Independent",
    "KarrasGrid",
    "Law",
    "LogNormalIndex",
    "LogitNormal",
    "Sorted",
    "SquareRootCount",
    "TimeSampler",
    "ToData",
    "TrigLogNormal",
    "Uniform",
    "UniformIndex",
]

Count = Literal["bernoulli", "exact"]


class TimeSampler(ABC):
    """A joint law of (t, s, r)."""

    uniforms: ClassVar[int]
    gap: ClassVar[Literal["zero", "positive", "mixed"]]
    ends: ClassVar[Literal["diagonal", "zero", "any", "dyadic"]]
    continuous: ClassVar[bool] = True
    group: int = 1

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, 1.0

    @abstractmethod
    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        """The times that the uniform numbers u stand for; k = `uniforms`."""

    def __call__(
        self,
        n: int,
        progress: Progress = Progress(),
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Times:
        """n independent rows. Computed in float64, returned in `dtype` with r ≤ s ≤ t."""
        u = torch.rand(n, self.uniforms, generator=generator, dtype=torch.float64)
        return _ordered(self.times(u, progress), dtype)

    def stratified(self, n: int, progress: Progress = Progress(), dtype: torch.dtype = torch.float64) -> Times:
        """n rows from a deterministic low-discrepancy table of uniforms (Kronecker sequence): for tests and plots."""
        roots = torch.tensor([0.5545497, 0.308517, 0.7320508, 0.4142136][: self.uniforms], dtype=torch.float64)
        u = (0.5 + torch.arange(n, dtype=torch.float64)[:, None] * roots) % 1.0
        u[:, 0] = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return _ordered(self.times(u, progress), dtype)


def _ordered(times: Times, dtype: torch.dtype) -> Times:
    """Cast, then restore r ≤ s ≤ t against rounding."""
    t, s, r = (x.to(dtype) for x in times)
    r = torch.minimum(r, t)
    return Times(t, torch.minimum(torch.maximum(s, r), t), r)


def _chosen(u: Float[Tensor, "b"], share: float, count: Count) -> Bool[Tensor, "b"]:
    """The rows that jump: each with probability `share`, or exactly round(share·b) of them."""
    if count == "exact":
        # By rank, so that the rows are at random places: rows beside each other may share a class.
        return u.argsort().argsort() < round(share * u.shape[0])
    return u < share


def _check_ratio(name: str, ratio: float, count: str) -> None:
    require(0 <= ratio <= 1, f"{name}: ratio is the share of rows with r < t and must be in [0, 1], got {ratio}")
    require(count in ("bernoulli", "exact"), f"{name}: count must be 'bernoulli' or 'exact', got {count!r}")


@dataclass(frozen=True, kw_only=True)
class Diagonal(TimeSampler):
    """r = s = t ~ law: flow matching."""

    law: Law = Uniform()
    uniforms: ClassVar[int] = 1
    gap: ClassVar = "zero"
    ends: ClassVar = "diagonal"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t = self.law.icdf(u[:, 0])
        return Times(t, t, t)


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
    uniforms: ClassVar[int] = 3
    gap: ClassVar = "mixed"
    ends: ClassVar = "any"

    def __post_init__(self) -> None:
        _check_ratio("Sorted", self.ratio, self.count)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        first, second = self.law.icdf(u[:, 0]), self.law.icdf(u[:, 1])
        t, r = torch.maximum(first, second), torch.minimum(first, second)
        r = torch.where(_chosen(u[:, 2], self.ratio, self.count), r, t)
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
    uniforms: ClassVar[int] = 4
    gap: ClassVar = "mixed"
    ends: ClassVar = "any"

    def __post_init__(self) -> None:
        _check_ratio("Gradual", self.ratio, self.count)
        require(0 <= self.ramp <= 1, f"Gradual: ramp is a share of the run and must be in [0, 1], got {self.ramp}")

    def probability(self, progress: Progress) -> float:
        """p, the probability that a jump ends at the data."""
        return (2 / math.pi) * math.acos(progress.along(self.ramp))

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t, s, r = Sorted(law=self.law, ratio=1.0).times(u[:, [0, 1, 2]], progress)
        r = torch.where(u[:, 3] < self.probability(progress), torch.zeros_like(r), r)
        r = torch.where(_chosen(u[:, 2], self.ratio, self.count), r, t)
        return Times(t, s, r)


@dataclass(frozen=True, kw_only=True)
class Independent(TimeSampler):
    """t ~ start and r ~ end independently; r := t except on a share `ratio`, then r := min(t, r).

    The share of flow-matching rows is therefore larger than 1 − ratio.
    """

    start: Law = LogitNormal(mu=-0.6, sigma=1.6)
    end: Law = LogitNormal(mu=-4.0, sigma=1.6)
    ratio: float = 0.75
    count: Count = "bernoulli"
    uniforms: ClassVar[int] = 3
    gap: ClassVar = "mixed"
    ends: ClassVar = "any"

    def __post_init__(self) -> None:
        _check_ratio("Independent", self.ratio, self.count)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t = self.start.icdf(u[:, 0])
        r = torch.where(_chosen(u[:, 2], self.ratio, self.count), self.end.icdf(u[:, 1]), t)
        return Times(t, t, torch.minimum(r, t))


@dataclass(frozen=True, kw_only=True)
class ToData(TimeSampler):
    """t ~ law, r = 0 and s → t: continuous-time consistency training."""

    law: Law = TrigLogNormal()
    uniforms: ClassVar[int] = 1
    gap: ClassVar = "positive"
    ends: ClassVar = "zero"

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t = self.law.icdf(u[:, 0]).clamp(min=1e-6)
        return Times(t, t, torch.zeros_like(t))


@dataclass(frozen=True, kw_only=True)
class Dyadic(TimeSampler):
    """Shortcut models: jumps of length d = 2⁻ʲ, j = 0…levels−1, from multiples of d, split at their middle.

    The first ⌊share·b⌋ rows bootstrap: levels levels−1, …, 0 get ⌊rows/levels⌋ rows each and the remainder is j = 0,
    as in the published code (with fewer rows than levels each row takes a random level instead, where the published
    rule would train d = 1 alone). All others are flow matching on the grid {1/M, …, 1}, M = 2^levels.
    Source: Frans et al. (arXiv 2410.12557), section 3 and its code.
    """

    levels: int = 7
    share: float = 0.25
    uniforms: ClassVar[int] = 2
    gap: ClassVar = "mixed"
    ends: ClassVar = "dyadic"
    continuous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 20, f"Dyadic: levels must be between 1 and 20, got {self.levels}")
        require(0 <= self.share <= 1, f"Dyadic: share must be in [0, 1], got {self.share}")

    @property
    def steps(self) -> int:
        """M, the number of the finest steps: 2^levels."""
        return 2**self.levels

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        rows = math.floor(self.share * u.shape[0] + 1e-9)
        each = rows // self.levels
        if each > 0:
            level = torch.arange(self.levels - 1, -1, -1, device=u.device).repeat_interleave(each)
            level = torch.cat([level, level.new_zeros(rows - len(level))]).to(u.dtype)
        else:
            level = torch.floor(u[:rows, 1] * self.levels)
        d = 2.0**-level
        boot = 1 - torch.floor(u[:rows, 0] / d) * d
        flow = GridLaw(n=self.steps).icdf(u[rows:, 0])
        return Times(torch.cat([boot, flow]), torch.cat([boot - d / 2, flow]), torch.cat([boot - d, flow]))


@dataclass(frozen=True, kw_only=True)
class GridPairs(TimeSampler):
    """t and s are neighbours on a grid of N(k) noise levels, r is its clean end (discrete consistency training).

    Times are noise levels over σ_max, as on the variance-exploding path.
    """

    grid: KarrasGrid = KarrasGrid()
    count: SquareRootCount | DoublingCount = field(default_factory=SquareRootCount)
    index: UniformIndex | LogNormalIndex = field(default_factory=UniformIndex)
    uniforms: ClassVar[int] = 1
    gap: ClassVar = "positive"
    ends: ClassVar = "zero"
    continuous: ClassVar[bool] = False

    @property
    def span(self) -> tuple[float, float]:
        return self.grid.sigma_min / self.grid.sigma_max, 1.0

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        sigma = self.grid.levels(self.count(progress)).to(u)
        cumulative = torch.cumsum(self.index.probabilities(sigma), 0)
        i = torch.searchsorted(cumulative, u[:, 0], right=True).clamp(max=len(sigma) - 2)
        t = sigma / self.grid.sigma_max
        return Times(t[i], t[i + 1], t[-1].expand(u.shape[0]))


@dataclass(frozen=True, kw_only=True)
class GroupedJumps(TimeSampler):
    """IMM: one (t, s, r) per group of rows; t ~ U(low, high), r ~ U(low, t), s a fixed step of η = t/(1−t) below t.

    s = max(r, η⁻¹(η_t − Δη)), Δη = (η_high − η_low) 2⁻ᵏ.
    Source: inductive moment matching (arXiv 2503.07565), section 4.
    """

    low: float = 0.0
    high: float = 0.994
    k: int = 12
    group: int = 4
    uniforms: ClassVar[int] = 2
    gap: ClassVar = "positive"
    ends: ClassVar = "any"
    continuous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(0 <= self.low < self.high < 1, f"GroupedJumps needs 0 ≤ low < high < 1, got {self.low} and {self.high}")
        require(self.group >= 1, f"GroupedJumps: group must be at least 1, got {self.group}")

    @property
    def span(self) -> tuple[float, float]:
        return self.low, self.high

    def intermediate(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """η⁻¹(max(0, η_t − Δη)), not yet cut at r."""
        spread = self.high / (1 - self.high) - self.low / (1 - self.low)
        # Below the data end η⁻¹ has a pole at −1, beyond which it would come out above 1.
        eta = (t / (1 - t) - spread * 2.0**-self.k).clamp(min=0)
        return eta / (1 + eta)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        b = u.shape[0]
        if b % self.group:
            raise ShortflowError(
                f"a batch of {b} rows cannot be split into groups of {self.group}; change the batch size"
            )
        first = u[:: self.group].repeat_interleave(self.group, 0)
        t = (self.low + (self.high - self.low) * first[:, 0]).clamp(min=self.low + 1e-6)
        # A gap that fp32 can represent: the loss divides by it.
        r = torch.minimum(self.low + (t - self.low) * first[:, 1], t - 1e-6)
        return Times(t, torch.maximum(r, self.intermediate(t)), r)
