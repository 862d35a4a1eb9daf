"""Parameterisations: how an output F becomes a jump.

    X_{t,r}(x) = a(t, r) x + b(t, r) F(c_in(t) x, time inputs, label),    a = 1 and b = 0 at r = t,
    v = ∂_r a · x + ∂_r b · F at r = t,

so that a jump of length zero is the identity for any weights, and an output on the diagonal stands for one velocity.

| part | a | b | F stands for |
|---|---|---|---|
| AverageVelocity | 1 | (r − t) w | the average velocity over w |
| Transfer | ā | b̄ | the velocity; a DDIM step |
| Denoiser | σ_r/σ_t | α_r − α_t σ_r/σ_t | the data; a DDIM step |
| NoisePrediction | α_r/α_t | σ_r − σ_t α_r/α_t | the noise; a DDIM step |
| TrigJump | cos(π/2 (r − t)) | sin(π/2 (r − t)) | the velocity over π/2 |
| TrigFlow | cos(θ_t − θ_r) | −σ_d sin(θ_t − θ_r) | the velocity over σ_d π/2 |
| SimpleEDM | c_skip(t, r) | c_out(t, r) | TrigFlow's F, on any path |
| EDMSkip | c_skip(t, r) | c_out(t, r) | EDM's F for jumps to σ_r = 0 |
| EDM | σ_r/σ_t + (1 − σ_r/σ_t) c_skip | (1 − σ_r/σ_t) c_out | EDM's F; a DDIM step |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.paths import Cosine, Path, VarianceExploding
from shortflow.tangent import differentiated

__all__ = [
    "EDM",
    "AverageVelocity",
    "Denoiser",
    "EDMSkip",
    "NoisePrediction",
    "Parameterization",
    "SimpleEDM",
    "Transfer",
    "TrigFlow",
    "TrigJump",
]

Time = Float[Tensor, "b"]

HALF_PI = math.pi / 2


def _positive(part: object, **values: float) -> None:
    """Raise `ShortflowError` unless the settings of the part are positive finite numbers."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ShortflowError(f"{type(part).__name__}: {name} must be a positive finite number, got {value}")


# ------------------------------------------------------------------------------------------------ parameterisations


class Parameterization(ABC):
    """How the output F of a network becomes a jump: X_{t,r}(x) = a x + b F with a = 1 and b = 0 at r = t."""

    def check(self, path: Path, sigma_data: float) -> None:
        """Raise `IncompatibleParts` if it is not defined on `path`; by default every path will do."""
        return

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        """c_in, the factor on the network's input; None for 1."""
        return None

    @abstractmethod
    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        """(a, b) of X_{t,r}(x) = a x + b F."""

    @abstractmethod
    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        """(∂_r a, ∂_r b) at r = t: the velocity that F stands for on the diagonal is v = ∂_r a · x + ∂_r b · F."""

    def coefficient_rates(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        """(∂_t a, ∂_t b) at fixed r."""
        with torch.no_grad():
            return differentiated(
                lambda time: self.coefficients(path, sigma_data, time, r), (t,), (torch.ones_like(t),)
            )[1]


def _unit_input(path: Path, sigma_data: float, t: Time) -> Time:
    """1/√(α_t² σ_data² + σ_t²), which gives x_t the standard deviation one."""
    return torch.rsqrt((path.alpha(t) * sigma_data) ** 2 + path.sigma(t) ** 2)


@dataclass(frozen=True, kw_only=True)
class AverageVelocity(Parameterization):
    """F = u/w, the average velocity: X_{t,r}(x) = x + (r − t) · w · F.

    w = `scale`, times σ_data with `normalize`, which also divides the input by its standard deviation
    √(α² σ_data² + σ²) (the "euler" form of IMM, arXiv 2503.07565). Plain: MeanFlow, ESC, shortcut models. `scale` is
    the guidance scale of terminal velocity matching, whose velocities grow with it (arXiv 2511.19797).
    """

    normalize: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, scale=self.scale)

    def _unit(self, sigma_data: float) -> float:
        """w, the velocity that F = 1 stands for."""
        return self.scale * (sigma_data if self.normalize else 1.0)

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return _unit_input(path, sigma_data, t) if self.normalize else None

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        return torch.ones_like(t), (r - t) * self._unit(sigma_data)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        return torch.zeros_like(t), torch.full_like(t, self._unit(sigma_data))

    def coefficient_rates(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        return torch.zeros_like(t), torch.full_like(t, -self._unit(sigma_data))


@dataclass(frozen=True, kw_only=True)
class Transfer(Parameterization):
    """F = v and a DDIM step: X_{t,r}(x) = ā x + b̄ F with the path's transfer coefficients.

    On the linear path this is `AverageVelocity`.
    """

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        return path.transfer(t, r)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class Denoiser(Parameterization):
    """F = x̂, the data, and a DDIM step: X_{t,r}(x) = (σ_r/σ_t) x + (α_r − α_t σ_r/σ_t) F.

    With `normalize` the input is divided by its standard deviation √(α² σ_data² + σ²). At t = 0 the jump is the
    identity. The velocity v = (σ' x − W F)/σ has no value there; for σ below the machine epsilon it is that at the
    epsilon: finite, large and of no use, so draw times above 0.
    Source: the "identity" form of IMM (arXiv 2503.07565).
    """

    normalize: bool = False

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return _unit_input(path, sigma_data, t) if self.normalize else None

    @staticmethod
    def _noise(path: Path, t: Time) -> Time:
        """σ_t to divide by."""
        return path.sigma(t).clamp(min=torch.finfo(t.dtype).eps)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        # a − 1 from the difference of the noise levels: exactly 0 at r = t, also where σ_t = 0.
        change = (path.sigma(r) - path.sigma(t)) / self._noise(path, t)
        return 1 + change, path.alpha(r) - path.alpha(t) - path.alpha(t) * change

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        change = path.d_sigma(t) / self._noise(path, t)
        return change, path.d_alpha(t) - path.alpha(t) * change


@dataclass(frozen=True, kw_only=True)
class NoisePrediction(Parameterization):
    """F = ε̂, the noise, and a DDIM step: X_{t,r}(x) = (α_r/α_t) x + (σ_r − σ_t α_r/α_t) F.

    What diffusion models are mostly trained to predict. The velocity is v = (α' x + W F)/α. Where no data are left,
    α_t = 0, it has no value: for α below the machine epsilon it is that at the epsilon, finite, large and of no use, so
    let times end before. Sources: DDPM (arXiv 2006.11239), equation (14), and DDIM (arXiv 2010.02502), equation (12).
    """

    @staticmethod
    def _data(path: Path, t: Time) -> Time:
        """α_t to divide by."""
        return path.alpha(t).clamp(min=torch.finfo(t.dtype).eps)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        # a − 1 from the difference of the levels: exactly 0 at r = t, also where α_t = 0.
        change = (path.alpha(r) - path.alpha(t)) / self._data(path, t)
        return 1 + change, path.sigma(r) - path.sigma(t) - path.sigma(t) * change

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        change = path.d_alpha(t) / self._data(path, t)
        return change, path.d_sigma(t) - path.sigma(t) * change


@dataclass(frozen=True, kw_only=True)
class TrigJump(Parameterization):
    """X_{t,r}(x) = cos(π/2 (r − t)) x + sin(π/2 (r − t)) F on any path, with the velocity v = (π/2) F.

    On the cosine path, of any noise scale, this is `Transfer` with F = (2/π) v; on other paths a step is no DDIM step,
    but the boundary and the velocity are right. Source: the "Trig" coefficients of SoFlow (arXiv 2512.15657).
    """

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        angle = (r - t) * HALF_PI
        return torch.cos(angle), torch.sin(angle)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        return torch.zeros_like(t), torch.full_like(t, HALF_PI)

    def coefficient_rates(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        angle = (r - t) * HALF_PI
        return HALF_PI * torch.sin(angle), -HALF_PI * torch.cos(angle)


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Parameterization):
    """X_{t,r}(x) = cos(θ_t − θ_r) x − sin(θ_t − θ_r) σ_data F(x/σ_data), with the angle θ = πt/2.

    Needs the cosine path with noise scale σ_data. The velocity per unit of t is v = (π/2) σ_data F.
    Source: sCM (arXiv 2410.11081), equation (5).
    """

    def check(self, path: Path, sigma_data: float) -> None:
        if not isinstance(path, Cosine) or not math.isclose(path.noise_scale, sigma_data):
            raise IncompatibleParts(
                f"TrigFlow needs the cosine path with noise_scale = sigma_data = {sigma_data}, got {path}; "
                f"use Cosine(noise_scale={sigma_data}) or the Transfer parameterisation"
            )

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return torch.full_like(t, 1 / sigma_data)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        angle = (t - r) * HALF_PI
        return torch.cos(angle), -sigma_data * torch.sin(angle)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        return torch.zeros_like(t), torch.full_like(t, sigma_data * HALF_PI)


@dataclass(frozen=True, kw_only=True)
class SimpleEDM(Parameterization):
    """X_{t,r}(x) = c_skip x + c_out F(c_in x) with σ̃ = σ/σ_data, on any path:

    c_skip = (α_t α_r + σ̃_t σ̃_r)/(α_t² + σ̃_t²), c_out = −(α_r σ̃_t − α_t σ̃_r) σ_data/√(α_t² + σ̃_t²) and
    c_in = 1/(σ_data √(α_t² + σ̃_t²)).

    It is the posterior mean of x_r for white Gaussian data of standard deviation σ_data, plus F times the standard
    deviation of what is left. On the cosine path with noise scale σ_data it is `TrigFlow`; on the variance-exploding
    path with σ_r = 0 it is EDM's, with F of the other sign.
    Source: the "simple_edm" form of IMM (arXiv 2503.07565).
    """

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return _unit_input(path, sigma_data, t)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        alpha, sigma = path.alpha(t), path.sigma(t) / sigma_data
        # From the differences between r and t, so that a = 1 and b = 0 exactly at r = t.
        d_alpha, d_sigma = path.alpha(r) - alpha, path.sigma(r) / sigma_data - sigma
        variance = alpha**2 + sigma**2
        skip = 1 + (alpha * d_alpha + sigma * d_sigma) / variance
        return skip, (alpha * d_sigma - sigma * d_alpha) * sigma_data * torch.rsqrt(variance)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        alpha, sigma = path.alpha(t), path.sigma(t) / sigma_data
        variance = alpha**2 + sigma**2
        skip = (alpha * path.d_alpha(t) + sigma * path.d_sigma(t) / sigma_data) / variance
        return skip, path.wronskian(t) * torch.rsqrt(variance)


@dataclass(frozen=True, kw_only=True)
class EDMSkip(Parameterization):
    """X_{t,r}(x) = c_skip x + c_out F(c_in x) on the variance-exploding path, the identity at r = t.

    c_skip = σ_d²/((σ_t − σ_r)² + σ_d²), c_out = (σ_t − σ_r) σ_d/√(σ_t² + σ_d²), c_in = 1/√(σ_t² + σ_d²).
    With σ_r = σ_min this is the consistency model's form, with σ_r = 0 that of EDM.
    Source: Song et al. 2023 (arXiv 2303.01469), appendix C.
    """

    def check(self, path: Path, sigma_data: float) -> None:
        if not isinstance(path, VarianceExploding):
            raise IncompatibleParts(f"EDMSkip needs the variance-exploding path, got {path}; use VarianceExploding()")

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return torch.rsqrt(path.sigma(t) ** 2 + sigma_data**2)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        gap = path.sigma(t) - path.sigma(r)
        skip = sigma_data**2 / (gap**2 + sigma_data**2)
        return skip, gap * sigma_data * torch.rsqrt(path.sigma(t) ** 2 + sigma_data**2)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        out = path.d_sigma(t) * sigma_data * torch.rsqrt(path.sigma(t) ** 2 + sigma_data**2)
        return torch.zeros_like(t), -out


@dataclass(frozen=True, kw_only=True)
class EDM(Parameterization):
    """A DDIM step with the denoiser D = c_skip x + c_out F(c_in x) on the variance-exploding path:

    X_{t,r}(x) = D + (σ_r/σ_t)(x − D), c_skip = σ_d²/(σ² + σ_d²), c_out = σ σ_d/√(σ² + σ_d²), c_in = 1/√(σ² + σ_d²).

    F is the same function of x for every r, and at r = 0 the jump is `EDMSkip`'s: a diffusion model in this form is a
    consistency model's starting point as it stands. In units of F the squared error is EDM's weighted loss.
    Source: Karras et al. 2022 (arXiv 2206.00364), equations (7) and (8).
    """

    def check(self, path: Path, sigma_data: float) -> None:
        if not isinstance(path, VarianceExploding):
            raise IncompatibleParts(f"EDM needs the variance-exploding path, got {path}; use VarianceExploding()")

    def input_scale(self, path: Path, sigma_data: float, t: Time) -> Time | None:
        return torch.rsqrt(path.sigma(t) ** 2 + sigma_data**2)

    def coefficients(self, path: Path, sigma_data: float, t: Time, r: Time) -> tuple[Time, Time]:
        sigma, gap = path.sigma(t), path.sigma(t) - path.sigma(r)
        variance = sigma**2 + sigma_data**2
        # (1 − σ_r/σ_t) c_out = gap σ_d/√variance and (1 − σ_r/σ_t)(1 − c_skip) = gap σ/variance: nothing divides by σ.
        return 1 - gap * sigma / variance, gap * sigma_data * torch.rsqrt(variance)

    def rates(self, path: Path, sigma_data: float, t: Time) -> tuple[Time, Time]:
        sigma, d_sigma = path.sigma(t), path.d_sigma(t)
        variance = sigma**2 + sigma_data**2
        return d_sigma * sigma / variance, -d_sigma * sigma_data * torch.rsqrt(variance)
