"""Targets of infinitesimal steps. With D_t = ∂_t + v·∇ at fixed r, the exact map has

    D_t X_{t,r}(x_t) = [a v + ∂_t b F] + [∂_t a x + b D_t F] = 0        (s → t, Eulerian)
    ∂_r X_{t,r}(x_t) = v_r(X_{t,r}(x_t))                                (s → r, Lagrangian)

`Tangent` moves the network's output along w D_t X (against it where b > 0, so that the state always moves against it);
for the average velocity (a = 1, b = r − t) and w = 1 the target is v − (t − r) D_t F, MeanFlow's. `Eulerian` and
`Terminal` compare the two sides themselves, with gradient through the derivative.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.rows import Rows, count, put, within
from shortflow.tangent import (
    Derivative,
    DualPass,
    Slope,
    along_path,
    differentiated,
    in_end,
    in_space,
    in_time,
    kept,
)
from shortflow.targets.base import (
    Prediction,
    State,
    Target,
    TargetValue,
    Time,
    dropout_of,
    predicted,
    seeing,
)
from shortflow.typing import expand
from shortflow.velocity import Conditional, FieldVelocity, Own, Velocity

__all__ = ["CosineWeight", "Eulerian", "Tangent", "TangentWeight", "Terminal", "UnitWeight"]

Norm = Literal["l2", "rms"]


def _normalized(g: State, c: float, norm: Norm) -> State:
    """g/(‖g‖ + c), row by row."""
    square = g.flatten(1).square()
    size = (square.sum(1) if norm == "l2" else square.mean(1)).sqrt()
    return g / expand(size + c, g)


def _check(name: str, warmup: float, normalize: float | None, norm: str) -> None:
    if not 0 <= warmup <= 1:
        raise ShortflowError(f"{name}: warmup is a share of the run and must be in [0, 1], got {warmup}")
    if normalize is not None and not normalize > 0:
        raise ShortflowError(f"{name}: normalize must be positive or null, got {normalize}")
    if norm not in ("l2", "rms"):
        raise ShortflowError(f"{name}: norm must be 'l2' or 'rms', got {norm!r}")


class TangentWeight(ABC):
    """The factor w(t) on D_t X."""

    @abstractmethod
    def __call__(self, t: Time) -> Time:
        """w at each row."""


@dataclass(frozen=True, kw_only=True)
class UnitWeight(TangentWeight):
    """w = 1 (MeanFlow, ESC)."""

    def __call__(self, t: Time) -> Time:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class CosineWeight(TangentWeight):
    """w = (2/π) cos(πt/2): sCM's tangent cos θ · df/dθ in the angle θ = πt/2."""

    def __call__(self, t: Time) -> Time:
        return (2 / torch.pi) * torch.cos(t * (torch.pi / 2))


@dataclass(frozen=True, kw_only=True)
class Tangent(Target):
    """F⁻ + w · D_t X along `velocity`; on rows with r = t, the output that stands for the velocity.

    Args:
        velocity: v, the base of the target.
        direction: the direction of the derivative; None: the same velocity. Another one with the same mean and less
            variance is improved MeanFlow's (the network's own).
        weight: w(t).
        warmup: share of the run over which the propagated part ∂_t a x + b D_t F grows from 0 to its full size.
        normalize: c in g ← g/(‖g‖ + c) with g = w D_t X, on rows with r < t; None for no normalisation.
        norm: ‖·‖ as the plain Euclidean norm ("l2", as sCM is written) or as the root mean square ("rms").
        derivative: how D_t is taken: by a dual pass, by torch's forward mode or by central differences.
    """

    velocity: Velocity = Conditional()
    direction: Velocity | None = None
    weight: TangentWeight = UnitWeight()
    warmup: float = 0.0
    normalize: float | None = None
    norm: Norm = "l2"
    derivative: Derivative = DualPass()
    gaps: ClassVar = ("mixed", "positive")
    continuous: ClassVar = True

    def __post_init__(self) -> None:
        _check("Tangent", self.warmup, self.normalize, self.norm)

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,) if self.direction is None else (self.velocity, self.direction)

    def slopes(self) -> tuple[Slope, ...]:
        return along_path(self.derivative), along_path(self.derivative, moving=False)

    @property
    def grounded(self) -> bool:
        return self.velocity.grounded

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        with torch.no_grad():
            v, along = self._velocities(teacher, draw, rows, jump := draw.kinds(rows)[0])
        if count(jump) == 0:
            return self._target(teacher, draw, rows, v)
        return self._target(teacher, draw, rows, v, (jump, *self._apart(teacher, draw, within(rows, jump), along)))

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.derivative.keeps

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        """One pass on rows with r = t, whose output is their conditional velocity, too; a dual pass on the others."""
        if not self.derivative.keeps:
            return super().joint(flow, draw, rows, head)
        jump, still = draw.kinds(rows)
        parts: list[Prediction] = []
        places: list[Rows] = []
        if count(still):
            parts.append(predicted(flow, draw, within(rows, still), head))
            places.append(still)
            draw = seeing(flow, draw, within(rows, still), parts[0])
        with torch.no_grad():
            v, along = self._velocities(flow, draw, rows, jump)
        if count(jump) == 0:
            return parts[0], self._target(flow, draw, rows, v)
        own, rate = self._kept(flow, draw, within(rows, jump), along, head)
        target = self._target(flow, draw, rows, v, (jump, own.output.detach(), rate))
        return Prediction.joined([*parts, own], [*places, jump]), target

    def _velocities(self, teacher: FlowMap, draw: Draw, rows: Rows, jump: Rows) -> tuple[State, Float[Tensor, "j ..."]]:
        """(v of the chosen rows, the direction of the derivative on those at the positions `jump`)."""
        if self.direction is None or count(jump) == 0:
            v = self.velocity.on(teacher, draw, rows)
            return v, v[jump]
        return self.velocity.with_direction(self.direction, teacher, draw, rows, jump)

    def _apart(self, teacher: FlowMap, draw: Draw, rows: Rows, along: State) -> tuple[State, State]:
        """(F, D_t F along `along`) on the chosen rows, all with r < t, without gradient."""
        t, _, r = draw.times.take(rows)
        label, guidance = draw.inputs(rows)

        def network(x: Tensor, time: Tensor) -> Tensor:
            with dropout_of(draw, rows):  # inside, so that every evaluation starts from the first mask
                return teacher.predict(x, time, r, label, guidance)

        return self.derivative(network, draw.x_t[rows], t, along)

    def _kept(
        self, flow: FlowMap, draw: Draw, rows: Rows, along: State, head: bool
    ) -> tuple[Prediction, Float[Tensor, "k ..."]]:
        """(the prediction, D_t F along `along`) on the chosen rows, all with r < t, from one pass."""
        t, _, r = draw.times.take(rows)
        label, guidance = draw.inputs(rows)

        def network(x: Tensor, time: Tensor) -> tuple[Tensor, ...]:
            with dropout_of(draw, rows):
                if head:
                    return flow.predict_both(x, time, r, label, guidance)
                return (flow.predict(x, time, r, label, guidance),)

        values, rate = self.derivative.keeping(network, draw.x_t[rows], t, along)
        return Prediction(*values), rate

    def _target(
        self,
        teacher: FlowMap,
        draw: Draw,
        rows: Rows,
        v: State,
        jumps: tuple[Rows, Float[Tensor, "j ..."], Float[Tensor, "j ..."]] | None = None,
    ) -> TargetValue:
        """The target of the chosen rows; `jumps` are the positions of those with r < t, and F and D_t F there."""
        with torch.no_grad():
            t = draw.times.t[rows]
            value = teacher.output_of(draw.x_t[rows], v, t)
            size = torch.full_like(t, torch.nan)
            if jumps is not None:
                jump, output, rate = jumps
                moved = self._moved(teacher, draw, within(rows, jump), v[jump], output, rate)
                value = put(value, jump, moved)
                size = put(size, jump, rate.flatten(1).square().mean(1).sqrt())
        return TargetValue(value=value, space="output", logs={"tangent": size}, velocity=v)

    def _moved(self, teacher: FlowMap, draw: Draw, rows: Rows, v: State, output: State, rate: State) -> State:
        """The target output on the chosen rows, all with r < t, from F and D_t F there."""
        t, _, r = draw.times.take(rows)
        x = draw.x_t[rows]
        a, b = teacher.coefficients(t, r)
        a_t, b_t = teacher.parameterization.coefficient_rates(teacher.path, teacher.sigma_data, t, r)
        w = -self.weight(t) * torch.sign(b)  # b < 0 for all parameterisations but EDM's
        ramp = draw.progress.along(self.warmup)
        propagated = expand(w * a_t, x) * x + expand(w * b, x) * rate
        if self.normalize is None:
            # (1 + w ∂_t b) is exactly 0 for the average velocity with w = 1: no F is added and taken away again.
            return expand(1 + w * b_t, x) * output + expand(w * a, x) * v + ramp * propagated
        g = expand(w * a, x) * v + expand(w * b_t, x) * output + ramp * propagated
        return output + _normalized(g, self.normalize, self.norm)


@dataclass(frozen=True, kw_only=True)
class Terminal(Target):
    """∂_r X_{t,r}(x_t) = v_r(X_{t,r}(x_t)): the velocity at the end of a jump is that of the flow there.

    With gradient `through` the derivative this is Lagrangian self-distillation (LSD) and terminal velocity matching
    (TVM): ∂_r X, with gradient, is compared with v_r, without. Else the output is moved along ∂_r X − v_r, the limit
    s → r of two steps whose second one follows v (AYF's LMD): F + sign(b) g, g possibly normalised to g/(‖g‖ + c).

    Args:
        velocity: v, known at every point: the network's own (needs rows with r = t), or a teacher's.
        through, normalize, norm: as said; normalisation only without gradient through the derivative.
    Source: Boffi et al. (arXiv 2505.18825), TVM (arXiv 2511.19797), AYF (arXiv 2506.14603).
    """

    velocity: Velocity = Own()
    through: bool = True
    normalize: float | None = None
    norm: Norm = "l2"
    gaps: ClassVar = ("positive",)
    continuous: ClassVar = True

    def __post_init__(self) -> None:
        _check("Terminal", 0.0, self.normalize, self.norm)
        if not isinstance(self.velocity, FieldVelocity):
            raise IncompatibleParts(
                f"Terminal asks for the velocity at the end of the jump, but {type(self.velocity).__name__} is known "
                "at x_t only; use velocity=Own() or velocity=Reference()"
            )
        if self.through and self.normalize is not None:
            raise ShortflowError("Terminal: normalize needs through=False, where the target is an output")

    @property
    def compares(self) -> Literal["jump", "rate"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "rate" if self.through else "jump"

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)

    def slopes(self) -> tuple[Slope, ...]:
        return (in_end(graph=self.through),)

    def compared(self, flow: FlowMap, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        t, _, r = draw.times.take(rows)
        with dropout_of(draw, rows):
            return flow.end_rate(draw.x_t[rows], t, r, *draw.inputs(rows))

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        t, _, r = draw.times.take(rows)
        x_t, (label, guidance) = draw.x_t[rows], draw.inputs(rows)
        with torch.no_grad():
            if self.through:
                if output is None:
                    with dropout_of(draw, rows):
                        output = teacher.predict(x_t, t, r, label, guidance)
                return TargetValue(value=self._landing(teacher, draw, rows, output), space="rate")
            with dropout_of(draw, rows):
                own, rate = teacher.end_rate(x_t, t, r, label, guidance)
            return self._target(teacher, draw, rows, own, rate)

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self.through

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        """The prediction is the value of the pass that has ∂_r F."""
        if self.through:
            return super().joint(flow, draw, rows, head)
        t, _, r = draw.times.take(rows)
        x_t, (label, guidance) = draw.x_t[rows], draw.inputs(rows)

        def network(end: Tensor) -> tuple[Tensor, ...]:
            with dropout_of(draw, rows):
                if head:
                    return flow.predict_both(x_t, t, end, label, guidance)
                return (flow.predict(x_t, t, end, label, guidance),)

        values, slope = kept(network, (r,), (torch.ones_like(r),))
        found = Prediction(*values)
        with torch.no_grad():
            own = found.output.detach()
            return found, self._target(flow, draw, rows, own, flow.end_rate_of(x_t, t, r, own, slope))

    def _landing(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State) -> State:
        """v_r at the end of the jump of the chosen rows."""
        assert isinstance(self.velocity, FieldVelocity)  # checked at construction
        t, _, r = draw.times.take(rows)
        return self.velocity.field(teacher, draw, rows, teacher.move(draw.x_t[rows], output, t, r), r)

    def _target(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State, rate: State) -> TargetValue:
        """The output moved along ∂_r X − v_r, from F and ∂_r X."""
        t, _, r = draw.times.take(rows)
        _, b = teacher.coefficients(t, r)
        g = expand(torch.sign(b), output) * (rate - self._landing(teacher, draw, rows, output))
        if self.normalize is not None:
            g = _normalized(g, self.normalize, self.norm)
        return TargetValue(value=output + g, space="output")


@dataclass(frozen=True, kw_only=True)
class Eulerian(Target):
    """D_t X_{t,r}(x_t) = 0 as a residual, with gradient through the derivative in time (Eulerian self-distillation).

    Args:
        velocity: v; the network's own needs rows with r = t.
        detach_space: no gradient through ∇X·v, as recommended for stability.
    Source: Boffi et al. (arXiv 2505.18825). Without gradient through the derivative it is `Tangent(velocity=Own())`.
    """

    velocity: Velocity = Own()
    detach_space: bool = True
    gaps: ClassVar = ("positive",)
    continuous: ClassVar = True
    compares: ClassVar = "rate"

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)

    def slopes(self) -> tuple[Slope, ...]:
        return in_time(moving=False), in_space() if self.detach_space else in_time(moving=True)

    def compared(self, flow: FlowMap, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        t, _, r = draw.times.take(rows)
        x, (label, guidance) = draw.x_t[rows], draw.inputs(rows)
        v = self.velocity.on(teacher, draw, rows)
        still = torch.zeros_like(x)
        with dropout_of(draw, rows):
            output, residual = flow.residual(x, t, r, still if self.detach_space else v, label, guidance)
        if not self.detach_space:
            return output, residual
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):

            def jump(x: Tensor) -> Tensor:
                with dropout_of(draw, rows):
                    return flow(x, t, r, label, guidance)

            spatial = differentiated(jump, (x,), (v,))[1]
        return output, residual + spatial

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        return TargetValue(value=torch.zeros_like(draw.x_t[rows]), space="rate")
