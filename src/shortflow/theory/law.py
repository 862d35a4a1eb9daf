"""`Law`: a law of the data together with a path, and everything the marginal flow of the pair has exactly.

With x̂(x) = E[x_0 | x_t = x] and ε̂(x) = E[ε | x_t = x], which a subclass gives in closed form,

    v_t(x) = α' x̂ + σ' ε̂,    ∇log p_t(x) = −ε̂/σ,    D_t f = (∂_t + v_t·∇) f  (the derivative along the flow),

X_{t,r} is the flow map of dx/dt = v_t(x) and u_{t,r}(x) = (X_{t,r}(x) − x)/(r − t) its average velocity, u_{t,t} = v_t.
Both come from one pair (x̂_{t,r}, ε̂_{t,r}), the data and noise of a straight jump that starts at x and ends at X:

    x = α_t x̂ + σ_t ε̂,    X = α_r x̂ + σ_r ε̂,    u = (α_r − α_t)/(r − t) · x̂ + (σ_r − σ_t)/(r − t) · ε̂.

At r = t the pair is the posterior, so nothing is 0/0 there. Every path is the linear path with unit noise seen through
x' = x/(α + σ), t' = σ/(α + σ), in which jumps are straight lines; there the pair is x̂ = x' − t'u', ε̂ = x' + (1 −
t')u', and there the flow is solved where it has no closed form.

All functions are batched over rows, each row with its own times, and can be differentiated by `torch.func.jvp` and
by autograd. Use float64 where digits matter: tensors of a law follow the dtype and device of x.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.paths import Linear, Path
from shortflow.tangent import differentiated
from shortflow.theory.solve import rk4_average_velocity
from shortflow.typing import expand

__all__ = ["Law", "check_known", "check_labels", "visible"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Law(ABC):
    """A data law on a path.

    Attributes:
        path: the schedules α and σ; a noise scale is part of σ.
        steps: number of Runge–Kutta steps of the flow map, for laws without a closed form.
    """

    path: Path
    steps: int = 200

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def num_classes(self) -> int:
        """Number of classes that a `label` can name, 0 if there are none; `num_classes` itself means no class."""
        return 0

    @abstractmethod
    def posterior(self, x: State, t: Time, label: Label | None = None) -> tuple[State, State]:
        """(E[x_0 | x_t = x], E[ε | x_t = x]), each of shape (b, ...)."""

    @abstractmethod
    def velocity_variance(self, x: State, t: Time, label: Label | None = None) -> Time:
        """tr Cov[v_c | x_t = x], the total variance of the conditional velocity v_c = α' x_0 + σ' ε; shape (b,)."""

    @abstractmethod
    def sample_posterior(
        self, x: State, t: Time, label: Label | None = None, generator: torch.Generator | None = None
    ) -> State:
        """One data point x_0 ~ p(x_0 | x_t = x) for each row; (x − α x_0)/σ is the noise that belongs to it."""

    @abstractmethod
    def log_density(self, x: State, t: Time, label: Label | None = None) -> Time:
        """log p_t(x) in nats, shape (b,)."""

    @abstractmethod
    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n ..."]:
        """n independent data points, drawn on the CPU, in the default dtype unless told."""

    def on(self, path: Path | None = None, steps: int | None = None) -> "Law":
        """The same data on another path, or with another number of Runge–Kutta steps."""
        return replace(self, path=path or self.path, steps=steps or self.steps)

    def sample_marginal(self, t: Time, generator: torch.Generator | None = None) -> State:
        """One point x_t = α_t x_0 + σ_t ε for each row of t, in the dtype of t."""
        x = self.sample(t.shape[0], generator, t.dtype)
        eps = torch.randn(x.shape, generator=generator, dtype=t.dtype)
        return self.path.interpolate(x.to(t.device), eps.to(t.device), t)

    def posterior_data(self, x: State, t: Time, label: Label | None = None) -> State:
        """x̂ = E[x_0 | x_t = x], the optimal denoiser."""
        return self.posterior(x, t, label)[0]

    def posterior_noise(self, x: State, t: Time, label: Label | None = None) -> State:
        """ε̂ = E[ε | x_t = x]."""
        return self.posterior(x, t, label)[1]

    def velocity(self, x: State, t: Time, label: Label | None = None) -> State:
        """The marginal velocity v_t(x) = E[v_c | x_t = x] = α' x̂ + σ' ε̂."""
        data, noise = self.posterior(x, t, label)
        return self.path.velocity(data, noise, t)

    def score(self, x: State, t: Time, label: Label | None = None) -> State:
        """∇log p_t(x) = −ε̂/σ_t; needs t > 0."""
        return -self.posterior_noise(x, t, label) / expand(self.path.sigma(t), x)

    def acceleration(self, x: State, t: Time, label: Label | None = None) -> State:
        """D_t v = ∂_t v + ∇v·v, the second derivative of a trajectory of the flow."""
        return self.movement(x, t, label)[1]

    def movement(self, x: State, t: Time, label: Label | None = None) -> tuple[State, State]:
        """(v_t(x), D_t v)."""
        v = self.velocity(x, t, label)
        return v, differentiated(lambda x, t: self.velocity(x, t, label), (x, t), (v, torch.ones_like(t)))[1]

    def average_posterior(self, x: State, t: Time, r: Time, label: Label | None = None) -> tuple[State, State]:
        """(x̂_{t,r}, ε̂_{t,r}) with x = α_t x̂ + σ_t ε̂ and X_{t,r}(x) = α_r x̂ + σ_r ε̂; the posterior itself if r =
        t."""
        scale_t, scale_r = (self.path.alpha(time) + self.path.sigma(time) for time in (t, r))
        start, end = self.path.sigma(t) / scale_t, self.path.sigma(r) / scale_r
        state = x / expand(scale_t, x)
        average = self._linear._solve(state, start, end, label)
        start = expand(start, x)
        return state - start * average, state + (1 - start) * average

    def average_velocity(self, x: State, t: Time, r: Time, label: Label | None = None) -> State:
        """u_{t,r}(x) = (X_{t,r}(x) − x)/(r − t), shape (b, ...); exactly v_t(x) on rows with r = t."""
        data, noise = self.average_posterior(x, t, r, label)
        d_alpha = _secant(self.path.alpha, self.path.d_alpha, t, r)
        d_sigma = _secant(self.path.sigma, self.path.d_sigma, t, r)
        return expand(d_alpha, x) * data + expand(d_sigma, x) * noise

    def transfer_velocity(self, x: State, t: Time, r: Time, label: Label | None = None) -> State:
        """F = α'_t x̂_{t,r} + σ'_t ε̂_{t,r}: X_{t,r}(x) = ā x + b̄ F with (ā, b̄) of `Path.transfer`; v_t(x) if r =
        t."""
        data, noise = self.average_posterior(x, t, r, label)
        return self.path.velocity(data, noise, t)

    def flow_map(self, x: State, t: Time, r: Time, label: Label | None = None) -> State:
        """X_{t,r}(x): where the flow carries x from time t to time r, in either direction; x itself if r = t."""
        return self.path.interpolate(*self.average_posterior(x, t, r, label), r)

    @cached_property
    def _linear(self) -> "Law":
        """The same data on the linear path with unit noise."""
        return self.on(Linear())

    def _solve(self, x: State, t: Time, r: Time, label: Label | None = None) -> State:
        """u_{t,r}(x) by Runge–Kutta steps along this path. Called on the linear path only, by `average_posterior`."""
        return rk4_average_velocity(lambda x, t: self.velocity(x, t, label), x, t, r, self.steps)


def _secant(f: Callable[[Time], Time], df: Callable[[Time], Time], t: Time, r: Time) -> Time:
    """(f(r) − f(t))/(r − t), and f'(t) at r = t.

    The quotient loses digits to rounding as 1/gap and Simpson's rule for the mean of f' has the error gap⁴: they are
    equal at gap = (machine epsilon)^(1/5).
    """
    gap = r - t
    short = gap.abs() < torch.finfo(gap.dtype).eps ** 0.2
    quotient = (f(r) - f(t)) / torch.where(short, torch.ones_like(gap), gap)
    return torch.where(short, (df(t) + 4 * df((t + r) / 2) + df(r)) / 6, quotient)


def check_labels(labels: Int[Tensor, "n"], count: int, what: str) -> None:
    """Raise `ShortflowError` unless each of `count` things (`what` in words) has a label, every class 0..C−1 a
    thing."""
    if len(labels) != count:
        raise ShortflowError(f"labels has {len(labels)} entries for {count} {what}s")
    found = labels.unique().tolist()
    if found != list(range(len(found))):
        raise ShortflowError(f"labels must be 0..C−1 with a {what} in every class, got the classes {found}")


def check_known(label: Label, labels: Int[Tensor, "n"] | None, classes: int) -> None:
    """Raise `ShortflowError` unless there are classes, and each row has one of them, or C for none."""
    if labels is None:
        raise ShortflowError("a label was given, but the law has no labels; build it with labels=..., or leave it out")
    if bool(((label < 0) | (label > classes)).any()):
        raise ShortflowError(f"labels must be 0..{classes - 1}, or {classes} for no class; got {label.tolist()}")


def visible(label: Label, labels: Int[Tensor, "n"] | None, classes: int) -> Bool[Tensor, "b n"]:
    """Which of the labelled things each row may see: those of its class, and all of them where the label is C.

    Raises:
        ShortflowError: as `check_known`.
    """
    check_known(label, labels, classes)
    assert labels is not None
    return (label[:, None] == labels.to(label.device)) | (label[:, None] == classes)
