"""Rows of different kinds take different targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.targets.base import Direct, Prediction, Rows, State, Target, TargetValue, dropout_of
from shortflow.targets.jumps import TwoStep
from shortflow.velocity import Velocity

__all__ = ["Split"]


@dataclass(frozen=True, kw_only=True)
class Split(Target):
    """Rows with r = t take `direct`, rows with r < t take `bootstrap`; of these, those with s = t take `limit`.

    `limit` is for laws whose first step shrinks to nothing (α-Flow); None where that cannot happen. If `bootstrap`
    compares rates, rows with r = t are compared as velocities, the same units.
    """

    direct: Target = Direct()
    bootstrap: Target = TwoStep(first=None)
    limit: Target | None = None
    gaps: ClassVar = ("mixed",)

    def __post_init__(self) -> None:
        for name, part in (("direct", self.direct), ("bootstrap", self.bootstrap), ("limit", self.limit)):
            if isinstance(part, Split):
                raise IncompatibleParts(f"Split: {name} is itself a Split; the kinds of rows are these three")
        if "zero" not in self.direct.gaps:
            raise IncompatibleParts(
                f"Split: direct is for rows with r = t, where {type(self.direct).__name__} is not defined; use Direct"
            )
        if "positive" not in self.bootstrap.gaps:
            raise IncompatibleParts(
                f"Split: bootstrap is for rows with r < t, where {type(self.bootstrap).__name__} is not defined"
            )
        if self.limit is not None and not (
            self.limit.continuous is True and self.bootstrap.continuous is False and self.limit.compares == "jump"
        ):
            raise IncompatibleParts(
                "Split: limit is what a two-step bootstrap becomes where s = t; use limit=Tangent(…) with a two-step "
                "bootstrap, or no limit"
            )
        if self.direct.compares == "rate":
            raise IncompatibleParts("Split: direct must have an output as its target; use Direct or Along")

    @property
    def continuous(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bootstrap.continuous

    @property
    def compares(self) -> Literal["jump", "rate"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bootstrap.compares

    @property
    def quotient(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bootstrap.quotient

    @property
    def parts(self) -> tuple[Target, ...]:
        return (self.direct, self.bootstrap) if self.limit is None else (self.direct, self.bootstrap, self.limit)

    def velocities(self) -> tuple[Velocity, ...]:
        return tuple(velocity for part in self.parts for velocity in part.velocities())

    @property
    def grounded(self) -> bool:
        return self.direct.grounded

    def _kinds(self, draw: Draw, rows: Rows) -> list[tuple[Target, Int[Tensor, "_"]]]:
        """The parts that have rows, with the positions of those among `rows`."""
        t, s, r = draw.times.take(rows)
        still = t == s if self.limit is not None else torch.zeros_like(t, dtype=torch.bool)
        kinds = [(self.direct, r == t), (self.bootstrap, (r < t) & ~still)]
        kinds += [] if self.limit is None else [(self.limit, (r < t) & still)]
        found = ((part, mask.nonzero()[:, 0]) for part, mask in kinds)
        return [(part, where) for part, where in found if len(where)]

    def compared(self, flow: FlowMap, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        output = torch.zeros_like(draw.x_t[rows])
        seen = output
        for part, where in self._kinds(draw, rows):
            chosen = rows[where]
            if part.compares == "rate":
                own, rate = part.compared(flow, teacher, draw, chosen)
            else:
                t, _, r = draw.times.take(chosen)
                with dropout_of(draw, chosen):
                    own = flow.predict(draw.x_t[chosen], t, r, *draw.inputs(chosen))
                rate = flow.velocity_of(draw.x_t[chosen], own, t)
            output = output.index_copy(0, where, own.to(output.dtype))
            seen = seen.index_copy(0, where, rate.to(seen.dtype))
        return output, seen

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.compares == "jump" and any(part.joins for part in self.parts)

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        predictions: list[Prediction] = []
        found: list[tuple[Tensor, Literal["jump", "rate"], TargetValue]] = []
        for part, where in self._kinds(draw, rows):
            own, target = part.joint(flow, draw, rows[where], head)
            predictions.append(own)
            found.append((where, "jump", target))
        prediction = Prediction.joined(predictions, [where for where, _, _ in found])
        return prediction, self._gathered(flow, draw, rows, found)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        found: list[tuple[Tensor, Literal["jump", "rate"], TargetValue]] = [
            (where, part.compares, part.at(teacher, draw, rows[where], None if output is None else output[where]))
            for part, where in self._kinds(draw, rows)
        ]
        return self._gathered(teacher, draw, rows, found)

    def _gathered(
        self,
        teacher: FlowMap,
        draw: Draw,
        rows: Rows,
        targets: Sequence[tuple[Int[Tensor, "_"], Literal["jump", "rate"], TargetValue]],
    ) -> TargetValue:
        """The targets of the kinds of rows (their positions, what they compare, the target) as one."""
        x = draw.x_t[rows]
        value = torch.zeros_like(x)
        logs: dict[str, torch.Tensor] = {}
        velocity = None
        for where, compares, target in targets:
            chosen = rows[where]
            if self.compares == "jump":
                found = target.in_space("output", teacher, draw, chosen)
            elif compares == "rate":
                found = target.value
            else:
                found = teacher.velocity_of(
                    x[where], target.in_space("output", teacher, draw, chosen), draw.times.t[chosen]
                )
            value = value.index_copy(0, where, found.to(value.dtype))
            for name, rowwise in target.logs.items():
                empty = torch.full_like(draw.times.t[rows], torch.nan)
                logs[name] = logs.get(name, empty).index_copy(0, where, rowwise.to(empty.dtype))
            if target.velocity is not None:
                velocity = torch.zeros_like(x) if velocity is None else velocity
                velocity = velocity.index_copy(0, where, target.velocity.to(x.dtype))
        space = "output" if self.compares == "jump" else "rate"
        return TargetValue(value=value, space=space, logs=logs, velocity=velocity)
