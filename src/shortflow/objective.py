"""The training objective as two steps: `draw` makes every random number, `evaluate` is a pure function of them.

    loss(θ) = weighting( metric( X^θ_{t,r}(x_t), sg[ target ] ) ),   (t, s, r) ~ times

A `Recipe` is an objective together with the path, the parameterisation and what else makes up a published method.
Combinations of parts that make no sense are refused at construction (`IncompatibleParts`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import Guided
from shortflow.losses import ByTime, Metric, Product, SquaredError, Unweighted, Weighting
from shortflow.paths import Path
from shortflow.streams import Streams
from shortflow.targets import Direct, Split, Tangent, Target, TwoStep
from shortflow.times import (
    Diagonal,
    Dyadic,
    Gradual,
    GridPairs,
    GroupedJumps,
    Independent,
    Sorted,
    SquareRootCount,
    TimeSampler,
    ToData,
)
from shortflow.typing import Batch, LossTerms, Progress, expand
from shortflow.velocity import Velocity

__all__ = ["Ema", "Objective", "Online", "ScheduledEma", "Streams", "Teacher"]


# ----------------------------------------------------------------------------------------------------------- teachers


class Teacher(ABC):
    """The weights that targets are computed with, as the decay of their average after each step."""

    @abstractmethod
    def decay(self, progress: Progress) -> float:
        """θ̄ ← decay · θ̄ + (1 − decay) · θ; 0 means the online weights themselves."""


@dataclass(frozen=True, kw_only=True)
class Online(Teacher):
    """The network that is being trained (without gradient)."""

    def decay(self, progress: Progress) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Ema(Teacher):
    """An exponential moving average of the weights with a fixed decay per step."""

    rate: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ShortflowError(f"Ema: rate must be between 0 and 1, got {self.rate}; use Online() for no average")

    def decay(self, progress: Progress) -> float:
        return self.rate


@dataclass(frozen=True, kw_only=True)
class ScheduledEma(Teacher):
    """μ(k) = exp(s₀ log μ₀ / N(k)), the target network of consistency training (arXiv 2303.01469, appendix C)."""

    mu0: float = 0.9
    count: SquareRootCount = field(default_factory=SquareRootCount)

    def __post_init__(self) -> None:
        if not 0 < self.mu0 < 1:
            raise ShortflowError(f"ScheduledEma: mu0 must be between 0 and 1, got {self.mu0}")

    def decay(self, progress: Progress) -> float:
        return self.mu0 ** (self.count.s0 / self.count(progress))


# ---------------------------------------------------------------------------------------------------------- objective


def _fits(target: Target | type[Target], law: TimeSampler | type[TimeSampler]) -> bool:
    """Whether the target is defined for the jumps that the law draws."""
    return law.gap in target.gaps and target.continuous in (None, law.continuous)


def _fitting(target: Target, law: TimeSampler) -> str:
    """The laws that would fit the target, and the targets that would fit the law, in words."""
    laws = (Diagonal, Sorted, Gradual, Independent, ToData, Dyadic, GridPairs, GroupedJumps)
    times = [other.__name__ for other in laws if _fits(target, other)]
    targets = [other.__name__ for other in (Direct, TwoStep, Tangent, Split) if _fits(other, law)]
    return f"use {' or '.join(times)} times, or the target {' or '.join(targets)}"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised.

    Args:
        times: the joint law of (t, s, r).
        target: what the prediction is regressed onto.
        metric: how far they are apart, row by row.
        weighting: what is made of that.
        label_dropout: share of the rows whose class is hidden from the network, in all passes of the step.
        dropped_rows: "all" rows may lose their class, or only those on the "diagonal" (r = t).
        teacher: whose weights the target uses.

    Raises:
        IncompatibleParts: for combinations that are not defined, with the remedy.
    """

    times: TimeSampler = Diagonal()
    target: Target = Direct()
    metric: Metric = SquaredError()
    weighting: Weighting = Unweighted()
    label_dropout: float = 0.1
    dropped_rows: Literal["all", "diagonal"] = "all"
    teacher: Teacher = Online()

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ShortflowError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if self.dropped_rows not in ("all", "diagonal"):
            raise ShortflowError(f"dropped_rows must be 'all' or 'diagonal', got {self.dropped_rows!r}")
        self._check_times()
        self._check_guidance()

    def _check_times(self) -> None:
        law, target, metric = self.times, self.target, self.metric
        name = type(law).__name__
        if not _fits(target, law):
            steps = {None: "any", True: "continuous (s = t)", False: "two-step (s < t)"}
            raise IncompatibleParts(
                f"{type(target).__name__} with {name}: the target is for {steps[target.continuous]} times with "
                f"{' or '.join(target.gaps)} gaps t − r, the law has {steps[law.continuous]} ones with {law.gap} gaps; "
                + _fitting(target, law)
            )
        blind = isinstance(target, TwoStep) and target.first is None
        if blind or (isinstance(law, Dyadic) and law.share == 1):
            raise IncompatibleParts(
                f"{type(target).__name__} with {name}: every row would regress the network onto itself, and none sees "
                "the data; "
                + ("use TwoStep(first=Conditional()), or Split with Dyadic times" if blind else "set share below 1")
            )
        if metric.space == "state" and law.gap != "positive":
            raise IncompatibleParts(
                f"{type(metric).__name__} compares states, and states are equal by construction where r = t, "
                f"which {name} draws; use space='output' or a law that never has r = t"
            )
        if metric.group > 1 and law.group != metric.group:
            raise IncompatibleParts(
                f"{type(metric).__name__} compares groups of {metric.group} rows at the same times, but "
                f"{name} draws groups of {law.group}; use GroupedJumps(group={metric.group})"
            )
        for rule in (part.rule for part in self.weightings if isinstance(part, ByTime)):
            step = rule == "inverse-step"
            if rule != "imm" and (law.gap != "positive" or (step and law.continuous)):
                raise IncompatibleParts(
                    f"ByTime(rule={rule!r}) divides by {'t − s' if step else 't − r'}, which is 0 on rows that {name} "
                    "draws; use GridPairs or GroupedJumps times, or another weighting"
                )

    def _check_guidance(self) -> None:
        law, step = self.times, self._two_step
        if law.ends == "zero" and any(isinstance(v, Guided) and v.guides for v in self.target.velocities()):
            raise IncompatibleParts(
                f"Guided mixes in the network's own velocity u_{{t,t}}, but {type(law).__name__} trains jumps to the "
                "data only; guide when sampling, or use Sorted or Gradual times"
            )
        if isinstance(self.teacher, ScheduledEma) and getattr(law, "count", None) != self.teacher.count:
            raise IncompatibleParts(
                f"ScheduledEma follows the number of noise levels, so teacher.count = {self.teacher.count} must equal "
                f"times.count of {type(law).__name__}; set both, or use Ema(rate=…)"
            )
        if self.label_dropout == 0 and self.guided is not None:
            raise IncompatibleParts(
                f"{self.guided} needs the unconditional velocity, but label_dropout is 0, so the null class would "
                "never be trained; set label_dropout to 0.1 or remove the guidance"
            )
        if self.label_dropout > 0 and self.dropped_rows == "diagonal" and law.gap == "positive":
            raise IncompatibleParts(
                f"dropped_rows='diagonal' hides classes where r = t only, which {type(law).__name__} never draws, so "
                "the null class would never be trained; use dropped_rows='all' or label_dropout=0"
            )
        smallest = 2 / law.steps if isinstance(law, Dyadic) else None
        if step is not None and step.guidance != 1 and step.guided_gap != smallest:
            remedy = "use Dyadic times" if smallest is None else f"set guided_gap to {smallest:g}, the smallest one"
            raise IncompatibleParts(
                f"TwoStep guides jumps of length {step.guided_gap:g}, but {law} does not start from those; "
                f"{remedy}, or set guidance to 1"
            )

    @property
    def _two_step(self) -> TwoStep | None:
        step = self.target.bootstrap if isinstance(self.target, Split) else self.target
        return step if isinstance(step, TwoStep) else None

    @property
    def weightings(self) -> tuple[Weighting, ...]:
        """The parts of the weighting, in order."""
        return self.weighting.parts if isinstance(self.weighting, Product) else (self.weighting,)

    @property
    def guided(self) -> str | None:
        """The guidance that training bakes into the weights, in words; None if there is none."""
        for velocity in self.target.velocities():
            if isinstance(velocity, Guided) and velocity.guides:
                mix = f"omega {velocity.omega:g}, kappa {velocity.kappa:g}"
                return f"training guidance ({mix}, window [{velocity.window[0]:g}, {velocity.window[1]:g}])"
        step = self._two_step
        if step is not None and step.guidance != 1:
            return f"training guidance (scale {step.guidance:g} at the smallest step)"
        return None

    def draw(
        self,
        batch: Batch,
        path: Path,
        streams: Streams,
        progress: Progress = Progress(),
        null_label: int | None = None,
    ) -> Draw:
        """Every random number of one step: hidden labels, times, noise and coins, each from its own stream.

        Raises:
            IncompatibleParts: if labels are to be hidden and there is no null label to hide them behind.
        """
        if batch.label is not None and self.label_dropout > 0 and null_label is None:
            raise IncompatibleParts(
                f"label_dropout = {self.label_dropout:g} hides classes, but the network has no null class; "
                "build it with null_class=True, or set label_dropout to 0"
            )
        x = batch.x
        n, device = len(x), x.device
        times = self.times(n, progress, streams.generator("times"), x.dtype)
        times = type(times)(*(time.to(device) for time in times))
        eps = torch.randn(x.shape, generator=streams.generator("noise"), dtype=x.dtype).to(device)
        dropped = torch.zeros(n, dtype=torch.bool)
        if batch.label is not None and self.label_dropout > 0:
            dropped = torch.rand(n, generator=streams.generator("label")) < self.label_dropout
        dropped = dropped.to(device)
        if self.dropped_rows == "diagonal":
            dropped = dropped & ~times.bootstrap
        return Draw(
            x=x,
            eps=eps,
            x_t=path.interpolate(x, eps, times.t),
            times=times,
            label=batch.label,
            dropped=dropped,
            coin=torch.rand(n, generator=streams.generator("coin")).to(device),
            null_label=null_label,
            dropout_seed=streams.seed_of("dropout"),
            progress=progress,
        )

    def evaluate(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> LossTerms:
        """The loss of every row and what to log, a pure function of the weights and the draw.

        Logs: `velocity_error` ‖u − v_c‖²/D on all rows, `diagonal_error` the same where r = t, `tangent` the root mean
        square of D_t F where it was computed, and `error` the metric before weighting. They show progress also where
        an adaptive loss sits at 1.
        """
        t, _, r = draw.times
        with shared_dropout(draw.dropout_seed, len(draw.x)):
            output = flow.predict(draw.x_t, t, r, draw.condition)
        target = self.target(teacher, draw)
        space = self.metric.space
        prediction = output if space == "output" else flow.move(draw.x_t, output, t, r)
        error = self.metric(prediction, target.in_space(space, teacher, draw).detach(), flow, draw)
        loss = self.weighting(error, flow, draw)
        if error.shape != t.shape or loss.shape != t.shape:
            raise ShortflowError(
                f"a loss must be one number a row {tuple(t.shape)}, got {tuple(error.shape)}, {tuple(loss.shape)}"
            )
        return LossTerms(
            loss=loss, logs={**self._logs(flow, draw, output.detach()), **target.logs, "error": error.detach()}
        )

    @staticmethod
    def _logs(flow: FlowMap, draw: Draw, output: Float[Tensor, "b ..."]) -> dict[str, Float[Tensor, "b"]]:
        t, _, r = draw.times
        jump = draw.times.bootstrap
        a, b = flow.coefficients(t, r)
        gap = torch.where(jump, r - t, torch.ones_like(t))
        average = expand((a - 1) / gap, output) * draw.x_t + expand(b / gap, output) * output
        u = torch.where(expand(jump.to(t.dtype), output) > 0, average, flow.velocity_of(draw.x_t, output, t))
        error = (u - flow.path.velocity(draw.x, draw.eps, t)).flatten(1).square().mean(1)
        return {"velocity_error": error, "diagonal_error": error.masked_fill(jump, torch.nan)}

    def unconditional(self) -> "Objective":
        """The same objective for data without classes: no guidance, no label dropout."""
        return replace(self, target=_without_guidance(self.target), label_dropout=0.0)


def _plain(velocity: Velocity) -> Velocity:
    return _plain(velocity.base) if isinstance(velocity, Guided) else velocity


def _without_guidance(target: Target) -> Target:
    if isinstance(target, Split):
        return replace(target, direct=_without_guidance(target.direct), bootstrap=_without_guidance(target.bootstrap))
    if isinstance(target, TwoStep):
        return replace(target, first=None if target.first is None else _plain(target.first), guidance=1.0)
    if isinstance(target, Direct | Tangent):
        return replace(target, velocity=_plain(target.velocity))
    return target
