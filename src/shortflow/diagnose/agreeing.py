"""How far jumps agree with each other, and velocities with the exact ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shortflow.diagnose.maps import dyadic_times
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.subject import CELLS, Subject
from shortflow.diagnose.velocities import NONE
from shortflow.theory.dimension import learned_dimension, posterior_dimension
from shortflow.theory.estimates import mean_of, ratio_of
from shortflow.theory.nodes import level_of
from shortflow.theory.residuals import boundary_error, eulerian, lagrangian, realised_guidance, semigroup
from shortflow.theory.variance import continuous_floor
from shortflow.typing import Report

__all__ = ["residuals", "velocities"]

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


WORDS = {
    "semigroup": "semigroup: ‖X_{s,r}∘X_{t,s} − X_{t,r}‖²/((t − r)² D), s in the middle",
    "eulerian": "Eulerian: ‖∂_t X + ∇X v‖²/D with the exact velocity",
    "own": "Eulerian with the network's own velocity",
    "lagrangian": "Lagrangian: ‖∂_r X − v_r(X)‖²/D with the exact velocity",
    "noise": "variance of the target in continuous time, with the network's Jacobian",
}
LEAST = 1e-12  # of the mean square of the velocity: a class that changes it by less says nothing of guidance


def residuals(d: Diagnosis, s: Subject, report: Report) -> None:
    """Semigroup, Eulerian and Lagrangian residuals by cell, with the noise of the target there."""
    if s.flow.ends == "dyadic":
        _dyadic(d, s)
        return
    if s.flow.ends != "any":
        d.notes.append(
            "The network knows jumps to one end only: none in between could disagree, so there are no residuals by "
            "cell; the Eulerian one of its own end is the rate of the error."
        )
        return
    starts, ends = s.times(CELLS), [s.low, *s.times(CELLS)]
    maps: dict[str, dict[tuple[int, int], float]] = {name: {} for name in WORDS}
    for i, t in enumerate(starts):
        report(i, len(starts))
        for name, values in _row(s, t, ends).items():
            maps[name] |= {(i, j): value for j, value in values.items()}
    for name, words in WORDS.items():
        d.map(f"residual/{name}", starts, ends, maps[name], words, "per dimension")
        # Where a finite set has collapsed, its flow is not what the network should do.
        cells = [cell for cell in maps[name] if ends[cell[1]] >= s.collapse] or list(maps[name])
        if name != "noise" and cells:
            mean = sum(maps[name][cell] for cell in cells) / len(cells)
            d.scalar(f"mean/{name}", mean, f"mean over cells: {words.partition(':')[0]}", "per dimension")
    ratio = {cell: maps["eulerian"][cell] / noise for cell, noise in maps["noise"].items() if noise > 0}
    words = "Eulerian residual over the variance of the target: what is left to learn"
    d.map("signal_to_noise", starts, ends, ratio, words)


def _row(s: Subject, t: float, ends: Sequence[float]) -> dict[str, dict[int, float]]:
    """The residuals of jumps from t, by the place of their end."""
    k, n = s.k, s.k.rows(s.looking.flow_rows, flows=True)
    time = s.full(n, t)
    x_t, x, eps, label = k.noisy(time, s.generator)
    told = s.told(label, n)
    v, own = k.law.velocity(x_t, time, label), s.flow.velocity(x_t, time, told)
    found: dict[str, dict[int, float]] = {name: {} for name in WORDS}
    for j, r in enumerate(ends):
        if r >= t:
            continue
        end = s.full(n, r)
        found["semigroup"][j] = float(semigroup(s.flow, x_t, time, (time + end) / 2, end, told).mean())
        found["eulerian"][j] = float(eulerian(s.flow, x_t, time, end, v, told).mean())
        found["own"][j] = float(eulerian(s.flow, x_t, time, end, own, told).mean())
        if r > s.low or k.closed:  # at t = 0 a finite set has velocities at its points only
            rates = lagrangian(s.flow, x_t, time, end, lambda x, t: k.law.velocity(x, t, label), told)
            found["lagrangian"][j] = float(rates.mean())
        floor = continuous_floor(s.flow, k.law, x, eps, time, end, label, told)
        found["noise"][j] = float(floor.mean()) / k.dimension
    return found


def _dyadic(d: Diagnosis, s: Subject) -> None:
    """The semigroup residual of the jumps that were trained, from the noisy end."""
    n, found = s.k.rows(s.looking.rows, flows=True), []
    gaps = dyadic_times(s.flow)[:-2]
    for gap in gaps:
        start, middle, end = (s.full(n, 1 - part * gap) for part in (0.0, 0.5, 1.0))
        x_t, _, _, label = s.k.noisy(start, s.generator)
        found.append(mean_of(semigroup(s.flow, x_t, start, middle, end, s.told(label, n))))
    words = "semigroup: a jump of length d from t = 1 against its halves, over d² D"
    d.curve("semigroup", gaps, found, words, "per dimension", x_label="d")
    mean = sum(each.value for each in found) / len(found)
    d.scalar("mean/semigroup", mean, "mean over lengths: semigroup", "per dimension")


def velocities(d: Diagnosis, s: Subject, report: Report) -> None:
    """The velocity at r = t against the exact one; its intrinsic dimension; the guidance in the weights."""
    if s.flow.ends == "zero":
        d.notes.append("The network is asked for jumps to the data only: its velocities at r = t mean nothing.")
        return
    k, n, times = s.k, s.k.rows(s.looking.rows), s.times(SHARES)
    error, share, learned, exact = [], [], [], []
    pushes: list[tuple[Tensor, Tensor] | None] = []
    for i, t in enumerate(times):
        report(i, len(times))
        time = s.full(n, t)
        x_t, _, _, label = k.noisy(time, s.generator)
        told, v = s.told(label, n), k.law.velocity(x_t, time, label)
        gap, size = boundary_error(s.flow, x_t, time, v, told), v.square().flatten(1).mean(1)
        error.append(mean_of(gap))
        share.append(ratio_of(gap, size))
        learned.append(mean_of(learned_dimension(s.flow, x_t, time, told, s.generator)))
        exact.append(mean_of(posterior_dimension(k.law, x_t, time, label)))
        if label is not None and s.flow.null_label is not None:
            along, squares = realised_guidance(s.flow, x_t, time, told, v - k.law.velocity(x_t, time))
            seen = float(squares.mean()) > LEAST * k.dimension * float(size.mean())
            pushes.append((along, squares) if seen else None)
    d.curve("boundary", times, error, "velocity at r = t: ‖u_{t,t} − v_t‖²/D", "per dimension")
    d.curve("boundary_share", times, share, "error of the velocity at r = t, ‖u_{t,t} − v_t‖²/‖v_t‖²")
    known = [each.value for each, t in zip(error, times, strict=True) if t >= s.collapse]
    d.scalar("mean/boundary", sum(known) / max(1, len(known)), "mean over t: boundary", "per dimension")
    levels = level_of(k.law.path, torch.tensor(times, dtype=torch.float64)).tolist()
    head, axis = "intrinsic dimension over noise levels", {"x_label": "η = σ/α"}
    d.curve("dimension/learned", levels, learned, f"{head}: of the network's velocity", **axis)
    d.curve("dimension/exact", levels, exact, f"{head}: of the exact velocity", **axis)
    _guidance(d, times, pushes)


def _guidance(d: Diagnosis, times: Sequence[float], pushes: Sequence[tuple[Tensor, Tensor] | None]) -> None:
    """The scale at each time where the class says anything, and over all of these: the slope of pushes through 0."""
    told = [each for each in pushes if each is not None]
    if not told:
        return
    shown = [NONE if each is None else ratio_of(*each) for each in pushes]
    d.curve("guidance", times, shown, "guidance scale in the weights")
    along, squares = (torch.cat([each[part] for each in told]) for part in (0, 1))
    d.scalar("guidance", ratio_of(along, squares), "guidance scale in the weights, over all t")
