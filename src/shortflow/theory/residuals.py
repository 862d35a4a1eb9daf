"""What an exact flow map satisfies, measured on a network: all of these are zero on the exact one.

    semigroup    X_{s,r}∘X_{t,s} − X_{t,r}      Eulerian    ∂_t X_{t,r} + ∇X_{t,r} v_t
    boundary     u_{t,t} − v_t                  Lagrangian  ∂_r X_{t,r} − v_r(X_{t,r})

Squared, summed over coordinates and divided by the dimension; the semigroup by (t − r)², too: then all are squares of
velocities per dimension, and small together. A semigroup residual near 0 beside a large boundary error is a map that is
consistent with itself and wrong.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import require
from shortflow.flowmap import FlowMap
from shortflow.tangent import differentiated
from shortflow.typing import Condition, expand

__all__ = ["boundary_error", "eulerian", "lagrangian", "lipschitz", "realised_guidance", "semigroup"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None
Told = Condition | None
Field = Callable[[State, Time], State]


def _mean_square(x: State) -> Time:
    return x.square().flatten(1).mean(1)


def semigroup(flow: FlowMap, x: State, t: Time, s: Time, r: Time, label: Told = None) -> Time:
    """‖X_{s,r}(X_{t,s}(x)) − X_{t,r}(x)‖²/((t − r)² D) of each row, r < s < t."""
    with torch.no_grad():
        gap = flow(flow(x, t, s, label), s, r, label) - flow(x, t, r, label)
    return _mean_square(gap) / (t - r).square()


def eulerian(flow: FlowMap, x: State, t: Time, r: Time, v: State, label: Told = None) -> Time:
    """‖D_t X_{t,r}(x)‖²/D of each row with the velocity v at (x, t): the exact one, or the network's own."""
    with torch.no_grad():
        return _mean_square(flow.residual(x, t, r, v, label)[1])


def lagrangian(flow: FlowMap, x: State, t: Time, r: Time, velocity: Field, label: Told = None) -> Time:
    """‖∂_r X_{t,r}(x) − v_r(X_{t,r}(x))‖²/D of each row for a velocity field: the exact one, or the network's own."""
    with torch.no_grad():
        output, rate = flow.end_rate(x, t, r, label)
        return _mean_square(rate - velocity(flow.move(x, output, t, r), r))


def boundary_error(flow: FlowMap, x: State, t: Time, v: State, label: Told = None) -> Time:
    """‖u_{t,t}(x) − v‖²/D of each row."""
    with torch.no_grad():
        return _mean_square(flow.velocity(x, t, label) - v)


def lipschitz(f: Callable[[State], State], x: State, rounds: int = 12, seed: int = 0) -> Time:
    """The largest singular value of ∇f at each row of x, from below: power iteration on ∇fᵀ∇f, ‖∇f w‖ of the last w.

    f must treat rows by themselves and have gradients.
    """
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    norm = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(rounds):
        w = w / expand(w.flatten(1).norm(dim=1).clamp(min=tiny), w)
        with torch.no_grad():
            moved = differentiated(f, (x,), (w,))[1]
        norm = moved.flatten(1).norm(dim=1)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (w,) = torch.autograd.grad((f(point) * moved).sum(), point)
    return norm


def realised_guidance(flow: FlowMap, x: State, t: Time, label: Label, direction: State) -> tuple[Time, Time]:
    """(⟨u_c − u_∅, v_c − v_∅⟩, ‖v_c − v_∅‖²) of each row: the ratio of their means is the guidance scale in the
    weights.

    Args:
        direction: v_c − v_∅, exact, at (x, t) for the classes `label`.

    Raises:
        ShortflowError: if the network has no null class.
    """
    null = flow.null_label
    require(null is not None and label is not None, "the realised guidance needs a network with a null class")
    assert null is not None
    assert label is not None
    with torch.no_grad():
        push = flow.velocity(x, t, label) - flow.velocity(x, t, torch.full_like(label, null))
    return (push * direction).flatten(1).sum(1), direction.square().flatten(1).sum(1)
