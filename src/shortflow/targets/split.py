"""Rows of different kinds take different targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.rows import Rows, count, put, within
from shortflow.tangent import Slope
from shortflow.targets.base import Direct, Prediction, State, Target, TargetValue, dropout_of
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

    def slopes(self) -> tuple[Slope, ...]:
        return tuple(slope for part in self.parts for slope in part.slopes())

    @property
    def grounded(self) -> bool:
        return self.direct.grounded

    def _kinds(self, draw: Draw, rows: Rows) -> list[tuple[Target, Rows]]:
        """The parts that have rows, with the places of those among `rows`."""
        jump, still = draw.kinds(rows)
        kinds = [(self.direct, still), (self.bootstrap, jump)]
        if self.limit is not None and count(jump):
            t, s, _ = draw.times.take(within(rows, jump))
            kinds[1:] = [
                (self.bootstrap, within(jump, (s < t).nonzero()[:, 0])),
                (self.limit, within(jump, (s == t).nonzero()[:, 0])),
            ]
        return [(part, where) for part, where in kinds if count(where)]

    def compared(self, flow: FlowMap, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        output = torch.zeros_like(draw.x_t[rows])
        seen = output
        for part, where in self._kinds(draw, rows):
            chosen = within(rows, where)
            if part.compares == "rate":
                own, rate = part.compared(flow, teacher, draw, chosen)
            else:
                t, _, r = draw.times.take(chosen)
                with dropout_of(draw, chosen):
                    own = flow.predict(draw.x_t[chosen], t, r, *draw.inputs(chosen))
                rate = flow.velocity_of(draw.x_t[chosen], own, t)
            output = put(output, where, own)
            seen = put(seen, where, rate)
        return output, seen

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.compares == "jump" and any(part.joins for part in self.parts)

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        predictions: list[Prediction] = []
        found: list[tuple[Rows, Literal["jump", "rate"], TargetValue]] = []
        for part, where in self._kinds(draw, rows):
            own, target = part.joint(flow, draw, within(rows, where), head)
            predictions.append(own)
            found.append((where, "jump", target))
        prediction = Prediction.joined(predictions, [where for where, _, _ in found])
        return prediction, self._gathered(flow, draw, rows, found)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        found: list[tuple[Rows, Literal["jump", "rate"], TargetValue]] = [
            (
                where,
                part.compares,
                part.at(teacher, draw, within(rows, where), None if output is None else output[where]),
            )
            for part, where in self._kinds(draw, rows)
        ]
        return self._gathered(teacher, draw, rows, found)

    def _gathered(
        self,
        teacher: FlowMap,
        draw: Draw,
        rows: Rows,
        targets: Sequence[tuple[Rows, Literal["jump", "rate"], TargetValue]],
    ) -> TargetValue:
        """The targets of the kinds of rows (their positions, what they compare, the target) as one."""
        x = draw.x_t[rows]
        value = torch.zeros_like(x)
        logs: dict[str, torch.Tensor] = {}
        velocity = None
        for where, compares, target in targets:
            chosen = within(rows, where)
            if self.compares == "jump":
                found = target.in_space("output", teacher, draw, chosen)
            elif compares == "rate":
                found = target.value
            else:
                found = teacher.velocity_of(
                    x[where], target.in_space("output", teacher, draw, chosen), draw.times.t[chosen]
                )
            value = put(value, where, found)
            for name, rowwise in target.logs.items():
                empty = torch.full_like(draw.times.t[rows], torch.nan)
                logs[name] = put(logs.get(name, empty), where, rowwise)
            if target.velocity is not None:
                velocity = torch.zeros_like(x) if velocity is None else velocity
                velocity = put(velocity, where, target.velocity)
        space = "output" if self.compares == "jump" else "rate"
        return TargetValue(value=value, space=space, logs=logs, velocity=velocity)
