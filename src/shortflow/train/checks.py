"""What a run checks before it trusts itself: weights and gradients equal in all processes, a derivative that is one.

Each of these fails silently otherwise: training goes on, and the model is a worse one. Together they take a few passes
of four rows, once.
"""

import torch
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import no_dropout
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import uncompiled
from shortflow.tangent import Derivative
from shortflow.train.engine import Engine
from shortflow.train.shards import whole
from shortflow.train.step import TrainStep
from shortflow.typing import expand

__all__ = ["check_derivative", "check_gradients", "check_weights"]

ROWS = 4
STEPS = (1e-2, 1e-3, 1e-4)  # of the differences; fast embeddings of time want small ones, single precision large ones
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


def check_derivative(flow: FlowMap, derivative: Derivative, draw: Draw) -> None:
    """Raise `ShortflowError` where the derivative along the path is far from central differences, on a few rows.

    A network that is still zero everywhere passes.
    """
    rows = slice(0, min(ROWS, len(draw.x)))
    t = draw.times.t[rows].clamp(2 * STEPS[0], 1 - 2 * STEPS[0])
    r = torch.minimum(draw.times.r[rows], t)
    x, eps = draw.x[rows], draw.eps[rows]
    x_t, v = flow.path.interpolate(x, eps, t), flow.path.velocity(x, eps, t)
    label, guidance = draw.inputs(rows)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return flow.predict(x, t, r, label, guidance)

    with torch.no_grad(), no_dropout(), uncompiled(flow.network):
        value, rate = derivative(f, x_t, t, v)
        apart = []
        for h in STEPS:
            gap = torch.full_like(t, h)
            ahead, behind = (f(x_t + expand(step, v) * v, t + step) for step in (gap, -gap))
            noise = 10 * torch.finfo(value.dtype).eps * float(value.norm()) / h
            far = float(((ahead - behind) / (2 * h) - rate).norm())
            apart.append(max(0.0, far - noise) / max(float(rate.norm()), 1e-30))
    if not min(apart) <= TOLERANCE:
        raise ShortflowError(
            f"the derivative of {type(flow.network).__name__} along the path by {type(derivative).__name__} differs "
            f"from central differences by {min(apart):.0%}: an operation of the network has a wrong rule, or is not "
            "smooth. Set the target's derivative to ForwardMode or CentralDifference, or mend the operation"
        )
