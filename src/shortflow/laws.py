"""Laws of one time in [0, 1], given by their inverse distribution functions: a law is a map from uniform numbers."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import require
from shortflow.tables import Table

__all__ = [
    "Beta",
    "GridLaw",
    "Largest",
    "Law",
    "LogNormalNoise",
    "LogStudentNoise",
    "LogitNormal",
    "TrigLogNormal",
    "Truncated",
    "Uniform",
]


class Law(ABC):
    """A law of one time in [0, 1], given by its inverse distribution function."""

    @property
    def discrete(self) -> bool:
        """Whether it is a law on a grid, where `pdf` is a probability."""
        return False

    @abstractmethod
    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The u-quantile, u ∈ [0, 1]."""

    @abstractmethod
    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """P(T ≤ t)."""

    @abstractmethod
    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The density at t (for a law on a grid: the probability of the grid point t)."""


def _normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Uniform(Law):
    """t ~ U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.low < self.high <= 1, f"Uniform needs 0 ≤ low < high ≤ 1, got {self.low} and {self.high}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self.low + (self.high - self.low) * u

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return ((t - self.low) / (self.high - self.low)).clamp(0, 1)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return ((t >= self.low) & (t <= self.high)).to(t.dtype) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Law):
    """t = sigmoid(μ + σZ), Z standard normal."""

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"LogitNormal needs sigma > 0, got {self.sigma}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.special.ndtr((torch.logit(t) - self.mu) / self.sigma)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        density = _normal_pdf((torch.logit(t) - self.mu) / self.sigma) / (self.sigma * t * (1 - t))
        return torch.where((t > 0) & (t < 1), density, 0.0)


@dataclass(frozen=True, kw_only=True)
class TrigLogNormal(Law):
    """t = (2/π) atan(exp(m + sZ)/σ_data): log-normal noise level seen through the TrigFlow angle θ = πt/2."""

    mean: float = -1.0
    std: float = 1.4
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(self.std > 0, f"TrigLogNormal needs std > 0, got {self.std}")
        require(self.sigma_data > 0, f"TrigLogNormal needs sigma_data > 0, got {self.sigma_data}")

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return (2 / math.pi) * torch.atan(sigma / self.sigma_data)

    def _z(self, t: Tensor) -> Tensor:
        # The cosine of π/2 is slightly negative in fp32; there z is +∞.
        angle = t * (math.pi / 2)
        ratio = torch.sin(angle) / torch.cos(angle).clamp(min=0)
        return (torch.log(self.sigma_data * ratio) - self.mean) / self.std

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.special.ndtr(self._z(t))

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        # d log tan(πt/2)/dt = π/sin(πt)
        density = _normal_pdf(self._z(t)) * math.pi / (self.std * torch.sin(math.pi * t))
        return torch.where((t > 0) & (t < 1), density, 0.0)


@dataclass(frozen=True, kw_only=True)
class GridLaw(Law):
    """t uniform on {1/n, 2/n, …, 1}."""

    n: int = 128

    def __post_init__(self) -> None:
        require(self.n >= 1, f"GridLaw needs n ≥ 1, got {self.n}")

    @property
    def discrete(self) -> bool:
        return True

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return (torch.floor(u * self.n) + 1).clamp(max=self.n) / self.n

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return (torch.floor(t * self.n + 1e-6) / self.n).clamp(0, 1)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        on_grid = ((t * self.n - torch.round(t * self.n)).abs() < 1e-4) & (t > 0) & (t <= 1)
        return on_grid.to(t.dtype) / self.n


# ---------------------------------------------------------------------------------------------- laws of a noise level


@dataclass(frozen=True, kw_only=True)
class LogNormalNoise(Law):
    """t = σ/σ_max with log σ ~ N(mean, std²) given σ ≤ σ_max, on the variance-exploding path.

    Source: EDM (arXiv 2206.00364), table 1; mean −1.1 and std 2 are those of ECT (arXiv 2406.14548).
    """

    mean: float = -1.1
    std: float = 2.0
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(self.std > 0, f"LogNormalNoise needs std > 0, got {self.std}")
        require(self.sigma_max > 0, f"LogNormalNoise needs sigma_max > 0, got {self.sigma_max}")
        require(self._kept > 0, f"LogNormalNoise: no mass below sigma_max = {self.sigma_max}; lower mean")

    @property
    def _kept(self) -> float:
        """P(σ ≤ σ_max) before the truncation."""
        z = (math.log(self.sigma_max) - self.mean) / self.std
        return 0.5 * math.erfc(-z / math.sqrt(2))

    def _z(self, t: Tensor) -> Tensor:
        return (torch.log(self.sigma_max * t) - self.mean) / self.std

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(u * self._kept))
        return (sigma / self.sigma_max).clamp(max=1)

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.where(t < 1, (torch.special.ndtr(self._z(t)) / self._kept).clamp(max=1), 1.0)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        density = _normal_pdf(self._z(t)) / (self._kept * self.std * t)
        return torch.where((t > 0) & (t <= 1), density, 0.0)


@dataclass(frozen=True, kw_only=True)
class LogStudentNoise(Law):
    """t = σ/σ_max with (log σ − loc)/scale Student-t with `df` degrees of freedom, given low ≤ σ ≤ σ_max.

    Tabulated, with an error below 1e-12 in `cdf` (1e-11 for a million df): in w = asinh((log σ − loc)/(scale √df)) the
    density is ∝ cosh(w)^−df, which is smooth for every df.
    Source: truncated consistency models (arXiv 2410.14895); the defaults are the published ones for CIFAR-10.
    """

    df: float = 0.01
    loc: float = 0.0
    scale: float = 0.2
    low: float = 1.0
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require(0 < self.df <= 1e6, f"LogStudentNoise needs 0 < df ≤ 1e6, got {self.df}")
        require(self.scale > 0, f"LogStudentNoise needs scale > 0, got {self.scale}")
        require(
            0 < self.low < self.sigma_max,
            f"LogStudentNoise needs 0 < low < sigma_max, got {self.low} and {self.sigma_max}",
        )

    @property
    def _unit(self) -> float:
        return self.scale * math.sqrt(self.df)

    def _w(self, t: Tensor) -> Tensor:
        return torch.asinh((torch.log(self.sigma_max * t) - self.loc) / self._unit)

    def log_density(self, w: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """−df log cosh w, up to a constant."""
        return -self.df * (w.abs() + torch.log1p(torch.exp(-2 * w.abs())))

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        w = _table(self).icdf(u.to("cpu", torch.float64))
        t = torch.exp(self.loc + self._unit * torch.sinh(w)) / self.sigma_max
        return t.clamp(self.low / self.sigma_max, 1).to(u)

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        below = _table(self).cdf(self._w(t.to("cpu", torch.float64))).to(t)
        return torch.where(t < 1, below, 1.0)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        wide = t.to("cpu", torch.float64)
        w = self._w(wide)
        inside = (wide >= self.low / self.sigma_max) & (wide <= 1)
        return torch.where(inside, _table(self).pdf(w) / (self._unit * torch.cosh(w) * wide), 0.0).to(t)


# ------------------------------------------------------------------------------------------------ other tabulated laws


@dataclass(frozen=True, kw_only=True)
class Beta(Law):
    """Density ∝ t^(a−1) (1 − t)^(b−1). Tabulated in logit t, with an error below 1e-13 in `cdf`.

    Source: UCGM (arXiv 2505.07447) draws its times from such laws.
    """

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("a", self.a), ("b", self.b)):
            require(0.5 <= value <= 1e4, f"Beta needs {name} between 0.5 and 1e4, got {value}")

    def log_density(self, w: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """a log sigmoid(w) + b log sigmoid(−w), up to a constant: the law of w = logit t."""
        log_sigmoid = torch.nn.functional.logsigmoid
        return self.a * log_sigmoid(w) + self.b * log_sigmoid(-w)

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        t = torch.sigmoid(_table(self).icdf(u.to("cpu", torch.float64)))
        return torch.where(u < 1, torch.where(u > 0, t.to(u), 0.0), 1.0)

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.where(t < 1, _table(self).cdf(torch.logit(t.to("cpu", torch.float64))).to(t), 1.0)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        norm = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        powers = torch.special.xlogy(self.a - 1, t) + torch.special.xlog1py(self.b - 1, -t)
        return torch.where((t >= 0) & (t <= 1), torch.exp(norm + powers), 0.0)


@lru_cache(maxsize=64)
def _table(law: LogStudentNoise | Beta) -> Table:
    """The table of a law, built once: laws are values."""
    if isinstance(law, Beta):
        return Table(law.log_density, math.log(law.a / law.b), -1e4, 1e4)
    low, high = (math.asinh((math.log(sigma) - law.loc) / law._unit) for sigma in (law.low, law.sigma_max))
    return Table(law.log_density, min(max(0.0, low), high), low, high)


# ---------------------------------------------------------------------------------------------- laws made from a law


@dataclass(frozen=True, kw_only=True)
class Largest(Law):
    """The larger of two draws of `law`: P(T ≤ t) = F(t)². It is the law of the start of `Sorted` times."""

    law: Law = LogitNormal()

    @property
    def discrete(self) -> bool:
        return self.law.discrete

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self.law.icdf(torch.sqrt(u))

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self.law.cdf(t) ** 2

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        f, p = self.law.cdf(t), self.law.pdf(t)
        return p * (2 * f - p) if self.discrete else 2 * f * p


@dataclass(frozen=True, kw_only=True)
class Truncated(Law):
    """`law` given low < T ≤ high: u ↦ F⁻¹(F(low) + u (F(high) − F(low)))."""

    law: Law = LogitNormal()
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 <= self.low < self.high <= 1,
            f"Truncated needs 0 ≤ low < high ≤ 1, got {self.low} and {self.high}",
        )
        require(
            self._masses[1] > 0,
            f"{self.law} has no mass between {self.low:g} and {self.high:g}; choose another law or wider ends",
        )

    @property
    def discrete(self) -> bool:
        return self.law.discrete

    @property
    def _masses(self) -> tuple[float, float]:
        """F(low) and F(high) − F(low)."""
        below, end = self.law.cdf(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return below, end - below

    def icdf(self, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        below, kept = self._masses
        return self.law.icdf(below + kept * u).clamp(self.low, self.high)

    def cdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        below, kept = self._masses
        inside = ((self.law.cdf(t) - below) / kept).clamp(0, 1)
        return torch.where(t < self.high, torch.where(t > self.low, inside, 0.0), 1.0)

    def pdf(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        after = t > self.low if self.discrete else t >= self.low
        return torch.where(after & (t <= self.high), self.law.pdf(t) / self._masses[1], 0.0)
