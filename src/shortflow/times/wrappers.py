"""Laws of times made from another one: flow-matching rows beside it, two steps instead of the limit, boundary rows."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortflow.errors import require
from shortflow.laws import Law, LogitNormal, LogStudentNoise, Truncated
from shortflow.times.base import LEAST_GAP, Count, TimeSampler, check_ratio, chosen, number
from shortflow.times.fractions import Fixed, Fraction
from shortflow.times.pairs import ToData, Triangle
from shortflow.typing import Progress, Times

__all__ = ["Between", "BoundaryRows", "WithDiagonal"]


class _Wrapper(TimeSampler):
    """A law that passes on what the law inside it says about itself."""

    @abstractmethod
    def _inside(self) -> TimeSampler: ...

    def _adopt(self, inside: TimeSampler, uniforms: int) -> None:
        name, own = type(inside).__name__, type(self).__name__
        require(inside.gap != "zero", f"{own}: {name} never jumps (r = t always); give it a law with jumps")
        require(
            inside.group == 1,
            f"{own}: {name} gives groups of {inside.group} rows the same times, which would be broken; set group to 1",
        )
        self._settle(
            uniforms=inside.uniforms + uniforms,
            gap=inside.gap,
            ends=inside.ends,
            continuous=inside.continuous,
            limit=inside.limit,
            stages=inside.stages,
        )

    @property
    def span(self) -> tuple[float, float]:
        return self._inside().span

    def stage(self, progress: Progress) -> int:
        return self._inside().stage(progress)

    def jumping(self, n: int) -> int | None:
        return self._inside().jumping(n)


@dataclass(frozen=True, kw_only=True)
class WithDiagonal(_Wrapper):
    """A share `ratio` of the rows are drawn by `jumps`, all others are flow matching: r = s = t ~ law.

    The rows of the two kinds are at random places. `law` is taken given the span of the jumps.
    Source: flow-map self-distillation (arXiv 2505.18825; ratio = 1/4), SoFlow (1/4), α-Flow (1/2 or 3/4).
    """

    jumps: TimeSampler = Triangle()
    law: Law = LogitNormal()
    ratio: float = 0.25
    count: Count = "bernoulli"

    def __post_init__(self) -> None:
        check_ratio("WithDiagonal", self.ratio, self.count)
        self._adopt(self.jumps, 1)
        self._settle(gap="mixed")
        _ = self._diagonal  # complains where the law has no mass in the span

    def _inside(self) -> TimeSampler:
        return self.jumps

    @property
    def _diagonal(self) -> Law:
        low, high = self.span
        return self.law if (low, high) == (0, 1) else Truncated(law=self.law, low=low, high=high)

    def jumping(self, n: int) -> int | None:
        rows = number(self.ratio, self.count, n)
        return None if rows is None else self.jumps.jumping(rows)

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        rows = chosen(u[:, -1], self.ratio, self.count)
        # A row is of one kind only, so both kinds may use the same numbers.
        flow = self._diagonal.icdf(u[:, 0])
        jumps = self.jumps.times(u[rows, :-1], progress)
        t, s, r = (flow.masked_scatter(rows, time) for time in jumps)
        return Times(t, s, r)


@dataclass(frozen=True, kw_only=True)
class Between(_Wrapper):
    """(t, r) of a law in continuous time, with a true intermediate time s = t − ρ (t − r) where r < t.

    The first step t − s is never shorter than 1e-6 (or the jump, if that is shorter), so that losses can divide by it,
    unless ρ = 0: then s = t, which stands for the limit s → t. `limit` says whether that can occur.
    Source: discrete flow-map and consistency training; see the fractions.
    """

    base: TimeSampler = Triangle()
    at: Fraction = Fixed()

    def __post_init__(self) -> None:
        self._adopt(self.base, self.at.uniforms)
        require(
            self.base.continuous,
            f"Between: {type(self.base).__name__} has an intermediate time of its own; give it a law with s = t",
        )
        self._settle(continuous=False, limit=self.at.limit)

    def _inside(self) -> TimeSampler:
        return self.base

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t, _, r = self.base.times(u[:, : self.base.uniforms], progress)
        share = self.at(t, r, u[:, self.base.uniforms :], progress)
        gap = t - r
        first = torch.minimum((share * gap).clamp(min=LEAST_GAP), gap)
        # With ρ = 1 the sum of roundings might miss r.
        s = torch.where(first < gap, t - first, r)
        return Times(t, torch.where((r < t) & (share > 0), s, t), r)


@dataclass(frozen=True, kw_only=True)
class BoundaryRows(_Wrapper):
    """Jumps to the data of which exactly ⌊share · b⌋ rows start at the time `boundary`, and a hair above it.

    Put it into `Between`, whose rule then finds the cleaner neighbour, below the boundary. The published code adds 1e-8
    to the noise level in float64; here t = boundary · (1 + 2⁻²⁰), eight to sixteen roundings of fp32 above.
    Source: truncated consistency models (arXiv 2410.14895), where boundary = σ'/σ_max and σ' = 1 on CIFAR-10.
    """

    base: TimeSampler = ToData(law=LogStudentNoise())
    boundary: float = 1 / 80
    share: float = 0.25

    def __post_init__(self) -> None:
        self._adopt(self.base, 1)
        name = type(self.base).__name__
        require(
            self.base.continuous and self.base.ends == "zero" and self.base.gap == "positive",
            f"BoundaryRows needs continuous times that always jump to the data, and {name} are not; use ToData, and "
            "for two steps Between(base=BoundaryRows(…))",
        )
        low, high = self.span
        require(
            max(low, 2 * LEAST_GAP) < self.boundary and self._start <= high,
            f"BoundaryRows: boundary must be a time inside ({low:g}, {high:g}), got {self.boundary}",
        )
        require(0 <= self.share <= 1, f"BoundaryRows: share must be in [0, 1], got {self.share}")

    def _inside(self) -> TimeSampler:
        return self.base

    @property
    def _start(self) -> float:
        return self.boundary * (1 + 2.0**-20)

    def at_boundary(self, t: Float[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """The rows that start at the boundary."""
        return (t / self.boundary - 1).abs() < 2.0**-19

    def times(self, u: Float[Tensor, "b k"], progress: Progress) -> Times:
        t, _, r = self.base.times(u[:, :-1], progress)
        rows = u[:, -1].argsort().argsort() < math.floor(self.share * u.shape[0] + 1e-9)
        t = torch.where(rows, torch.full_like(t, self._start), t)
        return Times(t, t, r)
