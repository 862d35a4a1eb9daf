"""What the plug-in velocity of a batch takes from the variance of the conditional velocity, by batch and by classes.

A memory of images that holds the row's own one acts as a batch of as many images, so both are one axis here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.diagnose.known import Known
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.velocities import NONE, Variances
from shortflow.plugin import plug_in_velocity
from shortflow.theory.dimension import neighbour_distances
from shortflow.theory.estimates import Estimate, mean_of
from shortflow.theory.nodes import level_of
from shortflow.theory.reach import plug_in_level, plug_in_reach
from shortflow.typing import Report

__all__ = ["Mixed", "batches_of", "mixtures", "plug_in"]

BATCHES, ROWS = 8, 32  # batches that are drawn for a figure, and rows of each at most
REMOVED, ACTIVE_ROWS = "share of the variance that the plug-in velocity removes", "rows whose own weight is below .99"
TAKING = "effective number of images"


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """How images are mixed: name, words, whether batches hold one class, whether only images of the row's class
    count."""

    name: str
    words: str
    one_class: bool = False
    masked: bool = False

    @property
    def told(self) -> bool:
        """Whether the velocity that is estimated is that given the class."""
        return self.one_class or self.masked


def mixtures(k: Known) -> tuple[Mixed, ...]:
    if k.label is None:
        return (Mixed(name="all", words="the images of the batch"),)
    return (
        Mixed(name="free", words="shuffled, without the class"),
        Mixed(name="masked", words="shuffled, images of the row's class", masked=True),
        Mixed(name="class", words="batches of one class", one_class=True),
    )


def batches_of(
    k: Known, size: int, kind: Mixed, generator: torch.Generator
) -> Iterator[tuple[Float[Tensor, "n ..."], Int[Tensor, "n"] | None]]:
    """Batches of different images, of one class each where the kind says so; smaller where there are not as many."""
    members = None
    if kind.one_class and k.label is not None:
        members = [(k.label == c).nonzero()[:, 0] for c in range(int(k.label.max()) + 1)]
    while True:
        places = torch.arange(len(k.x))
        if members is not None:
            places = members[int(torch.randint(len(members), (1,), generator=generator))].cpu()
        if len(places) > 4 * size:  # a permutation of all would take longer than all else
            picked = places[torch.randint(len(places), (2 * size,), generator=generator)].unique()
            picked = picked[torch.randperm(len(picked), generator=generator)[:size]]
        else:
            picked = places[torch.randperm(len(places), generator=generator)[:size]]
        picked = picked.to(k.x.device)
        yield k.x[picked], None if k.label is None else k.label[picked]


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """Means over batches: of the removed variance, of the variance there, of active rows, of sizes, of the rest."""

    removed: Tensor
    total: Tensor
    active: Tensor
    size: Tensor


def _taken(k: Known, v: Variances, kind: Mixed, size: int, times: Tensor, generator: torch.Generator) -> _Taken:
    """`BATCHES` batches of `size` images, some rows of each at times that are drawn from `times`."""
    found: list[list[Tensor]] = []
    drawn = batches_of(k, size, kind, generator)
    for _ in range(BATCHES):
        x, label = next(drawn)
        n = min(ROWS, len(x))
        t = times[torch.randint(len(times), (n,), generator=generator)].to(x)
        eps = torch.randn(x[:n].shape, generator=generator, dtype=x.dtype).to(x.device)
        allowed = None
        if kind.masked and label is not None:
            allowed = label[:n, None] == label
        reach = plug_in_reach(k.law.path, x[:n], eps, t, allowed, pool=x)
        total = v.at(t, level_of(k.law.path, t), kind.told)
        found.append([each.double().mean() for each in (reach.removed / k.dimension, total, reach.active, reach.size)])
    return _Taken(**dict(zip(("removed", "total", "active", "size"), torch.tensor(found).T, strict=True)))


def _share(taken: _Taken) -> Estimate:
    """Removed, as a share of the variance that is there."""
    mean = mean_of(taken.removed)
    return mean.scaled(1 / float(taken.total.mean()))


def plug_in(
    d: Diagnosis,
    k: Known,
    v: Variances,
    times: Tensor,
    batch: int,
    generator: torch.Generator,
    report: Report,
) -> None:
    """What the plug-in velocity takes from the variance: over t at one batch, and over the number of images.

    Args:
        times: draws of the recipe's law of t.
    """
    kinds = mixtures(k)
    sizes = _sizes(len(k.x), k.dimension, batch)
    for i, kind in enumerate(kinds):
        at = [_taken(k, v, kind, batch, torch.tensor([time], dtype=times.dtype), generator) for time in v.times]
        report(2 * i, 2 * len(kinds))
        _note_times(d, v, kind, batch, at)
        most = int(torch.bincount(k.label).min()) if kind.one_class and k.label is not None else len(k.x)
        shown = [size for size in sizes if size <= most or size == batch]
        _note_sizes(d, kind, batch, shown, [_taken(k, v, kind, size, times, generator) for size in shown])
        report(2 * i + 1, 2 * len(kinds))
    _reach(d, k, batch, times, generator)
    _bias(d, k, v, batch, generator)


def _note_times(d: Diagnosis, v: Variances, kind: Mixed, batch: int, at: Sequence[_Taken]) -> None:
    """The curves over t at one batch."""
    head = f"at {batch} images: {kind.words}"
    shares = [_share(each) if v.matters(i) else NONE for i, each in enumerate(at)]
    d.curve(f"removed/{kind.name}", v.times, shares, f"{REMOVED} {head}")
    d.curve(f"active/{kind.name}", v.times, [mean_of(each.active) for each in at], f"{ACTIVE_ROWS} {head}")
    sizes = [mean_of(each.size) for each in at]
    d.curve(f"sample_size/{kind.name}", v.times, sizes, f"{TAKING} {head}", "images")


def _note_sizes(d: Diagnosis, kind: Mixed, batch: int, shown: Sequence[int], found: Sequence[_Taken]) -> None:
    """The curves over the number of images, and the figures of the batch."""
    head, axis = f"over the recipe's times: {kind.words}", "images (batch or memory)"
    removed, active = [_share(each) for each in found], [mean_of(each.active) for each in found]
    d.curve(f"removed_by_images/{kind.name}", shown, removed, f"{REMOVED} {head}", x_label=axis)
    d.curve(f"active_by_images/{kind.name}", shown, active, f"{ACTIVE_ROWS} {head}", x_label=axis)
    taking = [mean_of(each.size) for each in found]
    d.curve(f"sample_size_by_images/{kind.name}", shown, taking, f"{TAKING} {head}", "images", x_label=axis)
    if batch in shown:
        place, words = list(shown).index(batch), f"at {batch} images over the recipe's times, {kind.words}"
        d.scalar(f"removed/{kind.name}", removed[place], f"share of the variance removed {words}")
        d.scalar(f"active/{kind.name}", active[place], f"share of the rows that change {words}")


def _sizes(n: int, dimension: int, batch: int) -> list[int]:
    """Numbers of images: powers of two from 16 on, and the batch."""
    most = min(n, 16_384, max(2 * batch, 2**24 // dimension))
    powers = [2**p for p in range(4, 15) if 2**p <= most]
    return sorted({*powers, min(batch, n)})


def _reach(d: Diagnosis, k: Known, batch: int, times: Tensor, generator: torch.Generator) -> None:
    """The rule: the level from which on the nearest image of a batch takes part."""
    if batch < 2:
        return
    found = []
    for kind in mixtures(k)[-1:]:
        drawn = batches_of(k, batch, kind, generator)
        for _ in range(BATCHES):
            x, _ = next(drawn)
            if len(x) > 1:
                flat = x.flatten(1)
                found.append(neighbour_distances(flat[:ROWS], flat, 1, own=True)[:, 0].double().median())
    if not found:
        return
    nearest = mean_of(torch.stack(found))
    level = plug_in_level(max(nearest.value, 1e-12), batch)
    time = float(k.times(torch.tensor([level / (1 + level)], dtype=torch.float64)))
    d.scalar("nearest_image", nearest, f"distance to the nearest of {batch} images (median, {mixtures(k)[-1].words})")
    d.scalar("reach_time", time, f"time from which on it takes part, by the rule η = distance/√(2 log {batch})")
    share = float((times >= time).double().mean())
    d.scalar("reach_share", share, "share of the recipe's draws of t above that time")


def _bias(d: Diagnosis, k: Known, v: Variances, batch: int, generator: torch.Generator) -> None:
    """E‖v̂ − v‖² against the exact velocity, at the batch: what is left of the variance."""
    left = []
    kind = mixtures(k)[-1]
    for time in v.times:
        drawn, errors = batches_of(k, batch, kind, generator), []
        for _ in range(max(2, BATCHES // 2)):
            x, label = next(drawn)
            t = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
            rows = torch.arange(min(ROWS // 2, len(x)), device=x.device)
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            estimate = plug_in_velocity(k.law.path, x, eps, t, None, rows)
            x_t = k.law.path.interpolate(x[rows], eps[rows], t[rows])
            exact = k.law.velocity(x_t, t[rows], None if label is None else label[rows])
            errors.append((estimate - exact).double().square().flatten(1).mean(1).mean())
        left.append(mean_of(torch.stack(errors)))
    words = f"variance that the plug-in velocity leaves at {batch} images, {kind.words}"
    d.curve("left", v.times, left, words, "per dimension")
