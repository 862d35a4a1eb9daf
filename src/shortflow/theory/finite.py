"""A finite data set {x_i} with weights p_i: the flow that a network trained on it for ever would have.

    γ_i ∝ p_i exp(−‖x − α x_i‖²/(2σ²)),    x̂ = Σ γ_i x_i,    ε̂ = (x − α x̂)/σ,
    tr Cov[v_c | x] = (W/σ)² (Σ γ_i ‖x_i‖² − ‖x̂‖²).

The squared distances are a matrix product, their largest logit is subtracted before the exponential, and both are taken
block by block of points and of rows: beside the points themselves nothing is held that grows with the data and the
dimension, so 50,000 images are within reach. As t → 0 the flow runs into the nearest point: the data set is memorised.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.errors import ShortflowError
from shortflow.theory.law import Law, check_known, check_labels, visible
from shortflow.theory.solve import rk4_average_velocity
from shortflow.typing import expand

__all__ = ["FiniteData"]

Time = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Label = Int[Tensor, "b"] | None

BLOCK = 2**24  # Numbers that are worked on together: 128 MB in double precision.
SMALL = 2**20  # Weights below which taking classes apart costs more than it saves.
EARLIEST = 1e-8  # The time whose σ replaces σ_0 = 0 in a division; its inverse square fits into single precision.


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """The mean c of the points, ‖x_i − c‖², log p_i, and, of data that are one block, the array (x_i − c, ‖x_i −
    c‖²)."""

    centre: Float[Tensor, "d"]
    squares: Float[Tensor, "n"]
    log_weights: Float[Tensor, "n"]
    points: Float[Tensor, "n e"] | None


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
        if self.weights is not None and len(self.weights) != n:
            raise ShortflowError(f"weights has {len(self.weights)} entries for {n} points")
        if self.weights is not None and not bool((self.weights > 0).all()):
            raise ShortflowError(f"weights must be positive, got a minimum of {self.weights.min().item():g}")
        if self.labels is not None:
            check_labels(self.labels, n, "point")

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

    def _blocks(self, like: Tensor) -> Iterator[Float[Tensor, "m d"]]:
        """The points block by block, flat, in the dtype and on the device of `like`."""
        size = max(1, BLOCK // max(1, math.prod(self.shape)))
        for part in self.points.split(size):
            yield part.to(like.device, like.dtype).flatten(1)

    @cached_property
    def _parts(self) -> list["FiniteData"]:
        """The points of each class as a data set of their own; views where the labels are in order, else copies."""
        labels = self.labels
        assert labels is not None
        ordered = bool((labels[1:] >= labels[:-1]).all())
        ends = [0, *labels.bincount().cumsum(0).tolist()]
        chosen = [
            slice(ends[c], ends[c + 1]) if ordered else (labels == c).nonzero()[:, 0] for c in range(self.num_classes)
        ]
        weights = [None if self.weights is None else self.weights[rows] for rows in chosen]
        return [
            FiniteData(path=self.path, steps=self.steps, points=self.points[rows], weights=weight, floor=self.floor)
            for rows, weight in zip(chosen, weights, strict=True)
        ]

    def _by_rows(self, value: Callable[..., Tensor], label: Label, *rows: Tensor) -> Tensor:
        """value(law, *rows, label) of all rows, few at a time where points are many, and of a class with its points
        only."""
        if len(rows[0]) * len(self.points) <= SMALL:
            return value(self, *rows, label)
        if label is None:
            size = max(1, BLOCK // len(self.points))
            return torch.cat([value(self, *part, None) for part in zip(*(r.split(size) for r in rows), strict=True)])
        check_known(label, self.labels, self.num_classes)
        order = label.argsort(stable=True)
        kinds, counts = label[order].unique_consecutive(return_counts=True)
        parts = []
        for c, some in zip(kinds.tolist(), order.split(counts.tolist()), strict=True):
            law = self if c == self.num_classes else self._parts[c]
            parts.append(law._by_rows(value, None, *(each[some] for each in rows)))
        return torch.cat(parts)[order.argsort()]

    @cached_property
    def _kept(self) -> dict[tuple[torch.device, torch.dtype], "_Geometry"]:
        """What `_geometry` has found, by device and dtype."""
        return {}

    def _geometry(self, like: Tensor) -> "_Geometry":
        """What distances to the points are made of, in the dtype and on the device of `like`; computed once."""
        key = (like.device, like.dtype)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                like = torch.zeros((), dtype=like.dtype, device=like.device)  # no tensor of a transformation
                centre = sum((part.sum(0) for part in self._blocks(like)), like) / len(self.points)
                squares = torch.cat([(part - centre).square().sum(1) for part in self._blocks(like)])
                points = None
                if self.points.numel() <= BLOCK:
                    points = torch.cat([next(self._blocks(like)) - centre, squares[:, None]], 1)
                log_weights = self._probabilities(like).log()
            self._kept[key] = _Geometry(centre=centre, squares=squares, log_weights=log_weights, points=points)
        return self._kept[key]

    def _log_joint(self, x: State, t: Time, label: Label) -> tuple[Tensor, Tensor]:
        """(log p_i − ‖x − α x_i‖²/(2σ²) + q of shape (b, n), q of shape (b,)), q common to the points of a row."""
        if tuple(x.shape[1:]) != self.shape:
            raise ShortflowError(f"points have the shape {self.shape}, x has the shape {tuple(x.shape)}")
        # Seen from their mean the points are as short as they can be, and so is what rounding takes from the product.
        known = self._geometry(x)
        alpha, sigma = self.path.alpha(t)[:, None], self._divisor(t)[:, None]
        state = x.flatten(1) - alpha * known.centre
        # Factors go to the rows, and the points' squares are one more coordinate: one product, and nothing after it.
        rows, scale = alpha / sigma**2 * state, -0.5 * (alpha / sigma) ** 2
        bias = known.log_weights
        if known.points is not None:
            logits = torch.addmm(bias, torch.cat([rows, scale], 1), known.points.T)
        else:  # of large data no second copy is made: what the mean adds to the product is taken off
            products = torch.cat([rows @ part.T for part in self._blocks(x)], 1)
            logits = products - (rows @ known.centre)[:, None] + scale * known.squares + bias
        if label is not None:
            logits = logits.masked_fill(~visible(label, self.labels, self.num_classes), -torch.inf)
        return logits, 0.5 * (state / sigma).square().sum(1)

    def _averaged(self, weights: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Σ_i w_i x_i."""
        total, first = None, 0
        for part in self._blocks(weights):
            term = weights[:, first : first + len(part)] @ part
            total, first = term if total is None else total + term, first + len(part)
        assert total is not None  # there is at least one point
        return total

    def responsibilities(self, x: State, t: Time, label: Label = None) -> Float[Tensor, "b n"]:
        """γ_i = P(point i | x_t = x)."""
        return self._log_joint(x, t, label)[0].softmax(-1)

    def posterior(self, x: State, t: Time, label: Label = None) -> tuple[State, State]:
        data = self._by_rows(lambda law, *row: law._averaged(law.responsibilities(*row)), label, x, t).reshape(x.shape)
        return data, (x - expand(self.path.alpha(t), x) * data) / expand(self._divisor(t), x)

    def velocity_variance(self, x: State, t: Time, label: Label = None) -> Time:
        return self._by_rows(FiniteData._variance, label, x, t)

    def _variance(self, x: State, t: Time, label: Label) -> Time:
        gamma = self.responsibilities(x, t, label)
        # Moments about the likeliest point, which then takes no part: a variance of 1e-50 is not 1 − 1.
        top = gamma.argmax(-1, keepdim=True)
        nearest = self.points[top[:, 0].to(self.points.device)].to(x.device, x.dtype).flatten(1)
        others = gamma.scatter(1, top, 0.0)
        known = self._geometry(x)
        near = nearest - known.centre
        products = torch.cat([near @ part.T for part in self._blocks(x)], 1) - (near @ known.centre)[:, None]
        squares = known.squares - 2 * products + known.squares[top]
        shift = self._averaged(others) - others.sum(1, keepdim=True) * nearest
        variance = (others * squares).sum(1) - shift.square().sum(1)
        return (self.path.wronskian(t) / self._divisor(t)) ** 2 * variance

    def sample_posterior(
        self, x: State, t: Time, label: Label = None, generator: torch.Generator | None = None
    ) -> State:
        def chosen(law: FiniteData, x: State, t: Time, label: Label) -> Tensor:
            places = torch.multinomial(law.responsibilities(x, t, label).cpu(), 1, generator=generator)[:, 0]
            return law.points[places.to(law.points.device)]

        return self._by_rows(chosen, label, x, t).to(x.device, x.dtype)

    def log_density(self, x: State, t: Time, label: Label = None) -> Time:
        """log p_t(x) in nats; needs t > 0. With a label, of the class: log p_t(x | label)."""
        logits, common = self._log_joint(x, t, label)
        log_p = self._geometry(x).log_weights.expand_as(logits)
        if label is not None:
            log_p = log_p.masked_fill(~visible(label, self.labels, self.num_classes), -torch.inf)
        constant = math.prod(self.shape) * (self._divisor(t).log() + 0.5 * math.log(2 * math.pi))
        return logits.logsumexp(-1) - log_p.logsumexp(-1) - common - constant

    def _solve(self, x: State, t: Time, r: Time, label: Label = None) -> State:
        floor = torch.full_like(t, max(self.floor, EARLIEST))
        start, end = torch.maximum(t, floor), torch.maximum(r, floor)
        state = x + expand(start - t, x) * self.velocity(x, t, label)
        average = self._by_rows(FiniteData._between, label, state, start, end)
        state = state + expand(end - start, x) * average
        state = state + expand(r - end, x) * self.velocity(state, end, label)
        gap = expand(r - t, x)
        straight = (expand(torch.minimum(t, r), x) < self.floor) & (gap != 0)
        return torch.where(straight, (state - x) / torch.where(straight, gap, torch.ones_like(gap)), average)

    def _between(self, x: State, t: Time, r: Time, label: Label) -> State:
        """u_{t,r}(x) on the linear path, t and r not 0, with as few operations as one evaluation of the velocity takes.

        z = x − (1 − t)c is on the path of the centred points: its velocity is (z − ẑ)/t, and that of x is c less.
        """
        known = self._geometry(x)
        if known.points is None:
            return super()._solve(x, t, r, label)
        points, bias = known.points, known.log_weights
        if label is not None:
            bias = bias.masked_fill(~visible(label, self.labels, self.num_classes), -torch.inf)

        def velocity(z: Tensor, t: Tensor) -> Tensor:
            time, rest = t[:, None], (1 - t)[:, None]
            rows = torch.cat([z, -0.5 * rest], 1) * (rest / time**2)
            return (z - torch.addmm(bias, rows, points.T).softmax(-1) @ points[:, :-1]) / time

        z = x.flatten(1) - (1 - t)[:, None] * known.centre
        return (rk4_average_velocity(velocity, z, t, r, self.steps) - known.centre).reshape(x.shape)

    def sample(
        self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n ..."]:
        weights = torch.ones(len(self.points)) if self.weights is None else self.weights.cpu()
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        return self.points.cpu()[chosen].to(dtype or torch.get_default_dtype())
