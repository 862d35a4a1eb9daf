"""Conditionings: what the network is told about the times t and r of a jump."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.paths import Path

__all__ = [
    "AngleOnly",
    "Conditioning",
    "GapOnly",
    "JumpFlag",
    "LogSigma",
    "LogStep",
    "StartAndEnd",
    "StartAndGap",
    "StartOnly",
]

Time = Float[Tensor, "b"]


class Conditioning(ABC):
    """Which functions of (t, r) the network sees.

    Attributes:
        second: whether the network has a second time input.
        tells_end: whether two ends r of the same t can be told apart.
    """

    second: ClassVar[bool]

    @property
    def tells_end(self) -> bool:
        return self.second

    @abstractmethod
    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        """(time, second time input or None)."""


@dataclass(frozen=True, kw_only=True)
class StartOnly(Conditioning):
    """t alone: networks for one end only (flow matching: r = t; consistency: r = 0)."""

    second: ClassVar[bool] = False

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return t, None


@dataclass(frozen=True, kw_only=True)
class AngleOnly(Conditioning):
    """The angle θ = πt/2 in radians, for networks with one end only (sCM's c_noise, arXiv 2410.11081)."""

    second: ClassVar[bool] = False

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return math.pi / 2 * t, None


@dataclass(frozen=True, kw_only=True)
class StartAndGap(Conditioning):
    """(scale·t, scale·(t − r)). Keep scale = 1 where a derivative in t is taken: large scales make it explode."""

    scale: float = 1.0
    second: ClassVar[bool] = True

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return self.scale * t, self.scale * (t - r)


@dataclass(frozen=True, kw_only=True)
class StartAndEnd(Conditioning):
    """(scale·t, scale·r). IMM on CIFAR-10 has scale 1000; keep 1 where a derivative in t is taken, as above."""

    scale: float = 1.0
    second: ClassVar[bool] = True

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return self.scale * t, self.scale * r


@dataclass(frozen=True, kw_only=True)
class LogStep(Conditioning):
    """(t, log₂(1/(t − r))), where r = t counts as the finest step 1/steps (shortcut models)."""

    steps: int = 128
    second: ClassVar[bool] = True

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return t, -torch.log2((t - r).clamp(min=1 / self.steps))


@dataclass(frozen=True, kw_only=True)
class LogSigma(Conditioning):
    """scale · log σ_t: EDM's c_noise with ¼, that of the published consistency models with 250."""

    scale: float = 0.25
    second: ClassVar[bool] = False

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        # Finite at σ = 0 too, so that X_{0,0} stays the identity.
        return self.scale * torch.log(path.sigma(t).clamp(min=torch.finfo(t.dtype).tiny)), None


@dataclass(frozen=True, kw_only=True)
class GapOnly(Conditioning):
    """t − r alone: how noisy the point is, the network has to see for itself (improved MeanFlow, arXiv 2512.02012)."""

    second: ClassVar[bool] = False

    @property
    def tells_end(self) -> bool:
        return True

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return t - r, None


@dataclass(frozen=True, kw_only=True)
class JumpFlag(Conditioning):
    """(t, 1 where r < t and 0 where r = t): two velocities of one network, as live reflow has them."""

    second: ClassVar[bool] = True

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        return t, (r < t).to(t.dtype)
