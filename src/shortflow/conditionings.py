"""Conditionings: what the network is told about the times t and r of a jump."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.paths import Path

__all__ = [
    "AngleOnly",
    "Conditioning",
    "DiffusionIndex",
    "GapOnly",
    "JumpFlag",
    "LogSigma",
    "LogStep",
    "StartAndEnd",
    "StartAndGap",
    "StartOnly",
]

Time = Float[Tensor, "b"]

NEWTON = 4  # steps from a first guess that is right to a percent: more than the digits of float64


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
class DiffusionIndex(Conditioning):
    """The index k in 0 … steps − 1 of a diffusion at the noise level σ_t/α_t, for networks that count in its steps.

    After n = k + 1 steps with β rising linearly from `first` to `last`, ᾱ = Π_{i<n} (1 − β_i) of the variance is left,
    and k is where ᾱ = α_t²/(α_t² + σ_t²). With c = (1 − β_0)/(β_1 − β_0) this product is
    ((1 − β_0)/c)^n Γ(c + 1)/Γ(c + 1 − n), which has values between whole n, too; by Stirling's formula, with u = n/c,

        log ᾱ = n log(1 − β_0) − c ((1 − u) log(1 − u) + u) − ½ log(1 − u) − u/(12 c (1 − u)).

    Source: DDPM (arXiv 2006.11239), section 4, whose schedule is the default; DiT and ADM have it.
    """

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02
    second: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"DiffusionIndex needs steps ≥ 2, got {self.steps}")
        require(
            0 < self.first < self.last < 1,
            f"DiffusionIndex needs 0 < first < last < 1, got {self.first} and {self.last}",
        )

    @property
    def _c(self) -> float:
        return (1 - self.first) * (self.steps - 1) / (self.last - self.first)

    def log_kept(self, index: Time) -> Time:
        """log ᾱ_k, the logarithm of the share of the variance that is left after index + 1 steps."""
        n, c = index + 1, self._c
        u = n / c
        rest = torch.log1p(-u)
        return n * math.log1p(-self.first) - c * ((1 - u) * rest + u) - rest / 2 - u / (12 * c * (1 - u))

    def _slope(self, index: Time) -> Time:
        """d log ᾱ/dk."""
        u, c = (index + 1) / self._c, self._c
        return math.log1p(-self.first) + torch.log1p(-u) + 1 / (2 * c * (1 - u)) - 1 / (12 * (c * (1 - u)) ** 2)

    def index(self, log_kept: Time) -> Time:
        """k, the inverse of `log_kept`, held between the first and the last index."""
        rise = (self.last - self.first) / (self.steps - 1)
        linear = self.first - rise / 2  # −log ᾱ ≈ linear · n + rise n²/2
        k = -2 * log_kept / (linear + torch.sqrt(linear**2 - 2 * rise * log_kept)) - 1
        k = k.clamp(0, self.steps - 1)
        for _ in range(NEWTON):
            k = (k - (self.log_kept(k) - log_kept) / self._slope(k)).clamp(0, self.steps - 1)
        return k

    def inputs(self, path: Path, t: Time, r: Time) -> tuple[Time, Time | None]:
        # In double precision, as c times a number of the size of β² cancels; finite at α = 0, too.
        time = t if t.device.type == "mps" else t.double()
        ratio = path.sigma(time) / path.alpha(time).clamp(min=torch.finfo(time.dtype).tiny ** 0.25)
        return self.index(-torch.log1p(ratio**2)).to(t.dtype), None


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
