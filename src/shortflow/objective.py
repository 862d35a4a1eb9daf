"""The training objective as two steps: `draw` makes every random number, `evaluate` is a pure function of them.

    loss(θ) = weighting( metric( X^θ_{t,r}(x_t), sg[ target ] ) ),   (t, s, r) ~ times

A `Recipe` is an objective together with the path, the parameterisation and what else makes up a published method.
Combinations of parts that make no sense are refused at construction (`IncompatibleParts`).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.compatibility import check_guidance, check_layout, check_times, two_steps
from shortflow.coupling import Coupling, LivePairs
from shortflow.draw import Draw, References
from shortflow.dropout import shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import PowerGuidance, TrainingGuidance
from shortflow.losses import Metric, Product, SquaredError, Unweighted, Weighting
from shortflow.paths import Path
from shortflow.streams import Streams
from shortflow.targets import Direct, Target, TargetValue, TwoStep
from shortflow.teachers import Ema, GrowingEma, Online, ScheduledEma, Snapshot, Teacher
from shortflow.times import Diagonal, TimeSampler
from shortflow.times.base import Ends, apart
from shortflow.typing import Batch, LossTerms, Progress, Times, expand
from shortflow.velocity import Reference, Velocity

__all__ = ["Ema", "GrowingEma", "Objective", "Online", "ScheduledEma", "Snapshot", "Streams", "Teacher"]


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
        guidance: the law of the guidance that the network is told; None for networks that are not told any.
        velocity_head: train a second head of the network on the velocity at the heart of the target (iMF).
        coupling: pairs (x, ε) made by the network itself (live reflow); None for independent ones.
        pairs: the data come with their noise (reflow).
        layout: "counted": a pass that some of the rows need is made for these, wherever they are, which takes counting
            them. "fixed": the rows that jump come first, as many in every batch, and what else depends on the row is
            computed for all of its kind and thrown away where it is not needed: a few passes more, but no shape depends
            on what is drawn, so that nothing waits for a device and the loss can be compiled as a whole.

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
    guidance: PowerGuidance | None = None
    velocity_head: bool = False
    coupling: Coupling | None = None
    pairs: bool = False
    layout: Literal["counted", "fixed"] = "counted"

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ShortflowError(f"label_dropout must be in [0, 1), got {self.label_dropout}")
        if self.dropped_rows not in ("all", "diagonal"):
            raise ShortflowError(f"dropped_rows must be 'all' or 'diagonal', got {self.dropped_rows!r}")
        check_layout(self.times, self.target, self.layout)
        check_times(self.times, self.target, self.metric, self.weightings, self.teacher)
        check_guidance(
            law=self.times,
            target=self.target,
            metric=self.metric,
            weightings=self.weightings,
            label_dropout=self.label_dropout,
            dropped_rows=self.dropped_rows,
            teacher=self.teacher,
            guidance=self.guidance,
            velocity_head=self.velocity_head,
            coupling=self.coupling,
            pairs=self.pairs,
            guided=self.guided,
        )

    @property
    def steps(self) -> TwoStep | None:
        """The two steps inside the target, if it has any."""
        return two_steps(self.target)

    @property
    def weightings(self) -> tuple[Weighting, ...]:
        """The parts of the weighting, in order."""
        return self.weighting.parts if isinstance(self.weighting, Product) else (self.weighting,)

    @property
    def needs(self) -> frozenset[str]:
        """What must be given beside the data: "teacher", "weak", "pairs", and "init" for a model to start from."""
        needs = {name for velocity in self.target.velocities() for name in velocity.follows}
        steps = self.steps
        needs |= {"teacher"} if steps is not None and steps.below is not None else set()
        needs |= {"pairs"} if self.pairs else set()
        needs |= {"init"} if isinstance(self.teacher, Snapshot) else set()
        return frozenset(needs)

    @property
    def ends(self) -> Ends:
        """The jumps that are trained; see `shortflow.times`. Straight flows can be followed to any end."""
        return "any" if self.coupling is not None else self.times.ends

    @property
    def lowest(self) -> float:
        """The earliest time that the network itself is trained to start from."""
        steps = self.steps
        return 0.0 if steps is None or steps.below is None else steps.below

    @property
    def guided(self) -> str | None:
        """The guidance that training bakes into the weights, in words; None if there is none."""
        for velocity in self.target.velocities():
            if isinstance(velocity, TrainingGuidance) and velocity.guides and self.guidance is None:
                return f"training guidance ({velocity.words})"
            if isinstance(velocity, Reference) and velocity.guidance != 1:
                return f"training guidance (scale {velocity.guidance:g} of the teacher)"
        steps = self.steps
        if steps is not None and steps.guidance != 1:
            return f"training guidance (scale {steps.guidance:g} at the smallest step)"
        if isinstance(self.coupling, LivePairs) and self.coupling.guidance != 1:
            return f"training guidance (scale {self.coupling.guidance:g} of the pairs)"
        return None

    def draw(
        self,
        batch: Batch,
        path: Path,
        streams: Streams,
        progress: Progress = Progress(),
        null_label: int | float | None = None,
        references: References = References(),
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
        n, device = len(batch.x), batch.x.device
        times = self.times(n, progress, streams.generator("times"), batch.x.dtype)
        jumps = self.times.jumping(n)
        if self.times.gap == "mixed" and self.layout == "counted":
            jumps = None  # they are at any places
        elif self.times.gap == "mixed" and jumps is not None:
            batch, times = _sorted(batch, times, jumps)
        x = batch.x
        # What is drawn is on the host; a copy that blocks would wait for all that the device has yet to do.
        times = type(times)(*(time.to(device, non_blocking=True) for time in times))
        eps = batch.eps
        if eps is None:
            eps = torch.randn(x.shape, generator=streams.generator("noise"), dtype=x.dtype)
            eps = eps.to(device, non_blocking=True)
        dropped = torch.zeros(n, dtype=torch.bool)
        if batch.label is not None and self.label_dropout > 0:
            dropped = torch.rand(n, generator=streams.generator("label")) < self.label_dropout
        dropped = dropped.to(device, non_blocking=True)
        if self.dropped_rows == "diagonal":
            dropped = dropped & ~times.bootstrap
        guidance = None
        if self.guidance is not None:
            u = torch.rand(n, 3, generator=streams.generator("guidance"), dtype=times.t.dtype)
            guidance = self.guidance(u.to(device, non_blocking=True), times, dropped)
        return Draw(
            x=x,
            eps=eps,
            x_t=path.interpolate(x, eps, times.t),
            times=times,
            label=batch.label,
            dropped=dropped,
            coin=torch.rand(n, generator=streams.generator("coin")).to(device, non_blocking=True),
            guidance=guidance,
            null_label=null_label,
            dropout_seed=streams.seed_of("dropout"),
            progress=progress,
            references=references,
            jumps=jumps,
            counted=self.layout == "counted",
        )

    def evaluate(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> LossTerms:
        """The loss of every row and what to log, a pure function of the weights and the draw.

        Logs: `velocity_error` ‖u − v_c‖²/D on all rows, `diagonal_error` the same where r = t, `tangent` the root mean
        square of D_t F where it was computed, and `error` the metric before weighting. They show progress also where
        an adaptive loss sits at 1.
        """
        if self.coupling is not None:
            draw = self.coupling(teacher, draw)
        t, _, r = draw.times
        space, head, prediction = self.metric.space, None, None
        seen = None
        if teacher is flow and self.target.joins and not self._weighted_in_half(draw):
            (output, head), target = self.target.joint(flow, draw, draw.everything, self.velocity_head)
        else:
            with shared_dropout(draw.dropout_seed, len(draw.x)):
                if self.target.compares == "rate":
                    output, prediction = self.target.compared(flow, teacher, draw, draw.everything)
                elif self.velocity_head:
                    output, head = flow.predict_both(draw.x_t, t, r, draw.condition, draw.guidance)
                else:
                    output = flow.predict(draw.x_t, t, r, draw.condition, draw.guidance)
            seen, target = self._target(flow, teacher, draw, output.detach())
        if prediction is not None:
            goal = target.value
        else:
            prediction = output if space == "output" else flow.move(draw.x_t, output, t, r)
            goal = target.in_space(space, teacher, draw)
            if seen is not None:
                exact = seen if space == "output" else flow.move(draw.x_t, seen, t, r)
                goal = goal + (prediction.detach() - exact)  # so that the difference is that of the two exact passes
        error = self.metric(prediction, goal.detach(), flow, draw)
        loss = self.weighting(error, flow, draw)
        logs = {**self._logs(flow, draw, output.detach()), **target.logs, "error": error.detach()}
        if head is not None:
            beside = self._head_error(flow, draw, head, target)
            loss = loss + self.weighting(beside, flow, draw)
            logs["head_error"] = beside.detach()
        if error.shape != t.shape or loss.shape != t.shape:
            raise ShortflowError(
                f"a loss must be one number a row {tuple(t.shape)}, got {tuple(error.shape)}, {tuple(loss.shape)}"
            )
        return LossTerms(loss=loss, logs=logs)

    def _target(
        self, flow: FlowMap, teacher: FlowMap, draw: Draw, output: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b ..."] | None, TargetValue]:
        """(the output without its rounding, the target): under autocast, two passes whose difference is divided by a
        short step are computed again in full precision.

        Where the target divides, it sees that output. Where the weight of the loss does, all of the target is in full
        precision, and the output is returned, for the loss to compare with; it is None otherwise.
        """
        if not self._divides(draw):
            return None, self.target(teacher, draw, output)
        t, _, r = draw.times
        with torch.autocast(draw.x_t.device.type, enabled=False):
            with torch.no_grad(), shared_dropout(draw.dropout_seed, len(draw.x)):
                exact = flow.predict(draw.x_t, t, r, draw.condition, draw.guidance)
            if self._weighted:
                return exact, self.target(teacher, draw, exact)
        return None, self.target(teacher, draw, exact)

    @property
    def _weighted(self) -> bool:
        """Whether the weight of the loss divides by a short step."""
        return self.target.compares == "jump" and any(part.quotient for part in self.weightings)

    def _divides(self, draw: Draw) -> bool:
        """Whether a difference of passes in half precision would be divided by a short step."""
        half = torch.is_autocast_enabled(draw.x_t.device.type)
        return (half and self.target.quotient) or self._weighted_in_half(draw)

    def _weighted_in_half(self, draw: Draw) -> bool:
        """Whether the loss would divide by a short step in half precision."""
        return self._weighted and torch.is_autocast_enabled(draw.x_t.device.type)

    def _head_error(
        self, flow: FlowMap, draw: Draw, head: Float[Tensor, "b ..."], target: TargetValue
    ) -> Float[Tensor, "b"]:
        """The metric between the velocity head and the output that stands for the target's velocity."""
        assert target.velocity is not None  # checked at construction
        goal = flow.output_of(draw.x_t, target.velocity, draw.times.t)
        return self.metric(head, goal.detach(), flow, draw)

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
        coupling = replace(self.coupling, guidance=1.0) if isinstance(self.coupling, LivePairs) else self.coupling
        return replace(self, target=_unguided(self.target), label_dropout=0.0, guidance=None, coupling=coupling)


def _sorted(batch: Batch, times: Times, jumps: int) -> tuple[Batch, Times]:
    """The rows of batch and times in another order, those that jump first."""
    order = times.bootstrap.logical_not().to(torch.int8).argsort(stable=True)
    t, s, r = times.take(order)
    # In float64 they all jump; rounding may have closed a gap. A middle time then is the end.
    closed = (torch.arange(len(t)) < jumps) & (r >= t)
    end = torch.where(closed, apart(t, r)[1].clamp(min=0), r)
    order = order.to(batch.x.device, non_blocking=True)
    label, eps = (None if value is None else value[order] for value in (batch.label, batch.eps))
    return Batch(x=batch.x[order], label=label, eps=eps), Times(t, torch.where(closed, end, s), end)


def _plain(velocity: Velocity) -> Velocity:
    """The velocity without guidance."""
    if isinstance(velocity, TrainingGuidance):
        return _plain(velocity.base)
    return replace(velocity, guidance=1.0) if isinstance(velocity, Reference) else velocity


def _unguided(part: Any) -> Any:
    """A target without guidance, whatever is inside it."""
    changes = {}
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, Velocity):
            changes[f.name] = _plain(value)
        elif isinstance(value, Target):
            changes[f.name] = _unguided(value)
    if isinstance(part, TwoStep):
        changes["guidance"] = 1.0
    return replace(part, **changes)
