"""The vocabulary of a training step, and the one time convention.

Time runs from data to noise: t = 0 is data, t = 1 is noise, and r ≤ s ≤ t. A point on the path is
x_t = α_t x + σ_t ε with ε ~ N(0, I). A flow map X_{t,r} carries a point from time t to time r.
Axis names in the types: `b` the rows of a batch, `...` the shape of one sample (any shape).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Batch", "Condition", "LossTerms", "Progress", "Report", "Times", "condition_words", "expand"]

Condition = Int[Tensor, "b"] | Float[Tensor, "b features"] | Float[Tensor, "b tokens features"]
"""What the network is told of each row beside times and guidance: a class number, a vector, or a sequence of tokens.

What is not there is NaN: a vector, or all tokens of a sequence, where the condition is hidden (label dropout, the
branch of guidance without a condition), and the tokens that pad a shorter sequence. So a condition is one tensor, which
can be indexed, joined, moved and saved like any other. Of classes "none" is a number, see `FlowMap.null_label`.
"""

Report = Callable[[int, int], None]
"""How far a long operation is: (done, in all)."""


def condition_words(shape: tuple[int, ...]) -> str:
    """A condition of this shape in words."""
    if len(shape) == 1:
        return f"a vector of {shape[0]} number{'s' if shape[0] > 1 else ''}"
    return f"a sequence of up to {shape[0]} vectors of {shape[1]} number{'s' if shape[1] > 1 else ''}"


def expand(value: Float[Tensor, "b"] | Bool[Tensor, "b"], like: Tensor) -> Tensor:
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

    def take(self, rows: Int[Tensor, "k"] | slice) -> "Times":
        return Times(self.t[rows], self.s[rows], self.r[rows])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come, in images seen, `batch` of them a step. Schedules follow `share` ∈ [0, 1]."""

    images: int = 0
    total: int = 1
    batch: int = 1

    @property
    def step(self) -> int:
        """Steps taken, for the few rules that count them."""
        return self.images // max(1, self.batch)

    @property
    def share(self) -> float:
        return min(1.0, self.images / max(1, self.total))

    def along(self, horizon: float) -> float:
        """min(1, share/horizon): the position in a schedule that lasts `horizon` of the run; 1 if the horizon is 0."""
        return 1.0 if horizon <= 0 else min(1.0, self.share / horizon)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Data points in the units the network sees, with their class or other condition (None: unconditional).

    `eps` is the noise that belongs to each point where the two are coupled (reflow); None: fresh noise is drawn.
    """

    x: Float[Tensor, "b ..."]
    label: Condition | None = None
    eps: Float[Tensor, "b ..."] | None = None


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Per-sample losses (never averaged inside) and per-sample quantities to log (NaN where a row has none)."""

    loss: Float[Tensor, "b"]
    logs: Mapping[str, Float[Tensor, "b"]]
