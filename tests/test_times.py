import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.stats import norm

from distances import at, distance, ks
from oracles import f64
from shortflow.errors import ShortflowError
from shortflow.objective import ScheduledEma
from shortflow.times import (
    Diagonal,
    DoublingCount,
    Dyadic,
    Gradual,
    GridLaw,
    GridPairs,
    GroupedJumps,
    Independent,
    KarrasGrid,
    LogitNormal,
    LogNormalIndex,
    Sorted,
    SquareRootCount,
    TimeSampler,
    ToData,
    Uniform,
    UniformIndex,
)
from shortflow.times.base import ordered
from shortflow.typing import Progress

SAMPLERS = [
    Diagonal(),
    Diagonal(law=GridLaw(n=16)),
    Sorted(),
    Sorted(law=LogitNormal(mu=-2.0, sigma=2.0), ratio=0.75, count="exact"),
    Gradual(),
    Gradual(law=Uniform(), ratio=1.0, ramp=1.0),
    Independent(),
    ToData(),
    ToData(law=Uniform()),
    Dyadic(),
    Dyadic(levels=3, share=1.0),
    Dyadic(levels=20, share=0.5),
    GridPairs(),
    GridPairs(grid=KarrasGrid(sigma_max=14.6, rho=3.0), count=DoublingCount(), index=LogNormalIndex()),
    GroupedJumps(),
    GroupedJumps(low=0.006, k=15, group=2),
    GroupedJumps(k=2, group=1),
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


# ------------------------------------------------------------------------------------------------- joint samplers


@pytest.mark.parametrize(
    ("mu", "sigma", "want"), [(-0.4, 1.0, (0.418, 0.535, 0.301)), (-2.0, 2.0, (0.225, 0.354, 0.096))]
)
def test_sorted_pair_has_the_published_moments(mu: float, sigma: float, want: tuple[float, float, float]) -> None:
    law = LogitNormal(mu=mu, sigma=sigma)
    times = Sorted(law=law, ratio=1.0).stratified(20_000)
    single = Diagonal(law=law).stratified(20_000).t
    got = (single.mean().item(), times.t.mean().item(), times.r.mean().item())
    assert got == pytest.approx(want, abs=6e-4)


def test_sorted_pair_has_the_laws_of_maximum_and_minimum() -> None:
    """T1: P(max ≤ t) = F², P(min ≤ r) = 1 − (1 − F)²; also the rows with r = t have t distributed as the maximum."""
    n = 20_000
    sampler = Sorted(law=LogitNormal(mu=-0.4), ratio=0.25)
    t, s, r = sampler.stratified(n)
    jump = r < t
    f = sampler.law.cdf
    assert jump.double().mean().item() == pytest.approx(0.25, abs=2e-3)
    assert torch.equal(s, t)
    assert ks(t, lambda x: f(x) ** 2) < 0.002
    assert ks(t[jump], lambda x: f(x) ** 2) < 0.01
    assert ks(t[~jump], lambda x: f(x) ** 2) < 0.01
    assert ks(r[jump], lambda x: 1 - (1 - f(x)) ** 2) < 0.01


def test_sorted_pair_has_the_joint_density_on_the_triangle() -> None:
    """P(t ≤ a, r ≤ b) = 2 F(a)F(b) − F(b)² for b ≤ a, from the density 2 f(t) f(r) on r < t."""
    sampler = Sorted(law=LogitNormal(mu=-0.4), ratio=1.0)
    t, _, r = sampler.stratified(20_000)
    for a in (0.2, 0.5, 0.8):
        for b in (0.1, 0.2, 0.5):
            if b <= a:
                fa, fb = sampler.law.cdf(f64(a)).item(), sampler.law.cdf(f64(b)).item()
                assert ((t <= a) & (r <= b)).double().mean().item() == pytest.approx(2 * fa * fb - fb**2, abs=2e-3)


def test_independent_pair_has_its_share_of_flow_matching_and_moments() -> None:
    """T2: the share of r = t is .25 + .75 Φ((μ_r − μ_t)/√(σ_t² + σ_r²)) = .2999."""
    sampler = Independent()
    t, _, r = sampler.stratified(40_000)
    jump = r < t
    want = 0.25 + 0.75 * norm.cdf(-3.4 / math.hypot(1.6, 1.6))
    assert want == pytest.approx(0.2999, abs=5e-5)
    assert (~jump).double().mean().item() == pytest.approx(want, abs=2e-3)
    assert t.mean().item() == pytest.approx(0.399, abs=1e-3)
    assert r[jump].mean().item() == pytest.approx(0.038, abs=1e-3)
    assert ks(t, sampler.start.cdf) < 1e-3


def test_independent_ends_have_the_law_of_r_cut_at_t() -> None:
    """With ratio 1, P(r ≤ x) = 1 − (1 − F_start(x))(1 − F_end(x)), the law of the minimum."""
    sampler = Independent(ratio=1.0)
    r = sampler.stratified(20_000).r
    assert ks(r, lambda x: 1 - (1 - sampler.start.cdf(x)) * (1 - sampler.end.cdf(x))) < 2e-3


@pytest.mark.parametrize(
    ("position", "want"), [(0.0, 1.0), (0.25, 0.8391), (0.5, 0.6667), (0.75, 0.4601), (1.0, 0.0), (2.0, 0.0)]
)
def test_gradual_probability_is_the_arccos_table(position: float, want: float) -> None:
    sampler = Gradual(ramp=1 / 30, ratio=1.0)
    progress = Progress(images=round(position * 20_000), total=600_000)
    assert sampler.probability(progress) == pytest.approx(want, abs=5e-5)
    t, _, r = sampler.stratified(10_000, progress)
    assert ((r == 0) & (t > 0)).double().mean().item() == pytest.approx(want, abs=2e-3)


def test_gradual_without_a_ramp_is_sorted() -> None:
    for progress, ramp in ((Progress(), 0.0), (Progress(images=1, total=2), 0.1)):
        table = torch.rand(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        got = Gradual(ramp=ramp).times(table, progress)
        want = Sorted().times(table[:, :3], progress)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradual_has_the_laws_of_t3() -> None:
    """T3: the share ratio of rows jumps; of these p jump to 0, and the others have the law of the minimum."""
    sampler = Gradual(ramp=1.0)
    progress = at(0.5)
    t, _, r = sampler.stratified(60_000, progress)
    jump = r < t
    f = sampler.law.cdf
    assert jump.double().mean().item() == pytest.approx(0.25, abs=2e-3)
    assert (r[jump] == 0).double().mean().item() == pytest.approx(2 / 3, abs=3e-3)
    assert ks(t, lambda x: f(x) ** 2) < 2e-3
    assert ks(t[jump], lambda x: f(x) ** 2) < 0.01
    assert ks(r[jump & (r > 0)], lambda x: 1 - (1 - f(x)) ** 2) < 0.02


@pytest.mark.parametrize("sampler", [Sorted(count="exact"), Gradual(count="exact"), Sorted(ratio=0.5, count="exact")])
def test_exact_count_takes_the_same_number_of_rows_every_time(sampler: TimeSampler) -> None:
    ratio = sampler.ratio  # type: ignore[attr-defined]
    for n in (1, 7, 8, 64, 130):
        for seed in range(5):
            times = sampler(n, Progress(images=1, total=1), torch.Generator().manual_seed(seed), torch.float64)
            assert int(times.bootstrap.sum()) == round(ratio * n)
    # Rows beside each other may share a class: which of them jump is left to chance.
    times = sampler(64, Progress(images=1, total=1), torch.Generator().manual_seed(0))
    assert not bool(times.bootstrap[: round(ratio * 64)].all())


def test_bernoulli_count_varies() -> None:
    counts = {int(Sorted()(64, generator=torch.Generator().manual_seed(seed)).bootstrap.sum()) for seed in range(20)}
    assert len(counts) > 3


# --------------------------------------------------------------------------------------------------------- dyadic


def test_dyadic_levels_rows_and_starts() -> None:
    """64 of 256 rows bootstrap: 9 rows for each of the levels 6…0 and one more for level 0; the others on the grid."""
    sampler = Dyadic()
    t, s, r = sampler(256, generator=torch.Generator().manual_seed(1))
    d = (t - r)[:64]
    want = [2.0**-level for level in range(6, -1, -1) for _ in range(9)] + [1.0]
    assert d.tolist() == want
    assert torch.equal(t[64:], r[64:])
    assert torch.equal(s[:64], t[:64] - d / 2)
    for time, unit in ((t[:64], d), (t[64:], torch.full((192,), 1 / 128)), (r[:64], d)):
        assert torch.equal(time / unit, torch.round(time / unit))
    assert bool((t > 0).all())
    assert bool((r[:64] >= 0).all())


def test_dyadic_starts_are_uniform_on_the_multiples_of_d() -> None:
    column = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    u = torch.stack([column.repeat(3), torch.zeros(24, dtype=torch.float64)], 1)
    t = Dyadic(levels=3, share=1.0).times(u, Progress()).t.reshape(3, 8)
    assert t[0].tolist() == [1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]  # d = 1/4
    assert t[1].tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]  # d = 1/2
    assert t[2].tolist() == [1] * 8  # d = 1: from noise to data
    flow = Dyadic(levels=3, share=0.0).times(u[:8], Progress()).t
    assert flow.tolist() == [k / 8 for k in range(1, 9)]


def test_dyadic_small_batches_take_random_levels() -> None:
    """5 bootstrap rows for 7 levels: the published rule would train d = 1 alone."""
    sampler = Dyadic(levels=7, share=0.25)
    seen = set()
    for seed in range(60):
        times = sampler(20, generator=torch.Generator().manual_seed(seed))
        assert int(times.bootstrap.sum()) == 5
        seen |= set((times.t - times.r)[:5].tolist())
    assert seen == {2.0**-level for level in range(7)}
    assert int(sampler(3, generator=torch.Generator().manual_seed(0)).bootstrap.sum()) == 0


# --------------------------------------------------------------------------------------- discrete consistency


def test_karras_grid_golden_values() -> None:
    """N = 18 over [.002, 80] with ρ = 7."""
    sigma = KarrasGrid().levels(18)
    want = f64(80.0, 57.586, 3.2568, 1.9233, 0.007528, 0.002)
    torch.testing.assert_close(sigma[[0, 1, 8, 9, 16, 17]], want, rtol=3e-5, atol=0)
    for grid in (KarrasGrid(sigma_max=14.6, rho=3.0), KarrasGrid(sigma_min=0.003, sigma_max=47.3)):
        levels = grid.levels(37)
        assert (levels[0].item(), levels[-1].item()) == (grid.sigma_max, grid.sigma_min)
        assert bool((levels[1:] < levels[:-1]).all())


def test_number_of_grid_points_golden_values() -> None:
    """Consistency training with s₀ = 2, s₁ = 150 and improved consistency training with s₀ = 10, s₁ = 1280."""
    shares = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
    assert [SquareRootCount()(at(share)) for share in shares] == [2, 16, 48, 76, 107, 131, 151]
    shares = (0.0, 0.124, 0.126, 0.25, 0.5, 0.75, 1.0)
    assert [DoublingCount()(at(share)) for share in shares] == [11, 11, 21, 41, 161, 641, 1281]


def test_target_network_decay_golden_values() -> None:
    """μ(k) for μ₀ = .9 at the start, the middle and the end."""
    got = [ScheduledEma(mu0=0.9).decay(at(share)) for share in (0.0, 0.5, 1.0)]
    assert got == pytest.approx([0.9, 0.99803, 0.99861], abs=5e-6)


def test_log_normal_index_against_numerical_integration() -> None:
    """T6: p(pair) is the mass of log σ ~ N(−1.1, 2²) between the two levels, over the mass of the whole grid."""
    sigma = KarrasGrid().levels(11)
    log_sigma = sigma.log().tolist()
    density = norm(loc=-1.1, scale=2.0).pdf
    mass = [integrate.quad(density, low, high)[0] for high, low in pairwise(log_sigma)]
    want = f64(*mass) / sum(mass)
    torch.testing.assert_close(LogNormalIndex().probabilities(sigma), want, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("index", [UniformIndex(), LogNormalIndex()])
def test_grid_pairs_are_neighbours_with_the_probabilities_of_the_index(index: UniformIndex | LogNormalIndex) -> None:
    sampler = GridPairs(count=DoublingCount(), index=index)
    t, s, r = sampler.stratified(50_000, at(0.0))
    sigma = sampler.grid.levels(11)
    i = torch.searchsorted(-sigma, -80 * t + 1e-9) - 1
    assert torch.equal(t, sigma[i] / 80)
    assert torch.equal(s, sigma[i + 1] / 80)
    assert bool((r == 0.002 / 80).all())
    share = torch.bincount(i, minlength=10) / len(t)
    torch.testing.assert_close(share.double(), index.probabilities(sigma), rtol=0, atol=3e-5)


# ------------------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize(("k", "want"), [(12, (0.489680, 0.066001)), (15, (0.498733, 0.095886))])
def test_intermediate_time_golden_values(k: int, want: tuple[float, float]) -> None:
    got = GroupedJumps(k=k).intermediate(f64(0.5, 0.1))
    torch.testing.assert_close(got, f64(*want), rtol=0, atol=5e-7)


def test_intermediate_time_is_a_fixed_step_of_eta() -> None:
    """Δη = (η_high − η_low) 2⁻ᵏ, also with a lower bound; steps beyond the data end stop there."""
    sampler = GroupedJumps(low=0.2, high=0.9, k=6)
    t = f64(0.5, 0.7, 0.9)
    s = sampler.intermediate(t)
    torch.testing.assert_close(t / (1 - t) - s / (1 - s), torch.full_like(t, (9 - 0.25) / 64))
    assert GroupedJumps(k=2).intermediate(f64(0.1, 0.5, 0.9)).tolist() == [0, 0, 0]  # Δη = 41 is far past η = 0


def test_a_ninth_of_the_steps_would_pass_the_end() -> None:
    """k = 12: s < r in 11.6 % of the rows before the maximum, never after it."""
    sampler = GroupedJumps(k=12, group=1)
    t, s, r = sampler.stratified(40_000)
    raw = sampler.intermediate(t)
    assert (raw < r).double().mean().item() == pytest.approx(0.116, abs=1e-3)
    assert bool((s >= r).all())
    torch.testing.assert_close(s, torch.maximum(raw, r))


def test_grouped_jumps_share_times_and_are_uniform() -> None:
    """T9: t ~ U(low, high), r ~ U(low, t), one triple for a group of four rows."""
    sampler = GroupedJumps(low=0.006, group=4)
    t, s, r = sampler(80_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for time in (t, s, r):
        assert torch.equal(time, time[::4].repeat_interleave(4))
    t, r = t[::4], r[::4]
    limit = 1.95 / math.sqrt(len(t))  # 0.1 % of true samples exceed it
    assert ks(t, Uniform(low=0.006, high=0.994).cdf) < limit
    assert ks((r - 0.006) / (t - 0.006), lambda x: x) < limit
    with pytest.raises(ShortflowError, match="10 rows cannot be split into groups of 4"):
        sampler(10)


# -------------------------------------------------------------------------------------------------------- all samplers


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_times_are_ordered_and_in_range_for_all_uniforms(sampler: TimeSampler, data: st.DataObject) -> None:
    number = st.one_of(
        st.sampled_from([0.0, 2.0**-53, 1e-12, 0.5, 1 - 2.0**-24, 1 - 2.0**-53]),
        st.floats(0, 1, exclude_max=True),
    )
    n = sampler.group * data.draw(st.integers(1, 3))
    rows = st.lists(number, min_size=n * sampler.uniforms, max_size=n * sampler.uniforms)
    u = f64(*data.draw(rows)).reshape(n, sampler.uniforms)
    progress = Progress(images=data.draw(st.integers(0, 100)), total=100)
    for dtype in (torch.float32, torch.float64):
        t, s, r = ordered(sampler.times(u, progress), dtype)
        assert {x.dtype for x in (t, s, r)} == {dtype}
        assert bool(((r >= 0) & (r <= s) & (s <= t) & (t <= 1)).all())
        if sampler.gap == "zero":
            assert torch.equal(r, t)
        if sampler.gap == "positive":
            assert bool((r < t).all())
        if sampler.continuous:
            assert torch.equal(s, t)
        low, high = (torch.tensor(end, dtype=dtype) for end in sampler.span)
        assert bool(((t >= low) & (t <= high)).all())


@every_sampler
def test_a_generator_decides_everything(sampler: TimeSampler) -> None:
    n = 24
    one, same, other = (sampler(n, at(0.3), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.t, other.t)
    fixed = [sampler.stratified(n, at(0.3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*fixed, strict=True))


@pytest.mark.parametrize("sampler", [Sorted(), Gradual(ramp=1.0), Independent(), GroupedJumps(group=1)], ids=repr)
def test_random_draws_follow_the_stratified_law(sampler: TimeSampler) -> None:
    random = sampler(20_000, at(0.5), torch.Generator().manual_seed(2), torch.float64)
    table = sampler.stratified(20_000, at(0.5))
    for a, b in ((random.t, table.t), (random.t - random.r, table.t - table.r)):
        assert distance(a, b) < 1.95 / math.sqrt(20_000)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Sorted(ratio=1.5), "ratio"),
        (lambda: Gradual(ramp=-0.1), "ramp"),
        (lambda: Independent(ratio=math.nan), "ratio"),
        (lambda: Dyadic(levels=0), "levels"),
        (lambda: Dyadic(share=2.0), "share"),
        (lambda: KarrasGrid(sigma_min=0.0), "sigma_min"),
        (lambda: KarrasGrid().levels(1), "at least 2 levels"),
        (lambda: SquareRootCount(s0=1), "s0"),
        (lambda: DoublingCount(s0=20, s1=10), "s1"),
        (lambda: LogNormalIndex(std=0.0), "std > 0"),
        (lambda: GroupedJumps(high=1.0), "high < 1"),
        (lambda: GroupedJumps(group=0), "group"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShortflowError, match=words):
        build()
