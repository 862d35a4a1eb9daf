"""Per-sample errors (metrics) and what is made of them (weightings).

A metric compares prediction and target row by row and returns one number a row; a weighting turns errors into losses.
Nothing here averages over the batch. Shapes are (b,) throughout and checked: a (b, 1) log-variance against a (b,)
error would silently broadcast to (b, b).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap

__all__ = [
    "Adaptive",
    "ByTime",
    "KernelMMD",
    "Metric",
    "Product",
    "PseudoHuber",
    "SquaredError",
    "Unweighted",
    "Variational",
    "Weighting",
    "grouped_mmd",
]

Rows = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Space = Literal["output", "state"]


# ------------------------------------------------------------------------------------------------------------ metrics


class Metric(ABC):
    """(prediction, target) → error of each row. `space` says whether it compares outputs F or states X."""

    space: Space
    group: int = 1

    @abstractmethod
    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        """One non-negative number a row."""


@dataclass(frozen=True, kw_only=True)
class SquaredError(Metric):
    """‖e‖² ("sum" over the D coordinates) or ‖e‖²/D ("mean")."""

    reduce: Literal["sum", "mean"] = "mean"
    space: Space = "output"

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        square = (prediction - target).flatten(1).square()
        return square.sum(1) if self.reduce == "sum" else square.mean(1)


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Metric):
    """√(‖e‖² + c²) − c; c = 0.00054 √D if not given (improved consistency training, arXiv 2310.14189)."""

    c: float | None = None
    space: Space = "state"

    def __post_init__(self) -> None:
        if self.c is not None and not self.c > 0:
            raise ShortflowError(f"PseudoHuber: c must be positive or null, got {self.c}")

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        square = (prediction - target).flatten(1).square()
        c = 0.00054 * math.sqrt(square.shape[1]) if self.c is None else self.c
        total = square.sum(1)
        # total/(√(total + c²) + c) is the same number without the cancellation of √(total + c²) − c
        return total / (torch.sqrt(total + c * c) + c)


def grouped_mmd(
    a: Float[Tensor, "g m d"], b: Float[Tensor, "g m d"], bandwidth: Float[Tensor, "g"], epsilon: float, unbiased: bool
) -> Float[Tensor, "g"]:
    """MMD² of each group with k(x, y) = exp(−w max(‖x − y‖, ε)/D), w the group's `bandwidth`.

    V-statistic: mean k(a, a) + mean k(b, b) − 2 mean k(a, b), diagonals included; `unbiased` leaves them out of the
    first two terms (U-statistic).
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        square = (x[:, :, None] - y[:, None]).square().sum(-1)
        distance = square.clamp(min=epsilon**2).sqrt()
        return torch.exp(-bandwidth.reshape(-1, 1, 1) * distance / x.shape[-1])

    m = a.shape[1]

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        if not unbiased:
            return k.mean((1, 2))
        return (k.sum((1, 2)) - k.diagonal(dim1=1, dim2=2).sum(1)) / (m * (m - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean((1, 2))


@dataclass(frozen=True, kw_only=True)
class KernelMMD(Metric):
    """Maximum mean discrepancy of groups of `group` consecutive rows, in state space; each row has its group's value.

    The kernel is exp(−w̃ max(‖x − y‖, ε)/D) with w̃ = 1/|b(t, r)|. Source: IMM (arXiv 2503.07565), section 4.3.
    """

    group: int = 4
    epsilon: float = 1e-4
    unbiased: bool = False
    space: Space = field(default="state", init=False)

    def __post_init__(self) -> None:
        if self.group < (2 if self.unbiased else 1):
            raise ShortflowError(f"KernelMMD: group must be at least {2 if self.unbiased else 1}, got {self.group}")
        if not self.epsilon > 0:
            raise ShortflowError(f"KernelMMD: epsilon must be positive, got {self.epsilon}")

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        b = len(prediction)
        if b % self.group:
            raise ShortflowError(f"KernelMMD: a batch of {b} rows cannot be split into groups of {self.group}")
        shape = (b // self.group, self.group, -1)
        first = slice(None, None, self.group)
        _, scale = flow.coefficients(draw.times.t[first], draw.times.r[first])
        bandwidth = 1 / scale.abs().clamp(min=1e-12)
        a, c = prediction.float().reshape(shape), target.float().reshape(shape)
        if prediction.dtype == torch.float64:
            a, c = prediction.reshape(shape), target.reshape(shape)
        return grouped_mmd(a, c, bandwidth.to(a.dtype), self.epsilon, self.unbiased).repeat_interleave(self.group)


# ---------------------------------------------------------------------------------------------------------- weightings


class Weighting(ABC):
    """error of each row → loss of each row."""

    learned: ClassVar[bool] = False  # whether the network's log-variance head is used

    @abstractmethod
    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        """One loss a row."""


@dataclass(frozen=True, kw_only=True)
class Unweighted(Weighting):
    """loss = error."""

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        return error


@dataclass(frozen=True, kw_only=True)
class Adaptive(Weighting):
    """error/sg(error + c)^power: with power 1 the loss is near 1 and its gradient that of log(error + c); 0 is plain.

    Source: MeanFlow (arXiv 2505.13447), equation (22).
    """

    power: float = 1.0
    c: float = 1e-3

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ShortflowError(f"Adaptive: c must be positive, got {self.c}")
        if not self.power >= 0:
            raise ShortflowError(f"Adaptive: power must not be negative, got {self.power}")

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        return error / (error.detach() + self.c) ** self.power


@dataclass(frozen=True, kw_only=True)
class Variational(Weighting):
    """e^{−ℓ} · error + ℓ with a learned log-variance ℓ(t); at the optimum ℓ = log E[error | t] every t counts alike."""

    learned: ClassVar[bool] = True

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        log_variance = flow.log_variance(draw.times.t, draw.times.r, draw.condition)
        if log_variance.shape != error.shape:
            raise ShortflowError(
                f"log-variance has the shape {tuple(log_variance.shape)}, the error {tuple(error.shape)}"
            )
        return torch.exp(-log_variance) * error + log_variance


@dataclass(frozen=True, kw_only=True)
class ByTime(Weighting):
    """A fixed weight of the times.

    rule:
        "inverse-step"  1/(t − s) in units of σ (iCT's 1/(σ_t − σ_s)); needs s < t;
        "inverse-gap"   1/(t − r)², the output-space weight of a state error;
        "imm"           ½ sigmoid(bias − λ) (−λ') α^power/(α² + σ²), λ the log-SNR at unit data variance
                        (IMM, arXiv 2503.07565, section 4.4).
    """

    rule: Literal["inverse-step", "inverse-gap", "imm"]
    bias: float = 4.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in ("inverse-step", "inverse-gap", "imm"):
            raise ShortflowError(f"ByTime: rule must be 'inverse-step', 'inverse-gap' or 'imm', got {self.rule!r}")

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        t, s, r = draw.times
        if self.rule == "inverse-step":
            return error / (flow.path.sigma(t) - flow.path.sigma(s))
        if self.rule == "inverse-gap":
            return error / (t - r) ** 2
        return error * self.imm(t, flow)

    def imm(self, t: Rows, flow: FlowMap) -> Rows:
        """IMM's weight at t, for data and noise in units of the data's standard deviation."""
        t = t.clamp(min=1e-5)
        alpha, sigma = flow.path.alpha(t).clamp(min=0), flow.path.sigma(t) / flow.sigma_data
        log_snr = 2 * torch.log(alpha / sigma)
        # −λ' α^power with λ' = −2W/(ασ), so that α = 0 at t = 1 is no 0/0
        rate = 2 * flow.path.wronskian(t) / flow.path.sigma(t) * alpha ** (self.power - 1)
        return 0.5 * torch.sigmoid(self.bias - log_snr) * rate / (alpha**2 + sigma**2)


@dataclass(frozen=True, kw_only=True)
class Product(Weighting):
    """Weightings one after the other; a learned one must come last, because it adds its own term."""

    parts: tuple[Weighting, ...]

    def __post_init__(self) -> None:
        if any(part.learned for part in self.parts[:-1]):
            raise IncompatibleParts("Product: the variational weighting adds its own term and must be the last part")

    @property
    def learned(self) -> bool:  # type: ignore[override]
        return any(part.learned for part in self.parts)

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        for part in self.parts:
            error = part(error, flow, draw)
        return error
