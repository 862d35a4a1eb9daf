"""How curved the marginal flow of a path is, and what that costs: curvature, energy, turning, the error of few steps.

    κ(t) = E‖D_t v‖²/D,    KE = ∫E‖v‖² dt/D,    S = ∫E‖v_t(x_t) − (x_1 − x_0)‖² dt/D,    ∫E ‖a_⊥‖/‖v‖ dt,

with a = D_t v and a_⊥ its part across v. κ and energies depend on how the path measures time and space; the turning
angle only on the curve that is drawn, and the error of N DDIM steps on what is done with it. Conditional paths of least
energy are linear ones; marginal flows need not be straighter for it: those of Gaussian data as wide as the noise are
straight on the cosine path. The role of Theorem C.7 of ESC (arXiv 2512.11831).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.theory.law import Law
from shortflow.typing import expand

__all__ = ["Motion", "ddim", "motion", "straightness"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Of each row, per dimension: ‖v‖², ‖D_t v‖²; and ‖a_⊥‖/‖v‖, the rate at which its direction turns, in radians."""

    energy: Time
    curvature: Time
    turning: Time


def motion(law: Law, x: State, t: Time, label: Label = None) -> Motion:
    """What the flow does at (x, t)."""
    dimension = x[0].numel()
    v, a = (each.flatten(1) for each in law.movement(x, t, label))
    speed = v.square().sum(1)
    across = a - ((a * v).sum(1) / speed.clamp(min=torch.finfo(v.dtype).tiny))[:, None] * v
    return Motion(
        energy=speed / dimension,
        curvature=a.square().sum(1) / dimension,
        turning=across.norm(dim=1) / speed.sqrt().clamp(min=torch.finfo(v.dtype).tiny),
    )


def straightness(
    law: Law,
    points: Sequence[State],
    times: Float[Tensor, "k"],
    weights: Float[Tensor, "k"],
    mean: State,
    label: Label = None,
) -> Time:
    """∫‖v_t(x_t) − mean velocity‖² dt/D of each row, over the nodes of a quadrature.

    Args:
        points: where trajectories are at the nodes (`trajectory`).
        mean: the mean velocity (x_1 − x_low)/(1 − low) of the interval.
    """
    total = torch.zeros(len(mean), dtype=mean.dtype, device=mean.device)
    for point, time, weight in zip(points, times, weights, strict=True):
        v = law.velocity(point, torch.full_like(total, float(time)), label)
        total += float(weight) * (v - mean).square().flatten(1).mean(1)
    return total


def ddim(law: Law, x: State, times: Sequence[float], label: Label = None) -> State:
    """Where DDIM steps with the exact velocity lead from x over decreasing times: x ← ā x + b̄ v_t(x)."""
    for a, b in pairwise(times):
        t, r = (torch.full((len(x),), time, dtype=x.dtype, device=x.device) for time in (a, b))
        keep, move = law.path.transfer(t, r)
        x = expand(keep, x) * x + expand(move, x) * law.velocity(x, t, label)
    return x
