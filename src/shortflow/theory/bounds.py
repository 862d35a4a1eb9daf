"""How far one jump of a network is from the exact law, from residuals along the exact flow.

With X^θ_{r,r} = id and the exact flow X of a law, ψ(t) = X^θ_{t,r}(X_{1,t}(x_1)) goes from the exact end ψ(r) =
X_{1,r}(x_1) to the network's ψ(1) = X^θ_{1,r}(x_1), at the rate ψ'(t) = D_t X^θ_{t,r}(x_t) = u_tgt[v] − u^θ (for X^θ =
x + (r − t)u^θ), so

    W₂(X^θ_{1,r}#p_1, p_r) ≤ (E‖X^θ_{1,r} − X_{1,r}‖²)^½ ≤ ∫_r^1 (E_{x_t ~ p_t} ‖D_t X^θ_{t,r}(x_t)‖²)^½ dt

by Minkowski's inequality, without a Lipschitz constant. Telescoping over a grid r = t_0 < … < t_N in place of the
derivative gives Σ_n (E‖X^θ_{t_n,r}(x_{t_n}) − X^θ_{t_{n−1},r}(x_{t_{n−1}})‖²)^½. Both hold for the points of any
sample, with the means over that sample: where all terms are taken along the same trajectories, only the quadrature is
approximate. The role of Theorem 2.2 of ESC (arXiv 2512.11831), with constants of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.flowmap import FlowMap
from shortflow.theory.estimates import Estimate, mean_of
from shortflow.theory.law import Law
from shortflow.theory.nodes import noise_nodes
from shortflow.typing import Condition, Report

__all__ = ["Bound", "continuous_bound", "discrete_bound", "trajectory"]

State = Float[Tensor, "n ..."]
Label = Int[Tensor, "n"] | None
Told = Condition | None


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound on W₂ and what it is made of; distances are Euclidean, over all coordinates, in the units of the network.

    Attributes:
        times: decreasing: the nodes of the quadrature, or the starts of the jumps of the grid.
        terms: (E‖·‖²)^½ at each: the integrand, or a summand.
        weights: of the terms in the bound.
        rest: of networks that are not asked below a time: (E‖X^θ − X‖²)^½ of the jump from there; 0 for all others.
        distance: (E‖X^θ − X‖²)^½ from the same noise, which lies between W₂ and the bound.
        made, exact: X^θ_{1,r}(x_1) and X_{1,r}(x_1), the network's ends and the exact ones.
    """

    times: tuple[float, ...]
    terms: tuple[Estimate, ...]
    weights: tuple[float, ...]
    distance: Estimate
    made: State
    exact: State
    rest: Estimate = Estimate(0.0, 0.0)

    @property
    def value(self) -> float:
        """The bound."""
        return self.rest.value + sum(w * term.value for w, term in zip(self.weights, self.terms, strict=True))

    @property
    def error(self) -> float:
        """At most the standard error of the bound: the terms share their trajectories."""
        return self.rest.error + sum(w * term.error for w, term in zip(self.weights, self.terms, strict=True))

    @property
    def holds(self) -> bool:
        """Whether the distance is below the bound, with a thousandth for quadrature and rounding."""
        return self.distance.value <= 1.001 * self.value + 1e-9


def _full(x: State, time: float) -> Float[Tensor, "n"]:
    return torch.full((len(x),), time, dtype=x.dtype, device=x.device)


def _squares(x: State) -> Float[Tensor, "n"]:
    return x.square().flatten(1).sum(1)


def trajectory(law: Law, x: State, times: Sequence[float], label: Label = None) -> list[State]:
    """The points X_{t_0,t_k}(x) at decreasing times t_0, t_1, …; the law's Runge–Kutta steps are those of one leg."""
    found = [x]
    for a, b in pairwise(times):
        found.append(law.flow_map(found[-1], _full(x, a), _full(x, b), label))
    return found


def continuous_bound(
    flow: FlowMap,
    law: Law,
    x: State,
    *,
    start: float = 1.0,
    end: float = 0.0,
    lowest: float | None = None,
    nodes: int = 32,
    label: Told = None,
    report: Report | None = None,
) -> Bound:
    """The bound for one jump from `start` to `end`, along the exact trajectories of x ~ p_start.

    Args:
        lowest: the earliest time that the network is asked at; the integral ends there, and the jump from there is a
            term of its own. By default `end`.
        label: the classes of x, of which law and network are told as many as they know; or what a network that is told
            vectors or sequences is told.
    """
    lowest = end if lowest is None else max(lowest, end)
    times, weights = noise_nodes(flow.path, lowest, start, nodes)
    at = [start, *times.tolist(), lowest]
    told, known = _told(flow, law, label)
    terms, point = [], x
    with torch.no_grad():
        for k, time in enumerate(times.tolist()):
            point = law.flow_map(point, _full(x, at[k]), _full(x, time), known)
            t, r = _full(x, time), _full(x, end)
            rate = flow.residual(point, t, r, law.velocity(point, t, known), told)[1]
            terms.append(mean_of(_squares(rate)).root())
            if report is not None:
                report(k + 1, nodes + 1)
        exact = law.flow_map(point, _full(x, at[-2]), _full(x, lowest), known)
        rest = Estimate(0.0, 0.0)
        if lowest > end:
            jumped = flow(exact, _full(x, lowest), _full(x, end), told)
            exact = law.flow_map(exact, _full(x, lowest), _full(x, end), known)
            rest = mean_of(_squares(jumped - exact)).root()
        made = flow(x, _full(x, start), _full(x, end), told)
    return Bound(
        times=tuple(times.tolist()),
        terms=tuple(terms),
        weights=tuple(weights.tolist()),
        distance=mean_of(_squares(made - exact)).root(),
        made=made,
        exact=exact,
        rest=rest,
    )


def discrete_bound(flow: FlowMap, law: Law, x: State, times: Sequence[float], *, label: Told = None) -> Bound:
    """The bound over decreasing times from x ~ p at the first of them to the last: for networks that know the jumps
    from these times only (shortcut models: 1, ½, ¼, …)."""
    told, known = _told(flow, law, label)
    end = _full(x, times[-1])
    with torch.no_grad():
        points = trajectory(law, x, times, known)
        ends = [flow(point, _full(x, time), end, told) for point, time in zip(points[:-1], times[:-1], strict=True)]
        ends.append(points[-1])
        gaps = [_squares(a - b) for a, b in pairwise(ends)]
    return Bound(
        times=tuple(times[:-1]),
        terms=tuple(mean_of(gap).root() for gap in gaps),
        weights=(1.0,) * len(gaps),
        distance=mean_of(_squares(ends[0] - points[-1])).root(),
        made=ends[0],
        exact=points[-1],
    )


def _told(flow: FlowMap, law: Law, label: Told) -> tuple[Told, Label]:
    """(the classes that the network is told, those that the law is)."""
    return (label if flow.conditional else None), (label if law.num_classes else None)
