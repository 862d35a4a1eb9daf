"""A finite data set {x_i} with weights p_i: the flow that a network trained on it for ever would have.

    γ_i ∝ p_i exp(−‖x − α x_i‖²/(2σ²)),    x̂ = Σ γ_i x_i,    ε̂ = (x − α x̂)/σ,
    tr Cov[v_c | x] = (W/σ)² (Σ γ_i ‖x_i‖² − ‖x̂‖²).

The squared distances are one matrix product, so 50,000 latents are within reach; their largest logit is subtracted
before the exponential. As t → 0 the flow runs into the nearest point: the data set is memorised.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.theory.law import Law
from shortflow.typing import expand

__all__ = ["FiniteData"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"]

EARLIEST = 1e-8  # The time whose σ replaces σ_0 = 0 in a division; its inverse square fits into single precision.


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteData(Law):
    """The law that picks point i with probability p_i.

    Attributes:
        points: shape (n, ...), in the units the network sees.
        weights: positive, shape (n,), divided by their sum; None: all equal.
        labels: class 0..C−1 of each point, every class with at least one point; None: no classes. With classes,
            every method takes a `label` of shape (b,) and answers for the points of that class; C means no class.
        floor: a time. Below it the flow goes straight: the posterior has long settled on one point.

    Raises:
        ShortflowError: if a weight is not positive, or sizes or labels do not fit the points.
    """

    points: Float[Tensor, "n ..."]
    weights: Float[Tensor, "n"] | None = None
    labels: Int[Tensor, "n"] | None = None
    floor: float = 1e-4

    def __post_init__(self) -> None:
        n = len(self.points)
        if n == 0:
            raise ShortflowError("points is empty; a finite data set needs at least one")
        for name, value in (("weights", self.weights), ("labels", self.labels)):
            if value is not None and len(value) != n:
                raise ShortflowError(f"{name} has {len(value)} entries for {n} points")
        if self.weights is not None and not bool((self.weights > 0).all()):
            raise ShortflowError(f"weights must be positive, got a minimum of {self.weights.min().item():g}")
        if self.labels is not None:
            found = self.labels.unique().tolist()
            if found != list(range(len(found))):
                raise ShortflowError(f"labels must be 0..C−1 with a point in every class, got the classes {found}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def _probabilities(self, like: Tensor) -> Float[Tensor, "n"]:
        weights = (
            torch.ones(len(self.points), dtype=like.dtype, device=like.device)
            if self.weights is None
            else self.weights.to(like.device, like.dtype)
        )
        return weights / weights.sum()

    def _divisor(self, t: Time) -> Time:
        """σ_t, or a value next to zero at t = 0: there only the data points themselves have a posterior."""
        return torch.maximum(self.path.sigma(t), self.path.sigma(torch.full_like(t, EARLIEST)))

    def _visible(self, label: Label) -> Tensor:
        """Which points each row may see, (b, n)."""
        if self.labels is None:
            raise ShortflowError("a label was given, but the data set has no labels; pass FiniteData(labels=...)")
        if bool(((label < 0) | (label > self.num_classes)).any()):
            raise ShortflowError(
                f"labels must be 0..{self.num_classes - 1}, or {self.num_classes} for no class; got {label.tolist()}"
            )
        return (label[:, None] == self.labels.to(label.device)) | (label[:, None] == self.num_classes)

    def _log_joint(self, x: State, t: Time, label: Label | None) -> tuple[Tensor, Tensor]:
        """(log p_i − ‖x − α x_i‖²/(2σ²) + q of shape (b, n), q of shape (b,)), q common to the points of a row."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShortflowError(f"points have the shape {self.shape}, x has the shape {tuple(x.shape)}")
        points = self.points.to(x.device, x.dtype).flatten(1)
        # Seen from their mean the points are as short as they can be, and so is what rounding takes from the product.
        centre = points.mean(0)
        points = points - centre
        alpha, sigma = self.path.alpha(t)[:, None], self._divisor(t)[:, None]
        state = x.flatten(1) - alpha * centre
        product = alpha * (state @ points.T) - 0.5 * alpha**2 * points.square().sum(1)
        logits = product / sigma**2 + self._probabilities(x).log()
        if label is not None:
            logits = logits.masked_fill(~self._visible(label), -torch.inf)
        return logits, 0.5 * (state / sigma).square().sum(1)

    def responsibilities(self, x: State, t: Time, label: Label | None = None) -> Float[Tensor, "b n"]:
        """γ_i = P(point i | x_t = x)."""
        return self._log_joint(x, t, label)[0].softmax(-1)

    def posterior(self, x: State, t: Time, label: Label | None = None) -> tuple[State, State]:
        gamma = self.responsibilities(x, t, label)
        data = (gamma @ self.points.to(x.device, x.dtype).flatten(1)).reshape(x.shape)
        return data, (x - expand(self.path.alpha(t), x) * data) / expand(self._divisor(t), x)

    def velocity_variance(self, x: State, t: Time, label: Label | None = None) -> Time:
        gamma = self.responsibilities(x, t, label)
        points = self.points.to(x.device, x.dtype).flatten(1)
        # Moments about the likeliest point, which then takes no part: a variance of 1e-50 is not 1 − 1.
        top = gamma.argmax(-1, keepdim=True)
        nearest = points[top[:, 0]]
        others = gamma.scatter(1, top, 0.0)
        norms = points.square().sum(1)
        squares = norms - 2 * nearest @ points.T + norms[top]
        shift = others @ points - others.sum(1, keepdim=True) * nearest
        variance = (others * squares).sum(1) - shift.square().sum(1)
        return (self.path.wronskian(t) / self._divisor(t)) ** 2 * variance

    def log_density(self, x: State, t: Time, label: Label | None = None) -> Time:
        """log p_t(x) in nats; needs t > 0. With a label, of the class: log p_t(x | label)."""
        logits, common = self._log_joint(x, t, label)
        log_p = self._probabilities(x).log().expand_as(logits)
        if label is not None:
            log_p = log_p.masked_fill(~self._visible(label), -torch.inf)
        constant = math.prod(self.shape) * (self._divisor(t).log() + 0.5 * math.log(2 * math.pi))
        return logits.logsumexp(-1) - log_p.logsumexp(-1) - common - constant

    def _solve(self, x: State, t: Time, r: Time, label: Label | None = None) -> State:
        floor = torch.full_like(t, self.floor)
        start, end = torch.maximum(t, floor), torch.maximum(r, floor)
        state = x + expand(start - t, x) * self.velocity(x, t, label)
        average = super()._solve(state, start, end, label)
        state = state + expand(end - start, x) * average
        state = state + expand(r - end, x) * self.velocity(state, end, label)
        gap = expand(r - t, x)
        straight = (expand(torch.minimum(t, r), x) < self.floor) & (gap != 0)
        return torch.where(straight, (state - x) / torch.where(straight, gap, torch.ones_like(gap)), average)

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n ..."]:
        weights = torch.ones(len(self.points)) if self.weights is None else self.weights.cpu()
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        return self.points.cpu()[chosen].to(dtype or torch.get_default_dtype())
