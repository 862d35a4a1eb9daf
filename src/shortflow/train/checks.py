"""What a run checks before it trusts itself: weights and gradients equal in all processes, a derivative that is one.

Each of these fails silently otherwise: training goes on, and the model is a worse one. Together they take a few passes
of four rows, once.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shortflow.draw import Draw
from shortflow.dropout import no_dropout
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import uncompiled
from shortflow.plugin import full_products
from shortflow.tangent import Derivative
from shortflow.targets import Target
from shortflow.train.engine import Engine
from shortflow.train.shards import whole
from shortflow.train.step import TrainStep
from shortflow.typing import expand

__all__ = ["check_derivative", "check_gradients", "check_weights", "derivatives_of"]

ROWS = 4
STEPS = (
    1e-2,
    3e-3,
    1e-3,
    3e-4,
    1e-4,
)  # single precision wants large ones, fast embeddings of time small ones
TOLERANCE = 0.05


def check_weights(engine: Engine, module: TrainStep) -> None:
    """Raise `ShortflowError` where processes do not start from the same weights, averages and buffers.

    Compared by their sums in double precision.
    """
    models = {"network": module.flow, **{name: average.module for name, average in module.averages.items()}}
    models |= {f"frozen model {i}": model for i, model in enumerate(module.frozen)}
    sums = {
        f"{name}: {key}": _sum(value) for name, model in models.items() for key, value in model.state_dict().items()
    }
    _same(
        engine,
        sums,
        "the weights {name} of process {rank} are not those of process 0; all processes must build the model with the "
        "same seed and read the same files",
    )


def check_gradients(engine: Engine, module: TrainStep) -> None:
    """Raise `ShortflowError` where processes would step along different gradients."""
    weights = module.flow.named_parameters()
    sums = {name: _sum(weight.grad) for name, weight in weights if weight.grad is not None}
    _same(
        engine,
        sums,
        "the gradient of {name} in process {rank} is not that in process 0: gradients are not exchanged; take the loss "
        "from the wrapped step module, not from the module inside",
    )


def _sum(value: Tensor) -> float:
    return float(whole(value.detach()).double().sum())


def _same(engine: Engine, sums: dict[str, float], message: str) -> None:
    if engine.world == 1:
        return
    first, *others = engine.gathered(sums)
    for rank, other in enumerate(others, 1):
        for name in [*first, *(set(other) - set(first))]:
            if first.get(name) != other.get(name):
                raise ShortflowError(message.format(name=name, rank=rank))


def derivatives_of(target: Target) -> tuple[Derivative, ...]:
    """The derivatives along the path that a target takes, each of its parts its own."""
    found = (getattr(part, "derivative", None) for part in getattr(target, "parts", (target,)))
    return tuple(derivative for derivative in found if isinstance(derivative, Derivative))


def check_derivative(flow: FlowMap, derivative: Derivative, draw: Draw) -> None:
    """Raise `ShortflowError` where the derivative along the path is far from central differences, on a few rows.

    Networks start as the zero function, of which every derivative is zero, right or wrong. Here weights that are zero
    are small random numbers instead (the network keeps its own), so that every layer is seen before the first step.
    What depends on no input passes, and what is lost in rounding.
    """
    rows = slice(0, min(ROWS, len(draw.x)))
    t = draw.times.t[rows].clamp(2 * STEPS[0], 1 - 2 * STEPS[0])
    r = torch.minimum(draw.times.r[rows], t)
    x, eps = draw.x[rows], draw.eps[rows]
    x_t, v = flow.path.interpolate(x, eps, t), flow.path.velocity(x, eps, t)
    label, guidance = draw.inputs(rows)
    module, weights = _Prediction(flow), _without_zeros(flow)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return functional_call(module, weights, (x, t, r, label, guidance))

    far: list[float] = []
    with torch.no_grad(), no_dropout(), uncompiled(flow.network), full_products(convolutions=True):
        value, rate = derivative(f, x_t, t, v)
        for h in STEPS:
            gap = torch.full_like(t, h)
            ahead, behind = (f(x_t + expand(step, v) * v, t + step) for step in (gap, -gap))
            difference = (ahead - behind) / (2 * h)
            size = max(float(rate.norm()), float(difference.norm()))
            rounding = 4 * torch.finfo(value.dtype).eps * float(value.norm()) / h
            if rounding >= TOLERANCE / 2 * size or not math.isfinite(rounding):
                continue  # they say nothing, for or against
            far.append(float((difference - rate).norm()) / size)
            if far[-1] <= TOLERANCE + rounding / size:
                return
    if far:
        raise ShortflowError(
            f"the derivative of {type(flow.network).__name__} along the path by {type(derivative).__name__} differs "
            f"from central differences by {min(far):.0%}: an operation of the network has a wrong rule, or is not "
            "smooth. Set the target's derivative to ForwardMode or CentralDifference, or mend the operation"
        )


class _Prediction(nn.Module):
    """`FlowMap.predict` as the call of a module, which can be made with other weights."""

    def __init__(self, flow: FlowMap) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, *inputs: Any) -> Tensor:
        return self.flow.predict(*inputs)


@torch.no_grad()
def _without_zeros(flow: FlowMap) -> dict[str, Tensor]:
    """Weights in place of those with zeros among them, by their names in `_Prediction`.

    Random numbers instead of the zeros, of deviation ½ in vectors and ½/√n in what sums over n inputs; the same every
    time and in all processes, from a generator of their own.
    """
    found: dict[str, Tensor] = {}
    for name, weight in flow.named_parameters():
        zero = weight == 0
        if weight.is_floating_point() and zero.any():
            generator = torch.Generator(weight.device).manual_seed(0)
            noise = torch.empty_like(weight, dtype=torch.float32).normal_(generator=generator)
            inputs = weight[0].numel() if weight.ndim > 1 else 1
            found[f"flow.{name}"] = torch.where(zero, (0.5 / inputs**0.5 * noise).to(weight.dtype), weight)
    return found
