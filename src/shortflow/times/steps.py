"""Laws whose jumps are made of two finite steps t → s → r: shortcut models, grids of noise levels, moment matching."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import ShortflowError, require
from shortflow.grids import ConstantCount, DoublingCount, KarrasGrid, LogNormalIndex, SquareRootCount, UniformIndex
from shortflow.laws import GridLaw
from shortflow.times.base import LEAST_GAP, TimeSampler, stage_of
from shortflow.typing import Progress, Times

__all__ = ["Dyadic", "GridPairs", "GroupedJumps", "Neighbours", "StagedDyadic"]


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
    uniforms = 2
    gap = "mixed"
    ends = "dyadic"
    continuous = False

    def __post_init__(self) -> None:
        _check_levels("Dyadic", self.levels)
        require(0 <= self.share <= 1, f"Dyadic: share must be in [0, 1], got {self.share}")

    @property
    def steps(self) -> int:
        """M, the number of the finest steps: 2^levels."""
        return 2**self.levels

    def jumping(self, n: int) -> int:
        return math.floor(self.share * n + 1e-9)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        rows = self.jumping(len(u))
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
class StagedDyadic(TimeSampler):
    """One dyadic step length d = 2⁻ʲ at a time, in equal stages of the run, from starts t ∈ {d, 2d, …, 1}.

    jump = "step": r = t − d, s = t − d/2, a step is learned from the two halves of it (progressive distillation, with
    order = "fine-to-coarse": d goes from 2/2^levels, whose halves are the 2^levels steps of the first teacher, to 1).
    jump = "data": s = t − d, r = 0, neighbours of ever finer grids (consistency training, order = "coarse-to-fine").
    The levels are j = levels − 1, …, coarsest or the reverse.
    Source: the baselines of Frans et al. (arXiv 2410.12557) in their code; its finest consistency step is
    1/64, so that sampling with 128 steps uses times that were never trained: levels = 8 ends at 1/128.
    """

    levels: int = 7
    coarsest: int = 0
    order: Literal["fine-to-coarse", "coarse-to-fine"] = "fine-to-coarse"
    jump: Literal["step", "data"] = "step"
    uniforms = 1
    gap = "positive"
    ends = "dyadic"
    continuous = False

    def __post_init__(self) -> None:
        _check_levels("StagedDyadic", self.levels)
        require(
            0 <= self.coarsest < self.levels,
            f"StagedDyadic: coarsest must be between 0 and levels − 1 = {self.levels - 1}, got {self.coarsest}",
        )
        orders, jumps = ("fine-to-coarse", "coarse-to-fine"), ("step", "data")
        require(self.order in orders, f"StagedDyadic: order must be one of {orders}, got {self.order!r}")
        require(self.jump in jumps, f"StagedDyadic: jump must be one of {jumps}, got {self.jump!r}")
        self._settle(ends="dyadic" if self.jump == "step" else "zero", stages=self.levels - self.coarsest)

    @property
    def steps(self) -> int:
        """The number of the finest steps that occur: 2^levels halves, or 2^(levels−1) steps to a neighbour."""
        return 2 ** (self.levels if self.jump == "step" else self.levels - 1)

    def stage(self, progress: Progress) -> int:
        return stage_of(progress.share, self.stages)

    def level(self, progress: Progress) -> int:
        """j of the present stage."""
        stage = self.stage(progress)
        return self.levels - 1 - stage if self.order == "fine-to-coarse" else self.coarsest + stage

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        d = 2.0 ** -self.level(progress)
        t = 1 - torch.floor(u[:, 0] / d) * d
        return Times(t, t - d / 2, t - d) if self.jump == "step" else Times(t, t - d, torch.zeros_like(t))


@dataclass(frozen=True, kw_only=True)
class Neighbours(TimeSampler):
    """t uniform on {1/M, …, 1}, s = t − 1/M and r = 0: consistency training or distillation on an even grid.

    Source: the consistency distillation baseline of Frans et al. (arXiv 2410.12557) in their code, M = 128.
    """

    steps: int = 128
    uniforms = 1
    gap = "positive"
    ends = "zero"
    continuous = False

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 10**6, f"Neighbours: steps must be between 1 and 1000000, got {self.steps}")

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        index = torch.floor(u[:, 0] * self.steps)
        return Times((index + 1) / self.steps, index / self.steps, torch.zeros_like(index))


def _check_levels(name: str, levels: int) -> None:
    require(1 <= levels <= 20, f"{name}: levels must be between 1 and 20, got {levels}")


@dataclass(frozen=True, kw_only=True)
class GridPairs(TimeSampler):
    """t and s are neighbours on a grid of N(k) noise levels, r is its clean end (discrete consistency training).

    Times are noise levels over σ_max, as on the variance-exploding path.
    """

    grid: KarrasGrid = KarrasGrid()
    count: SquareRootCount | DoublingCount | ConstantCount = field(default_factory=SquareRootCount)
    index: UniformIndex | LogNormalIndex = field(default_factory=UniformIndex)
    uniforms = 1
    gap = "positive"
    ends = "zero"
    continuous = False

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
    """IMM: one (t, s, r) per group of rows; t ~ U(low, high), r ~ U(low, t), s a fixed step of η = σ/α below t.

    s = max(r, η⁻¹(η_t − Δη)), Δη = (η_high − η_low) 2⁻ᵏ, with η = t/(1 − t) of the linear or tan(πt/2) of the cosine
    path.
    Source: inductive moment matching (arXiv 2503.07565), section 4.
    """

    low: float = 0.0
    high: float = 0.994
    k: int = 12
    group: int = 4
    eta: Literal["linear", "cosine"] = "linear"
    uniforms = 2
    gap = "positive"
    ends = "any"
    continuous = False

    def __post_init__(self) -> None:
        require(0 <= self.low < self.high < 1, f"GroupedJumps needs 0 ≤ low < high < 1, got {self.low} and {self.high}")
        require(self.group >= 1, f"GroupedJumps: group must be at least 1, got {self.group}")
        require(self.eta in ("linear", "cosine"), f"GroupedJumps: eta must be 'linear' or 'cosine', got {self.eta!r}")

    @property
    def span(self) -> tuple[float, float]:
        return self.low, self.high

    def _eta(self, t: Tensor) -> Tensor:
        return t / (1 - t) if self.eta == "linear" else torch.tan(t * (math.pi / 2))

    def intermediate(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """η⁻¹(max(0, η_t − Δη)), not yet cut at r."""
        low, high = self._eta(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        # Below the data end the linear η⁻¹ has a pole at −1, beyond which it would come out above 1.
        eta = (self._eta(t) - (high - low) * 2.0**-self.k).clamp(min=0)
        return eta / (1 + eta) if self.eta == "linear" else torch.atan(eta) * (2 / math.pi)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        b = u.shape[0]
        if b % self.group:
            raise ShortflowError(
                f"a batch of {b} rows cannot be split into groups of {self.group}; change the batch size"
            )
        first = u[:: self.group].repeat_interleave(self.group, 0)
        t = (self.low + (self.high - self.low) * first[:, 0]).clamp(min=self.low + LEAST_GAP)
        # A gap that fp32 can represent: the loss divides by it.
        r = torch.minimum(self.low + (t - self.low) * first[:, 1], t - LEAST_GAP)
        return Times(t, torch.maximum(r, self.intermediate(t)), r)
