"""Targets of the one formula: the prediction X_{t,r}(x_t) is regressed onto two steps, X_{s,r} ∘ X_{t,s}(x_t).

This is the only module that knows the template. Three kinds:

- `Direct`: r = t, the target output is a velocity (flow matching);
- `TwoStep`: s < t, the first step by a velocity (a DDIM step) or by the network, the second by the network;
- `Tangent`: the limit s → t. With D_t = ∂_t + v·∇ at fixed r, the exact map has D_t X_{t,r}(x_t) = 0, so the network's
  output is moved along w · D_t X (against it where b > 0, so that the state always moves against it), where

      D_t X = [a v + ∂_t b F] + [∂_t a x + b D_t F].

  For the average velocity (a = 1, b = r − t) and w = 1 the target is v − (t − r) D_t F, MeanFlow's.

`Split` sends rows with r = t to one target and rows with r < t to another. Targets carry no gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import guided_output
from shortflow.tangent import Derivative, ForwardMode
from shortflow.typing import expand
from shortflow.velocity import Conditional, Velocity

__all__ = [
    "CosineWeight",
    "Direct",
    "Split",
    "Tangent",
    "TangentWeight",
    "Target",
    "TargetValue",
    "TwoStep",
    "UnitWeight",
]

Time = Float[Tensor, "k"]
State = Float[Tensor, "k ..."]


@dataclass(frozen=True, kw_only=True)
class TargetValue:
    """The target of every row, as an output F or as a state X (the other is derived where a metric wants it).

    Attributes:
        value: shape (b, ...).
        space: "output" or "state".
        logs: per-row quantities, NaN where a row has none.
    """

    value: Float[Tensor, "b ..."]
    space: Literal["output", "state"]
    logs: Mapping[str, Float[Tensor, "b"]] = field(default_factory=dict)

    def in_space(self, space: str, flow: FlowMap, draw: Draw) -> Float[Tensor, "b ..."]:
        """The target as an output or as a state."""
        if space == self.space:
            return self.value
        t, r = draw.times.t, draw.times.r
        convert = flow.move if space == "state" else flow.pull_back
        return convert(draw.x_t, self.value, t, r)


class Target(ABC):
    """(teacher, draw) → TargetValue, evaluated without gradient on all rows."""

    gaps: ClassVar[tuple[str, ...]]  # the kinds of time law this target is defined for
    continuous: ClassVar[bool | None] = None  # needs s = t (True), s < t (False), or does not care

    @abstractmethod
    def __call__(self, teacher: FlowMap, draw: Draw) -> TargetValue:
        """The target of every row of the draw."""

    def velocities(self) -> tuple[Velocity, ...]:
        """The velocities inside, for compatibility checks."""
        return ()


def _dropout(draw: Draw, rows: Int[Tensor, "k"]) -> AbstractContextManager[None]:
    """The dropout masks of the step, for a pass over the given rows."""
    return shared_dropout(draw.dropout_seed, len(draw.x), rows)


@dataclass(frozen=True, kw_only=True)
class Direct(Target):
    """The output that stands for a velocity: flow matching (defined at r = t)."""

    velocity: Velocity = Conditional()
    gaps: ClassVar = ("zero",)

    def __call__(self, teacher: FlowMap, draw: Draw) -> TargetValue:
        with torch.no_grad():
            v = self.velocity(teacher, draw)
            return TargetValue(value=teacher.output_of(draw.x_t, v, draw.times.t), space="output")

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)


@dataclass(frozen=True, kw_only=True)
class TwoStep(Target):
    """X_{s,r} ∘ X_{t,s}(x_t), the first step by `first` (a DDIM step along that velocity) or, if None, by the network.

    Args:
        first: Conditional() lands exactly on the path, x_s = α_s x + σ_s ε (CT, IMM); None: the network (shortcut).
        clip: bound on the coordinates of x_s as the network sees it and of the target output, as the shortcut models'
            code has it: the target is clip((u_1 + u_2)/2) with u_2 at clip(x_s).
        guidance: with a network first step, both steps of the smallest jump (t − r = `guided_gap`) are guided with
            this scale; larger jumps inherit it. 1 means none.
    """

    first: Velocity | None = Conditional()
    clip: float | None = None
    guidance: float = 1.0
    guided_gap: float = 1 / 64
    gaps: ClassVar = ("positive",)
    continuous: ClassVar = False

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ShortflowError(f"TwoStep: clip must be positive or null, got {self.clip}")
        if self.first is not None and self.guidance != 1:
            raise IncompatibleParts(
                "TwoStep: guidance at the smallest step needs the network's own first step (first=None); "
                "guide a velocity by wrapping it in Guided"
            )

    def velocities(self) -> tuple[Velocity, ...]:
        return () if self.first is None else (self.first,)

    def __call__(self, teacher: FlowMap, draw: Draw) -> TargetValue:
        rows = torch.arange(len(draw.x), device=draw.x.device)
        state = self.state(teacher, draw, rows)
        if self.clip is None:
            return TargetValue(value=state, space="state")
        output = teacher.pull_back(draw.x_t, state, draw.times.t, draw.times.r)
        return TargetValue(value=output.clamp(-self.clip, self.clip), space="output")

    def state(self, teacher: FlowMap, draw: Draw, rows: Int[Tensor, "k"]) -> State:
        """X_{s,r}(X_{t,s}(x_t)) on the chosen rows."""
        t, s, r = draw.times.take(rows)
        x_t = draw.x_t[rows]
        label = None if draw.condition is None else draw.condition[rows]
        with torch.no_grad():
            if self.first is None:
                x_s = self._step(teacher, draw, rows, x_t, x_t, t, s, label)
            else:
                v = self.first(teacher, draw)[rows]
                a, b = teacher.path.transfer(t, s)
                x_s = expand(a, x_t) * x_t + expand(b, x_t) * v
            seen = x_s if self.clip is None else x_s.clamp(-self.clip, self.clip)
            return self._step(teacher, draw, rows, x_s, seen, s, r, label)

    def _step(
        self,
        teacher: FlowMap,
        draw: Draw,
        rows: Int[Tensor, "k"],
        x: State,
        seen: State,
        t: Time,
        r: Time,
        label: Int[Tensor, "k"] | None,
    ) -> State:
        """One jump from x by the output at `seen`, guided on the rows of the smallest jump."""
        with _dropout(draw, rows):
            output = teacher.predict(seen, t, r, label)
        smallest = (draw.times.t - draw.times.r)[rows] <= 1.5 * self.guided_gap
        some = (smallest & ~draw.dropped[rows]).nonzero()[:, 0]
        if self.guidance != 1 and label is not None and len(some):
            with _dropout(draw, torch.cat([rows[some], rows[some]])):
                guided = guided_output(teacher, seen[some], t[some], r[some], label[some], self.guidance)
            output = output.index_copy(0, some, guided)
        return teacher.move(x, output, t, r)


# --------------------------------------------------------------------------------------------------- the limit s → t


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
        velocity: v, both the base of the target and the direction of the derivative.
        weight: w(t).
        warmup: share of the run over which the propagated part ∂_t a x + b D_t F grows from 0 to its full size.
        normalize: c in g ← g/(‖g‖ + c) with g = w D_t X, on rows with r < t; None for no normalisation.
        norm: ‖·‖ as the plain Euclidean norm ("l2", as sCM is written) or as the root mean square ("rms").
        derivative: exact forward mode or central differences.
    """

    velocity: Velocity = Conditional()
    weight: TangentWeight = UnitWeight()
    warmup: float = 0.0
    normalize: float | None = None
    norm: Literal["l2", "rms"] = "l2"
    derivative: Derivative = ForwardMode()
    gaps: ClassVar = ("mixed", "positive")
    continuous: ClassVar = True

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise ShortflowError(f"Tangent: warmup is a share of the run and must be in [0, 1], got {self.warmup}")
        if self.normalize is not None and not self.normalize > 0:
            raise ShortflowError(f"Tangent: normalize must be positive or null, got {self.normalize}")
        if self.norm not in ("l2", "rms"):
            raise ShortflowError(f"Tangent: norm must be 'l2' or 'rms', got {self.norm!r}")

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)

    def __call__(self, teacher: FlowMap, draw: Draw) -> TargetValue:
        with torch.no_grad():
            v = self.velocity(teacher, draw)
            value = teacher.output_of(draw.x_t, v, draw.times.t)
            size = torch.full_like(draw.times.t, torch.nan)
            rows = draw.times.bootstrap.nonzero()[:, 0]
            if len(rows):
                output, rate = self.moved(teacher, draw, v[rows], rows)
                value = value.index_copy(0, rows, output.to(value.dtype))
                size = size.index_copy(0, rows, rate.flatten(1).square().mean(1).sqrt().to(size.dtype))
        return TargetValue(value=value, space="output", logs={"tangent": size})

    def moved(self, teacher: FlowMap, draw: Draw, v: State, rows: Int[Tensor, "k"]) -> tuple[State, State]:
        """(target output, D_t F) on the chosen rows, all with r < t."""
        t, _, r = draw.times.take(rows)
        x = draw.x_t[rows]
        label = None if draw.condition is None else draw.condition[rows]

        def network(x: Tensor, time: Tensor) -> Tensor:
            with _dropout(draw, rows):  # inside, so that every evaluation starts from the first mask
                return teacher.predict(x, time, r, label)

        output, rate = self.derivative(network, x, t, v)
        a, b = teacher.coefficients(t, r)
        a_t, b_t = teacher.parameterization.coefficient_rates(teacher.path, teacher.sigma_data, t, r)
        w = -self.weight(t) * torch.sign(b)  # b < 0 for all parameterisations but EDM's
        ramp = draw.progress.along(self.warmup)
        propagated = expand(w * a_t, x) * x + expand(w * b, x) * rate
        if self.normalize is None:
            # (1 + w ∂_t b) is exactly 0 for the average velocity with w = 1: no F is added and taken away again.
            return expand(1 + w * b_t, x) * output + expand(w * a, x) * v + ramp * propagated, rate
        g = expand(w * a, x) * v + expand(w * b_t, x) * output + ramp * propagated
        norm = g.flatten(1).square()
        norm = (norm.sum(1) if self.norm == "l2" else norm.mean(1)).sqrt()
        return output + g / expand(norm + self.normalize, g), rate


@dataclass(frozen=True, kw_only=True)
class Split(Target):
    """Rows with r = t take `direct`, rows with r < t take `bootstrap`."""

    direct: Direct = Direct()
    bootstrap: TwoStep = TwoStep(first=None)
    gaps: ClassVar = ("mixed",)
    continuous: ClassVar = False

    def velocities(self) -> tuple[Velocity, ...]:
        return (*self.direct.velocities(), *self.bootstrap.velocities())

    def __call__(self, teacher: FlowMap, draw: Draw) -> TargetValue:
        value = self.direct(teacher, draw).value
        rows = draw.times.bootstrap.nonzero()[:, 0]
        if len(rows):
            t, _, r = draw.times.take(rows)
            state = self.bootstrap.state(teacher, draw, rows)
            output = teacher.pull_back(draw.x_t[rows], state, t, r)
            clip = self.bootstrap.clip
            output = output if clip is None else output.clamp(-clip, clip)
            value = value.index_copy(0, rows, output.to(value.dtype))
        return TargetValue(value=value, space="output")
