"""The vocabulary of a training step, and the one time convention.

Time runs from data to noise: t = 0 is data, t = 1 is noise, and r ≤ s ≤ t. A point on the path is
x_t = α_t x + σ_t ε with ε ~ N(0, I). A flow map X_{t,r} carries a point from time t to time r.
Axis names in the types: `b` the rows of a batch, `...` the shape of one sample (any shape).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Batch", "Draw", "LossTerms", "Progress", "Times", "expand"]


def expand(value: Float[Tensor, "b"], like: Tensor) -> Tensor:
    """The per-row `value` with trailing axes of length one, so that it broadcasts against `like` of shape (b, ...)."""
    return value.reshape(value.shape[0], *([1] * (like.ndim - 1)))


class Times(NamedTuple):
    """Start t, intermediate s and end r of each row, with 0 ≤ r ≤ s ≤ t ≤ 1."""

    t: Float[Tensor, "b"]
    s: Float[Tensor, "b"]
    r: Float[Tensor, "b"]

    @property
    def bootstrap(self) -> Bool[Tensor, "b"]:
        """Rows that take a real jump (r < t); the others (r = t) are flow matching."""
        return self.r < self.t

    def take(self, rows: Int[Tensor, "k"]) -> "Times":
        return Times(self.t[rows], self.s[rows], self.r[rows])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come, counted in images seen. Schedules are functions of `share` ∈ [0, 1]."""

    images: int = 0
    total: int = 1

    @property
    def share(self) -> float:
        return min(1.0, self.images / max(1, self.total))

    def along(self, horizon: float) -> float:
        """min(1, share/horizon): the position in a schedule that lasts `horizon` of the run; 1 if the horizon is 0."""
        return 1.0 if horizon <= 0 else min(1.0, self.share / horizon)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Data points in the units the network sees, with their class (None: unconditional)."""

    x: Float[Tensor, "b ..."]
    label: Int[Tensor, "b"] | None = None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Every random number of one training step, so that the loss is a pure function of (weights, draw).

    Attributes:
        x, eps, x_t: data, noise and the point x_t = α_t x + σ_t ε, all of shape (b, ...).
        times: (t, s, r) of each row.
        label: the class of each row before label dropout, or None.
        dropped: rows whose class is hidden from the network in every pass of the step.
        null_label: index of the "no class" row of the label table; None if there is none.
        coin: uniform numbers in [0, 1); a `Mixture` takes the plug-in velocity where coin < probability.
        dropout_seed: seed of all dropout masks of the step (see `shortflow.dropout`).
        progress: position in the run, for schedules.
    """

    x: Float[Tensor, "b ..."]
    eps: Float[Tensor, "b ..."]
    x_t: Float[Tensor, "b ..."]
    times: Times
    label: Int[Tensor, "b"] | None
    dropped: Bool[Tensor, "b"]
    coin: Float[Tensor, "b"]
    null_label: int | None = None
    dropout_seed: int = 0
    progress: Progress = Progress()

    @property
    def condition(self) -> Int[Tensor, "b"] | None:
        """The class the network is told: `label`, with the null class on dropped rows."""
        if self.label is None or self.null_label is None:
            return self.label
        return torch.where(self.dropped, torch.full_like(self.label, self.null_label), self.label)

    def with_times(self, times: Times) -> "Draw":
        return replace(self, times=times)


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Per-sample losses (never averaged inside) and per-sample quantities to log (NaN where a row has none)."""

    loss: Float[Tensor, "b"]
    logs: Mapping[str, Float[Tensor, "b"]]
