"""Paths between data and noise: x_t = α_t x + σ_t ε, ε ~ N(0, I), and everything that follows from α and σ.

The Wronskian W = α σ' − σ α' is never zero and drives every conversion. At a point x on the path with velocity v,

    x̂ = (σ' x − σ v)/W,    ε̂ = (α v − α' x)/W,    v = α' x̂ + σ' ε̂,

none of which divides by α or σ, so they hold at both ends of time. A jump with constant (x̂, ε̂) is
x_r = ā x_t + b̄ v with the transfer coefficients of `Path.transfer` (the DDIM step in v-form).

A noise scale τ other than one is part of σ: `Cosine(noise_scale=0.5)` has σ_t = 0.5 sin(πt/2), and ε stays N(0, I).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.typing import expand

__all__ = ["Cosine", "CustomPath", "Linear", "Path", "VarianceExploding"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]


class Path(ABC):
    """A pair of schedules (α, σ) with α_0 = 1 and σ_0 = 0. Subclasses give the four functions of time."""

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """α_t, the coefficient of the data."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """σ_t, the coefficient of the standard normal noise (the noise scale included)."""

    @abstractmethod
    def d_alpha(self, t: Time) -> Time:
        """α'_t = dα/dt."""

    @abstractmethod
    def d_sigma(self, t: Time) -> Time:
        """σ'_t = dσ/dt."""

    def wronskian(self, t: Time) -> Time:
        """W_t = α_t σ'_t − σ_t α'_t."""
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)

    def interpolate(self, x: State, eps: State, t: Time) -> State:
        """x_t = α_t x + σ_t ε."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * eps

    def velocity(self, x: State, eps: State, t: Time) -> State:
        """The conditional velocity v_c = α'_t x + σ'_t ε = dx_t/dt at fixed (x, ε)."""
        return expand(self.d_alpha(t), x) * x + expand(self.d_sigma(t), x) * eps

    def transfer(self, t: Time, r: Time) -> tuple[Time, Time]:
        """(ā, b̄) with x_r = ā x_t + b̄ v_t, exact for a constant pair (x, ε).

        ā = (α_r σ'_t − σ_r α'_t)/W_t,  b̄ = (σ_r α_t − α_r σ_t)/W_t.
        """
        w = self.wronskian(t)
        a = (self.alpha(r) * self.d_sigma(t) - self.sigma(r) * self.d_alpha(t)) / w
        b = (self.sigma(r) * self.alpha(t) - self.alpha(r) * self.sigma(t)) / w
        return a, b

    def data(self, x_t: State, v: State, t: Time) -> State:
        """x̂ = (σ' x_t − σ v)/W, the data that (x_t, v) points to."""
        w = self.wronskian(t)
        return expand(self.d_sigma(t) / w, x_t) * x_t - expand(self.sigma(t) / w, x_t) * v

    def noise(self, x_t: State, v: State, t: Time) -> State:
        """ε̂ = (α v − α' x_t)/W, the noise that (x_t, v) points to."""
        w = self.wronskian(t)
        return expand(self.alpha(t) / w, x_t) * v - expand(self.d_alpha(t) / w, x_t) * x_t

    def scaled_score(self, x_t: State, v: State, t: Time) -> State:
        """σ_t ∇log p_t(x_t) = −ε̂, finite at every t; divide by σ_t > 0 for the score itself."""
        return -self.noise(x_t, v, t)

    def score(self, x_t: State, v: State, t: Time) -> State:
        """∇log p_t(x_t) = −ε̂/σ_t. It divides by σ, so it has no value at t = 0 (use `scaled_score`)."""
        return self.scaled_score(x_t, v, t) / expand(self.sigma(t), x_t)

    def velocity_from_score(self, x_t: State, score: State, t: Time) -> State:
        """v = (σ' x_t − W x̂)/σ rewritten through ε̂ = −σ s and α x̂ = x_t − σ ε̂; needs α_t > 0.

        v = (α' x_t − W σ s)/α.
        """
        alpha = self.alpha(t)
        return (
            expand(self.d_alpha(t) / alpha, x_t) * x_t - expand(self.wronskian(t) * self.sigma(t) / alpha, x_t) * score
        )

    def log_snr(self, t: Time) -> Time:
        """λ_t = 2 log(α_t/σ_t)."""
        return 2 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def d_log_snr(self, t: Time) -> Time:
        """λ'_t = −2W/(α σ)."""
        return -2 * self.wronskian(t) / (self.alpha(t) * self.sigma(t))


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ShortflowError(f"{name} must be a positive finite number, got {value}")


@dataclass(frozen=True, kw_only=True)
class Linear(Path):
    """α = 1 − t, σ = τ t (optimal-transport / rectified-flow path); W = τ and the DDIM step is the Euler step."""

    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("noise_scale", self.noise_scale)

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def sigma(self, t: Time) -> Time:
        return self.noise_scale * t

    def d_alpha(self, t: Time) -> Time:
        return -torch.ones_like(t)

    def d_sigma(self, t: Time) -> Time:
        return torch.full_like(t, self.noise_scale)

    def transfer(self, t: Time, r: Time) -> tuple[Time, Time]:
        return torch.ones_like(t), r - t


@dataclass(frozen=True, kw_only=True)
class Cosine(Path):
    """α = cos(πt/2), σ = τ sin(πt/2) (variance-preserving, TrigFlow with angle θ = πt/2); W = τπ/2."""

    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("noise_scale", self.noise_scale)

    def alpha(self, t: Time) -> Time:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Time) -> Time:
        return self.noise_scale * torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Time) -> Time:
        return -(math.pi / 2) * torch.sin(t * (math.pi / 2))

    def d_sigma(self, t: Time) -> Time:
        return self.noise_scale * (math.pi / 2) * torch.cos(t * (math.pi / 2))

    def wronskian(self, t: Time) -> Time:
        return torch.full_like(t, self.noise_scale * math.pi / 2)

    def transfer(self, t: Time, r: Time) -> tuple[Time, Time]:
        angle = (r - t) * (math.pi / 2)
        return torch.cos(angle), torch.sin(angle) * (2 / math.pi)


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Path):
    """α = 1, σ = σ_max t (EDM): t is the noise level in units of σ_max."""

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _positive("sigma_max", self.sigma_max)

    def alpha(self, t: Time) -> Time:
        return torch.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_max * t

    def d_alpha(self, t: Time) -> Time:
        return torch.zeros_like(t)

    def d_sigma(self, t: Time) -> Time:
        return torch.full_like(t, self.sigma_max)

    def transfer(self, t: Time, r: Time) -> tuple[Time, Time]:
        return torch.ones_like(t), r - t


@dataclass(frozen=True, kw_only=True)
class CustomPath(Path):
    """A path from four functions of time. Checked at construction: ends, Wronskian and derivatives.

    Raises:
        ShortflowError: if α_0 ≠ 1, σ_0 ≠ 0, W vanishes, or a derivative disagrees with central differences.
    """

    alpha_fn: Callable[[Time], Time]
    sigma_fn: Callable[[Time], Time]
    d_alpha_fn: Callable[[Time], Time]
    d_sigma_fn: Callable[[Time], Time]

    def __post_init__(self) -> None:
        check_path(self)

    def alpha(self, t: Time) -> Time:
        return self.alpha_fn(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_fn(t)

    def d_alpha(self, t: Time) -> Time:
        return self.d_alpha_fn(t)

    def d_sigma(self, t: Time) -> Time:
        return self.d_sigma_fn(t)


def check_path(path: Path) -> None:
    """Verify the contract of a path numerically; raises `ShortflowError` that names the function at fault."""
    name = type(path).__name__
    ends = torch.zeros(1, dtype=torch.float64)
    # Written as `not (… <= …)` so that NaN is refused too.
    if not (abs(path.alpha(ends).item() - 1) <= 1e-9 and abs(path.sigma(ends).item()) <= 1e-9):
        raise ShortflowError(
            f"{name}: α_0 must be 1 and σ_0 must be 0 (t = 0 is data), "
            f"got α_0 = {path.alpha(ends).item():g}, σ_0 = {path.sigma(ends).item():g}"
        )
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    h = 1e-6
    for what, f, df in (("α", path.alpha, path.d_alpha), ("σ", path.sigma, path.d_sigma)):
        slope = (f(t + h) - f(t - h)) / (2 * h)
        error = (slope - df(t)).abs() / (1 + slope.abs())
        if not bool(torch.isfinite(error).all()) or error.max() > 1e-5:
            worst = int(error.nan_to_num(torch.inf).argmax())
            raise ShortflowError(
                f"{name}: {what}' at t = {t[worst].item():.2f} is {df(t)[worst].item():g}, "
                f"but {what} has the slope {slope[worst].item():g} there"
            )
    # The ends belong to it: the conversions divide by W at t = 0 and t = 1 as well.
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    w = path.wronskian(t)
    if not bool((w > 1e-9).all()):
        at = t[int(w.argmin())].item()
        raise ShortflowError(f"{name}: α σ' − σ α' must be positive, got {w.min().item():g} at t = {at:.2f}")
