"""What is made of errors: fixed weights of the times, adaptive and learned ones, and products of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from shortflow.draw import Draw
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.losses.metrics import Rows, at_least_single

__all__ = ["Adaptive", "Boundary", "ByTime", "Product", "Unweighted", "Variational", "Weighting"]


class Weighting(ABC):
    """error of each row → loss of each row."""

    learned: ClassVar[bool] = False  # whether the network's log-variance head is used

    @property
    def needs_step(self) -> bool:
        """Whether it divides by t − s, so that it is for laws with s < t on every row."""
        return False

    @property
    def needs_gap(self) -> bool:
        """Whether it divides by t − r or b(t, r), so that it is for laws with r < t on every row."""
        return False

    @property
    def quotient(self) -> bool:
        """Whether errors are divided by t − s: then they must not have the rounding errors of half precision."""
        return self.needs_step

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
        error = at_least_single(error)
        return error / (error.detach() + self.c) ** self.power


@dataclass(frozen=True, kw_only=True)
class Variational(Weighting):
    """e^{−ℓ} · error + ℓ with a learned log-variance ℓ(t); at the optimum ℓ = log E[error | t] every t counts alike."""

    learned: ClassVar[bool] = True

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        error = at_least_single(error)
        log_variance = at_least_single(flow.log_variance(draw.times.t, draw.times.r, draw.condition))
        if log_variance.shape != error.shape:
            raise ShortflowError(
                f"log-variance has the shape {tuple(log_variance.shape)}, the error {tuple(error.shape)}"
            )
        return torch.exp(-log_variance) * error + log_variance


Rule = Literal[
    "inverse-step",
    "inverse-gap",
    "inverse-root-step",
    "inverse-output",
    "inverse-output-square",
    "inverse-variance",
    "share",
    "gap-over-step",
    "edm",
    "inverse-sine",
    "imm",
]
BY_STEP = ("inverse-step", "inverse-root-step")
BY_GAP = ("inverse-gap", "inverse-output", "inverse-output-square")
EARLIEST = 1e-5  # times below count as this in weights that are infinite at t = 0


@dataclass(frozen=True, kw_only=True)
class ByTime(Weighting):
    """A fixed weight of the times.

    rule:
        "inverse-step"           1/(σ_t − σ_s) (arXiv 2310.14189; with easy consistency tuning, 2406.14548, too);
        "inverse-root-step"      1/√(σ_t − σ_s);
        "inverse-gap"            1/(t − r)², the output-space weight of a state error;
        "inverse-output"         1/|b(t, r)|, with b the factor of the network's output (c_out);
        "inverse-output-square"  1/b(t, r)², which turns a state error into one of the output, on any path;
        "inverse-variance"       1/σ_t²;
        "share"                  (t − s)/(t − r) where s < t, else 1: α-Flow's α, to be multiplied with `Adaptive`;
        "gap-over-step"          (t − r)/(t − s) where s < t, else 1: the gradient of a two-step target in output space
                                 then tends to that of the continuous one as s → t;
        "edm"                    1/σ_data² + α_t²/σ_t², that is (σ² + σ_data²)/(σ σ_data)² where α = 1, for errors of
                                 the denoised data (EDM, arXiv 2206.00364);
        "inverse-sine"           4/sin(1.57 t) (UCGM, arXiv 2505.07447);
        "imm"                    ½ sigmoid(bias − λ) (−λ') α^power/(α² + σ²), λ the log-SNR at unit data variance
                                 (IMM, arXiv 2503.07565, section 4.4).

    Rules that divide by σ_t take times below 1e-5 for 1e-5. `needs_step` and `needs_gap` say what would divide by zero.
    """

    rule: Rule
    bias: float = 4.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            rules = ", ".join(repr(rule) for rule in get_args(Rule))
            raise ShortflowError(f"ByTime: rule must be one of {rules}, got {self.rule!r}")

    @property
    def needs_step(self) -> bool:
        return self.rule in BY_STEP

    @property
    def needs_gap(self) -> bool:
        return self.rule in BY_GAP

    @property
    def quotient(self) -> bool:
        return self.needs_step or self.rule == "gap-over-step"

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        return at_least_single(error) * self.weight(flow, draw)

    def weight(self, flow: FlowMap, draw: Draw) -> Rows:
        """The factor of each row."""
        t, s, r = draw.times
        if self.rule in BY_STEP:
            step = flow.path.sigma(t) - flow.path.sigma(s)
            return 1 / step if self.rule == "inverse-step" else torch.rsqrt(step)
        if self.rule in BY_GAP:
            size = t - r if self.rule == "inverse-gap" else flow.coefficients(t, r)[1].abs()
            return 1 / size if self.rule == "inverse-output" else 1 / size**2
        if self.rule in ("share", "gap-over-step"):
            # where s = t the ratio is 1/1
            step, gap = (torch.where(s < t, t - end, torch.ones_like(t)) for end in (s, r))
            return step / gap if self.rule == "share" else gap / step
        return self._noise_weight(t.clamp(min=EARLIEST), flow)

    def _noise_weight(self, t: Rows, flow: FlowMap) -> Rows:
        """The rules of t alone, for t > 0."""
        if self.rule == "inverse-sine":
            return 4 / torch.sin(1.57 * t)
        if self.rule == "imm":
            return self.imm(t, flow)
        sigma = flow.path.sigma(t)
        return (
            1 / sigma**2 if self.rule == "inverse-variance" else flow.sigma_data**-2 + (flow.path.alpha(t) / sigma) ** 2
        )

    def imm(self, t: Rows, flow: FlowMap) -> Rows:
        """IMM's weight at t, for data and noise in units of the data's standard deviation."""
        t = t.clamp(min=EARLIEST)
        alpha, sigma = flow.path.alpha(t).clamp(min=0), flow.path.sigma(t) / flow.sigma_data
        log_snr = 2 * torch.log(alpha / sigma)
        # −λ' α^power with λ' = −2W/(ασ), so that α = 0 at t = 1 is no 0/0
        rate = 2 * flow.path.wronskian(t) / flow.path.sigma(t) * alpha ** (self.power - 1)
        return 0.5 * torch.sigmoid(self.bias - log_snr) * rate / (alpha**2 + sigma**2)


@dataclass(frozen=True, kw_only=True)
class Boundary(Weighting):
    """Rows whose second jump starts below the time `at` count apart: the mean over the batch becomes

        mean of the others + weight · mean of those with s < at.

    `share` is the share of such rows that the law of times draws, which makes the weight of a row a function of its
    times; None takes the share found in the batch. The loss is then the one above for every batch and not only on
    average. Source: truncated consistency models (arXiv 2410.14895), where `at` is the time from which on the network
    is trained, and targets below are those of a frozen model.
    """

    at: float
    share: float | None = 0.25
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.at < 1:
            raise ShortflowError(f"Boundary: at must be a time between 0 and 1, got {self.at}")
        if self.share is not None and not 0 < self.share < 1:
            raise ShortflowError(f"Boundary: share must be between 0 and 1, or null, got {self.share}")
        if not self.weight >= 0:
            raise ShortflowError(f"Boundary: weight must not be negative, got {self.weight}")

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        error, below = at_least_single(error), draw.times.s < self.at
        inside, outside = self.share, None if self.share is None else 1 - self.share
        if inside is None or outside is None:
            found = below.to(error.dtype).mean()
            least = 1 / len(below)  # an empty part has no rows to be weighted
            inside, outside = found.clamp(min=least), (1 - found).clamp(min=least)
        return torch.where(below, error * (self.weight / inside), error / outside)


@dataclass(frozen=True, kw_only=True)
class Product(Weighting):
    """Weightings one after the other; a learned one must come last, because it adds its own term.

    An `Adaptive` part sees what those before it made of the error: α-Flow's α L/(L + c) is (Adaptive, ByTime share).
    """

    parts: tuple[Weighting, ...]

    def __post_init__(self) -> None:
        if any(part.learned for part in self.parts[:-1]):
            raise IncompatibleParts("Product: the variational weighting adds its own term and must be the last part")

    @property
    def learned(self) -> bool:  # type: ignore[override]
        return any(part.learned for part in self.parts)

    @property
    def needs_step(self) -> bool:
        return any(part.needs_step for part in self.parts)

    @property
    def needs_gap(self) -> bool:
        return any(part.needs_gap for part in self.parts)

    def __call__(self, error: Rows, flow: FlowMap, draw: Draw) -> Rows:
        for part in self.parts:
            error = part(error, flow, draw)
        return error
