"""Whose weights targets are computed with: the online ones, an average of them, or a snapshot."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache

from shortflow.errors import ShortflowError
from shortflow.grids import SquareRootCount
from shortflow.typing import Progress

__all__ = ["Ema", "GrowingEma", "Online", "ScheduledEma", "Snapshot", "Teacher"]


class Teacher(ABC):
    """The weights that targets are computed with, as the decay of their average after each step."""

    @abstractmethod
    def decay(self, progress: Progress) -> float:
        """θ̄ ← decay · θ̄ + (1 − decay) · θ after a step; 0 means the online weights themselves."""


@dataclass(frozen=True, kw_only=True)
class Online(Teacher):
    """The network that is being trained (without gradient)."""

    def decay(self, progress: Progress) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Ema(Teacher):
    """An exponential moving average of the weights with a fixed decay per step."""

    rate: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ShortflowError(f"Ema: rate must be between 0 and 1, got {self.rate}; use Online() for no average")

    def decay(self, progress: Progress) -> float:
        return self.rate


@dataclass(frozen=True, kw_only=True)
class ScheduledEma(Teacher):
    """μ(k) = exp(s₀ log μ₀ / N(k)), the target network of consistency training (arXiv 2303.01469, appendix C)."""

    mu0: float = 0.9
    count: SquareRootCount = field(default_factory=SquareRootCount)

    def __post_init__(self) -> None:
        if not 0 < self.mu0 < 1:
            raise ShortflowError(f"ScheduledEma: mu0 must be between 0 and 1, got {self.mu0}")

    def decay(self, progress: Progress) -> float:
        return self.mu0 ** (self.count.s0 / self.count(progress))


@cache
def _growth(rate: float) -> list[float]:
    """κ_0, κ_1, … as far as they were asked for."""
    return [0.0]


@dataclass(frozen=True, kw_only=True)
class GrowingEma(Teacher):
    """κ_{k+1} = κ_k + ½ (1 − κ_k)(κ − κ_k), κ_0 = 0: an average whose decay rises to `rate` (RCGM's warm-up).

    The recursion is that of the published code, in optimiser steps.
    """

    rate: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ShortflowError(f"GrowingEma: rate must be between 0 and 1, got {self.rate}")

    def decay(self, progress: Progress) -> float:
        known = _growth(self.rate)
        while len(known) <= progress.step and self.rate - known[-1] > 1e-12:
            known.append(known[-1] + 0.5 * (1 - known[-1]) * (self.rate - known[-1]))
        return known[min(progress.step, len(known) - 1)]


@dataclass(frozen=True, kw_only=True)
class Snapshot(Teacher):
    """The weights as they were at the end of the last stage, `stages` of equal length (progressive distillation).

    With `rate` what is kept is an exponential moving average of the weights with that decay, as published.
    """

    stages: int = 7
    rate: float = 0.999

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ShortflowError(f"Snapshot: stages must be at least 1, got {self.stages}")
        if not 0 <= self.rate < 1:
            raise ShortflowError(f"Snapshot: rate must be in [0, 1), got {self.rate}")

    def stage(self, progress: Progress) -> int:
        """The stage that training is in, from 0."""
        return min(self.stages - 1, math.floor(progress.share * self.stages + 1e-9))

    def decay(self, progress: Progress) -> float:
        """That of the running average; when it is copied is for the training step to see (`stage`)."""
        return self.rate
