"""Directional derivatives of networks: value and derivative of f along a direction, the derivative without gradient.

Labels and weights stay in the closure of f: they are not differentiated. Derivatives run outside autocast, because a
derivative in time does not survive bf16.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shortflow.dual import NoRule, push_forward, push_forward_first
from shortflow.errors import ShortflowError
from shortflow.typing import expand

__all__ = [
    "CentralDifference",
    "Derivative",
    "DualPass",
    "ForwardMode",
    "Slope",
    "along_path",
    "differentiated",
    "in_end",
    "in_space",
    "in_time",
    "kept",
]

State = Float[Tensor, "b ..."]
Time = Float[Tensor, "b"]
Function = Callable[[Tensor, Tensor], Tensor]
Several = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
Predicted = Callable[[Tensor, Tensor, Tensor], Tensor]
Result = TypeVar("Result")


class Derivative(ABC):
    """How the total derivative along the path is computed."""

    @abstractmethod
    def __call__(self, f: Function, x: State, t: Time, v: State) -> tuple[State, State]:
        """(f(x, t), d/dh f(x + h v, t + h) at h = 0), both without gradient. x, v: (b, ...), t: (b)."""

    keeps: ClassVar[bool] = False
    """Whether `keeping` has the value from the same pass, and does not need one more."""

    def keeping(self, f: Several, x: State, t: Time, v: State) -> tuple[tuple[Tensor, ...], State]:
        """(all results of f, the derivative of the first): the values as an ordinary pass has them, with gradient."""
        return f(x, t), self(lambda x, t: f(x, t)[0], x, t, v)[1]


@dataclass(frozen=True, kw_only=True)
class DualPass(Derivative):
    """Exact, by a pass over (value, tangent) pairs (`shortflow.dual`): 2 F for both, and the value keeps its gradient.

    Tangents are computed in float32 at least, also where the values run in bf16.

    Args:
        fallback: where an operation of the network has no rule, say which and use `ForwardMode`; else raise `NoRule`.
    """

    fallback: bool = True
    keeps: ClassVar = True

    def __call__(self, f: Function, x: State, t: Time, v: State) -> tuple[State, State]:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            (value,), rate = self.keeping(lambda x, t: (f(x, t),), x, t, v)
            return value, rate

    def keeping(self, f: Several, x: State, t: Time, v: State) -> tuple[tuple[Tensor, ...], State]:
        return kept(f, (x, t), (v, torch.ones_like(t)), fallback=self.fallback)


def kept(
    f: Callable[..., tuple[Tensor, ...]],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    fallback: bool = True,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """(all results of f as an ordinary pass has them, with gradient; the derivative of the first, without).

    By one dual pass, or, where an operation of f has no rule, by one with `torch.func.jvp` beside the ordinary one.

    Raises:
        NoRule: then, without `fallback`.
    """
    dtype = torch.promote_types(primals[0].dtype, torch.float32)
    try:
        return push_forward_first(f, primals, tangents, dtype=dtype)
    except NoRule as error:
        if not fallback:
            raise
        _say(error)
        values = f(*primals)
        tangents = tuple(d.to(x.dtype) for x, d in zip(primals, tangents, strict=True))
        with torch.no_grad(), torch.autocast(primals[0].device.type, enabled=False):
            return values, _forward_mode(lambda *inputs: f(*inputs)[0], primals, tangents)[1]


def differentiated(
    f: Callable[..., Result], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Result, Result]:
    """(f, its derivative along the tangents) of a tensor or a tuple of them, with gradient: losses on a derivative.

    By a dual pass, 2 F forward; by `torch.func.jvp` where an operation of f has no rule.
    """
    try:
        return push_forward(f, primals, tangents, graph=True)
    except NoRule as error:
        _say(error)
        return _forward_mode(f, primals, tangents)


def _forward_mode(
    f: Callable[..., Result], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Result, Result]:
    """`torch.func.jvp`, with attention by plain products: its fused kernels have no forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        result: Any = torch.func.jvp(f, primals, tangents)
    return result[0], result[1]


def _say(error: NoRule) -> None:
    """Once for each message (Python's default): the derivative costs more than it could."""
    warnings.warn(f"{error}. It is used now", stacklevel=3)


@dataclass(frozen=True, kw_only=True)
class ForwardMode(Derivative):
    """Exact, by `torch.func.jvp`: 3 F, for any network whose operations have a forward-mode rule in PyTorch."""

    def __call__(self, f: Function, x: State, t: Time, v: State) -> tuple[State, State]:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return _forward_mode(f, (x, t), (v.to(x.dtype), torch.ones_like(t)))


@dataclass(frozen=True, kw_only=True)
class CentralDifference(Derivative):
    """(f(x + h v, t + h) − f(x − h v, t − h))/2h: three plain passes, error O(h²). In fp32 use h from 1e-3 to 1e-2."""

    step: float = 5e-3

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ShortflowError(f"CentralDifference: step must be positive, got {self.step}")

    def __call__(self, f: Function, x: State, t: Time, v: State) -> tuple[State, State]:
        # At small t the step shrinks with t: a time below 0 means nothing, and noise levels change on the scale of t.
        h = torch.minimum(torch.full_like(t, self.step), t / 2).clamp(min=1e-6)
        wide = expand(h, x)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            ahead, behind = f(x + wide * v, t + h), f(x - wide * v, t - h)
            return f(x, t), (ahead - behind) / (2 * wide)


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A derivative of the prediction F(x, t, r) that a target takes, for whoever wants to compare it with another.

    Attributes:
        of: (F, x, t, r, v) → (its value, its derivative), the way the target does it; v has the shape of x.
        along: (a, b, c): the derivative is d/dh F(x + a h v, t + b h, r + c h) at h = 0.
        where: the same in words.
        by: what takes it.
        instead: what a user may set to have it taken otherwise; nothing where there is no choice.
    """

    of: Callable[[Predicted, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    along: tuple[int, int, int]
    where: str
    by: str
    instead: str = ""


def along_path(derivative: Derivative, *, moving: bool = True) -> Slope:
    """D_t F = (∂_t + v·∇) F at fixed r; or ∂_t F alone, which is small beside the rest and hidden by it."""
    a = int(moving)
    return Slope(
        of=lambda f, x, t, r, v: derivative(lambda x, t: f(x, t, r), x, t, a * v),
        along=(a, 1, 0),
        where="along the path" if moving else "in time",
        by=type(derivative).__name__,
        instead="set the target's derivative to ForwardMode or CentralDifference",
    )


def in_space() -> Slope:
    """∇F·v at fixed times."""
    return Slope(
        of=lambda f, x, t, r, v: differentiated(lambda x: f(x, t, r), (x,), (v,)),
        along=(1, 0, 0),
        where="in space",
        by="differentiated",
    )


def in_time(*, moving: bool) -> Slope:
    """∂_t F, or D_t F where x moves with t; with gradient."""
    a = int(moving)
    return Slope(
        of=lambda f, x, t, r, v: differentiated(lambda x, t: f(x, t, r), (x, t), (a * v, torch.ones_like(t))),
        along=(a, 1, 0),
        where="along the path" if moving else "in time",
        by="differentiated",
    )


def in_end(*, graph: bool) -> Slope:
    """∂_r F, the derivative itself with gradient (`differentiated`) or without (`kept`)."""

    def of(f: Predicted, x: Tensor, t: Tensor, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(r)
        if graph:
            return differentiated(lambda end: f(x, t, end), (r,), (one,))
        (value,), rate = kept(lambda end: (f(x, t, end),), (r,), (one,))
        return value, rate

    return Slope(of=of, along=(0, 0, 1), where="in the end of the jump", by="differentiated" if graph else "kept")
