"""The joint law of (t, s, r) as a map from uniform numbers, and what the samplers share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count, islice
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortflow.errors import require
from shortflow.typing import Progress, Times

__all__ = ["LEAST_GAP", "Count", "Ends", "Gap", "TimeSampler"]

Count = Literal["bernoulli", "exact"]
Gap = Literal["zero", "positive", "mixed"]
Ends = Literal["diagonal", "zero", "any", "dyadic"]

# The shortest jump (and first step) that is drawn: losses divide by it, and in fp32 it still is sixteen roundings long.
LEAST_GAP = 1e-6


class TimeSampler(ABC):
    """A joint law of (t, s, r).

    What a sampler says about itself (see `shortflow.times`) stands in class attributes; those that depend on its
    settings or on a sampler inside it are set by `_settle` when it is made.
    """

    uniforms: int
    gap: Gap
    ends: Ends
    continuous: bool = True
    limit: bool = False
    group: int = 1
    stages: int = 1

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, 1.0

    def stage(self, progress: Progress) -> int:
        """The stage that the law is in, 0 … stages − 1."""
        return 0

    def jumping(self, n: int) -> int | None:
        """How many of n rows jump, where every draw has the same number; None where it is random."""
        return None if self.gap == "mixed" else n if self.gap == "positive" else 0

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
        return ordered(self.times(u, progress), dtype)

    def stratified(self, n: int, progress: Progress = Progress(), dtype: torch.dtype = torch.float64) -> Times:
        """n rows from a deterministic low-discrepancy table of uniforms (Kronecker sequence): for tests and plots."""
        roots = torch.tensor(list(islice(_irrationals(), self.uniforms)), dtype=torch.float64)
        u = (0.5 + torch.arange(n, dtype=torch.float64)[:, None] * roots) % 1.0
        u[:, 0] = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return ordered(self.times(u, progress), dtype)

    def _settle(self, **facts: Any) -> None:
        """Set what the sampler says about itself where it depends on its settings. Not a part of its value."""
        for name, value in facts.items():
            object.__setattr__(self, name, value)


def _irrationals() -> Iterator[float]:
    """The steps of the Kronecker sequence, one for each column: after the first four ∛3, ∛5, ∛7, … modulo 1."""
    yield from (0.5545497, 0.308517, 0.7320508, 0.4142136)
    yield from (p ** (1 / 3) % 1 for p in count(3, 2) if all(p % q for q in range(3, math.isqrt(p) + 1, 2)))


def ordered(times: Times, dtype: torch.dtype) -> Times:
    """Cast, then restore r ≤ s ≤ t against rounding."""
    t, s, r = (x.to(dtype) for x in times)
    r = torch.minimum(r, t)
    return Times(t, torch.minimum(torch.maximum(s, r), t), r)


def number(share: float, count: Count, n: int) -> int | None:
    """The number of rows that `chosen` chooses of n, where it is not random."""
    return round(share * n) if count == "exact" else n if share == 1 else None


def chosen(u: Float[Tensor, "b"], share: float, count: Count) -> Bool[Tensor, "b"]:
    """The rows that jump: each with probability `share`, or exactly round(share·b) of them."""
    if count == "exact":
        # By rank, so that the rows are at random places: rows beside each other may share a class.
        return u.argsort().argsort() < round(share * u.shape[0])
    return u < share


def apart(t: Float[Tensor, "b"], r: Float[Tensor, "b"], least: float = LEAST_GAP) -> tuple[Tensor, Tensor]:
    """(t, r) with a gap of at least `least`: r is moved to t − least, and t to least where that would be below 0."""
    t = t.clamp(min=least)
    return t, torch.minimum(r, t - least)


def stage_of(share: float, stages: int) -> int:
    """⌊share · stages⌋, the stage of a run in equal stages; the end of the run belongs to the last one."""
    # The share of a stage's first image times the number of stages may come out just below a whole number.
    return min(stages - 1, math.floor(share * stages + 1e-9))


def check_ratio(name: str, ratio: float, count: str) -> None:
    require(0 <= ratio <= 1, f"{name}: ratio is the share of rows with r < t and must be in [0, 1], got {ratio}")
    require(count in ("bernoulli", "exact"), f"{name}: count must be 'bernoulli' or 'exact', got {count!r}")
