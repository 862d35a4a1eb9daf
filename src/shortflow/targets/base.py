"""What every target gives, and the simplest of them: a velocity at r = t."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import drops, shared_dropout
from shortflow.flowmap import FlowMap
from shortflow.rows import Rows, assembled
from shortflow.tangent import Slope
from shortflow.velocity import Conditional, Velocity

__all__ = [
    "Direct",
    "Prediction",
    "Rows",
    "State",
    "Target",
    "TargetValue",
    "Time",
    "dropout_of",
    "predicted",
    "seeing",
]

Time = Float[Tensor, "k"]
State = Float[Tensor, "k ..."]


class Prediction(NamedTuple):
    """What the network predicts on some rows, with gradient.

    Attributes:
        output: F.
        head: F̂, the output of the velocity head, where it is trained.
    """

    output: State
    head: State | None = None

    @staticmethod
    def joined(parts: "Sequence[Prediction]", places: Sequence[Rows]) -> "Prediction":
        """The predictions of several sets of rows as one, each row at its place."""
        heads = [part.head for part in parts if part.head is not None]
        output = assembled([part.output for part in parts], places)
        return Prediction(output, assembled(heads, places) if heads else None)


@dataclass(frozen=True, kw_only=True)
class TargetValue:
    """The target of some rows, as an output F or as a state X (the other is derived where a metric wants it).

    Attributes:
        value: shape (k, ...).
        space: "output", "state", or "rate" where the target compares rates.
        logs: per-row quantities, NaN where a row has none.
        velocity: the velocity at the heart of the target, where it has one: what a velocity head learns.
    """

    value: Float[Tensor, "k ..."]
    space: Literal["output", "state", "rate"]
    logs: Mapping[str, Float[Tensor, "k"]] = field(default_factory=dict)
    velocity: Float[Tensor, "k ..."] | None = None

    def in_space(self, space: str, flow: FlowMap, draw: Draw, rows: Rows | None = None) -> State:
        """The target as an output or as a state; `rows` of the draw, by default all."""
        if space == self.space:
            return self.value
        x_t, t, r = draw.x_t, draw.times.t, draw.times.r
        if rows is not None:
            x_t, t, r = x_t[rows], t[rows], r[rows]
        convert = flow.move if space == "state" else flow.pull_back
        return convert(x_t, self.value, t, r)


def dropout_of(draw: Draw, rows: Rows) -> AbstractContextManager[None]:
    """The dropout masks of the step, for a pass over the given rows."""
    return shared_dropout(draw.dropout_seed, len(draw.x), rows)


def predicted(flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> Prediction:
    """The prediction on the chosen rows, with the dropout masks of the step and with gradient where gradients are on.

    Args:
        head: that of the velocity head, too, from the same pass.
    """
    t, _, r = draw.times.take(rows)
    with dropout_of(draw, rows):
        if head:
            return Prediction(*flow.predict_both(draw.x_t[rows], t, r, *draw.inputs(rows)))
        return Prediction(flow.predict(draw.x_t[rows], t, r, *draw.inputs(rows)))


def seeing(flow: FlowMap, draw: Draw, rows: Rows, found: Prediction) -> Draw:
    """The draw that knows the outputs at r = t, where they are what passes without dropout would return."""
    if drops(flow):
        return draw
    return draw.seeing(rows, found.output.detach(), None if found.head is None else found.head.detach())


class Target(ABC):
    """(teacher, draw) → TargetValue, evaluated without gradient.

    Attributes:
        gaps: the kinds of time law the target is defined for ("zero", "positive", "mixed" gaps t − r).
        continuous: needs s = t (True), s < t (False), or does not care (None).
        compares: what is compared with the target: "jump", the network's output or state as the metric wishes, or
            "rate", what `compared` returns.
        quotient: the difference of two passes is divided by a short step: both must run outside autocast.
        joins: prediction and target share passes where the network is its own teacher (`joint`).
    """

    gaps: ClassVar[tuple[str, ...]]
    continuous: ClassVar[bool | None] = None
    compares: ClassVar[Literal["jump", "rate"]] = "jump"
    quotient: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    @abstractmethod
    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        """The target of the chosen rows.

        Args:
            output: what the trained network predicts there, without gradient; None where it is the teacher itself.
        """

    def __call__(self, teacher: FlowMap, draw: Draw, output: State | None = None) -> TargetValue:
        """The target of every row."""
        return self.at(teacher, draw, draw.everything, output)

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        """(prediction, target) on the chosen rows, for a network that is its own teacher.

        The same numbers as a prediction followed by `at`, from fewer passes where they can be shared.

        Args:
            head: the prediction has that of the velocity head, too.
        """
        found = predicted(flow, draw, rows, head)
        return found, self.at(flow, draw, rows, found.output.detach())

    def compared(self, flow: FlowMap, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        """(F, what is compared with the target) on the chosen rows, with gradient; for targets that compare rates.

        Args:
            flow: what is trained.
            teacher: what velocities inside are computed with, as in `at`.

        Raises:
            TypeError: for all other targets, whose prediction is the output itself.
        """
        raise TypeError(f"{type(self).__name__} compares outputs, not rates; ask it for its target (`at`)")

    def velocities(self) -> tuple[Velocity, ...]:
        """The velocities inside, for compatibility checks."""
        return ()

    def slopes(self) -> tuple[Slope, ...]:
        """The derivatives of the network inside, for the check before the first step."""
        return ()

    @property
    def grounded(self) -> bool:
        """Whether data or a frozen teacher enter: a network that only follows itself learns nothing."""
        return any(velocity.grounded for velocity in self.velocities())


@dataclass(frozen=True, kw_only=True)
class Direct(Target):
    """The output that stands for a velocity: flow matching (defined at r = t)."""

    velocity: Velocity = Conditional()
    gaps: ClassVar = ("zero",)

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.velocity.own

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        found = predicted(flow, draw, rows, head)
        return found, self.at(flow, seeing(flow, draw, rows, found), rows)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        with torch.no_grad():
            v = self.velocity.on(teacher, draw, rows)
            value = teacher.output_of(draw.x_t[rows], v, draw.times.t[rows])
            return TargetValue(value=value, space="output", velocity=v)

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)
