"""Classifier-free guidance: in training (a velocity that wraps a velocity) and in sampling (a flow map that wraps one).

Training mix of MeanFlow and ESC, on rows inside the window whose class is not hidden:

    ṽ = ω v + κ u_{t,t}(x | c) + (1 − ω − κ) u_{t,t}(x | ∅),

whose fixed point is u_{t,t}(c) = w v_c + (1 − w) v_∅ with the effective scale w = ω/(1 − κ).
Sampling: F = F_∅ + w (F_c − F_∅).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.draw import Draw
from shortflow.dropout import no_dropout
from shortflow.errors import IncompatibleParts, SamplerError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.typing import expand
from shortflow.velocity import Conditional, Velocity

__all__ = ["Guided", "GuidedFlowMap", "guide", "guided_output"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]


def check_window(name: str, window: tuple[float, float]) -> None:
    """Raise `IncompatibleParts` for a guidance window that contains no time."""
    low, high = window
    if not 0 <= low < high <= 1:
        raise IncompatibleParts(
            f"{name}: the guidance window {list(window)} is empty or outside [0, 1]; give [low, high] with low < high"
        )


def guided_output(
    flow: FlowMap, x_t: State, t: Time, r: Time, label: Int[Tensor, "b"], scale: Float[Tensor, "b"] | float
) -> State:
    """F_∅ + w (F_c − F_∅) from one pass over both branches; `scale` w may differ by row."""
    null = torch.full_like(label, _null(flow))
    both = flow.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([r, r]), torch.cat([label, null]))
    conditional, unconditional = both.chunk(2)
    weight = expand(scale, x_t) if isinstance(scale, Tensor) else scale
    return unconditional + weight * (conditional - unconditional)


def _null(flow: FlowMap) -> int:
    if flow.null_label is None:
        raise IncompatibleParts(
            "guidance needs a network with a null class; train with label_dropout > 0 (it hides the class on some rows)"
        )
    return flow.null_label


@dataclass(frozen=True, kw_only=True)
class Guided(Velocity):
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
        if isinstance(self.base, Guided):
            raise IncompatibleParts("Guided: the base velocity is guided already; guide once, with one omega and kappa")

    @property
    def guides(self) -> bool:
        """Whether the mix differs from the conditional model's: ω + κ ≠ 1 (else the effective scale is 1)."""
        return abs(self.omega + self.kappa - 1) > 1e-12

    @property
    def effective_scale(self) -> float:
        """w = ω/(1 − κ)."""
        return self.omega / (1 - self.kappa)

    def __call__(self, teacher: FlowMap, draw: Draw) -> State:
        v = self.base(teacher, draw)
        if draw.label is None or (self.omega == 1 and self.kappa == 0):
            return v
        t = draw.times.t
        rows = ((t >= self.window[0]) & (t <= self.window[1]) & ~draw.dropped).nonzero()[:, 0]
        if len(rows) == 0:
            return v
        x, time, label = draw.x_t[rows], t[rows], draw.label[rows]
        # Rounded, because 1 − 0.7 − 0.3 is 5e-17, which would cost a pass.
        own, rest = self.kappa, round(1 - self.omega - self.kappa, 12)
        mixed = self.omega * v[rows]
        with torch.no_grad(), no_dropout():
            if own != 0 and rest != 0:
                null = torch.full_like(label, _null(teacher))
                both = teacher.velocity(torch.cat([x, x]), torch.cat([time, time]), torch.cat([label, null]))
                conditional, unconditional = both.chunk(2)
                mixed = mixed + own * conditional + rest * unconditional
            elif rest != 0:
                mixed = mixed + rest * teacher.velocity(x, time, torch.full_like(label, _null(teacher)))
            else:
                mixed = mixed + own * teacher.velocity(x, time, label)
        return v.index_copy(0, rows, mixed.to(v.dtype))


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
            guided=f"sampling guidance {scale:g} on [{window[0]:g}, {window[1]:g}]",
        )
        self.flow, self.scale, self.window = flow, scale, window

    def predict(self, x_t: State, t: Time, r: Time, label: Int[Tensor, "b"] | None = None) -> State:
        if label is None:
            raise SamplerError("guidance needs a class for every image; pass classes, or sample without guidance")
        inside = (t >= self.window[0]) & (t <= self.window[1])
        if not bool(inside.any()):
            return self.flow.predict(x_t, t, r, label)
        scale = torch.where(inside, torch.full_like(t, self.scale), torch.ones_like(t))
        return guided_output(self.flow, x_t, t, r, label, scale)


def guide(flow: FlowMap, scale: float, window: tuple[float, float] = (0.0, 1.0)) -> FlowMap:
    """The flow map with output F_∅ + scale (F_c − F_∅) for t inside the closed `window`; scale 1 returns `flow` itself.

    A scale of 0 is the unconditional model, not "no guidance".

    Raises:
        SamplerError: if guidance is already part of the weights (it would act twice).
        IncompatibleParts: if the network has no null class or the window is empty.
    """
    if scale == 1:
        return flow
    check_window("guide", window)
    if flow.guided is not None:
        raise SamplerError(
            f"this model already carries {flow.guided}; guiding it again would apply it twice. Sample with scale 1"
        )
    _null(flow)
    return GuidedFlowMap(flow, scale, window)
