"""Targets of finite steps: two steps (s < t), their difference quotient, and one straight step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.guidance import null_of
from shortflow.rows import Rows, count, put, within
from shortflow.targets.base import Prediction, State, Target, TargetValue, Time, dropout_of, predicted
from shortflow.typing import expand
from shortflow.velocity import Conditional, FieldVelocity, Velocity

__all__ = ["Along", "Secant", "TwoStep"]


@dataclass(frozen=True, kw_only=True)
class TwoStep(Target):
    """X_{s,r} ∘ X_{t,s}(x_t), the first step along the velocity `first` or, if None, by the network.

    Args:
        first: Conditional() lands exactly on the path, x_s = α_s x + σ_s ε (CT, IMM); Reference() distils a teacher
            (CD); None: the network (shortcut models).
        solver: of the first step along a velocity: "transfer" (DDIM), "euler", or "heun" (a velocity that is known at
            every point is asked again at the end of the Euler step).
        segments: number of equal jumps that make up the second step (RCGM).
        clip: bound on the coordinates of the target output and, with `clip_states`, of x_s as the network sees it: the
            shortcut models' code has clip((u_1 + u_2)/2) with u_2 at clip(x_s).
        guidance: with a network first step, both steps of the smallest jump (t − r = `guided_gap`) are guided with
            this scale; larger jumps inherit it. 1 means none.
        below: the second step of rows with s < below is the frozen teacher's (truncated consistency training).
    """

    first: Velocity | None = Conditional()
    solver: Literal["transfer", "euler", "heun"] = "transfer"
    segments: int = 1
    clip: float | None = None
    clip_states: bool = True
    guidance: float = 1.0
    guided_gap: float = 1 / 64
    below: float | None = None
    gaps: ClassVar = ("positive",)
    continuous: ClassVar = False

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ShortflowError(f"TwoStep: clip must be positive or null, got {self.clip}")
        if self.solver not in ("transfer", "euler", "heun"):
            raise ShortflowError(f"TwoStep: solver must be 'transfer', 'euler' or 'heun', got {self.solver!r}")
        if self.first is None and self.solver != "transfer":
            raise IncompatibleParts(
                f"TwoStep: solver={self.solver!r} is for a first step along a velocity, but first=None takes the "
                "network's own jump; leave the solver out, or use first=Own()"
            )
        if self.below is not None and not 0 < self.below < 1:
            raise ShortflowError(f"TwoStep: below must be a time between 0 and 1, or null, got {self.below}")
        if self.segments < 1:
            raise ShortflowError(f"TwoStep: segments must be at least 1, got {self.segments}")
        if self.first is not None and self.guidance != 1:
            raise IncompatibleParts(
                "TwoStep: guidance at the smallest step needs the network's own first step (first=None); "
                "guide a velocity by wrapping it in Guided"
            )
        if self.solver == "heun" and not isinstance(self.first, FieldVelocity):
            raise IncompatibleParts(
                "TwoStep: Heun's step needs a velocity that is known everywhere; use first=Reference() or Own(), or "
                "solver='transfer'"
            )

    def velocities(self) -> tuple[Velocity, ...]:
        return () if self.first is None else (self.first,)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        state = self.state(teacher, draw, rows)
        if self.clip is None:
            return TargetValue(value=state, space="state")
        t, _, r = draw.times.take(rows)
        value = teacher.pull_back(draw.x_t[rows], state, t, r)
        return TargetValue(value=value.clamp(-self.clip, self.clip), space="output")

    def state(self, teacher: FlowMap, draw: Draw, rows: Rows) -> State:
        """X_{s,r}(X_{t,s}(x_t)) on the chosen rows."""
        t, s, r = draw.times.take(rows)
        x_t = draw.x_t[rows]
        with torch.no_grad():
            if self.first is None:
                x_s = self._step(teacher, draw, rows, x_t, x_t, t, s)
            else:
                x_s = self._along(self.first, teacher, draw, rows, x_t, t, s)
            return self._landed(teacher, draw, rows, x_s, s, r)

    def _landed(self, teacher: FlowMap, draw: Draw, rows: Rows, x_s: State, s: Time, r: Time) -> State:
        """X_{s,r}(x_s): each row by the model that is asked for it, and by none where s = r, X_{r,r} being x itself."""
        moves = s > r
        low = torch.zeros_like(moves) if self.below is None else s < self.below
        own, x_r = draw.chosen(moves & ~low), x_s
        if len(own):
            at = own.places
            x_r = own.put(x_s, self._second(teacher, draw, within(rows, at), x_s[at], s[at], r[at]))
        if self.below is None:
            return x_r
        below = draw.chosen(moves & low)
        if len(below):
            label, at = draw.told(draw.teacher), below.places
            with dropout_of(draw, asked := within(rows, at)):
                made = draw.teacher(x_s[at], s[at], r[at], None if label is None else label[asked])
            x_r = below.put(x_r, made)
        return x_r

    def _along(self, first: Velocity, teacher: FlowMap, draw: Draw, rows: Rows, x_t: State, t: Time, s: Time) -> State:
        """The first step along the velocity."""
        v = first.on(teacher, draw, rows)
        if self.solver == "transfer":
            a, b = teacher.path.transfer(t, s)
            return expand(a, x_t) * x_t + expand(b, x_t) * v
        step = expand(s - t, x_t)
        if self.solver == "heun" and isinstance(first, FieldVelocity):
            v = (v + first.field(teacher, draw, rows, x_t + step * v, s)) / 2
        return x_t + step * v

    def _second(self, teacher: FlowMap, draw: Draw, rows: Rows, x_s: State, s: Time, r: Time) -> State:
        """The second step, by the network."""
        bound = self.clip if self.clip_states else None
        for i in range(self.segments):
            # The last end is r itself, without rounding.
            begin, end = (s + (r - s) * (k / self.segments) if k < self.segments else r for k in (i, i + 1))
            seen = x_s if bound is None else x_s.clamp(-bound, bound)
            x_s = self._step(teacher, draw, rows, x_s, seen, begin, end)
        return x_s

    def _step(self, teacher: FlowMap, draw: Draw, rows: Rows, x: State, seen: State, t: Time, r: Time) -> State:
        """One jump from x by the output at `seen`, guided on the rows of the smallest jump."""
        label, guidance = draw.inputs(rows)
        with dropout_of(draw, rows):
            output = teacher.predict(seen, t, r, label, guidance)
        if self.guidance == 1 or label is None:
            return teacher.move(x, output, t, r)
        smallest = (draw.times.t - draw.times.r)[rows] <= 1.5 * self.guided_gap
        some = draw.chosen(smallest & ~draw.dropped[rows])
        if len(some):
            at = some.places
            with dropout_of(draw, within(rows, at)):  # the pass with the class is there already
                free = teacher.predict(seen[at], t[at], r[at], torch.full_like(label[at], null_of(teacher)))
            output = some.put(output, free + self.guidance * (output[at] - free))
        return teacher.move(x, output, t, r)


@dataclass(frozen=True, kw_only=True)
class Secant(Target):
    """The two steps as a difference quotient: F ∓ g with g = [X_{t,r}(x_t) − X_{s,r}(X_{t,s}(x_t))]/(t − s) → D_t X.

    The target is F⁻ − sign(b) g, with F⁻ what the trained network predicts; as s → t it becomes `Tangent`'s, and where
    s = r it is that of flow matching over the jump (`Along` on the linear path). The squared error has the gradient of
    SoFlow's loss sign(b) ⟨F, sg(Δ)⟩ and of RCGM's residual. Like a derivative, the quotient does not survive bf16: the
    passes of the two steps run outside autocast.

    Args:
        steps: how the two steps are made.
        clip: bound on the coordinates of g where s > r (RCGM: 1).
    Source: SoFlow (arXiv 2512.15657); RCGM (TwinFlow's code).
    """

    steps: TwoStep = TwoStep()
    clip: float | None = None
    gaps: ClassVar = ("positive",)
    continuous: ClassVar = False
    quotient: ClassVar = True

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ShortflowError(f"Secant: clip must be positive or null, got {self.clip}")
        if self.steps.clip is not None:
            raise IncompatibleParts("Secant: clip the difference (Secant.clip), not the steps (Secant.steps.clip)")

    def velocities(self) -> tuple[Velocity, ...]:
        return self.steps.velocities()

    def joint(self, flow: FlowMap, draw: Draw, rows: Rows, head: bool = False) -> tuple[Prediction, TargetValue]:
        """Under autocast the quotient has an output of its own, in full precision."""
        if not torch.is_autocast_enabled(draw.x_t.device.type):
            return super().joint(flow, draw, rows, head)
        with torch.no_grad(), torch.autocast(draw.x_t.device.type, enabled=False):
            exact = predicted(flow, draw, rows).output
        return predicted(flow, draw, rows, head), self.at(flow, draw, rows, exact)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        t, s, r = draw.times.take(rows)
        x_t = draw.x_t[rows]
        with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False):
            goal = self.steps.state(teacher, draw, rows)
            if output is None:
                with dropout_of(draw, rows):
                    output = teacher.predict(x_t, t, r, *draw.inputs(rows))
            _, b = teacher.coefficients(t, r)
            g = (teacher.move(x_t, output, t, r) - goal) / expand(t - s, x_t)
            if self.clip is not None:
                # Where s = r nothing is extrapolated, so nothing is clipped.
                bound = torch.where(s > r, torch.full_like(t, self.clip), torch.full_like(t, torch.inf))
                g = torch.maximum(torch.minimum(g, expand(bound, g)), -expand(bound, g))
            return TargetValue(value=output - expand(torch.sign(b), g) * g, space="output")


@dataclass(frozen=True, kw_only=True)
class Along(Target):
    """One straight step: the output that carries x_t along `velocity` from t to r (r = t: the velocity itself).

    With the conditional velocity the jump ends at α_r x + σ_r ε. Its fixed point over all jumps is the mean of those
    (trajectory flow matching, α-Flow's α = 1); over pairs that a flow has coupled it is that flow, straightened.
    """

    velocity: Velocity = Conditional()
    gaps: ClassVar = ("zero", "positive", "mixed")

    def velocities(self) -> tuple[Velocity, ...]:
        return (self.velocity,)

    def at(self, teacher: FlowMap, draw: Draw, rows: Rows, output: State | None = None) -> TargetValue:
        with torch.no_grad():
            t, _, r = draw.times.take(rows)
            x_t, v = draw.x_t[rows], self.velocity.on(teacher, draw, rows)
            value = teacher.output_of(x_t, v, t)
            jump = draw.kinds(rows)[0]
            if count(jump):
                x, start, end = x_t[jump], t[jump], r[jump]
                a, b = teacher.path.transfer(start, end)
                state = expand(a, x) * x + expand(b, x) * v[jump]
                value = put(value, jump, teacher.pull_back(x, state, start, end))
            return TargetValue(value=value, space="output", velocity=v)
