"""Gaussian data N(μ, diag c²): every quantity of the flow in closed form, the main oracle.

    m_t = α_t μ,    S_t² = α_t² c² + σ_t²,    X_{t,r}(x) = m_r + (S_r/S_t)(x − m_t),
    x̂ = μ + α c² (x − m)/S²,    ε̂ = σ (x − m)/S²,    ∇log p = −(x − m)/S²,    Var[v_c | x] = W² c²/S².

The coordinate (x − m_t)/S_t is constant along the flow, and so is everything below: there is no solver here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.theory.law import Law
from shortflow.typing import expand

__all__ = ["Gaussian"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian(Law):
    """Independent normal coordinates.

    Attributes:
        mean, std: numbers, or tensors that broadcast to the shape of a sample; in the units of the data.
        sample_shape: the shape that `sample` returns, broadcast with those of mean and std.

    Raises:
        ShortflowError: if a standard deviation is not positive.
    """

    mean: float | Float[Tensor, "..."] = 0.0
    std: float | Float[Tensor, "..."] = 1.0
    sample_shape: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.std) > 0).all()):
            raise ShortflowError(f"std must be positive, got {self.std}; a single point is FiniteData")

    @property
    def shape(self) -> tuple[int, ...]:
        mean, std = torch.as_tensor(self.mean), torch.as_tensor(self.std)
        return tuple(torch.broadcast_shapes(self.sample_shape, mean.shape, std.shape))

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(μ, c) in the dtype, device and sample shape of x."""
        mean = torch.as_tensor(self.mean, dtype=x.dtype, device=x.device)
        std = torch.as_tensor(self.std, dtype=x.dtype, device=x.device)
        try:
            return mean.expand(x.shape[1:]), std.expand(x.shape[1:])
        except RuntimeError as error:
            raise ShortflowError(
                f"mean of shape {tuple(mean.shape)} and std of shape {tuple(std.shape)} "
                f"do not fit samples of shape {tuple(x.shape[1:])}"
            ) from error

    def marginal(self, x: State, t: Time) -> tuple[State, State]:
        """(m_t, S_t): mean and standard deviation of x_t, in the shape of x."""
        mean, std = self._parameters(x)
        alpha, sigma = expand(self.path.alpha(t), x), expand(self.path.sigma(t), x)
        return alpha * mean, torch.sqrt(alpha**2 * std**2 + sigma**2)

    def posterior(self, x: State, t: Time, label: Label | None = None) -> tuple[State, State]:
        mean, std = self._parameters(x)
        slope = -self.score(x, t)
        return mean + expand(self.path.alpha(t), x) * std**2 * slope, expand(self.path.sigma(t), x) * slope

    def score(self, x: State, t: Time, label: Label | None = None) -> State:
        """∇log p_t(x) = −(x − m)/S², finite at every t."""
        m, s = self.marginal(x, t)
        return -(x - m) / s**2

    def velocity_variance(self, x: State, t: Time, label: Label | None = None) -> Time:
        """Σ W² c²/S² over the coordinates; independent of the point x."""
        _, std = self._parameters(x)
        _, s = self.marginal(x, t)
        return (expand(self.path.wronskian(t), x) * std / s).square().flatten(1).sum(1)

    def sample_posterior(
        self, x: State, t: Time, label: Label | None = None, generator: torch.Generator | None = None
    ) -> State:
        _, std = self._parameters(x)
        _, s = self.marginal(x, t)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return self.posterior_data(x, t) + std * expand(self.path.sigma(t), x) / s * z

    def log_density(self, x: State, t: Time, label: Label | None = None) -> Time:
        m, s = self.marginal(x, t)
        return -(0.5 * ((x - m) / s).square() + torch.log(s) + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def average_posterior(self, x: State, t: Time, r: Time, label: Label | None = None) -> tuple[State, State]:
        # (αc, σ) = S (cos φ, sin φ) and z = (x − m)/S. With ω the mean of φ_t and φ_r, and δ half their difference, the
        # pair x̂ = μ + c z cos ω/cos δ, ε̂ = z sin ω/cos δ has α x̂ + σ ε̂ = m + S z at both times.
        mean, std = self._parameters(x)
        m, s = self.marginal(x, t)
        phi_t, phi_r = (torch.atan2(expand(self.path.sigma(u), x), expand(self.path.alpha(u), x) * std) for u in (t, r))
        middle = (phi_t + phi_r) / 2
        z = (x - m) / s / torch.cos((phi_t - phi_r) / 2)
        return mean + std * torch.cos(middle) * z, torch.sin(middle) * z

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n ..."]:
        x = torch.randn((n, *self.shape), generator=generator, dtype=dtype)
        mean, std = self._parameters(x)
        return mean + std * x
