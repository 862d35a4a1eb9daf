"""What the velocities of a data set are like at points: their variance, and the dimension of the data."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shortflow.diagnose.known import Known
from shortflow.diagnose.record import Diagnosis
from shortflow.theory import FiniteData
from shortflow.theory.dimension import (
    neighbour_dimension,
    neighbour_distances,
    posterior_dimension,
    two_neighbours,
)
from shortflow.theory.estimates import Estimate, mean_of
from shortflow.theory.nodes import level_of
from shortflow.theory.variance import adaptive_bias
from shortflow.typing import Report

__all__ = ["COLLAPSE", "NONE", "Variances", "dimensions", "variances"]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Values of σ/(α + σ) at which velocities are measured: times of the linear path with unit noise."""
FINE = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""The same, where dimensions are."""
NEIGHBOURS = 10
COLLAPSE = "time below which one data point explains x_t (largest weight ½)"
NONE = Estimate(math.nan, math.nan)
ENOUGH = 10.0  # points that share the weight where the dimension of a finite set is taken


@dataclass(frozen=True, kw_only=True)
class Variances:
    """Per-dimension variances of the conditional velocity at some times.

    Attributes:
        times: of the path, ascending.
        shares: σ/(α + σ) at these.
        told, free: given the class, and not; the same where there are no classes.
        largest: mean of the largest weight of one data point; None where the law is no finite set.
    """

    times: tuple[float, ...]
    shares: tuple[float, ...]
    told: tuple[Estimate, ...]
    free: tuple[Estimate, ...]
    largest: tuple[float, ...] | None

    def at(self, t: Tensor, level: Tensor, told: bool) -> Tensor:
        """The variance at other times, whose noise levels are given: interpolated in log level and log variance."""
        x = np.log(np.asarray(self.shares) / (1 - np.asarray(self.shares)))
        y = np.array([max(each.value, 1e-300) for each in (self.told if told else self.free)])
        places = np.log(np.clip(level.cpu().double().numpy(), 1e-6, 1e6))
        return torch.from_numpy(np.exp(np.interp(places, x, np.log(y)))).to(t)

    def matters(self, place: int) -> bool:
        """Whether there is as much as a hundredth of the largest variance at a time: else shares of it mean nothing."""
        return self.told[place].value >= 0.01 * max(each.value for each in self.told)

    @property
    def collapse(self) -> float:
        """The share below which the mean largest weight is above ½: one data point explains x_t. 0 where it never
        is."""
        if self.largest is None or self.largest[0] < 0.5:
            return 0.0
        for k, weight in enumerate(self.largest):
            if weight < 0.5:
                a, b = self.largest[k - 1], weight
                place = (a - 0.5) / (a - b)
                x = [math.log(s / (1 - s)) for s in self.shares[k - 1 : k + 1]]
                return 1 / (1 + math.exp(-(x[0] + place * (x[1] - x[0]))))
        return self.shares[-1]


def variances(d: Diagnosis, k: Known, rows: int, generator: torch.Generator, report: Report) -> Variances:
    """The variance of the conditional velocity over t, with what a posterior has: its skewness, its largest weight."""
    law, dimension = k.law, k.dimension
    highest = float(level_of(law.path, torch.ones(1, dtype=torch.float64)))
    shares = [s for s in SHARES if s / (1 - s) <= highest]
    times = k.times(torch.tensor(shares, dtype=torch.float64))
    told, free, apart, skewed, largest, whole = [], [], [], [], [], []
    for i, time in enumerate(times):
        report(i, len(times))
        t = time.repeat(k.rows(rows))
        x_t, x, eps, label = k.noisy(t, generator)
        told.append(mean_of(law.velocity_variance(x_t, t, label) / dimension))
        whole.append(mean_of(law.path.velocity(x, eps, t).square().flatten(1).mean(1)))
        free.append(told[-1])
        if label is not None:
            free[-1] = mean_of(law.velocity_variance(x_t, t) / dimension)
            gap = law.velocity(x_t, t) - law.velocity(x_t, t, label)
            apart.append(mean_of(gap.square().flatten(1).mean(1)))
        if isinstance(law, FiniteData):
            largest.append(float(law.responsibilities(x_t, t, label).max(1).values.mean()))
        some = slice(0, max(16, len(t) // 8))
        given = None if label is None else label[some]
        skewed.append(mean_of(adaptive_bias(law, x_t[some], t[some], label=given, generator=generator)))
    found = Variances(
        times=tuple(times.tolist()),
        shares=tuple(shares),
        told=tuple(told),
        free=tuple(free),
        largest=tuple(largest) if largest else None,
    )
    given = " given the class" if apart else ""
    head, unit = "variance of the conditional velocity", "per dimension"
    d.curve("velocity_variance/told", found.times, told, f"{head}: given the class" if apart else head, unit)
    if apart:
        d.curve("velocity_variance/free", found.times, free, f"{head}: without the class", unit)
        d.curve("class_gap", found.times, apart, "squared difference that the class makes to the exact velocity", unit)
    share = [Estimate(a.value / b.value, a.error / b.value) for a, b in zip(told, whole, strict=True)]
    d.curve("noise_share", found.times, share, "share of the conditional velocity that is noise, ‖v_c − v‖²/‖v_c‖²")
    words = "squared bias of the adaptive weight with power 1, as a share of the velocity's variance"
    d.curve("adaptive_bias", found.times, [each if found.matters(i) else NONE for i, each in enumerate(skewed)], words)
    if largest:
        d.curve("largest_weight", found.times, largest, "largest posterior weight of one data point")
    d.scalar("collapse_time", _time_of(k, found.collapse), COLLAPSE)
    return found


def _time_of(k: Known, share: float) -> float:
    return 0.0 if share == 0 else float(k.times(torch.tensor([share], dtype=torch.float64)))


# ---------------------------------------------------------------------------------------------------------- dimensions


def dimensions(d: Diagnosis, k: Known, rows: int, generator: torch.Generator, report: Report) -> None:
    """The intrinsic dimension: of the posterior over noise levels, and by nearest neighbours."""
    times = k.times(torch.tensor(FINE, dtype=torch.float64))
    law, found, sizes = k.law, [], []
    for i, time in enumerate(times):
        report(i, len(times) + 2)
        t = time.repeat(k.rows(rows))
        x_t = k.noisy(t, generator)[0]
        found.append(mean_of(posterior_dimension(law, x_t, t)))
        if isinstance(law, FiniteData):
            gamma = law.responsibilities(x_t, t)
            sizes.append(float((1 / gamma.square().sum(1)).mean()))
    levels = [share / (1 - share) for share in FINE]
    d.curve("dimension", levels, found, "dimension of the posterior, tr Cov[x_0 | x_t]/η²", x_label="η = σ/α")
    if sizes:
        d.curve("posterior_size", levels, sizes, "data points that share the posterior", "points", x_label="η = σ/α")
    chosen = next((i for i, size in enumerate(sizes or [ENOUGH]) if size >= ENOUGH), None)
    if chosen is None:
        d.notes.append(
            f"At no noise up to η = {levels[-1]:g} do {ENOUGH:.0f} data points share the posterior: of that no "
            "dimension is given, only that by neighbours."
        )
    else:
        where = f"at η = {levels[chosen]:.3g}" + (f", where {sizes[chosen]:.0f} points share it" if sizes else "")
        d.scalar("dimension/posterior", found[chosen], f"intrinsic dimension of the posterior {where}")
    flat = k.x.flatten(1)
    wanted = max(256, min(2000, 2**36 // max(1, flat.numel())))
    queries = flat[torch.randperm(len(flat), generator=generator)[:wanted].to(flat.device)]
    if len(flat) > NEIGHBOURS + 1:
        distances = neighbour_distances(queries, flat, NEIGHBOURS, own=True)
        report(len(times) + 1, len(times) + 2)
        if float((distances[:, 0] > 0).double().mean()) > 0.5:
            two, many = two_neighbours(distances), neighbour_dimension(distances)
            d.scalar("dimension/two_neighbours", two, "intrinsic dimension by two neighbours (TwoNN)")
            d.scalar("dimension/neighbours", many, f"intrinsic dimension by {NEIGHBOURS} neighbours (MLE)")
        copies = float((distances[:, 0] == 0).double().mean())
        if copies > 0:
            d.scalar("copies", copies, "share of the data that have an exact copy among them")
    d.scalar("dimension/ambient", float(k.dimension), "dimension of the space")
