"""The laws of (t, r) and of grids of steps that came after MeanFlow: T8–T11, T13, T14 and the staged baselines."""

import math
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from distances import at, ks
from oracles import f64
from shortflow.errors import ShortflowError
from shortflow.times import (
    Beta,
    Diagonal,
    GapThenEnd,
    GridLaw,
    GroupedJumps,
    Independent,
    LogitNormal,
    Neighbours,
    Nested,
    StagedDyadic,
    TimeSampler,
    Triangle,
    Uniform,
)
from shortflow.typing import Progress

# ---------------------------------------------------------------------------------------- pairs in continuous time


def test_triangle_is_uniform() -> None:
    """T14: P(t ≤ a, r ≤ b) = 2ab − b² for b ≤ a; t has density 2t, r has 2(1 − r), r/t is uniform."""
    t, s, r = Triangle().stratified(40_000)
    assert torch.equal(s, t)
    assert ks(t, lambda x: x**2) < 1e-3
    assert ks(r, lambda x: 1 - (1 - x) ** 2) < 2e-3
    assert ks(r / t, lambda x: x) < 2e-3
    for a, b in ((0.3, 0.1), (0.6, 0.6), (0.9, 0.2)):
        assert ((t <= a) & (r <= b)).double().mean().item() == pytest.approx(2 * a * b - b**2, abs=1e-3)


@pytest.mark.parametrize("start", [Uniform(), Beta(a=0.8, b=1.0), LogitNormal(mu=-0.4)], ids=repr)
def test_nested_end_is_uniform_below_the_start(start: Uniform | Beta | LogitNormal) -> None:
    """T13: t ~ start, r/t ~ U(0, 1) and independent of t."""
    t, s, r = Nested(start=start).stratified(40_000)
    assert torch.equal(s, t)
    assert ks(t, start.cdf) < 1e-3
    assert ks(r / t, lambda x: x) < 2e-3
    late = t > t.median()
    assert ks((r / t)[late], lambda x: x) < 4e-3


def test_nested_with_uniform_start_has_its_closed_form() -> None:
    """P(r ≤ x) = x − x log x for t ~ U(0, 1)."""
    assert ks(Nested().stratified(40_000).r, lambda x: x - torch.special.xlogy(x, x)) < 2e-3


def test_length_then_end_has_the_conditional_law() -> None:
    """T10: g = t − r ~ LN(−.8, 1), and given g, r ~ LN(−.4, 1) given r ≤ 1 − g: F(r)/F(1 − g) is uniform."""
    sampler = GapThenEnd()
    t, s, r = sampler.stratified(40_000)
    gap = t - r
    assert torch.equal(s, t)
    assert ks(gap, sampler.length.cdf) < 1e-3
    assert ks(sampler.end.cdf(r) / sampler.end.cdf(1 - gap), lambda x: x) < 2e-3
    long = gap > 0.5
    assert ks((sampler.end.cdf(r) / sampler.end.cdf(1 - gap))[long], lambda x: x) < 6e-3
    # E g = E sigmoid(−.8 + Z) and E t from a two-dimensional quadrature of the definition (mid-points in g and u).
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    g = sampler.length.icdf(u)
    ends = sampler.end.icdf(u[None, :] * sampler.end.cdf(1 - g)[:, None])
    assert gap.mean().item() == pytest.approx(g.mean().item(), abs=1e-4)
    assert t.mean().item() == pytest.approx((ends + g[:, None]).mean().item(), abs=1e-3)


@pytest.mark.parametrize("end", [Uniform(low=0.4), GridLaw(n=3), Beta(a=2.0, b=2.0)], ids=repr)
def test_length_then_end_where_the_end_has_no_room(end: Uniform | GridLaw | Beta) -> None:
    """Jumps too long for the law of the end start at t = 1."""
    t, _, r = GapThenEnd(length=Uniform(), end=end).stratified(1000)
    assert bool(((r >= 0) & (r < t) & (t <= 1)).all())
    none = end.cdf(1 - (t - r) - 1e-12) == 0
    torch.testing.assert_close(t[none], torch.ones(int(none.sum()), dtype=torch.float64))


def test_independent_with_a_least_gap_is_the_law_of_soflow() -> None:
    """T11: t ~ LN(.2, .8), r = min(LN(−1, .8), t − 1e-4): the shares of cut rows and the law of the others."""
    sampler = Independent(
        start=LogitNormal(mu=0.2, sigma=0.8), end=LogitNormal(mu=-1.0, sigma=0.8), ratio=1.0, least=1e-4
    )
    assert sampler.gap == "positive"
    t, s, r = sampler.stratified(40_000)
    assert torch.equal(s, t)
    assert ks(t, sampler.start.cdf) < 1e-3
    assert bool((t - r >= 1e-4 - 1e-15).all())
    cut = (t - r) < 1e-4 + 1e-12
    # P(r ≥ t) = Φ((−1 − .2)/√(.8² + .8²)) up to the gap
    want = 0.5 * math.erfc(1.2 / math.hypot(0.8, 0.8) / math.sqrt(2))
    assert cut.double().mean().item() == pytest.approx(want, abs=2e-3)
    assert ks(r, lambda x: 1 - (1 - sampler.start.cdf(x)) * (1 - sampler.end.cdf(x))) < 3e-3


def test_independent_keeps_flow_matching_rows_beside_a_least_gap() -> None:
    sampler = Independent(ratio=0.5, least=1e-3, count="exact")
    assert sampler.gap == Independent().gap == Independent(ratio=1.0).gap == "mixed"
    t, _, r = sampler(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert int((t - r >= 1e-3 - 1e-15).sum()) == 32
    assert int((t == r).sum()) == 32
    few = sampler.times(torch.zeros(2, 3, dtype=torch.float64), Progress())
    assert few.t.tolist() == [1e-3, 1e-3]


def test_independent_without_a_least_gap_draws_what_it_always_drew() -> None:
    """Pinned before `least` existed."""
    t, _, r = Independent()(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second, third = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(1)
    start, end = (1 / (1 + torch.exp(-m - 1.6 * torch.special.ndtri(u))) for m, u in ((-0.6, first), (-4.0, second)))
    torch.testing.assert_close(t, start)
    torch.testing.assert_close(r, torch.where(third < 0.75, torch.minimum(start, end), start))


# ------------------------------------------------------------------------------------------------ one level at a time


def test_progressive_distillation_goes_through_its_levels() -> None:
    """Seven equal stages: d = 1/64, …, 1; t on the multiples of d, r = t − d, s halfway."""
    sampler = StagedDyadic()
    assert (sampler.stages, sampler.steps, sampler.gap, sampler.ends) == (7, 128, "positive", "dyadic")
    for stage in range(7):
        for images in (100 * stage, 100 * stage + 99):  # the first and the last image of a stage
            progress = Progress(images=images, total=700)
            assert sampler.stage(progress) == stage
            t, s, r = sampler.stratified(640, progress)
            d = 2.0 ** (stage - 6)
            assert torch.equal(t - r, torch.full_like(t, d))
            assert torch.equal(t - s, torch.full_like(t, d / 2))
            values, counts = t.unique(return_counts=True)
            assert torch.equal(values, torch.arange(1, round(1 / d) + 1, dtype=torch.float64) * d)
            assert set(counts.tolist()) == {round(640 * d)}
    assert sampler.stage(Progress(images=700, total=700)) == 6


@pytest.mark.parametrize("stages", range(1, 21))
def test_stages_begin_at_their_first_image(stages: int) -> None:
    sampler = StagedDyadic(levels=stages)
    for each in (1, 7, 49):
        began = [sampler.stage(Progress(images=i * each, total=stages * each)) for i in range(stages + 1)]
        assert began == [*range(stages), stages - 1]


def test_consistency_training_on_dyadic_grids() -> None:
    """Coarse to fine: at first x_1 → data only, at last neighbours on the 1/64 grid; 1/128 with eight levels."""
    sampler = StagedDyadic(order="coarse-to-fine", jump="data")
    assert (sampler.stages, sampler.steps, sampler.ends) == (7, 64, "zero")
    t, s, r = sampler.stratified(8)
    assert (t.tolist(), s.tolist(), r.tolist()) == ([1.0] * 8, [0.0] * 8, [0.0] * 8)
    t, s, r = sampler.stratified(128, at(0.5))
    assert torch.equal(t - s, torch.full_like(t, 1 / 8))
    assert r.unique().tolist() == [0.0]
    for levels, finest in ((7, 1 / 64), (8, 1 / 128)):
        last = StagedDyadic(levels=levels, order="coarse-to-fine", jump="data")
        t, s, _ = last.stratified(256, at(1.0))
        assert torch.equal(t - s, torch.full_like(t, finest))
        assert (t.min().item(), t.max().item()) == (finest, 1.0)


def test_levels_may_end_early() -> None:
    sampler = StagedDyadic(levels=5, coarsest=2)
    assert sampler.stages == 3
    assert [sampler.level(at(share)) for share in (0.0, 0.34, 0.67, 1.0)] == [4, 3, 2, 2]
    upward = StagedDyadic(levels=5, coarsest=2, order="coarse-to-fine", jump="data")
    assert [upward.level(at(share)) for share in (0.0, 0.34, 0.67, 1.0)] == [2, 3, 4, 4]


def test_neighbours_on_an_even_grid() -> None:
    t, s, r = Neighbours().stratified(1280)
    values, counts = t.unique(return_counts=True)
    assert torch.equal(values, torch.arange(1, 129, dtype=torch.float64) / 128)
    assert set(counts.tolist()) == {10}
    assert torch.equal(t - s, torch.full_like(t, 1 / 128))
    assert r.unique().tolist() == [0.0]


# ------------------------------------------------------------------------------------------------- moment matching


def test_the_cosine_path_has_its_own_eta() -> None:
    """η = tan(πt/2): tan(πt/2) − tan(πs/2) = (η_high − η_low) 2⁻ᵏ, at the linear path's defaults and at its limits."""
    sampler = GroupedJumps(low=0.1, high=0.9, k=6, eta="cosine")
    t = f64(0.3, 0.6, 0.9)
    s = sampler.intermediate(t)
    step = (math.tan(0.45 * math.pi) - math.tan(0.05 * math.pi)) / 64
    torch.testing.assert_close(torch.tan(t * math.pi / 2) - torch.tan(s * math.pi / 2), torch.full_like(t, step))
    # k = 12, high = .994: η_high = 1/tan(.003π) = 106.1000, Δη = .025903
    assert GroupedJumps(eta="cosine").intermediate(f64(0.5)).item() == pytest.approx(
        2 / math.pi * math.atan(1 - 1 / math.tan(0.003 * math.pi) / 4096), abs=1e-12
    )
    assert GroupedJumps(k=2, eta="cosine").intermediate(f64(0.1, 0.5)).tolist() == [0, 0]
    drawn = GroupedJumps(eta="cosine")(8, generator=torch.Generator().manual_seed(0))
    straight = GroupedJumps()(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.t, straight.t)
    assert torch.equal(drawn.r, straight.r)
    assert not torch.equal(drawn.s, straight.s)


# ------------------------------------------------------------------------------------------------------------ tables


class Wide(TimeSampler):
    """Shows its table of uniforms: t of row i is the product of the columns."""

    gap = "zero"
    ends = "diagonal"

    def __init__(self, uniforms: int) -> None:
        self.uniforms, self.seen = uniforms, torch.empty(0)

    def times(self, u: torch.Tensor, progress: Progress) -> object:  # type: ignore[override]
        self.seen = u
        return Diagonal().times(u, progress)


@pytest.mark.parametrize("k", [1, 4, 5, 9])
def test_stratified_tables_have_independent_even_columns(k: int) -> None:
    """Every column is equidistributed, and no two of them are correlated."""
    sampler = Wide(k)
    sampler.stratified(20_000)
    u = sampler.seen
    assert u.shape == (20_000, k)
    assert bool(((u >= 0) & (u < 1)).all())
    for column in u.unbind(1):
        assert ks(column, lambda x: x) < 1e-3
    covariance = torch.cov(u.T).reshape(k, k) * 12
    torch.testing.assert_close(covariance, torch.eye(k, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: Independent(least=1e-9),
            "least is the shortest jump and must be 0 .none. or in .1e-06, 1., got 1e-09",
        ),
        (lambda: Independent(least=1.0), "least"),
        (lambda: Independent(least=math.nan), "least"),
        (lambda: StagedDyadic(levels=0), "StagedDyadic: levels must be between 1 and 20, got 0"),
        (lambda: StagedDyadic(levels=3, coarsest=3), "coarsest must be between 0 and levels − 1 = 2, got 3"),
        (lambda: StagedDyadic(coarsest=-1), "coarsest"),
        (lambda: StagedDyadic(order="up"), "order"),  # type: ignore[arg-type]
        (lambda: StagedDyadic(jump="end"), "jump"),  # type: ignore[arg-type]
        (lambda: Neighbours(steps=0), "steps must be between 1 and 1000000, got 0"),
        (lambda: GroupedJumps(eta="trig"), "eta"),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises((ShortflowError, TypeCheckError), match=words):  # the type checker of the tests may come first
        build()
