"""What exact flows of a data set say about targets and paths: floors, biases, curvature, the error of few steps."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from shortflow.diagnose.known import Known
from shortflow.diagnose.record import Diagnosis
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import exact_flow
from shortflow.theory.bounds import trajectory
from shortflow.theory.estimates import Estimate, log_slope, mean_of
from shortflow.theory.nodes import level_of, noise_nodes, times_of
from shortflow.theory.straightness import Motion, ddim, motion, straightness
from shortflow.theory.variance import carried, discrete_spread, posterior_draws
from shortflow.typing import Report

__all__ = ["name_of", "paths", "targets"]

CELLS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Values of σ/(α + σ) of the starts t of the cells, where the law is a density; the ends r are these, and 0."""
CURVES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""The same, where curvatures are shown."""
FIRST = (1 / 2, 1 / 4, 1 / 8, 1 / 16)  # its length as a share of the gap
SPLITS = {"": 1 / 2, "/eighth": 1 / 8}  # the same in every cell, by what the names of the maps end in
DRAWS = 4  # of the posterior
NODES = 16
STEPS = (1, 2, 4, 8)
LATEST = 0.999  # time of the collapse up to which there is a flow to speak of
FULL = 12  # Runge–Kutta steps from noise to data
TOGETHER = 2**22  # numbers of points that are worked on together


def _steps(gap: float) -> int:
    return max(3, round(FULL * gap))


def cells(share: float) -> tuple[float, ...]:
    """Starts of cells: above the share at which a finite set collapses, in equal steps of log η up to .97."""
    if share == 0:
        return CELLS
    low, high = (math.log(each / (1 - each)) for each in (share, 0.97))
    return tuple(1 / (1 + math.exp(-(low + (high - low) * i / 5))) for i in range(1, 6)) if low < high else ()


def targets(d: Diagnosis, k: Known, share: float, rows: int, generator: torch.Generator, report: Report) -> None:
    """Maps over (t, r) of the floor of continuous time, and of variance and bias of discrete targets whose first step
    is half of the gap, or an eighth, both over its square; and how variance and bias fall with the first step.

    Args:
        share: σ/(α + σ) of the earliest end: where a finite set collapses to its points, below which trajectories leap
            from one to another; 0 for a density.
    """
    levels = [each for each in cells(share) if each / (1 - each) < _highest(k.law.path)]
    starts = k.times(torch.tensor(levels, dtype=torch.float64)).tolist()
    if not starts:
        return
    low = float(k.times(torch.tensor([share], dtype=torch.float64))) if share > 0 else 0.0
    ends, n, unit = [low, *starts], k.rows(rows, flows=True), "per dimension"
    values: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    places = [(i, j) for i, t in enumerate(starts) for j, r in enumerate(ends) if r < t]
    size = max(1, TOGETHER // (n * k.dimension * (DRAWS + 3)))
    for done in range(0, len(places), size):
        report(done, len(places) + len(FIRST))
        for (i, j), found in _cells(k, n, starts, ends, places[done : done + size], generator).items():
            for name, value in found.items():
                values[name][i, j] = value
    head = "variance of the target in continuous time"
    d.map("continuous_variance", starts, ends, values["floor"], f"{head}, E tr(J Cov Jᵀ)", unit)
    d.map("noise_to_signal", starts, ends, values["ratio"], f"{head}, over that of the exact average velocity")
    for end, length in SPLITS.items():
        words = f"of the target with a first step δ of {'half' if length == 1 / 2 else 'an eighth of'} the gap, over δ²"
        d.map(f"discrete_variance{end}", starts, ends, values[f"variance{end}"], f"variance {words}", unit)
        biases = {place: value for place, value in values[f"bias{end}"].items() if not math.isnan(value)}
        if biases:
            d.map(f"discrete_bias{end}", starts, ends, biases, f"squared bias {words}", unit)
        else:
            d.notes.append(f"No squared bias {words.partition(',')[0]} can be told from 0 in any cell (t, r).")
    t, r = starts[-2 if len(starts) > 1 else -1], ends[len(ends) // 2 - 1]
    _scan(d, k, n, t, r, generator, lambda done: report(len(places) + done, len(places) + len(FIRST)))


def _highest(path: Path) -> float:
    return float(level_of(path, torch.ones(1, dtype=torch.float64)))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Points (x_t, t) of a jump to r, with data and noise, classes, and draws of the posterior."""

    x_t: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    r: Tensor
    label: Tensor | None
    draws: Tensor

    @staticmethod
    def drawn(k: Known, n: int, t: float, r: float, generator: torch.Generator) -> "_Rows":
        time, end = (torch.full((n,), each, dtype=k.x.dtype, device=k.x.device) for each in (t, r))
        x_t, x, eps, label = k.noisy(time, generator, flows=True)
        draws = posterior_draws(k.flows, x_t, time, DRAWS, label, generator)
        return _Rows(x_t=x_t, x=x, eps=eps, t=time, r=end, label=label, draws=draws)

    @staticmethod
    def joined(parts: Sequence["_Rows"]) -> "_Rows":
        values = [(each.name, [getattr(part, each.name) for part in parts]) for each in fields(_Rows)]
        found: dict[str, Any] = {name: None if value[0] is None else torch.cat(value) for name, value in values}
        return _Rows(**found)


def _cells(
    k: Known,
    n: int,
    starts: Sequence[float],
    ends: Sequence[float],
    places: Sequence[tuple[int, int]],
    generator: torch.Generator,
) -> dict[tuple[int, int], dict[str, float]]:
    """Noise and bias of the targets of jumps, per dimension: those that take as many steps together."""
    drawn = {(i, j): _Rows.drawn(k, n, starts[i], ends[j], generator) for i, j in places}
    found: dict[tuple[int, int], dict[str, float]] = {}
    for steps in sorted({_steps(starts[i] - ends[j]) for i, j in places}):
        some = [(i, j) for i, j in places if _steps(starts[i] - ends[j]) == steps]
        values = _figures(k, n, steps, _Rows.joined([drawn[place] for place in some]))
        for at, place in enumerate(some):
            found[place] = {name: value[at] for name, value in values.items()}
    return found


def _figures(k: Known, n: int, steps: int, rows: _Rows) -> dict[str, list[float]]:
    """The figures of cells of n rows each."""
    flow, t, r, label = exact_flow(k.flows.on(steps=steps)), rows.t, rows.r, rows.label
    landed, moved = carried(flow, k.flows, rows.x, rows.eps, t, r, label, label)
    average = (landed - rows.x_t).flatten(1) / (r - t)[:, None]

    def by_cell(values: Tensor) -> Tensor:
        return values.reshape(-1, n)

    floor = by_cell(moved.square().flatten(1).sum(1)).mean(1) / k.dimension
    found = {
        "floor": floor.tolist(),
        "ratio": (floor / average.reshape(len(floor), n, -1).var(1).mean(1)).tolist(),
    }
    for end, length in SPLITS.items():
        step = length * (t - r)
        given = {"label": label, "told": label, "landed": landed, "data": rows.draws}
        spread = discrete_spread(flow, k.flows, rows.x_t, t, t - step, r, draws=DRAWS, sharp=False, **given)
        scale = k.dimension * step.square()
        found[f"variance{end}"] = by_cell(spread.variance / scale).mean(1).tolist()
        found[f"bias{end}"] = [_seen(mean_of(each)) for each in by_cell(spread.bias / scale)]
    return found


def _seen(bias: Estimate) -> float:
    """A squared bias that can be told from 0; its estimate may be below, and is NaN where nothing can be said."""
    return bias.value if bias.value > 2 * bias.error else math.nan


def _scan(
    d: Diagnosis, k: Known, n: int, t: float, r: float, generator: torch.Generator, told: Callable[[int], None]
) -> None:
    """Variance and squared bias of a discrete target against its first step, and their orders."""
    flow = exact_flow(k.flows.on(steps=2 * _steps(t - r)))
    time, end = (torch.full((n,), each, dtype=k.x.dtype, device=k.x.device) for each in (t, r))
    x_t, _, _, label = k.noisy(time, generator, flows=True)
    gaps, variances, biases = [share * (t - r) for share in FIRST], [], []
    with torch.no_grad():
        landed = flow(x_t, time, end, label)
    for done, gap in enumerate(gaps):
        told(done)
        spread = discrete_spread(
            flow,
            k.flows,
            x_t,
            time,
            time - gap,
            end,
            draws=2 * DRAWS,
            label=label,
            told=label,
            generator=generator,
            landed=landed,
        )
        variances.append(mean_of(spread.variance / k.dimension))
        biases.append(mean_of(spread.bias / k.dimension))
    where = f"at t = {t:.3g}, r = {r:.3g}"
    d.curve(
        "first_step/variance",
        gaps,
        variances,
        f"target {where} by its first step: variance",
        "per dimension",
        x_label="δ = t − s",
    )
    d.curve(
        "first_step/bias",
        gaps,
        biases,
        f"target {where} by its first step: squared bias",
        "per dimension",
        x_label="δ = t − s",
    )
    for name, values, order in (("variance", variances, 2), ("bias", biases, 4)):
        if all(each.value > 0 for each in values):
            slope = log_slope(torch.tensor(gaps), torch.tensor([each.value for each in values]))
            words = "squared bias" if name == "bias" else name
            d.scalar(
                f"order/{name}", slope, f"order of the target's {words} in its first step ({order} as it vanishes)"
            )


# --------------------------------------------------------------------------------------------------------------- paths


def compared(path: Path, std: float) -> dict[str, Path]:
    """Paths by name: the usual ones, two with noise as wide as the data, and the recipe's if it is none of these."""
    width = float(f"{std:.2g}")
    found: dict[str, Path] = {
        "linear": Linear(),
        "cosine": Cosine(),
        "variance-exploding": VarianceExploding(),
        f"linear, noise {width:g}": Linear(noise_scale=width),
        f"cosine, noise {width:g}": Cosine(noise_scale=width),
    }
    return found if path in found.values() else {**found, "the recipe's": path}


def name_of(path: Path, std: float) -> str:
    """The name of a path among those that are compared."""
    return next(name for name, each in compared(path, std).items() if each == path)


def paths(d: Diagnosis, k: Known, share: float, rows: int, generator: torch.Generator, report: Report) -> None:
    """Curvature over noise levels, energies, turning angle and the error of few DDIM steps of the exact flow, by path.

    Args:
        share: σ/(α + σ) at which flows end: where a finite set collapses to its points, 0 for a density.
    """
    std = float(k.x.std(0).double().square().mean().sqrt())
    d.settings["path_name"] = name_of(k.law.path, std)
    d.scalar("data_std", std, "standard deviation of the data, root mean square over coordinates")
    all_paths = compared(k.law.path, std)
    names = list(all_paths)
    for done, (name, path) in enumerate(all_paths.items()):
        _path(d, k.on(path), name, share, rows, generator, lambda i, n, done=done: report(done * n + i, len(names) * n))


def _path(
    d: Diagnosis, k: Known, name: str, share: float, rows: int, generator: torch.Generator, report: Report
) -> None:
    law, n = k.flows.on(steps=4), k.rows(rows, flows=True)
    low = 0.0 if share == 0 else float(times_of(law.path, torch.tensor([share / (1 - share)], dtype=torch.float64)))
    if low > LATEST:
        d.notes.append(f"{name}: one data point explains x_t up to the noisiest end, so nothing is said of the flow.")
        return
    times, weights = noise_nodes(law.path, low, 1.0, NODES)
    shown = [each for each in CURVES if each >= share and each / (1 - each) < _highest(law.path)]
    levels = k.times(torch.tensor(shown, dtype=torch.float64))
    found = _motions(k, n, torch.cat([times.to(levels), levels]), generator, report)
    sums = weights.to(levels)[:, None]
    energy, turning = ((sums * part[: len(times)]).sum(0) for part in (found.energy, found.turning))
    curvature = [mean_of(each) for each in found.curvature[len(times) :]]
    words = f"curvature E‖D_t v‖²/D: {name}"
    d.curve(f"curvature/{name}", shown, curvature, words, "per dimension", x_label="σ/(α + σ)")
    d.scalar(f"energy/{name}", mean_of(energy), f"kinetic energy of the marginal flow: {name}", "per dimension")
    d.scalar(f"turning/{name}", mean_of(turning), f"angle by which trajectories turn: {name}", "rad")
    _few_steps(d, k, name, low, times, weights, generator)


def _motions(k: Known, n: int, times: Tensor, generator: torch.Generator, report: Report) -> Motion:
    """What the flow does at n points at each of the times; a row of figures for each of these."""
    size, parts = max(1, TOGETHER // (n * k.dimension)), []
    for done in range(0, len(times), size):
        report(done, len(times))
        t = times[done : done + size].repeat_interleave(n)
        drawn = [k.noisy(each, generator, flows=True) for each in t.split(n)]
        label = None if drawn[0][3] is None else torch.cat([each[3] for each in drawn if each[3] is not None])
        parts.append(motion(k.flows, torch.cat([each[0] for each in drawn]), t, label))
    return Motion(
        **{
            each.name: torch.cat([getattr(part, each.name) for part in parts]).reshape(len(times), n)
            for each in fields(Motion)
        }
    )


def _few_steps(
    d: Diagnosis, k: Known, name: str, low: float, times: Tensor, weights: Tensor, generator: torch.Generator
) -> None:
    """How far the end of N DDIM steps with the exact velocity is from that of the flow, in units of the data."""
    law = k.flows.on(steps=4)
    n = max(16, k.rows(64, flows=True) // 2)
    one = torch.ones(n, dtype=k.x.dtype, device=k.x.device)
    x, _, _, label = k.noisy(one, generator, flows=True)
    points = trajectory(law, x, [1.0, *times.tolist(), low], label)
    point = points[-1]
    gap = straightness(law, points[1:-1], times, weights, (x - point) / (1 - low), label)
    d.scalar(f"bend/{name}", mean_of(gap), f"∫‖v − mean velocity‖² dt of trajectories: {name}", "per dimension")
    alpha = float(law.path.alpha(torch.tensor([low], dtype=torch.float64)))
    errors: list[Estimate] = []
    for steps in STEPS:
        made = ddim(law, x, _grid(law.path, low, steps), label)
        errors.append(mean_of((made - point).square().flatten(1).mean(1) / alpha**2))
    d.curve(
        f"few_steps/{name}",
        STEPS,
        errors,
        f"squared error of N DDIM steps with the exact velocity: {name}",
        "per dimension",
        x_label="steps",
    )


def _grid(path: Path, low: float, steps: int) -> list[float]:
    """Uniform in t; on the variance-exploding path uniform in σ^{1/7}, from the highest level to .002 at most."""
    if not isinstance(path, VarianceExploding):
        return [1 + (low - 1) * i / steps for i in range(steps)] + [low]
    last = max(low, 0.002 / path.sigma_max) ** (1 / 7)
    return [(1 + (last - 1) * i / steps) ** 7 for i in range(steps)] + [low]
