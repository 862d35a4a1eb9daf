"""The loss of every row, straight from the formulas: one row at a time, in float64, apart from the library's code.

Of the library only the settings are read (the fields of the parts, which are known by name), the numbers of the draw,
and plain passes of the raw networks. Derivatives of networks and of coefficients are taken by reverse mode twice
(`torch.autograd.functional.jvp`), where the library uses forward mode and closed forms. Every symbol is that of the
method's text: x_t = α x + σ ε, X_{t,r}(x) = a x + b F, D_t = ∂_t + v·∇.

    slow_maps    paths, flow maps
    slow_rows    a row and its velocities
    slow_losses  metrics and weightings
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from slow_losses import distances, weighted
from slow_maps import HALF_PI, Model, along, ddim, name, schedule, wide
from slow_rows import Row

# -------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Goal:
    """What the row is compared with, and in which space ("output", "state" or "rate")."""

    value: Tensor
    space: str
    velocity: Tensor | None = None


def goal_of(part: Any, row: Row, output: Tensor) -> Goal:
    """The target of one row; `output` is what the student predicts, without gradient."""
    model, x, (t, _, r) = row.target, row.x_t, row.times
    if name(part) == "Split":
        return goal_of(kind_of(part, row), row, output)
    if name(part) in ("TwoStep", "Secant"):
        return stepped(part, row, output)
    if name(part) == "Eulerian":
        return Goal(torch.zeros_like(x), "rate")
    if name(part) == "Terminal":
        return terminal(part, row, output)
    v = row.velocity(part.velocity)
    if name(part) == "Direct" or bool(r == t):
        return Goal(model.output_for_velocity(x, v, t), "output", v)
    if name(part) == "Along":
        return Goal(model.output_for_state(x, ddim(model.path, x, v, t, r), t, r), "output", v)
    if name(part) == "Tangent":
        return Goal(moved(part, row, v), "output", v)
    raise NotImplementedError(name(part))


def kind_of(part: Any, row: Row) -> Any:
    """The part of a Split that the row belongs to."""
    t, s, r = (float(each) for each in row.times)
    if r == t:
        return part.direct
    return part.limit if part.limit is not None and s == t else part.bootstrap


def two_steps(part: Any, row: Row) -> Tensor:
    """X_{s,r}(X_{t,s}(x_t))."""
    model, x, (t, s, r) = row.target, row.x_t, row.times
    smallest = float(t - r) <= 1.5 * part.guided_gap

    def step(x: Tensor, seen: Tensor, t: Tensor, r: Tensor) -> Tensor:
        output = model.output(seen, t, r, row.seen, row.guidance)
        if part.guidance != 1 and smallest and row.label is not None and not row.hidden:
            free = model.output(seen, t, r, row.null(model.network.null_label))
            output = free + part.guidance * (model.output(seen, t, r, row.label) - free)
        return model.jump(x, output, t, r)

    if part.first is None:
        x = step(x, x, t, s)
    else:
        v = row.velocity(part.first)
        if part.solver == "transfer":
            x = ddim(model.path, x, v, t, s)
        else:
            if part.solver == "heun":
                v = (v + row.velocity(part.first, x + (s - t) * v, s)) / 2
            x = x + wide(s - t, x) * v
    if part.below is not None and float(s) < part.below:
        frozen = Model.of(row.draw.references.teacher)
        return frozen.state(x, s, r, row.told(frozen))
    stops = [s + (r - s) * i / part.segments for i in range(part.segments)] + [r]
    for begin, end in pairwise(stops):
        seen = x if part.clip is None or not part.clip_states else x.clamp(-part.clip, part.clip)
        x = step(x, seen, begin, end)
    return x


def stepped(part: Any, row: Row, output: Tensor) -> Goal:
    """Two steps, as a state or clipped as an output; or their difference quotient."""
    model, x, (t, s, r) = row.target, row.x_t, row.times
    if name(part) == "TwoStep":
        state = two_steps(part, row).detach()
        if part.clip is None:
            return Goal(state, "state")
        return Goal(model.output_for_state(x, state, t, r).clamp(-part.clip, part.clip), "output")
    g = (model.jump(x, output, t, r) - two_steps(part.steps, row).detach()) / wide(t - s, x)
    if part.clip is not None and float(s) > float(r):
        g = g.clamp(-part.clip, part.clip)
    b = model.jump(torch.zeros_like(x), torch.ones_like(x), t, r)
    return Goal(output - torch.sign(b) * g, "output")


def normalized(g: Tensor, part: Any) -> Tensor:
    if part.normalize is None:
        return g
    size = math.sqrt(float((g.square().sum() if part.norm == "l2" else g.square().mean()).detach()))
    return g / (size + part.normalize)


def moved(part: Any, row: Row, v: Tensor) -> Tensor:
    """F⁻ ∓ w D_t X, the second half of D_t X ramped up."""
    model, x, (t, _, r) = row.target, row.x_t, row.times
    direction = v if part.direction is None else row.velocity(part.direction)
    none, one, tick = torch.zeros_like(x), torch.ones_like(x), torch.ones_like(t)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return model.output(x, t, r, row.seen, row.guidance)

    output = network(x, t).detach()
    if name(part.derivative) in ("ForwardMode", "DualPass"):
        rate = along(network, (x, t), (direction, tick)).detach()
    else:
        h = max(1e-6, min(part.derivative.step, float(t) / 2))
        rate = ((network(x + h * direction, t + h) - network(x - h * direction, t - h)) / (2 * h)).detach()
    a, b = model.jump(one, none, t, r), model.jump(none, one, t, r)
    a_t, b_t = (along(lambda t, p=p: model.jump(*p, t, r), (t,), (tick,)) for p in ((one, none), (none, one)))
    weight = 1.0 if name(part.weight) == "UnitWeight" else 2 / math.pi * math.cos(HALF_PI * float(t))
    ramp = 1.0 if part.warmup <= 0 else min(1.0, row.draw.progress.images / row.draw.progress.total / part.warmup)
    g = -torch.sign(b) * weight * (a * v + b_t * output + ramp * (a_t * x + b * rate))
    return (output + normalized(g, part)).detach()


def terminal(part: Any, row: Row, output: Tensor) -> Goal:
    """The velocity at the end of the jump, or the output moved towards it."""
    model, x, (t, _, r) = row.target, row.x_t, row.times
    if part.through:
        return Goal(row.velocity(part.velocity, model.jump(x, output, t, r).detach(), r), "rate")
    own = model.output(x, t, r, row.seen, row.guidance).detach()
    rate = along(lambda r: model.state(x, t, r, row.seen, row.guidance), (r,), (torch.ones_like(r),)).detach()
    g = rate - row.velocity(part.velocity, model.jump(x, own, t, r).detach(), r)
    b = model.jump(torch.zeros_like(x), torch.ones_like(x), t, r)
    return Goal((own + normalized(torch.sign(b) * g, part)).detach(), "output")


def rate_of(part: Any, row: Row) -> Tensor:
    """What the student shows where rates are compared, with gradient."""
    model, x, (t, _, r) = row.student, row.x_t, row.times
    part = kind_of(part, row) if name(part) == "Split" else part
    tick = torch.ones_like(t)

    def jump(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return model.state(x, t, r, row.seen, row.guidance)

    if name(part) == "Terminal":
        return along(lambda r: jump(x, t, r), (r,), (tick,))
    if name(part) == "Eulerian":
        v = row.velocity(part.velocity)
        if not part.detach_space:
            return along(lambda x, t: jump(x, t, r), (x, t), (v, tick))
        return along(lambda t: jump(x, t, r), (t,), (tick,)) + along(lambda x: jump(x, t, r), (x,), (v,)).detach()
    return model.velocity(x, t, row.seen, row.guidance)


# --------------------------------------------------------------------------------------------------------- the template


def compares_rates(part: Any) -> bool:
    part = part.bootstrap if name(part) == "Split" else part
    return name(part) == "Eulerian" or (name(part) == "Terminal" and part.through)


def live_pairs(part: Any, model: Model, draw: Any) -> Any:
    """On rows with r < t, the data that the network makes of the noise, and the points between the two."""
    x, x_t = draw.x.clone(), draw.x_t.clone()
    for k in range(len(x)):
        row = Row(k, draw, model, model)
        t, _, r = row.times
        if float(r) == float(t):
            continue
        _, sigma, _, _ = schedule(model.path, torch.ones_like(t))
        made = wide(sigma, x) * row.of(draw.eps)
        for i in range(part.steps):
            now, then = (torch.full_like(t, 1 - j / part.steps) for j in (i, i + 1))
            v = model.velocity(made, now, row.seen)
            if part.guidance != 1 and row.label is not None:
                free = model.velocity(made, now, row.null(model.network.null_label))
                v = free + part.guidance * (v - free)  # the velocity is affine in the output
            made = ddim(model.path, made, v, now, then).detach()
        alpha, sigma, _, _ = (float(each) for each in schedule(model.path, t))
        x[k], x_t[k] = made[0], (alpha * made + sigma * row.of(draw.eps))[0]
    return replace(draw, x=x, x_t=x_t)


def slow_loss(objective: Any, flow: Any, teacher: Any, draw: Any) -> Tensor:
    """The loss of every row, with the graph back to the weights of the raw network of `flow`."""
    # Of the fused kernels, those of attention have no second derivatives, and layer norm has wrong third ones.
    with sdpa_kernel(SDPBackend.MATH), patch.object(torch.nn.functional, "layer_norm", layer_norm):
        return torch.stack(losses(objective, flow, teacher, draw))


def layer_norm(x: Tensor, shape: tuple[int], eps: float) -> Tensor:
    """(x − mean)/√(variance + ε) over the last axis, in elementary operations."""
    assert shape == x.shape[-1:]
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + eps)


def losses(objective: Any, flow: Any, teacher: Any, draw: Any) -> list[Tensor]:
    student, target = Model.of(flow), Model.of(teacher)
    if objective.coupling is not None:
        draw = live_pairs(objective.coupling, target, draw)
    rows = [Row(k, draw, student, target) for k in range(len(draw.x))]
    rates = compares_rates(objective.target)
    shown, wanted, heads, hopes = [], [], [], []
    for row in rows:
        x, (t, _, r) = row.x_t, row.times
        output = student.output(x, t, r, row.seen, row.guidance)
        goal = goal_of(objective.target, row, output.detach())
        value = goal.value
        if rates:
            shown.append(rate_of(objective.target, row))
            wanted.append(value if goal.space == "rate" else target.end_slope(x, value, t))
        elif objective.metric.space == "state":
            shown.append(student.jump(x, output, t, r))
            wanted.append(value if goal.space == "state" else target.jump(x, value, t, r))
        else:
            shown.append(output)
            wanted.append(value if goal.space == "output" else target.output_for_state(x, value, t, r))
        if objective.velocity_head:
            assert goal.velocity is not None
            heads.append(student.head(x, t, r, row.seen, row.guidance))
            hopes.append(student.output_for_velocity(x, goal.velocity, t))
    loss = weighted(objective.weighting, distances(objective.metric, shown, wanted, rows), rows)
    if heads:
        beside = weighted(objective.weighting, distances(objective.metric, heads, hopes, rows), rows)
        loss = [one + other for one, other in zip(loss, beside, strict=True)]
    return loss
