"""Samplers that solve dx/dt = u_{t,t}(x), for networks that know their velocity: those trained at r = t."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap, LogStep
from shortflow.sample.grids import CLOSE, check_grid, lowest_start
from shortflow.sample.rules import Label, Noise, Sampler, State, at, start
from shortflow.typing import expand

__all__ = ["Euler", "Heun"]


def _check_velocity(flow: FlowMap, times: Sequence[float]) -> None:
    """Raise `SamplerError` unless the network knows u_{t,t} at the starts of the grid."""
    check_grid(flow, times)
    if flow.ends == "zero":
        raise SamplerError(
            "this model was trained only for jumps to the data (r = 0) and knows no velocity; use the re-noise sampler"
        )
    if flow.ends == "dyadic":
        # Its velocity is that of the finest step, learnt at the multiples of that step.
        finest = flow.conditioning.steps if isinstance(flow.conditioning, LogStep) else None
        if finest is None:
            raise SamplerError(
                "this model was trained for jumps of length 1, 1/2, 1/4, … and is not told which is the finest; "
                "use the push-forward sampler"
            )
        for time in times[:-1]:
            if abs(time * finest - round(time * finest)) > 1e-3:
                raise SamplerError(
                    f"this model learnt its velocity at multiples of 1/{finest}, not at {time:g}; "
                    f"use 1, 2, 4, 8, …, {finest} steps on the uniform grid"
                )


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """x ← x + (t_{i+1} − t_i) u_{t,t}(x) at t = t_i: of first order, one network call a step.

    On the linear and the variance-exploding path this is DDIM, so that for flow matching it is `PushForward`.
    """

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_velocity(flow, times)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        x = start(flow, eps[0], times[0])
        for a, b in pairwise(times):
            t, r = at(x, a), at(x, b)
            x = x + expand(r - t, x) * flow.velocity(x, t, label)
        return x


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Euler's step to x', then x ← x + (r − t)(u_{t,t}(x) + u_{r,r}(x'))/2: of second order, two network calls a step.

    A last step to t = 0 stays Euler's, and one to below the lowest time of a truncated network: EDM has no velocity
    there, and no network needs one. A single step errs by its length squared, so the order is the same. In all 2N − 1
    network calls.
    Source: EDM (arXiv 2206.00364), algorithm 1, here with the path's own time.
    """

    def check(self, flow: FlowMap, times: Sequence[float]) -> None:
        _check_velocity(flow, times)

    def run(self, flow: FlowMap, eps: Noise, times: Sequence[float], label: Label) -> State:
        x, known = start(flow, eps[0], times[0]), max(CLOSE, lowest_start(flow))
        for a, b in pairwise(times):
            t, r = at(x, a), at(x, b)
            v = flow.velocity(x, t, label)
            if b >= known:
                v = (v + flow.velocity(x + expand(r - t, x) * v, r, label)) / 2
            x = x + expand(r - t, x) * v
        return x
