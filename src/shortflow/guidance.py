"""Classifier-free guidance: in training (a velocity that wraps a velocity) and in sampling (a flow map that wraps one).

Training mix of MeanFlow and ESC, on rows inside the window whose class is not hidden:

    ṽ = ω v + κ u_{t,t}(x | c) + (1 − ω − κ) u_{t,t}(x | ∅),

whose fixed point is u_{t,t}(c) = w v_c + (1 − w) v_∅ with the effective scale w = ω/(1 − κ).
Sampling: F = F_∅ + w (F_c − F_∅).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import drops, no_dropout
from shortflow.errors import IncompatibleParts, SamplerError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.rows import Rows, assembled, count, put, within
from shortflow.typing import Condition, Times, expand
from shortflow.velocity import Conditional, Own, Velocity, check_window

__all__ = [
    "FadingGuidance",
    "GuidanceAsInput",
    "Guided",
    "GuidedFlowMap",
    "PowerGuidance",
    "TrainingGuidance",
    "guide",
    "guided_output",
    "null_of",
]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]


def guided_output(
    flow: FlowMap, x_t: State, t: Time, r: Time, label: Condition, scale: Float[Tensor, "b"] | float
) -> State:
    """F_∅ + w (F_c − F_∅) from one pass over both branches; `scale` w may differ by row."""
    null = torch.full_like(label, null_of(flow))
    both = flow.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([r, r]), torch.cat([label, null]))
    conditional, unconditional = both.chunk(2)
    weight = expand(scale, x_t) if isinstance(scale, Tensor) else scale
    return unconditional + weight * (conditional - unconditional)


def null_of(flow: FlowMap) -> int | float:
    """What stands for no condition.

    Raises:
        IncompatibleParts: if the network has no such thing.
    """
    if flow.null_label is None:
        raise IncompatibleParts(
            "guidance needs a network with a null class; train with label_dropout > 0 (it hides the class, or the "
            "vector or sequence in its place, on some rows)"
        )
    return flow.null_label


def _mix(teacher: FlowMap, draw: Draw, rows: Rows, v: State, omega: Float[Tensor, "k"] | float, kappa: float) -> State:
    """ω v + κ u_{t,t}(c) + (1 − ω − κ) u_{t,t}(∅) on the chosen rows, without dropout; v has those rows only.

    Only the passes whose weight is not zero are run.
    """
    assert draw.label is not None  # the callers look
    x, t, label = draw.x_t[rows], draw.times.t[rows], draw.label[rows]
    # Rounded, because 1 − 0.7 − 0.3 is 5e-17, which would cost a pass.
    rest = expand(1 - omega - kappa, v) if isinstance(omega, Tensor) else round(1 - omega - kappa, 12)
    mixed = (expand(omega, v) if isinstance(omega, Tensor) else omega) * v
    with torch.no_grad(), no_dropout():
        if isinstance(rest, float) and rest == 0:
            known, outputs, fresh = _known(draw, rows)
            conditional = teacher.velocity(x[fresh], t[fresh], label[fresh]) if count(fresh) else x[:0]
            return (mixed + kappa * _filled(teacher, x, t, known, outputs, fresh, conditional)).to(v.dtype)
        null = torch.full_like(label, null_of(teacher))
        if kappa == 0:
            return (mixed + rest * teacher.velocity(x, t, null)).to(v.dtype)
        known, outputs, fresh = _known(draw, rows)
        both = teacher.velocity(torch.cat([x[fresh], x]), torch.cat([t[fresh], t]), torch.cat([label[fresh], null]))
        conditional, unconditional = both.split([count(fresh), len(x)])
        conditional = _filled(teacher, x, t, known, outputs, fresh, conditional)
        return (mixed + kappa * conditional + rest * unconditional).to(v.dtype)


def _filled(
    teacher: FlowMap,
    x: State,
    t: Time,
    known: Rows,
    outputs: Float[Tensor, "m ..."],
    fresh: Rows,
    computed: Float[Tensor, "n ..."],
) -> State:
    """The conditional velocity of all rows: computed on `fresh` ones; on `known` ones it is the prediction at r = t."""
    if count(known) == 0:
        return computed
    seen = teacher.velocity_of(x[known], outputs, t[known])
    return assembled([computed.to(seen.dtype), seen], [fresh, known])


def _known(draw: Draw, rows: Rows, head: bool = False) -> tuple[Rows, Float[Tensor, "m ..."], Rows]:
    """(places among `rows` whose outputs, or those of the velocity head, are known, these, the other places)."""
    seen, n = draw.seen, count(rows)
    outputs = None if seen is None else seen.head if head else seen.output
    if seen is None or outputs is None:
        return slice(0, 0), draw.x_t[:0], slice(0, n)
    if isinstance(rows, slice) and isinstance(seen.rows, slice):  # rows with r = t are the last ones
        first = max(0, min(n, seen.rows.start - rows.start))
        begin = rows.start + first - seen.rows.start
        return slice(first, n), outputs[begin : begin + n - first], slice(0, first)
    place = torch.full((len(draw.x),), -1, dtype=torch.long, device=draw.x.device)
    place = put(place, seen.rows, torch.arange(len(outputs), device=place.device))[rows]
    known = (place >= 0).nonzero()[:, 0]
    return known, outputs[place[known]], (place < 0).nonzero()[:, 0]


class TrainingGuidance(Velocity):
    """A velocity that guides another one, its `base`, while the network is trained."""

    base: Velocity

    @property
    @abstractmethod
    def guides(self) -> bool:
        """Whether the mix differs from the conditional model's."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The guidance in words."""

    @property
    def grounded(self) -> bool:
        return self.base.grounded

    @property
    def own(self) -> bool:
        return self.base.own or not self.idle

    @property
    def follows(self) -> frozenset[str]:
        return self.base.follows

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        return self.on(teacher, draw, draw.everything)

    def on(self, teacher: FlowMap, draw: Draw, rows: Rows) -> State:
        v = self.base.on(teacher, draw, rows)
        if draw.label is None or self.idle:
            return v
        some = draw.chosen(self.acts(draw, rows) & ~draw.dropped[rows])
        if len(some) == 0:
            return v
        return some.put(v, self.mixed(teacher, draw, within(rows, some.places), v[some.places]))

    @property
    def idle(self) -> bool:
        """Whether it is its base on all rows."""
        return False

    def acts(self, draw: Draw, rows: Rows) -> Bool[Tensor, "k"]:
        """Whether it acts on each of the rows, if that has a class."""
        return torch.ones_like(draw.dropped[rows])

    @abstractmethod
    def mixed(self, teacher: FlowMap, draw: Draw, rows: Rows, v: State) -> State:
        """The guided velocity on the chosen rows, all with a class, whose base velocity is v."""

    def _check_base(self) -> None:
        if isinstance(self.base, TrainingGuidance):
            raise IncompatibleParts(
                f"{type(self).__name__}: the base velocity is guided already; guide once, with one scale"
            )


@dataclass(frozen=True, kw_only=True)
class Guided(TrainingGuidance):
    """MeanFlow's and ESC's mix of a base velocity with the teacher's own conditional and unconditional velocities.

    The identity for unconditional data, on rows with a hidden class, and outside the closed window of t.
    Only the passes whose weight is not zero are run, without dropout, as in the published code.
    Source: MeanFlow (arXiv 2505.13447), equation (19).
    """

    base: Velocity = Conditional()
    omega: float = 1.0
    kappa: float = 0.5
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_window("Guided", self.window)
        if not abs(self.kappa) < 1:
            raise ShortflowError(
                f"Guided: kappa must be between −1 and 1, where its fixed point (scale omega/(1 − kappa)) attracts, "
                f"got {self.kappa}"
            )
        self._check_base()

    @property
    def guides(self) -> bool:
        """Whether the mix differs from the conditional model's: ω + κ ≠ 1 (else the effective scale is 1)."""
        return abs(self.omega + self.kappa - 1) > 1e-12

    @property
    def words(self) -> str:
        return f"omega {self.omega:g}, kappa {self.kappa:g}, window [{self.window[0]:g}, {self.window[1]:g}]"

    @property
    def effective_scale(self) -> float:
        """w = ω/(1 − κ)."""
        return self.omega / (1 - self.kappa)

    @property
    def idle(self) -> bool:
        return self.omega == 1 and self.kappa == 0

    def acts(self, draw: Draw, rows: Rows) -> Bool[Tensor, "k"]:
        t = draw.times.t[rows]
        return (t >= self.window[0]) & (t <= self.window[1])

    def mixed(self, teacher: FlowMap, draw: Draw, rows: Rows, v: State) -> State:
        return _mix(teacher, draw, rows, v, self.omega, self.kappa)


@dataclass(frozen=True, kw_only=True)
class FadingGuidance(TrainingGuidance):
    """SoFlow's guidance, which fades near the noise end: mix·[v + d(t)(w − 1)(v − u_∅)] + (1 − mix) u_c.

    d(t) = 1 for t ≤ edge and 1 − exp(−rate q/(1 − q)) with q = (1 − t)/(1 − edge) above; the fixed point is
    u_{t,t}(c) = w v_c + (1 − w) v_∅ where d = 1. The published rate of 0.025 makes it nearly a step.
    The identity for unconditional data and on rows with a hidden class.
    Source: SoFlow (arXiv 2512.15657) and its code.
    """

    base: Velocity = Conditional()
    scale: float = 3.0
    mix: float = 0.25
    edge: float = 0.8
    rate: float = 0.025

    def __post_init__(self) -> None:
        self._check_base()
        for name, good in (("mix", 0 < self.mix <= 1), ("edge", 0 <= self.edge < 1), ("rate", self.rate > 0)):
            if not good:
                raise ShortflowError(f"FadingGuidance: {name} = {getattr(self, name)} is impossible")

    @property
    def guides(self) -> bool:
        return self.scale != 1

    @property
    def words(self) -> str:
        return f"scale {self.scale:g} up to t = {self.edge:g}, fading above"

    def decay(self, t: Time) -> Time:
        """d(t)."""
        q = ((1 - t) / (1 - self.edge)).clamp(0, 1)
        fading = -torch.expm1(-self.rate * q / (1 - q).clamp(min=torch.finfo(t.dtype).tiny))
        return torch.where(t <= self.edge, torch.ones_like(t), fading)

    @property
    def idle(self) -> bool:
        return self.scale == 1 and self.mix == 1

    def mixed(self, teacher: FlowMap, draw: Draw, rows: Rows, v: State) -> State:
        if self.scale == 1:  # a number, so that no pass without a class is run
            return _mix(teacher, draw, rows, v, self.mix, 1 - self.mix)
        omega = self.mix * (1 + self.decay(draw.times.t[rows]) * (self.scale - 1))
        return _mix(teacher, draw, rows, v, omega, 1 - self.mix)


@dataclass(frozen=True, kw_only=True)
class GuidanceAsInput(TrainingGuidance):
    """Improved MeanFlow's guidance by a scale ω that the network is told: v + (1 − 1/ω̃)(v_c − v_∅).

    v_c and v_∅ are the network's own velocities at ω̃ and at scale 1; ω̃ = ω where t is inside the row's window (which
    is [0, 1] on rows with r = t) and 1 elsewhere. The fixed point is v_c = ω v(c) + (1 − ω) v(∅). The identity on rows
    with a hidden class. Needs a network with guidance as an input, and `Objective.guidance` to draw ω.

    Args:
        base: the velocity v that is guided.
        head: ask the network's velocity head, which `Objective.velocity_head` trains.
    Source: iMF (arXiv 2512.02012).
    """

    base: Velocity = Conditional()
    head: bool = True

    def __post_init__(self) -> None:
        self._check_base()

    @property
    def guides(self) -> bool:
        return True

    @property
    def words(self) -> str:
        return "a scale that the network is told"

    def acts(self, draw: Draw, rows: Rows) -> Bool[Tensor, "k"]:
        return self._told(draw, rows)[:, 0] != 1

    def with_direction(
        self, direction: Velocity, teacher: FlowMap, draw: Draw, rows: Rows, jump: Rows
    ) -> tuple[Float[Tensor, "k ..."], Float[Tensor, "j ..."]]:
        """v_c is also iMF's direction: it is computed once. With dropout, which guidance has none of, it differs."""
        if direction != Own(head=self.head) or draw.label is None or drops(teacher):
            return super().with_direction(direction, teacher, draw, rows, jump)
        conditional, push = self._branches(teacher, draw, rows)
        return self.base.on(teacher, draw, rows) + push, conditional[jump]

    def mixed(self, teacher: FlowMap, draw: Draw, rows: Rows, v: State) -> State:
        return v + self._branches(teacher, draw, rows)[1]

    @staticmethod
    def _told(draw: Draw, rows: Rows) -> Float[Tensor, "k 3"]:
        """What the network is told where it is asked for v_c."""
        told = draw.velocity_guidance(rows, draw.times.t[rows])
        if told is None:
            raise IncompatibleParts(
                "GuidanceAsInput needs scales to train with; set objective.guidance, as PowerGuidance"
            )
        return told

    def _branches(self, teacher: FlowMap, draw: Draw, rows: Rows) -> tuple[State, State]:
        """(v_c, (1 − 1/ω̃)(v_c − v_∅)) of the chosen rows, without dropout; without a class (v_∅, 0).

        v_c is known where the prediction has r = t, and v_∅ is needed inside the window only, where ω̃ ≠ 1.
        """
        x, t, label = draw.x_t[rows], draw.times.t[rows], draw.inputs(rows)[0]
        assert label is not None  # the callers look
        told = self._told(draw, rows)
        known, outputs, fresh = _known(draw, rows, self.head)
        some = draw.chosen((told[:, 0] != 1) & ~draw.dropped[rows])
        acts = some.places
        # Both branches are asked as they were trained: with the window [0, 1], like all rows with r = t or no class.
        free = torch.cat([torch.ones_like(told[acts, :1]), told[acts, 1:]], 1)
        null = torch.full_like(label[acts], null_of(teacher))
        x2, t2 = torch.cat([x[fresh], x[acts]]), torch.cat([t[fresh], t[acts]])
        label2, guidance = torch.cat([label[fresh], null]), torch.cat([told[fresh], free])
        with torch.no_grad(), no_dropout():
            if len(x2) == 0:
                made = x2
            elif self.head:
                made = teacher.velocity_of(x2, teacher.predict_head(x2, t2, label2, guidance), t2)
            else:
                made = teacher.velocity(x2, t2, label2, guidance)
            computed, unconditional = made.split([count(fresh), len(some)])
            conditional = _filled(teacher, x, t, known, outputs, fresh, computed)
            push = expand(1 - 1 / told[acts, 0], x) * (conditional[acts] - unconditional)
        return conditional, some.put(torch.zeros_like(conditional), push)


@dataclass(frozen=True, kw_only=True)
class PowerGuidance:
    """The law of the guidance that a network is told: ω ∈ [1, highest] with density ∝ ω^{−power}, and its window.

    The window is [U(0, ½), U(½, 1)], on rows with r = t and on those with a hidden class [0, 1]; the latter have ω = 1.
    power = 1 is log-uniform, ω = highest^U. Source: iMF (arXiv 2512.02012).
    """

    highest: float = 8.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.highest > 1:
            raise ShortflowError(f"PowerGuidance: highest must be above 1, got {self.highest}")

    def scale(self, u: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """ω, the u-quantile of its law."""
        if abs(self.power - 1) < 1e-9:
            return self.highest**u
        k = 1 - self.power
        return (1 + u * (self.highest**k - 1)) ** (1 / k)

    def __call__(self, u: Float[Tensor, "b 3"], times: Times, dropped: Bool[Tensor, "b"]) -> Float[Tensor, "b 3"]:
        """(ω, low, high) of each row from three uniform numbers."""
        whole = ~times.bootstrap | dropped
        omega = torch.where(dropped, torch.ones_like(u[:, 0]), self.scale(u[:, 0]))
        low = torch.where(whole, torch.zeros_like(omega), u[:, 1] / 2)
        high = torch.where(whole, torch.ones_like(omega), (1 + u[:, 2]) / 2)
        return torch.stack([omega, low, high], 1)


class GuidedFlowMap(FlowMap):
    """A flow map whose output is guided; to a sampler it is a flow map like any other. Made by `guide`."""

    def __init__(self, flow: FlowMap, scale: float, window: tuple[float, float]) -> None:
        super().__init__(
            flow.network,
            flow.path,
            flow.parameterization,
            flow.conditioning,
            sigma_data=flow.sigma_data,
            ends=flow.ends,
            span=flow.span,
            lowest=flow.lowest,
            guided=f"sampling guidance {scale:g} on [{window[0]:g}, {window[1]:g}]",
        )
        self.flow, self.scale, self.window = flow, scale, window

    def predict(
        self,
        x_t: State,
        t: Time,
        r: Time,
        label: Condition | None = None,
        guidance: Float[Tensor, "b 3"] | None = None,
    ) -> State:
        if label is None:
            raise SamplerError("guidance needs a class for every image; pass classes, or sample without guidance")
        inside = (t >= self.window[0]) & (t <= self.window[1])
        if not bool(inside.any()):
            return self.flow.predict(x_t, t, r, label)
        scale = torch.where(inside, torch.full_like(t, self.scale), torch.ones_like(t))
        return guided_output(self.flow, x_t, t, r, label, scale)


def guide(flow: FlowMap, scale: float, window: tuple[float, float] = (0.0, 1.0)) -> FlowMap:
    """The flow map with output F_∅ + scale (F_c − F_∅) for t inside the closed `window`; scale 1 returns `flow` itself.

    A scale of 0 is the unconditional model, not "no guidance". A network that takes its guidance as an input is told
    the scale and the window instead, at no cost.

    Raises:
        SamplerError: if the scale is not finite, if guidance is already part of the weights (it would act twice), or
            for a scale below 1 where the network is told it.
        IncompatibleParts: if the network has no null class or the window is empty.
    """
    if scale == 1:
        return flow
    if not math.isfinite(scale):
        raise SamplerError(f"guidance must be a finite number, got {scale}; 1 is none")
    check_window("guide", window)
    if flow.told is not None:
        if scale < 1:
            raise SamplerError(f"this network is told its guidance and knows scales from 1 only, got {scale:g}")
        return flow.telling((scale, *window))
    if flow.guided is not None:
        raise SamplerError(
            f"this model already carries {flow.guided}; guiding it again would apply it twice. Sample with scale 1"
        )
    null_of(flow)
    return GuidedFlowMap(flow, scale, window)
