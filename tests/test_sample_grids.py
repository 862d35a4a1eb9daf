"""Grids of times: spaced in noise level on any path, through a chosen middle, and the search for one."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import gaussian
from sampling import exact, exploding, silent, standard_deviation, wrong
from shortflow.errors import SamplerError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.recipes import RECIPES
from shortflow.sample import ReNoise, default_grid, grid_times, search_middle, time_at
from shortflow.sample.grids import noise_ratio

# The cosine path with noise scale 0.5, written out: its noise levels are found by bisection.
COSINE = CustomPath(
    alpha_fn=lambda t: torch.cos(t * math.pi / 2),
    sigma_fn=lambda t: 0.5 * torch.sin(t * math.pi / 2),
    d_alpha_fn=lambda t: -math.pi / 2 * torch.sin(t * math.pi / 2),
    d_sigma_fn=lambda t: math.pi / 4 * torch.cos(t * math.pi / 2),
)
PATHS = [Linear(), Linear(noise_scale=0.5), Cosine(), Cosine(noise_scale=0.5), VarianceExploding(), COSINE]


def on(path: Path, span: tuple[float, float] = (0.0, 1.0), sigma_data: float = 1.0) -> FlowMap:
    return FlowMap(silent().network, path, AverageVelocity(), span=span, sigma_data=sigma_data)


# ---------------------------------------------------------------------------------------------------- times and levels


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@given(t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_time_has_its_noise_level_and_a_level_its_time(path: Path, t: float) -> None:
    assert time_at(path, noise_ratio(path, t)) == pytest.approx(t, abs=1e-12)


@given(ratio=st.floats(0, 1e3))
@settings(max_examples=50, deadline=None)
def test_bisection_finds_what_the_closed_form_says(ratio: float) -> None:
    assert time_at(COSINE, ratio) == pytest.approx(time_at(Cosine(noise_scale=0.5), ratio), abs=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_the_ends_are_ends(path: Path) -> None:
    assert time_at(path, 0.0) == 0.0
    assert time_at(path, noise_ratio(path, 1.0)) == 1.0


def test_published_middle_levels() -> None:
    """IMM: η = 1.4 for noise of the scale of the data; easy consistency tuning: σ = 0.821; sCM: the angle 1.1."""
    assert time_at(RECIPES["imm"]().path, 0.5 * 1.4) == pytest.approx(1.4 / 2.4, abs=1e-15)
    assert time_at(VarianceExploding(), 0.821) == pytest.approx(0.821 / 80, abs=1e-15)
    assert time_at(Cosine(noise_scale=0.5), 0.5 * math.tan(1.1)) == pytest.approx(2.2 / math.pi, abs=1e-15)


@pytest.mark.parametrize("ratio", [-1e-3, 81.0, math.inf, math.nan])
def test_levels_that_a_path_does_not_have_are_refused(ratio: float) -> None:
    with pytest.raises(SamplerError, match=rf"levels σ/α from 0 to 80, not {ratio:g}"):
        time_at(VarianceExploding(), ratio)


# ------------------------------------------------------------------------------------------------------ spaced in level


def test_on_noise_levels_edm_is_karras() -> None:
    flow = exploding(silent().network)
    for steps in (1, 2, 17, 40):
        assert grid_times(flow, steps, "edm") == pytest.approx(grid_times(flow, steps, "karras"), rel=1e-12)
    assert default_grid(flow) == "karras"


def test_the_edm_grid_of_imm() -> None:
    """Four steps on CIFAR-10's span, computed in IMM's own terms: η = t/(1−t), η_i^{1/7} uniform, t = η/(1+η)."""
    flow = on(Linear(noise_scale=0.5), (0.006, 0.994), 0.5)
    top, bottom = (0.994 / 0.006) ** (1 / 7), (0.006 / 0.994) ** (1 / 7)
    eta = [(top + i / 4 * (bottom - top)) ** 7 for i in range(5)]
    want = [level / (1 + level) for level in eta]
    assert grid_times(flow, 4, "edm") == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@given(steps=st.integers(1, 9), low=st.sampled_from([0.0, 1e-5, 0.01]), high=st.sampled_from([0.9, 0.994, 1.0]))
@settings(max_examples=10, deadline=None)
def test_the_levels_of_an_edm_grid_are_uniform_in_their_seventh_root(
    path: Path, steps: int, low: float, high: float
) -> None:
    flow = on(path, (low, high))
    grid = grid_times(flow, steps, "edm")
    assert (grid[0], grid[-1], len(grid)) == (high, low, steps + 1)
    assert all(b < a for a, b in pairwise(grid))
    root = [noise_ratio(path, time) ** (1 / 7) for time in grid]
    inner = [a - b for a, b in pairwise(root[1:-1])]
    assert inner == pytest.approx([inner[0]] * len(inner) if inner else [], rel=1e-6)


def test_where_the_span_has_no_last_level_it_is_that_of_edm() -> None:
    """With data of deviation 0.5 the levels go from 80 to 0.002, on every path."""
    want = grid_times(exploding(silent().network), 17)
    for path in (Linear(), Cosine(), COSINE):
        grid = grid_times(on(path, sigma_data=0.5), 17, "edm")
        assert [noise_ratio(path, time) for time in grid[1:-1]] == pytest.approx([80 * t for t in want[1:-1]], rel=1e-9)
        assert (grid[0], grid[-1]) == (1.0, 0.0)


@given(scale=st.floats(0.1, 10), steps=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_edm_grids_do_not_depend_on_the_unit_of_the_data(scale: float, steps: int) -> None:
    one, other = on(Linear()), on(Linear(noise_scale=scale), sigma_data=scale)
    assert grid_times(other, steps, "edm") == pytest.approx(grid_times(one, steps, "edm"), rel=1e-9)


def test_a_span_above_the_levels_of_edm_has_no_edm_grid() -> None:
    with pytest.raises(SamplerError, match="levels from 999 to 160 hold no 'edm' grid; take the uniform grid"):
        grid_times(on(Linear(), (0.999, 1.0)), 4, "edm")


# ------------------------------------------------------------------------------------------------------------- a middle


def test_a_middle_time_makes_a_grid_of_two_steps() -> None:
    flow = on(Linear(), (0.006, 0.994))
    assert grid_times(flow, 2, middle=0.5833) == (0.994, 0.5833, 0.006)
    with pytest.raises(SamplerError, match="grid of 2 steps, not of 3; leave it out, or take 2 steps"):
        grid_times(flow, 3, middle=0.5)
    with pytest.raises(SamplerError, match="leave out either it or the 'edm' grid"):
        grid_times(flow, 2, "edm", 0.5)
    for middle in (0.006, 0.994, -1.0, math.nan):
        with pytest.raises(SamplerError, match=f"between 0.006 and 0.994, got {middle:g}"):
            grid_times(flow, 2, middle=middle)


@given(best=st.floats(-3, 3), evaluations=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_the_search_closes_in_on_the_only_valley(best: float, evaluations: int) -> None:
    """After n evaluations the bracket is (high − low) 0.618^{n−2} long, and the best time tried lies inside."""
    tried = []

    def score(time: float) -> float:
        tried.append(time)
        return abs(time - best) ** 1.5

    got = search_middle(score, -2.0, 2.0, evaluations=evaluations)
    assert len(tried) == evaluations
    assert all(-2 < time < 2 for time in tried)
    assert got == min(tried, key=lambda time: abs(time - best))
    valley = min(max(best, -2.0), 2.0)
    assert abs(got - valley) <= 4 * ((math.sqrt(5) - 1) / 2) ** (evaluations - 2) + 1e-9


def test_the_search_keeps_the_best_it_has_seen_in_a_noisy_score() -> None:
    values = iter([3.0, 5.0, 1.0, 4.0, 2.0, 9.0])
    tried = {}

    def score(time: float) -> float:
        tried[time] = next(values)
        return tried[time]

    assert tried[search_middle(score, 0.0, 1.0, evaluations=6)] == 1.0


def test_the_best_middle_of_a_map_whose_error_grows_with_its_jump() -> None:
    """f = exp(−0.1 t) X_{t,0}: the deviation of two steps is least wrong at a time that a fine scan finds, too."""
    flow = wrong(lambda t, r: torch.exp(-0.1 * t))

    def score(middle: float) -> float:
        return abs(standard_deviation(flow, ReNoise(), grid_times(flow, 2, middle=middle)) - 0.5)

    scan = min((score(k / 50), k / 50) for k in range(1, 50))
    got = search_middle(score, 0.0, 1.0, evaluations=12)
    assert got == pytest.approx(scan[1], abs=1 / 50)
    assert score(got) <= scan[0] + 1e-6
    assert 0.1 < got < 0.9


def test_impossible_searches_are_refused() -> None:
    for low, high in ((1.0, 0.0), (0.5, 0.5), (0.0, math.nan), (0.0, math.inf)):
        with pytest.raises(SamplerError, match=f"low < high, got {low} and {high}"):
            search_middle(abs, low, high)
    with pytest.raises(SamplerError, match="at least 2 evaluations, got 1"):
        search_middle(abs, 0.0, 1.0, evaluations=1)
    with pytest.raises(SamplerError, match=r"the score at 0\.381966 is not a number"):
        search_middle(lambda _: math.nan, 0.0, 1.0)


def test_a_middle_of_the_exact_map_does_not_matter() -> None:
    flow = exact(gaussian(Linear()))
    for middle in (0.01, 0.5, 0.99):
        times = grid_times(flow, 2, middle=middle)
        assert standard_deviation(flow, ReNoise(), times, 0.3) == pytest.approx(0.5, abs=1e-12)
