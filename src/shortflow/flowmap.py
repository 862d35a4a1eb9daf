"""Flow maps: a network F read as a jump from time t to time r,

    X_{t,r}(x) = a x + b F(c_in x, time inputs, label),

where the parameterisation supplies a(t, r), b(t, r) and c_in(t) such that X_{t,t} is the identity for any weights, and
the conditioning the time inputs; the parts of `shortflow.parameterizations` and `shortflow.conditionings` are
importable from here, too.
The object that is trained is the object that is sampled, saved and evaluated.
"""

import copy
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shortflow.conditionings import (
    AngleOnly,
    Conditioning,
    DiffusionIndex,
    GapOnly,
    JumpFlag,
    LogSigma,
    LogStep,
    StartAndEnd,
    StartAndGap,
    StartOnly,
)
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.parameterizations import (
    EDM,
    AverageVelocity,
    Denoiser,
    EDMSkip,
    NoisePrediction,
    Parameterization,
    SimpleEDM,
    Transfer,
    TrigFlow,
    TrigJump,
)
from shortflow.paths import Path
from shortflow.tangent import Derivative, DualPass, differentiated
from shortflow.typing import Condition, expand

__all__ = [
    "EDM",
    "AngleOnly",
    "AverageVelocity",
    "Conditioning",
    "Denoiser",
    "DiffusionIndex",
    "EDMSkip",
    "FlowMap",
    "GapOnly",
    "JumpFlag",
    "LogSigma",
    "LogStep",
    "NoisePrediction",
    "Parameterization",
    "SimpleEDM",
    "StartAndEnd",
    "StartAndGap",
    "StartOnly",
    "Transfer",
    "TrigFlow",
    "TrigJump",
]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Condition | None
Guidance = Float[Tensor, "b 3"] | None  # (ω, low, high) of each row, for networks that are told their guidance


class FlowMap(nn.Module):
    """A network on a path, read through a parameterisation.

    Args:
        network: `network(x, time, second, label)` with the output shape of x; see `shortflow.nn`.
        path: the path whose marginal flow is mapped.
        parameterization: how F becomes a jump.
        conditioning: what the network is told about (t, r).
        sigma_data: standard deviation of the data, for the parameterisations that scale with it.
        ends: what was trained (see `shortflow.times`); samplers refuse what does not fit.
        span: earliest and latest time the network was trained at.
        guided: a note if guidance is baked into the weights, so that nobody guides twice.
        told: the network takes its guidance (ω, low, high) as an input; unless told otherwise it is (1, 0, 1), none.
        lowest: earliest time a jump may start from (truncated consistency models); 0 for all others.

    Raises:
        IncompatibleParts: if the parameterisation is not defined on the path, or `sigma_data` is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        parameterization: Parameterization,
        conditioning: Conditioning | None = None,
        *,
        sigma_data: float = 1.0,
        ends: Literal["diagonal", "zero", "any", "dyadic"] = "any",
        span: tuple[float, float] = (0.0, 1.0),
        guided: str | None = None,
        told: bool = False,
        lowest: float = 0.0,
    ) -> None:
        super().__init__()
        if not (sigma_data > 0 and math.isfinite(sigma_data)):
            raise IncompatibleParts(f"sigma_data must be a positive finite number, got {sigma_data}")
        parameterization.check(path, sigma_data)
        self.network = network
        self.path, self.parameterization = path, parameterization
        self.conditioning = conditioning or StartAndGap()
        self.sigma_data, self.span, self.guided, self.lowest = sigma_data, span, guided, lowest
        self.told: tuple[float, float, float] | None = (1.0, 0.0, 1.0) if told else None
        self.ends: Literal["diagonal", "zero", "any", "dyadic"] = ends

    @property
    def num_classes(self) -> int:
        return int(getattr(self.network, "num_classes", 0))

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape of a condition that is no class: (d,) of a vector, (n, d) of a sequence of at most n; else None."""
        return getattr(self.network, "condition_shape", None)

    @property
    def conditional(self) -> bool:
        """Whether the network is told a class or another condition."""
        return self.num_classes > 0 or self.condition_shape is not None

    @property
    def null_label(self) -> int | float | None:
        """What stands for no condition: the number after the last class, NaN for others; None where nothing does."""
        return getattr(self.network, "null_label", None)

    def predict(self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None) -> State:
        """F, the network's output for a jump from t to r."""
        x, time, second = self._inputs(x_t, t, r)
        guidance = self._guidance(guidance, t)
        if guidance is None:  # networks that know no guidance need not have the argument
            return self.network(x, time, second, label)
        return self.network(x, time, second, label, guidance)

    def _guidance(self, guidance: Guidance, t: Time) -> Guidance:
        """What the network is told of its guidance: what is given, or the default of a network that must be told."""
        if guidance is not None or self.told is None:
            return guidance
        return torch.stack([torch.full_like(t, value) for value in self.told], 1)

    def telling(self, guidance: tuple[float, float, float]) -> "FlowMap":
        """The same flow map (the same weights) whose network is told another guidance (ω, low, high) by default."""
        other = copy.copy(self)
        other.told = guidance
        return other

    def predict_both(
        self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None
    ) -> tuple[State, State]:
        """(F, F̂): the output, and that of the velocity head, an output for r = t, from one pass.

        Raises:
            IncompatibleParts: if the network has no such head.
        """
        both = getattr(self.network, "both", None)
        if both is None:
            raise IncompatibleParts("this network has no velocity head; build it with velocity_head=True")
        return both(*self._inputs(x_t, t, r), label, self._guidance(guidance, t))

    def predict_head(self, x_t: State, t: Time, label: Label = None, guidance: Guidance = None) -> State:
        """F̂ alone, the output of the velocity head at r = t.

        Raises:
            IncompatibleParts: if the network has no such head.
        """
        alone = getattr(self.network, "velocity_alone", None)
        if alone is None:
            return self.predict_both(x_t, t, t, label, guidance)[1]
        return alone(*self._inputs(x_t, t, t), label, self._guidance(guidance, t))

    def _inputs(self, x_t: State, t: Time, r: Time) -> tuple[State, Time, Time | None]:
        """What the network is called with: the scaled point and one or two times."""
        time, second = self.conditioning.inputs(self.path, t, r)
        scale = self.parameterization.input_scale(self.path, self.sigma_data, t)
        return x_t if scale is None else expand(scale, x_t) * x_t, time, second

    def coefficients(self, t: Time, r: Time) -> tuple[Time, Time]:
        """(a, b) of X_{t,r}(x) = a x + b F."""
        return self.parameterization.coefficients(self.path, self.sigma_data, t, r)

    def move(self, x_t: State, output: State, t: Time, r: Time) -> State:
        """X_{t,r}(x_t) = a x_t + b F for a given output F."""
        a, b = self.coefficients(t, r)
        return expand(a, x_t) * x_t + expand(b, x_t) * output

    def forward(self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None) -> State:
        """X_{t,r}(x_t), one jump."""
        return self.move(x_t, self.predict(x_t, t, r, label, guidance), t, r)

    def pull_back(self, x_t: State, x_r: State, t: Time, r: Time) -> State:
        """The output F with move(x_t, F, t, r) = x_r: F = (x_r − a x_t)/b. Infinite where r = t (b = 0)."""
        a, b = self.coefficients(t, r)
        return (x_r - expand(a, x_t) * x_t) / expand(b, x_t)

    def velocity_of(self, x_t: State, output: State, t: Time) -> State:
        """The velocity that an output F stands for at r = t: v = ∂_r a · x + ∂_r b · F."""
        a, b = self.parameterization.rates(self.path, self.sigma_data, t)
        return expand(a, x_t) * x_t + expand(b, x_t) * output

    def output_of(self, x_t: State, v: State, t: Time) -> State:
        """The output F that stands for the velocity v at r = t (the inverse of `velocity_of`)."""
        a, b = self.parameterization.rates(self.path, self.sigma_data, t)
        return (v - expand(a, x_t) * x_t) / expand(b, x_t)

    def velocity(self, x_t: State, t: Time, label: Label = None, guidance: Guidance = None) -> State:
        """u_{t,t}(x_t), the instantaneous velocity."""
        return self.velocity_of(x_t, self.predict(x_t, t, t, label, guidance), t)

    def average_velocity(self, x_t: State, t: Time, r: Time, label: Label = None) -> State:
        """u_{t,r} = (X_{t,r}(x_t) − x_t)/(r − t), for r < t."""
        return (self(x_t, t, r, label) - x_t) / expand(r - t, x_t)

    def tangent(
        self, x_t: State, t: Time, r: Time, v: State, label: Label = None, derivative: Derivative | None = None
    ) -> tuple[State, State]:
        """(F, D_t F) with D_t = ∂_t + v·∇ at fixed r, both without gradient."""
        return (derivative or DualPass())(lambda x, time: self.predict(x, time, r, label), x_t, t, v)

    def end_rate(
        self, x_t: State, t: Time, r: Time, label: Label = None, guidance: Guidance = None
    ) -> tuple[State, State]:
        """(F, ∂_r X_{t,r}(x_t)), the velocity at the end of the jump, both with gradient: one forward-mode pass.

        ∂_r X = ∂_r a x + ∂_r b F + b ∂_r F.
        """
        with torch.autocast(x_t.device.type, enabled=False):
            output, rate = differentiated(
                lambda end: self.predict(x_t, t, end, label, guidance), (r,), (torch.ones_like(r),)
            )
        return output, self.end_rate_of(x_t, t, r, output, rate)

    def end_rate_of(self, x_t: State, t: Time, r: Time, output: State, rate: State) -> State:
        """∂_r X_{t,r}(x_t) from F and ∂_r F."""
        with torch.no_grad():
            (_, b), (a_r, b_r) = differentiated(lambda end: self.coefficients(t, end), (r,), (torch.ones_like(r),))
        return expand(a_r, x_t) * x_t + expand(b_r, x_t) * output + expand(b, x_t) * rate

    def residual(
        self, x_t: State, t: Time, r: Time, v: State, label: Label = None, guidance: Guidance = None
    ) -> tuple[State, State]:
        """(F, D_t X_{t,r}(x_t)) with D_t = ∂_t + v·∇ at fixed r, both with gradient; zero on the exact map."""
        with torch.autocast(x_t.device.type, enabled=False):
            output, rate = differentiated(
                lambda x, time: self.predict(x, time, r, label, guidance), (x_t, t), (v, torch.ones_like(t))
            )
        a, b = self.coefficients(t, r)
        a_t, b_t = self.parameterization.coefficient_rates(self.path, self.sigma_data, t, r)
        moved = expand(a, x_t) * v + expand(b_t, x_t) * output + expand(a_t, x_t) * x_t + expand(b, x_t) * rate
        return output, moved

    def log_variance(self, t: Time, r: Time, label: Label = None) -> Time:
        """ℓ(t), the learned log-variance of the loss.

        Raises:
            IncompatibleParts: if the network has no such head.
        """
        head = getattr(self.network, "log_variance", None)
        if head is None:
            raise IncompatibleParts("this network has no log-variance head; build it with log_variance=True")
        time, second = self.conditioning.inputs(self.path, t, r)
        value = head(time, second, label)
        if value.shape != t.shape:
            raise ShortflowError(
                f"the log-variance head must return one number a row, {tuple(t.shape)}, got {tuple(value.shape)}"
            )
        return value
