"""Paths and flow maps for `slow_reference`: α, σ and their slopes, X_{t,r} in every form, and a raw network's inputs.

Only the settings are read. One point has the shape (1, ...), one time the shape (1,).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF_PI = math.pi / 2


def name(part: object) -> str:
    return type(part).__name__


def along(f: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> Tensor:
    """The derivative of f at `at` along `direction`, itself differentiable."""
    return torch.autograd.functional.jvp(f, at, direction, create_graph=True)[1]


def wide(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


# ---------------------------------------------------------------------------------------------------------------- paths


def schedule(path: Any, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(α, σ, α', σ') at t."""
    one = torch.ones_like(t)
    match name(path):
        case "Linear":
            return 1 - t, path.noise_scale * t, -one, path.noise_scale * one
        case "Cosine":
            tau, angle = path.noise_scale, HALF_PI * t
            return angle.cos(), tau * angle.sin(), -HALF_PI * angle.sin(), tau * HALF_PI * angle.cos()
        case "VarianceExploding":
            return one, path.sigma_max * t, 0 * one, path.sigma_max * one
        case "CustomPath":
            return path.alpha_fn(t), path.sigma_fn(t), path.d_alpha_fn(t), path.d_sigma_fn(t)
    raise NotImplementedError(name(path))


def ddim(path: Any, x: Tensor, v: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """α_r x̂ + σ_r ε̂, where (x̂, ε̂) solves x = α x̂ + σ ε̂, v = α' x̂ + σ' ε̂ at t."""
    alpha, sigma, d_alpha, d_sigma = (wide(each, x) for each in schedule(path, t))
    w = alpha * d_sigma - sigma * d_alpha
    data, noise = (d_sigma * x - sigma * v) / w, (alpha * v - d_alpha * x) / w
    alpha_r, sigma_r, _, _ = (wide(each, x) for each in schedule(path, r))
    return alpha_r * data + sigma_r * noise


# ------------------------------------------------------------------------------------------------------------ flow maps


@dataclass(frozen=True)
class Model:
    """A raw network and the settings it is read through."""

    network: Any
    path: Any
    parameterization: Any
    conditioning: Any
    sigma_data: float
    told: tuple[float, float, float] | None

    @staticmethod
    def of(flow: Any) -> "Model":
        return Model(flow.network, flow.path, flow.parameterization, flow.conditioning, flow.sigma_data, flow.told)

    def jump(self, x: Tensor, output: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """X_{t,r}(x) for a given output F."""
        part, d, f = self.parameterization, self.sigma_data, output
        alpha, sigma, _, _ = (wide(each, x) for each in schedule(self.path, t))
        alpha_r, sigma_r, _, _ = (wide(each, x) for each in schedule(self.path, r))
        gap = wide(r - t, x)
        match name(part):
            case "AverageVelocity":
                return x + gap * part.scale * (d if part.normalize else 1) * f
            case "Transfer":
                return ddim(self.path, x, f, t, r)
            case "Denoiser":
                return x if bool(sigma == 0) else alpha_r * f + sigma_r * (x - alpha * f) / sigma
            case "NoisePrediction":
                return alpha_r * (x - sigma * f) / alpha + sigma_r * f
            case "TrigJump":
                return torch.cos(HALF_PI * gap) * x + torch.sin(HALF_PI * gap) * f
            case "TrigFlow":
                return torch.cos(HALF_PI * gap) * x + torch.sin(HALF_PI * gap) * d * f
            case "SimpleEDM":
                variance = alpha**2 + (sigma / d) ** 2
                skip = (alpha * alpha_r + sigma * sigma_r / d**2) / variance
                return skip * x - (alpha_r * sigma - alpha * sigma_r) / torch.sqrt(variance) * f
            case "EDMSkip":
                skip = d**2 / ((sigma - sigma_r) ** 2 + d**2)
                return skip * x + (sigma - sigma_r) * d / torch.sqrt(sigma**2 + d**2) * f
            case "EDM":
                # ε̂ = (x − D)/σ with D = c_skip x + c_out F, written out so that nothing divides by σ
                total = sigma**2 + d**2
                return x + (sigma_r - sigma) * (sigma / total * x - d / torch.sqrt(total) * f)
        raise NotImplementedError(name(part))

    def inputs(self, x: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the raw network sees: c_in x, and the times."""
        part, told, d = self.parameterization, self.conditioning, self.sigma_data
        alpha, sigma, _, _ = schedule(self.path, t)
        kind = name(part)
        scale = torch.ones_like(t)
        if kind == "SimpleEDM" or (kind in ("AverageVelocity", "Denoiser") and part.normalize):
            scale = 1 / torch.sqrt(alpha**2 * d**2 + sigma**2)
        elif kind in ("EDM", "EDMSkip"):
            scale = 1 / torch.sqrt(sigma**2 + d**2)
        elif kind == "TrigFlow":
            scale = scale / d
        x = wide(scale, x) * x
        match name(told):
            case "StartOnly":
                return x, t, None
            case "AngleOnly":
                return x, HALF_PI * t, None
            case "StartAndGap":
                return x, told.scale * t, told.scale * (t - r)
            case "StartAndEnd":
                return x, told.scale * t, told.scale * r
            case "LogStep":
                return x, t, -torch.log2(torch.maximum(t - r, torch.full_like(t, 1 / told.steps)))
            case "LogSigma":
                return x, told.scale * torch.log(torch.maximum(sigma, torch.full_like(t, 2.0**-1022))), None
            case "GapOnly":
                return x, t - r, None
            case "JumpFlag":
                return x, t, (r < t).to(t.dtype)
        raise NotImplementedError(name(told))

    def _call(self, f: Callable[..., Any], x: Tensor, t: Tensor, r: Tensor, label: Any, guidance: Any) -> Any:
        if guidance is None and self.told is not None:
            guidance = torch.tensor([self.told], dtype=t.dtype)
        return f(*self.inputs(x, t, r), label, *(() if guidance is None else (guidance,)))

    def output(self, x: Tensor, t: Tensor, r: Tensor, label: Any, guidance: Any = None) -> Tensor:
        return self._call(self.network, x, t, r, label, guidance)

    def head(self, x: Tensor, t: Tensor, r: Tensor, label: Any, guidance: Any = None) -> Tensor:
        return self._call(self.network.both, x, t, r, label, guidance)[1]

    def state(self, x: Tensor, t: Tensor, r: Tensor, label: Any, guidance: Any = None) -> Tensor:
        return self.jump(x, self.output(x, t, r, label, guidance), t, r)

    def end_slope(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """∂_r X_{t,r}(x) at r = t for a fixed output: the velocity that it stands for."""
        return along(lambda r: self.jump(x, output, t, r), (t,), (torch.ones_like(t),))

    def velocity(self, x: Tensor, t: Tensor, label: Any, guidance: Any = None, head: bool = False) -> Tensor:
        return self.end_slope(x, (self.head if head else self.output)(x, t, t, label, guidance), t)

    def output_for_velocity(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """F with end_slope(x, F) = v; the slope is affine in F."""
        none, one = torch.zeros_like(x), torch.ones_like(x)
        return (v - self.end_slope(x, none, t)) / self.end_slope(none, one, t)

    def output_for_state(self, x: Tensor, state: Tensor, t: Tensor, r: Tensor) -> Tensor:
        none, one = torch.zeros_like(x), torch.ones_like(x)
        return (state - self.jump(x, none, t, r)) / self.jump(none, one, t, r)
