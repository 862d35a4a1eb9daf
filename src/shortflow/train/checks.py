"""What a run checks before it trusts itself: weights and gradients equal in all processes, derivatives that are some.

Each of these fails silently otherwise: training goes on, and the model is a worse one. Together they take a few passes
of one row, once.
"""

import math
from collections.abc import Sequence
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
from shortflow.tangent import Slope
from shortflow.train.engine import Engine
from shortflow.train.shards import gather, whole
from shortflow.train.step import TrainStep

__all__ = ["Checks", "check_gradients", "check_slopes", "check_weights"]

ROWS = 1  # a wrong rule is wrong on every row
# The first one is right for most networks; slow ones drown in rounding and want a larger step, fast embeddings of time
# a smaller one.
STEPS = (3e-2, 1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
TOLERANCE = 0.02


class Checks:
    """All of them, each in the first step that can tell: numbers that are not finite say nothing.

    In a step that is skipped for such numbers a check is put off to the next one, in all processes alike.

    Raises:
        ShortflowError: at once if processes do not have the same weights; from the others, see there.
    """

    def __init__(self, engine: Engine, module: TrainStep) -> None:
        check_weights(engine, module)
        self.engine, self.module = engine, module
        self.slopes = module.objective.target.slopes()
        self.gradients = engine.world > 1

    def before(self, wrapped: nn.Module, draw: Draw) -> None:
        """Before the first pass of a step."""
        if self.slopes:
            gather(wrapped)
            known = self.engine.together(lambda: check_slopes(self.module.flow, self.slopes, draw))
            if not self.engine.any(not known):
                self.slopes = ()

    def after(self) -> None:
        """After the last pass of a step, when the gradients are there."""
        if self.gradients:
            self.gradients = not check_gradients(self.engine, self.module)


def check_weights(engine: Engine, module: TrainStep) -> None:
    """Raise `ShortflowError` where processes do not start from the same weights, averages and buffers.

    Compared by their sums in double precision.
    """
    models = {"network": module.flow, **{name: average.module for name, average in module.averages.items()}}
    models |= {f"frozen model {i}": model for i, model in enumerate(module.frozen)}
    if engine.world == 1:
        return
    sums = {
        f"{name}: {key}": _sum(value) for name, model in models.items() for key, value in model.state_dict().items()
    }
    _same(
        engine,
        sums,
        "the weights {name} of process {rank} are not those of process 0; all processes must build the model with the "
        "same seed and read the same files",
    )


def check_gradients(engine: Engine, module: TrainStep) -> bool:
    """Raise `ShortflowError` where processes would step along different gradients. Whether all of them are finite."""
    weights = module.flow.named_parameters()
    sums = {name: _sum(weight.grad) for name, weight in weights if weight.grad is not None}
    _same(
        engine,
        sums,
        "the gradient of {name} in process {rank} is not that in process 0: gradients are not exchanged; take the loss "
        "from the wrapped step module, not from the module inside",
    )
    return all(map(math.isfinite, sums.values()))


def _sum(value: Tensor) -> float:
    return float(whole(value.detach()).sum(dtype=torch.float64))


def _same(engine: Engine, sums: dict[str, float], message: str) -> None:
    first, *others = engine.gathered(sums)
    for rank, other in enumerate(others, 1):
        for name in [*first, *(set(other) - set(first))]:
            if not _equal(first.get(name), other.get(name)):
                raise ShortflowError(message.format(name=name, rank=rank))


def _equal(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def check_slopes(flow: FlowMap, slopes: Sequence[Slope], draw: Draw) -> bool:
    """Raise `ShortflowError` where derivatives of the network are far from central differences, on one row.

    Networks start as the zero function, of which every derivative is zero, right or wrong. Here weights that are zero
    are small random numbers instead (the network keeps its own), so that every layer is seen before the first step.
    What depends on no input passes, and what is lost in rounding.

    Returns:
        Whether anything can be said: not where the rows or the prediction are not finite.
    """
    weights = _without_zeros(flow)
    told = [_check(flow, weights, slope, draw) for slope in slopes]  # each, also after one that tells nothing
    return all(told)


def _check(flow: FlowMap, weights: dict[str, Tensor], slope: Slope, draw: Draw) -> bool:
    """The same of one of them, with these weights in place of the network's own."""
    rows = slice(0, min(ROWS, len(draw.x)))
    room = max(STEPS)  # so that no step leaves 0 < r < t < 1
    t = draw.times.t[rows].clamp(3 * room, 1 - 2 * room)
    r = torch.minimum(draw.times.r[rows].clamp(min=room * slope.along[2]), t - 2 * room)
    x, eps = draw.x[rows], draw.eps[rows]
    x_t, v = flow.path.interpolate(x, eps, t), flow.path.velocity(x, eps, t)
    label, guidance = draw.inputs(rows)
    module, (a, b, c) = _Prediction(flow), slope.along

    def f(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return functional_call(module, weights, (x, t, r, label, guidance))

    far: list[float] = []
    with torch.no_grad(), no_dropout(), uncompiled(flow.network), full_products(convolutions=True):
        value, rate = slope.of(f, x_t, t, r, v)
        if not value.isfinite().all():
            return False
        for h in STEPS:
            ahead, behind = (f(x_t + a * step * v, t + b * step, r + c * step) for step in (h, -h))
            difference = (ahead - behind) / (2 * h)
            size = max(float(rate.norm()), float(difference.norm()))
            rounding = 2 * torch.finfo(value.dtype).eps * float(value.norm()) / h
            if rounding >= TOLERANCE / 2 * size:
                continue  # they say nothing, for or against
            far.append(float((difference - rate).norm()) / size)
            if far[-1] <= TOLERANCE + rounding / size:
                return True
    if far:
        raise ShortflowError(
            f"the derivative of {type(flow.network).__name__} {slope.where}, by {slope.by}, {_apart(far)}: an "
            f"operation of the network has a wrong rule, or is not smooth. {_remedy(slope)}"
        )
    return True


def _apart(far: list[float]) -> str:
    """How far a derivative is from central differences of several steps, in words."""
    known = [each for each in far if math.isfinite(each)]
    return f"differs from central differences by {min(known):.0%}" if known else "is not finite where the network is"


def _remedy(slope: Slope) -> str:
    mend = "mend the operation"
    return f"{slope.instead[0].upper()}{slope.instead[1:]}, or {mend}" if slope.instead else f"{mend.capitalize()}"


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
