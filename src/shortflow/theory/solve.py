"""The classical fourth-order Runge–Kutta method, from time t to time r of each row.

The step sums give the average velocity u_{t,r} = (X_{t,r}(x) − x)/(r − t) without that division: it is the mean of
the slopes of the steps. So u is accurate for any gap, its value at r = t is v, and it can be differentiated there.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.typing import expand

__all__ = ["rk4", "rk4_average_velocity"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Velocity = Callable[[Tensor, Tensor], Tensor]


def rk4_average_velocity(velocity: Velocity, x: State, t: Time, r: Time, steps: int = 200) -> State:
    """The average velocity u_{t,r}(x) of dx/dt = velocity(x, t), shape (b, ...), with error O(|r − t|⁴/steps⁴).

    Works in both directions of time; u_{t,t} = velocity(x, t) exactly.

    Raises:
        ShortflowError: if `steps` is not positive.
    """
    if steps < 1:
        raise ShortflowError(f"steps must be at least 1, got {steps}")
    gap = r - t
    h = expand(gap / steps, x)
    half, sixth = h / 2, h / 6
    state, total, end = x, torch.zeros_like(x), t
    for i in range(steps):
        # Nodes are fractions of the gap, so that the last one is r and not r plus the rounding of all steps.
        start, middle, end = end, t + gap * ((i + 0.5) / steps), t + gap * ((i + 1) / steps)
        k1 = velocity(state, start)
        k2 = velocity(state + half * k1, middle)
        k3 = velocity(state + half * k2, middle)
        k4 = velocity(state + h * k3, end)
        slopes = k1 + 2 * (k2 + k3) + k4
        state, total = state + sixth * slopes, total + slopes
    return total / (6 * steps)


def rk4(velocity: Velocity, x: State, t: Time, r: Time, steps: int = 200) -> State:
    """The solution at time r of dx/dt = velocity(x, t) started at x at time t: X_{t,r}(x), shape (b, ...)."""
    return x + expand(r - t, x) * rk4_average_velocity(velocity, x, t, r, steps)
