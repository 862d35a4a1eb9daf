"""Grids of times from noise to data: spaced in t or in noise level, checked against what a network knows."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from shortflow.errors import SamplerError
from shortflow.flowmap import FlowMap
from shortflow.grids import KarrasGrid
from shortflow.paths import Cosine, Linear, Path, VarianceExploding

__all__ = [
    "GRIDS",
    "check_data_end",
    "check_grid",
    "default_grid",
    "grid_times",
    "lowest_start",
    "noise_ratio",
    "search_middle",
    "time_at",
]

GRIDS = ("uniform", "karras", "edm")

CLOSE = 1e-9  # two times that differ by less are the same
NO_DATA = 1e-12  # an α below is 0: cos(π/2) is 6e-17

# EDM's lowest and highest noise level for data of unit deviation: 0.002 and 80 over its 0.5.
FLOOR, CEILING = 0.004, 160.0


def noise_ratio(path: Path, time: float) -> float:
    """η_t = σ_t/α_t, the noise level of x_t/α_t; infinite where no data are left (α_t = 0)."""
    t = torch.tensor([time], dtype=torch.float64)
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    return sigma / alpha if alpha > NO_DATA else math.inf


def time_at(path: Path, ratio: float) -> float:
    """The time t with σ_t/α_t = `ratio`, the inverse of an increasing function (its derivative is W/α² > 0).

    Linear: t = η/(τ + η); cosine: t = (2/π) atan(η/τ); variance-exploding: t = η/σ_max; else by bisection.
    The noise scale τ is inside σ, so a level published for unit noise is multiplied by it: IMM's middle η = 1.4 is
    `time_at(path, 0.5 * 1.4)` = 0.5833 on its path (τ = 0.5), ECT's σ = 0.821 is `time_at(path, 0.821)`.

    Raises:
        SamplerError: if the ratio is negative, or higher than the path has.
    """
    highest = noise_ratio(path, 1.0)
    if not 0 <= ratio <= highest * (1 + CLOSE):
        raise SamplerError(f"{path} has noise levels σ/α from 0 to {highest:g}, not {ratio:g}")
    if ratio == math.inf:
        return 1.0
    match path:
        case Linear():
            return ratio / (path.noise_scale + ratio)
        case Cosine():
            return math.atan(ratio / path.noise_scale) * 2 / math.pi
        case VarianceExploding():
            return min(1.0, ratio / path.sigma_max)
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        if noise_ratio(path, middle) < ratio:
            low = middle
        else:
            high = middle
    # The ends are met exactly: what is left of the bracket would otherwise keep it from 0.
    return low if low == 0 else high


def grid_times(flow: FlowMap, steps: int, kind: str | None = None, middle: float | None = None) -> tuple[float, ...]:
    """steps + 1 decreasing times over the span of the flow map; a truncated one is asked at its lowest time or above.

    Args:
        kind: "uniform" in t; "karras", uniform in t^{1/7} (arXiv 2206.00364, equation 5, for σ proportional to t);
            "edm", the same of the noise level η = σ/α, mapped to t on any path (IMM). By default `default_grid`.
        middle: the middle time of two steps. Published are, besides those of `time_at`, sCM's angle 1.1, which is
            t = 2.2/π. See `search_middle`.

    Raises:
        SamplerError: if steps < 1, the kind is unknown, or the middle is outside, or of a grid of other than two steps.
    """
    if steps < 1:
        raise SamplerError(f"steps must be at least 1, got {steps}")
    low, high = flow.span
    if middle is not None:
        if steps != 2:
            raise SamplerError(f"a middle time makes a grid of 2 steps, not of {steps}; leave it out, or take 2 steps")
        if kind is not None:
            raise SamplerError(f"a middle time is a grid of its own; leave out either it or the {kind!r} grid")
        if not low < middle < high:
            raise SamplerError(f"the middle time must be between {low:g} and {high:g}, got {middle:g}")
        return (high, middle, low)
    kind = kind or default_grid(flow)
    if kind not in GRIDS:
        names = " and ".join((", ".join(map(repr, GRIDS[:-1])), repr(GRIDS[-1])))
        raise SamplerError(f"there is no grid called {kind!r}; there are {names}, or give the times")
    last = max(low, lowest_start(flow))  # the levels are spaced down to here, and the last jump goes to the data
    if kind == "edm":
        return (high, *_edm(flow, last, steps), low)
    power = 1 if kind == "uniform" else 7
    a, b = high ** (1 / power), last ** (1 / power)
    # The ends are written out, because rounding would miss them.
    return (high, *((a + (b - a) * i / steps) ** power for i in range(1, steps)), low)


def default_grid(flow: FlowMap) -> str:
    """The grid that is usual for the path: "karras" on the variance-exploding one, else "uniform"."""
    return "karras" if isinstance(flow.path, VarianceExploding) else "uniform"


def _edm(flow: FlowMap, last: float, steps: int) -> list[float]:
    """The inner times of a grid with Karras levels η between that of the latest time and that of `last`.

    Where the span ends in pure noise (η = ∞) or pure data (η = 0), the levels in between are spaced as if it ended at
    EDM's highest and lowest level for data of this deviation.
    """
    low, high = (noise_ratio(flow.path, time) for time in (last, flow.span[1]))
    if high == math.inf:
        high = CEILING * flow.sigma_data
    if low == 0:
        low = FLOOR * flow.sigma_data
    if low >= high:
        raise SamplerError(
            f"the noise levels from {low:g} to {high:g} hold no 'edm' grid; take the uniform grid, or give the times"
        )
    levels = KarrasGrid(sigma_min=low, sigma_max=high).levels(steps + 1)
    return [time_at(flow.path, float(level)) for level in levels[1:-1]]


def search_middle(score: Callable[[float], float], low: float, high: float, *, evaluations: int = 12) -> float:
    """The middle time with the lowest score of those tried, by golden-section search between `low` and `high`.

    The bracket shrinks by 0.618 an evaluation, so 12 of them find the minimum of a score with one valley to 0.5 % of
    high − low. It replaces the ternary search that consistency models choose their middle levels by (arXiv 2303.01469,
    section 3), which pays two evaluations for a factor of 0.667. To search levels over decades, search their logarithm:

    >>> search_middle(lambda v: fid(times=(1.0, time_at(flow.path, math.exp(v)), low)), math.log(0.1), math.log(10))

    Raises:
        SamplerError: if low ≥ high, there are fewer than 2 evaluations, or a score is NaN.
    """
    if not (low < high and math.isfinite(high - low)):
        raise SamplerError(f"search_middle needs low < high, got {low} and {high}")
    if evaluations < 2:
        raise SamplerError(f"search_middle needs at least 2 evaluations, got {evaluations}")

    def tried(time: float) -> tuple[float, float]:
        value = float(score(time))
        if math.isnan(value):
            raise SamplerError(f"the score at {time:g} is not a number; a search needs one")
        return value, time

    part = (math.sqrt(5) - 1) / 2
    left, right = tried(high - part * (high - low)), tried(low + part * (high - low))
    best = min(left, right)
    for _ in range(evaluations - 2):
        # The better of the two inner points is an inner point of the smaller bracket as well.
        if left < right:
            high, right = right[1], left
            left = tried(high - part * (high - low))
        else:
            low, left = left[1], right
            right = tried(low + part * (high - low))
        best = min(best, left, right)
    return best[1]


# -------------------------------------------------------------------------------------------------------------- checks


def check_grid(flow: FlowMap, times: Sequence[float]) -> None:
    """Raise `SamplerError` unless the times decrease, start as pure noise and are times that the network knows."""
    low, high = flow.span
    # `not (b < a)` refuses NaN too.
    if len(times) < 2 or any(not b < a for a, b in pairwise(times)):
        raise SamplerError(f"the times of a grid must decrease and be at least two, got {list(times)}")
    if times[0] > high + CLOSE or times[-1] < low - CLOSE:
        raise SamplerError(
            f"this model knows times from {high:g} down to {low:g}, the grid goes from {times[0]:g} to {times[-1]:g}"
        )
    if times[0] < high - CLOSE:
        raise SamplerError(
            f"samples start as pure noise, which is what this model knows at time {high:g}; "
            f"the grid starts at {times[0]:g}. Put {high:g} in front of it"
        )
    known = lowest_start(flow)
    if (last := times[-2]) < known - CLOSE:
        raise SamplerError(
            f"this model was trained for jumps that start at time {known:g} or above (a truncated consistency model); "
            f"the grid asks for one from {last:g}. Use fewer steps, or times of {known:g} and above before the end"
        )


def lowest_start(flow: FlowMap) -> float:
    """The earliest time at which the network may be asked (truncated consistency models), 0 by default."""
    return float(getattr(flow, "lowest", 0.0))


def check_data_end(flow: FlowMap, times: Sequence[float]) -> None:
    """Raise `SamplerError` unless the grid ends at the data."""
    if times[-1] > flow.span[0] + CLOSE:
        raise SamplerError(
            f"the jumps of this sampler and model end at the data, which are at time {flow.span[0]:g}; "
            f"the grid ends at {times[-1]:g}. Put {flow.span[0]:g} at its end"
        )
