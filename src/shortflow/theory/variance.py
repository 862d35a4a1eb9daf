"""Variance and bias of training targets whose velocity is the conditional one, against what they would be with the
exact one.

With Z = v_c − v, E[Z | x_t] = 0, the target of continuous time is affine in the velocity, u_tgt[v_c] = u_tgt[v] + J Z
with J = ∇X_{t,r}, so for plain squared errors it is unbiased and

    E‖u − u_tgt[v_c]‖² = E‖u − u_tgt[v]‖² + E tr(J Cov[v | x_t] Jᵀ).

A discrete target T = X_{s,r}(x_s), x_s = α_s x_0 + σ_s ε, is X_{t,r}(x_t) only on average to first order in δ = t − s:
its variance is δ² tr(J Cov Jᵀ) + O(δ³) and its bias O(δ²), hence bias² O(δ⁴). Divided by δ² it is compared with the
target of continuous time: that is the factor between their gradients. The role of Proposition 3.1 of ESC (arXiv
2512.11831).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import require
from shortflow.flowmap import FlowMap
from shortflow.tangent import differentiated
from shortflow.theory.law import Law
from shortflow.typing import Condition, expand

__all__ = [
    "Spread",
    "adaptive_bias",
    "adaptive_point",
    "carried",
    "continuous_floor",
    "discrete_spread",
    "posterior_draws",
]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None


def continuous_floor(
    flow: FlowMap, law: Law, x: State, eps: State, t: Time, r: Time, label: Label = None, told: Condition | None = None
) -> Time:
    """‖J Z‖² of each row, whose mean is the floor E tr(J Cov[v | x_t] Jᵀ): what a loss in continuous time cannot go
    below.

    Args:
        flow: whose J = ∇X_{t,r} it is: the exact flow, or a trained network.
        x, eps: data and noise of the rows.
        label, told: the class that the law is told, and what the network is.
    """
    return carried(flow, law, x, eps, t, r, label, told)[1].square().flatten(1).sum(1)


def carried(
    flow: FlowMap, law: Law, x: State, eps: State, t: Time, r: Time, label: Label = None, told: Condition | None = None
) -> tuple[State, State]:
    """(X_{t,r}(x_t), J Z): where the jump carries the point, and where the noise of its velocity."""
    x_t = law.path.interpolate(x, eps, t)
    noise = law.path.velocity(x, eps, t) - law.velocity(x_t, t, label)
    with torch.no_grad():
        return differentiated(lambda point: flow(point, t, r, told), (x_t,), (noise,))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of each row, without bias of the estimate: tr Cov[T | x_t] and ‖E[T | x_t] − X_{t,r}(x_t)‖² (which may be below
    0)."""

    variance: Time
    bias: Time


def posterior_draws(
    law: Law, x_t: State, t: Time, draws: int, label: Label = None, generator: torch.Generator | None = None
) -> Float[Tensor, "m ..."]:
    """`draws` data points of the posterior of each row, those of a row after each other."""
    points, times, given = _repeated(draws, x_t, t, label)
    return law.sample_posterior(points, times, given, generator)


def _repeated(draws: int, *values: Any) -> list[Any]:
    """Every row `draws` times; None stays None."""
    return [None if each is None else each.repeat_interleave(draws, 0) for each in values]


def discrete_spread(
    flow: FlowMap,
    law: Law,
    x_t: State,
    t: Time,
    s: Time,
    r: Time,
    *,
    draws: int = 8,
    label: Label = None,
    told: Condition | None = None,
    generator: torch.Generator | None = None,
    landed: State | None = None,
    data: Float[Tensor, "m ..."] | None = None,
    sharp: bool = True,
) -> Spread:
    """Variance and squared bias of T = X_{s,r}(α_s x_0 + σ_s ε) in the units of states, from `draws` pairs given x_t.

    Args:
        landed: X_{t,r}(x_t), if it is known already.
        data: `posterior_draws`, if they are drawn already.
        sharp: take what is linear in x_s out of the noise of the bias, for a derivative of the second step: needed
            where the first step is short and the bias small.
    """
    require(draws >= 2, f"a variance needs at least 2 draws, got {draws}")

    points, times, middle, ends, seen = _repeated(draws, x_t, t, s, r, told)
    data = posterior_draws(law, x_t, t, draws, label, generator) if data is None else data
    eps = (points - expand(law.path.alpha(times), points) * data) / expand(law.path.sigma(times), points)
    x_s = law.path.interpolate(data, eps, middle)
    with torch.no_grad():
        target = flow(x_s, middle, ends, seen)
        # What is linear in x_s − E[x_s | x_t] has the mean 0; without it the mean's noise is of the order of the bias.
        linear = torch.zeros_like(target)
        if sharp:
            (mean_s,) = _repeated(draws, law.path.interpolate(*law.posterior(x_t, t, label), s))
            linear = differentiated(lambda point: flow(point, middle, ends, seen), (mean_s,), (x_s - mean_s,))[1]
        exact = flow(x_t, t, r, told) if landed is None else landed
    target, rest = (each.flatten(1).reshape(len(x_t), draws, -1) for each in (target, target - linear))
    (variance, _), (noise, mean) = (_moments(each) for each in (target, rest))
    return Spread(variance=variance, bias=(mean - exact.flatten(1)).square().sum(1) - noise / draws)


def _moments(x: Float[Tensor, "b m d"]) -> tuple[Time, Float[Tensor, "b d"]]:
    """(the unbiased total variance, the mean) of the draws of each row."""
    mean = x.mean(1)
    return (x - mean[:, None]).square().sum((1, 2)) / (x.shape[1] - 1), mean


def adaptive_point(z: Float[Tensor, "n d"], c: float = 1e-3, rounds: int = 500) -> Float[Tensor, "d"]:
    """Where a regression onto samples z with the weight 1/(‖u − z‖² + c) comes to rest: E[(u − z)/(‖u − z‖² + c)] = 0.

    With equal weights that is the mean; here it is pulled to where z is dense, off the mean where z is skewed. By
    u ← Σ w z/Σ w from the mean on.
    """
    point = z.mean(0)
    for _ in range(rounds):
        weight = 1 / ((z - point).square().sum(1) + c)
        moved = (weight[:, None] * z).sum(0) / weight.sum()
        done = bool((moved - point).norm() <= 1e-12 * (1 + point.norm()))
        point = moved
        if done:
            break
    return point


def adaptive_bias(
    law: Law,
    x_t: State,
    t: Time,
    *,
    draws: int = 32,
    label: Label = None,
    generator: torch.Generator | None = None,
) -> Time:
    """‖E[Z‖Z‖² | x_t]‖²/(E[‖Z‖² | x_t]² · E[‖Z‖² | x_t]) of each row: the squared bias of the adaptive weight 1/‖·‖²,
    to first order in the skewness, as a share of the variance of the velocity. Without bias of the estimate, so it may
    be below 0.

    For i.i.d. coordinates the bias is −E[z³]/(D E[z²]) in each: it vanishes with the dimension.
    """
    require(draws >= 4, f"a skewness needs at least 4 draws, got {draws}")
    points, times = _repeated(draws, x_t, t)
    x = posterior_draws(law, x_t, t, draws, label, generator)
    eps = (points - expand(law.path.alpha(times), points) * x) / expand(law.path.sigma(times), points)
    z = law.path.velocity(x, eps, times).flatten(1).reshape(len(x_t), draws, -1)
    z = z - law.velocity(x_t, t, label).flatten(1)[:, None]
    squares = z.square().sum(2)
    skew = z * squares[..., None]
    # Σ_{i≠j} ⟨a_i, a_j⟩ = ‖Σ a‖² − Σ ‖a‖²: products of independent draws only.
    pairs = skew.sum(1).square().sum(1) - skew.square().sum((1, 2))
    energy = squares.mean(1).clamp(min=torch.finfo(z.dtype).tiny)
    return pairs / (draws * (draws - 1)) / energy**3
