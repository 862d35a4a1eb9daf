import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.stats import norm

from distances import ks
from oracles import f64
from shortflow.errors import ShortflowError
from shortflow.laws import (
    Beta,
    GridLaw,
    Largest,
    Law,
    LogitNormal,
    LogNormalNoise,
    LogStudentNoise,
    TrigLogNormal,
    Truncated,
    Uniform,
)
from shortflow.times import Sorted, ToData

LAWS = [
    Uniform(),
    Uniform(low=0.1, high=0.7),
    LogitNormal(mu=-0.4),
    LogitNormal(mu=-2.0, sigma=2.0),
    TrigLogNormal(),
    TrigLogNormal(mean=-1.8, std=1.4),
    LogNormalNoise(),
    LogNormalNoise(mean=2.0, std=1.0, sigma_max=10.0),
    LogStudentNoise(),
    LogStudentNoise(df=3.0, loc=-0.5, scale=1.0, low=0.01, sigma_max=50.0),
    Beta(a=0.8, b=1.0),
    Beta(a=2.0, b=5.0),
    Largest(),
    Largest(law=LogStudentNoise()),
    Truncated(law=LogitNormal(mu=-0.4), low=0.2, high=0.9),
    Truncated(law=Largest(law=Uniform()), low=0.1),
]
every_law = pytest.mark.parametrize("law", LAWS, ids=repr)


# ------------------------------------------------------------------------------------------------------- every law


@every_law
def test_quantile_and_distribution_function_are_inverse(law: Law) -> None:
    u = torch.linspace(0, 1, 999, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(law.cdf(law.icdf(u)), u, rtol=0, atol=1e-10)


@every_law
def test_density_is_the_derivative_of_the_distribution_function(law: Law) -> None:
    t = law.icdf(torch.linspace(0.001, 0.999, 200, dtype=torch.float64))
    h = 1e-6 * t * (1 - t)
    inside = (law.cdf(t - h) > 0) & (law.cdf(t + h) < 1)
    slope = (law.cdf(t + h) - law.cdf(t - h)) / (2 * h)
    torch.testing.assert_close(law.pdf(t)[inside], slope[inside], rtol=1e-5, atol=1e-6)


@every_law
def test_density_integrates_to_one(law: Law) -> None:
    quantiles = law.icdf(f64(0, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 1)).tolist()
    points = sorted({t for t in quantiles if 0 < t < 1})
    total, _ = integrate.quad(lambda t: float(law.pdf(f64(t))), 0, 1, points=points, limit=500)
    assert total == pytest.approx(1, abs=1e-6)


@every_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws_are_finite_at_both_ends(law: Law, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    torch.testing.assert_close(law.cdf(ends), ends, rtol=0, atol=0)
    assert bool(((law.icdf(ends) >= 0) & (law.icdf(ends) <= 1)).all())
    if isinstance(law, LogitNormal | TrigLogNormal):
        torch.testing.assert_close(law.pdf(ends), torch.zeros(2, dtype=dtype), rtol=0, atol=1e-6)
    assert not bool(law.pdf(ends).isnan().any())


@every_law
@given(u=st.floats(0, 1, exclude_max=True, width=32))
@settings(max_examples=100, deadline=None)
def test_quantiles_in_single_precision_stay_in_range(law: Law, u: float) -> None:
    t = law.icdf(torch.tensor([u], dtype=torch.float32))
    assert t.dtype == torch.float32
    assert 0 <= t.item() <= 1


# -------------------------------------------------------------------------------------------------- closed forms


def test_logit_normal_has_its_closed_form() -> None:
    """P(T ≤ t) = Φ((logit t − μ)/σ), median sigmoid(μ)."""
    law = LogitNormal(mu=-0.4, sigma=1.3)
    t = f64(0.05, 0.3, 0.8)
    want = norm.cdf((torch.logit(t).numpy() + 0.4) / 1.3)
    torch.testing.assert_close(law.cdf(t), torch.from_numpy(want))
    torch.testing.assert_close(law.icdf(f64(0.5)), torch.sigmoid(f64(-0.4)))


def test_trig_log_normal_is_normal_in_log_sigma() -> None:
    """T8: tan(πt/2) σ_data is log-normal."""
    t = ToData(law=TrigLogNormal(mean=-1.0, std=1.4, sigma_data=0.5)).stratified(4000).t
    log_sigma = torch.log(0.5 * torch.tan(t * (math.pi / 2)))
    assert ks(log_sigma, lambda z: torch.special.ndtr((z + 1.0) / 1.4)) < 2 / 4000


def test_grid_law_hits_every_point_equally_often() -> None:
    law = GridLaw(n=8)
    t = law.icdf((torch.arange(800, dtype=torch.float64) + 0.5) / 800)
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 9, dtype=torch.float64) / 8)
    assert counts.tolist() == [100] * 8
    torch.testing.assert_close(law.pdf(f64(0.125, 0.2, 1.0, 0.0)), f64(0.125, 0, 0.125, 0))
    torch.testing.assert_close(law.cdf(f64(0.0, 0.124, 0.125, 0.6, 1.0)), f64(0, 0, 0.125, 0.5, 1))


# ------------------------------------------------------------------------------------------- laws of a noise level


def test_log_normal_noise_is_a_normal_law_cut_at_the_largest_level() -> None:
    """T7: log σ ~ N(−1.1, 2²) given σ ≤ 80, against the truncated normal law of scipy."""
    for mean, std, sigma_max in ((-1.1, 2.0, 80.0), (1.0, 1.5, 3.0)):
        law = LogNormalNoise(mean=mean, std=std, sigma_max=sigma_max)
        t = law.icdf(torch.linspace(0.001, 0.999, 500, dtype=torch.float64))
        want = stats.truncnorm(-math.inf, (math.log(sigma_max) - mean) / std, loc=mean, scale=std)
        torch.testing.assert_close(law.cdf(t).numpy(), want.cdf(torch.log(sigma_max * t).numpy()), rtol=0, atol=1e-13)
    # Of the whole law 0.3 % lie above σ = 80.
    assert LogNormalNoise()._kept == pytest.approx(norm.cdf((math.log(80) + 1.1) / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("df", "loc", "scale", "low", "tolerance"),
    [
        (0.01, 0.0, 0.2, 1.0, 1e-12),  # as published
        (1.0, 0.0, 5.0, 1.0, 1e-12),
        (3.0, 0.5, 1.0, 0.01, 1e-12),
        (0.5, -3.0, 1e-3, 0.002, 1e-12),  # a peak of a thousandth of the width
        (30.0, -8.0, 0.5, 0.5, 1e-12),  # a far tail only
        (1e6, 0.0, 0.1, 1e-3, 1e-11),  # practically normal
    ],
)
def test_log_student_noise_against_scipy(df: float, loc: float, scale: float, low: float, tolerance: float) -> None:
    """P(T ≤ t) = (S(log low) − S(log σ))/(S(log low) − S(log σ_max)), S = 1 − F of Student's law."""
    law = LogStudentNoise(df=df, loc=loc, scale=scale, low=low)
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = law.icdf(u)
    student = stats.t(df, loc, scale)
    # Differences of whichever tail is small, so that the reference itself is exact to the tolerance.
    tail = (lambda y: -student.sf(y)) if loc < math.log(low) else student.cdf
    start, end = tail(math.log(low)), tail(math.log(80.0))
    want = (tail(torch.log(80 * t).numpy()) - start) / (end - start)
    torch.testing.assert_close(law.cdf(t), torch.from_numpy(want), rtol=0, atol=tolerance)
    torch.testing.assert_close(u, torch.from_numpy(want), rtol=0, atol=tolerance)
    density = student.pdf(torch.log(80 * t).numpy()) / (end - start) / t.numpy()
    torch.testing.assert_close(law.pdf(t[1:-1]), torch.from_numpy(density)[1:-1], rtol=1e-8, atol=0)
    assert bool(((t >= low / 80) & (t <= 1)).all())


def test_log_student_noise_with_one_degree_is_a_cauchy_law() -> None:
    """df = 1: P = (atan(y/c) − atan(y₀/c))/(atan(y₁/c) − atan(y₀/c)), y = log σ."""
    law = LogStudentNoise(df=1.0, loc=0.0, scale=0.7, low=0.05, sigma_max=50.0)
    t = f64(0.002, 0.02, 0.2, 0.9)
    start, end = math.atan(math.log(0.05) / 0.7), math.atan(math.log(50) / 0.7)
    want = (torch.atan(torch.log(50 * t) / 0.7) - start) / (end - start)
    torch.testing.assert_close(law.cdf(t), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("a", "b"), [(0.8, 1.0), (2.0, 5.0), (0.5, 0.5), (300.0, 100.0), (1e4, 1e4), (1.0, 1.0)])
def test_beta_against_scipy(a: float, b: float) -> None:
    law, want = Beta(a=a, b=b), stats.beta(a, b)
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = law.icdf(u)
    torch.testing.assert_close(law.cdf(t), torch.from_numpy(want.cdf(t.numpy())), rtol=0, atol=1e-13)
    torch.testing.assert_close(u, torch.from_numpy(want.cdf(t.numpy())), rtol=0, atol=1e-13)
    torch.testing.assert_close(law.pdf(t[1:-1]), torch.from_numpy(want.pdf(t[1:-1].numpy())), rtol=1e-10, atol=0)


# ---------------------------------------------------------------------------------------------- laws made from a law


def test_largest_is_the_law_of_the_start_of_sorted_times() -> None:
    law = LogitNormal(mu=-0.4)
    assert ks(Sorted(law=law, ratio=1.0).stratified(20_000).t, Largest(law=law).cdf) < 2e-3
    # E max of two LN(−.4, 1) is .535.
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    assert Largest(law=law).icdf(u).mean().item() == pytest.approx(0.535, abs=5e-4)


def test_laws_made_from_a_grid_law_are_laws_on_the_grid() -> None:
    """The larger of two points of {1/4, …, 1}: (2k − 1)/16; points in (1/4, 3/4]: 1/2 each."""
    points = f64(0.25, 0.5, 0.75, 1.0)
    largest = Largest(law=GridLaw(n=4))
    assert largest.discrete
    torch.testing.assert_close(largest.pdf(points), f64(1, 3, 5, 7) / 16)
    twice = Largest(law=largest)
    torch.testing.assert_close(twice.pdf(points).cumsum(0), (f64(1, 2, 3, 4) / 4) ** 4)
    cut = Truncated(law=GridLaw(n=4), low=0.25, high=0.75)
    assert cut.discrete
    torch.testing.assert_close(cut.pdf(points), f64(0, 0.5, 0.5, 0))
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    values, counts = cut.icdf(u).unique(return_counts=True)
    assert (values.tolist(), counts.tolist()) == ([0.5, 0.75], [50, 50])
    assert not Largest().discrete
    assert not Truncated().discrete


def test_truncated_law_is_the_conditional_law() -> None:
    inner = LogitNormal(mu=-0.4)
    law = Truncated(law=inner, low=0.2, high=0.9)
    t = f64(0.1, 0.2, 0.3, 0.6, 0.9, 0.95)
    low, high = inner.cdf(f64(0.2)), inner.cdf(f64(0.9))
    torch.testing.assert_close(law.cdf(t), ((inner.cdf(t) - low) / (high - low)).clamp(0, 1))
    assert law.icdf(f64(0.0, 1.0)).tolist() == pytest.approx([0.2, 0.9], abs=1e-15)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Uniform(low=0.5, high=0.5), "low < high"),
        (lambda: LogitNormal(sigma=0.0), "sigma > 0"),
        (lambda: TrigLogNormal(std=-1.0), "std > 0"),
        (lambda: TrigLogNormal(sigma_data=0.0), "sigma_data > 0"),
        (lambda: GridLaw(n=0), "n ≥ 1"),
        (lambda: LogNormalNoise(std=0.0), "LogNormalNoise needs std > 0, got 0"),
        (lambda: LogNormalNoise(sigma_max=math.nan), "LogNormalNoise needs sigma_max > 0, got nan"),
        (lambda: LogNormalNoise(mean=200.0), "no mass below sigma_max = 80.0; lower mean"),
        (lambda: LogStudentNoise(df=0.0), "0 < df ≤ 1e6, got 0"),
        (lambda: LogStudentNoise(df=1e7), "0 < df ≤ 1e6"),
        (lambda: LogStudentNoise(scale=-0.2), "scale > 0, got -0.2"),
        (lambda: LogStudentNoise(low=0.0), "0 < low < sigma_max, got 0.0 and 80"),
        (lambda: LogStudentNoise(low=80.0), "0 < low < sigma_max"),
        (lambda: Beta(a=0.1), "Beta needs a between 0.5 and 1e4, got 0.1"),
        (lambda: Beta(b=math.inf), "Beta needs b between"),
        (lambda: Truncated(low=0.5, high=0.4), "0 ≤ low < high ≤ 1, got 0.5 and 0.4"),
        (lambda: Truncated(law=Uniform(high=0.5), low=0.6), "has no mass between 0.6 and 1"),
    ],
)
def test_impossible_settings_are_refused_by_name(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShortflowError, match=words):
        build()
