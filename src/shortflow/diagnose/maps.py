"""A trained model as the flow map that its samples follow, and the bound on what one jump of it misses."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.flowmap import FlowMap, LogStep, Transfer
from shortflow.theory import Law
from shortflow.theory.bounds import Bound, continuous_bound, discrete_bound
from shortflow.typing import Condition, Report

__all__ = ["StraightMap", "as_map", "bound_of", "dyadic_times", "starting_points"]

State = Float[Tensor, "b ..."]
Time = Float[Tensor, "b"]
Label = Condition | None


class StraightMap(FlowMap):
    """The jumps that a network for r = t takes as a sampler: straight along its velocity, X_{t,r}(x) = ā x + b̄
    u_{t,t}(x)."""

    def __init__(self, flow: FlowMap) -> None:
        super().__init__(
            flow.network,
            flow.path,
            Transfer(),
            flow.conditioning,
            sigma_data=flow.sigma_data,
            ends="any",
            span=flow.span,
            guided=flow.guided,
            lowest=flow.lowest,
        )
        self.flow = flow

    def predict(
        self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Float[Tensor, "b 3"] | None = None
    ) -> State:
        return self.flow.velocity(x_t, t, label, guidance)


def as_map(flow: FlowMap) -> FlowMap:
    """The flow map itself, or the straight jumps of a network that knows r = t only."""
    return StraightMap(flow) if flow.ends == "diagonal" else flow


def dyadic_times(flow: FlowMap) -> list[float]:
    """1, ½, ¼, … and 0: times from which a network for jumps of dyadic length can jump to the data."""
    steps = flow.conditioning.steps if isinstance(flow.conditioning, LogStep) else 128
    return [*(2.0**-k for k in range(steps.bit_length())), 0.0]


def bound_of(
    flow: FlowMap,
    law: Law,
    x: State,
    *,
    label: Label = None,
    nodes: int = 32,
    report: Report | None = None,
) -> tuple[Bound, Literal["continuous", "discrete"]]:
    """The bound for one jump from the noisy end of the network's span, where x are, to its data end; and which it is.

    That in continuous time, except for networks that know jumps of dyadic length only.
    """
    if flow.ends == "dyadic":
        return discrete_bound(flow, law, x, dyadic_times(flow), label=label), "discrete"
    low, high = flow.span
    found = continuous_bound(
        as_map(flow),
        law,
        x,
        start=high,
        end=low,
        lowest=flow.lowest,
        nodes=nodes,
        label=label,
        report=report,
    )
    return found, "continuous"


def starting_points(law: Law, flow: FlowMap, n: int, generator: torch.Generator) -> State:
    """n points of the law at the noisy end of the network's span."""
    like = next(flow.parameters(), torch.empty(0))
    t = torch.full((n,), flow.span[1], dtype=like.dtype, device=like.device)
    return law.sample_marginal(t, generator)
