"""Bias and variance of targets, measured: the closed forms of the Gaussian, and the orders in the first step."""

import math

import pytest
import torch
from torch import Tensor

from oracles import f64, finite, gaussian, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear, Path
from shortflow.theory import exact_flow
from shortflow.theory.estimates import Estimate, log_slope, mean_of, ratio_of
from shortflow.theory.variance import adaptive_bias, adaptive_point, continuous_floor, discrete_spread


def within(found: Estimate, want: float, errors: float = 5) -> None:
    assert abs(found.value - want) < errors * found.error, (found, want)


def rows(value: float, n: int) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------- estimates


def test_the_error_of_a_mean_covers_it(generator: torch.Generator) -> None:
    values = 3 + 2 * torch.randn(400, 500, generator=generator, dtype=torch.float64)
    found = [mean_of(each) for each in values]
    assert sum(abs(each.value - 3) < 2 * each.error for each in found) / 400 == pytest.approx(0.954, abs=0.04)
    assert math.isnan(mean_of(values[0, :1]).error)


def test_the_error_of_a_ratio_covers_it(generator: torch.Generator) -> None:
    """Of pairs that vary together, where the errors of both means would say far too much."""
    below = 1 + torch.rand(400, 500, generator=generator, dtype=torch.float64)
    above = 0.5 * below + 0.1 * torch.randn(400, 500, generator=generator, dtype=torch.float64)
    found = [ratio_of(a, b) for a, b in zip(above, below, strict=True)]
    assert sum(abs(each.value - 0.5) < 2 * each.error for each in found) / 400 == pytest.approx(0.954, abs=0.04)
    with pytest.raises(ShortflowError, match="not 0"):
        ratio_of(f64(1, 2), f64(-1, 1))


def test_roots_and_slopes() -> None:
    assert Estimate(4.0, 0.4).root() == (2.0, 0.1)
    assert Estimate(-1e-9, 0.04).root() == (0.0, 0.2)
    assert log_slope(f64(1, 2, 4), f64(3, 24, 192)) == pytest.approx(3)
    with pytest.raises(ShortflowError, match="two positive"):
        log_slope(f64(1, 2), f64(0, 1))


# ----------------------------------------------------------------------------------------------------------- posterior


@pytest.mark.parametrize("path", [Linear(), Cosine(noise_scale=0.5)])
@pytest.mark.parametrize("build", [gaussian, mixture, finite])
def test_draws_of_the_posterior_have_its_mean_and_variance(build, path: Path, generator: torch.Generator) -> None:
    """Their conditional velocities have the mean v and the variance tr Cov[v_c | x]."""
    law, n = build(path), 20_000
    x, t = torch.full((n, 1), 0.4, dtype=torch.float64), rows(0.6, n)
    data = law.sample_posterior(x, t, generator=generator)
    eps = (x - path.alpha(t)[:, None] * data) / path.sigma(t)[:, None]
    velocity = path.velocity(data, eps, t)[:, 0]
    within(mean_of(velocity), law.velocity(x[:1], t[:1]).item())
    within(mean_of((velocity - law.velocity(x[:1], t[:1]).item()).square()), law.velocity_variance(x[:1], t[:1]).item())


# ----------------------------------------------------------------------------------------------------- continuous time


@pytest.mark.parametrize(("path", "wronskian"), [(Linear(), 1.0), (Cosine(), math.pi / 2)])
def test_the_floor_of_continuous_time_is_that_of_the_gaussian(path: Path, wronskian: float, generator) -> None:
    """W² c² τ² S_r²/S_t⁴ a dimension; .190363 on the linear path at t = .7, r = .2, c = .5."""
    law, n = gaussian(path), 8000
    x, eps = law.sample(n, generator, torch.float64), torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t, r = rows(0.7, n), rows(0.2, n)
    scale = [float(law.marginal(x[:1], time[:1])[1]) for time in (t, r)]
    want = wronskian**2 * 0.25 * scale[1] ** 2 / scale[0] ** 4
    if isinstance(path, Linear):
        assert want == pytest.approx(0.190363, abs=5e-7)
    within(mean_of(continuous_floor(exact_flow(law), law, x, eps, t, r)), want)


# ----------------------------------------------------------------------------------------------------- discrete targets

GOLDEN = [(0.4, 0.07345768, 0.00836964), (0.2, 0.0124878, 0.00020127), (0.1, 0.00243902, 7.4817e-6)]


@pytest.mark.parametrize(("step", "variance", "bias"), GOLDEN)
def test_variance_and_bias_of_a_discrete_target(step: float, variance: float, bias: float, generator) -> None:
    """c = .5, t = .7, r = .2, second step exact: methods, section 6.2, computed by quadrature."""
    law, n = gaussian(Linear()), 20_000
    t, s, r = rows(0.7, n), rows(0.7 - step, n), rows(0.2, n)
    x_t = law.sample_marginal(t, generator)
    found = discrete_spread(exact_flow(law), law, x_t, t, s, r, draws=8, generator=generator)
    within(mean_of(found.variance), variance)
    within(mean_of(found.bias), bias)
    rough = discrete_spread(exact_flow(law), law, x_t, t, s, r, draws=8, generator=generator, sharp=False)
    within(mean_of(rough.bias), bias)
    assert mean_of(rough.bias).error > mean_of(found.bias).error


def test_variance_and_bias_vanish_with_the_declared_orders(generator: torch.Generator) -> None:
    """Variance as δ², squared bias as δ⁴; over δ² the floor of continuous time. The first to 5 % at δ = .01."""
    law, n = gaussian(Linear()), 4000
    t, r = rows(0.7, n), rows(0.2, n)
    x_t = law.sample_marginal(t, generator)
    steps, spreads = [0.02, 0.01, 0.005], []
    for step in steps:
        spreads.append(discrete_spread(exact_flow(law), law, x_t, t, t - step, r, draws=8, generator=generator))
    variances, biases = ([mean_of(getattr(each, name)) for each in spreads] for name in ("variance", "bias"))
    assert log_slope(f64(*steps), f64(*(each.value for each in variances))) == pytest.approx(2, abs=0.05)
    assert log_slope(f64(*steps), f64(*(each.value for each in biases))) == pytest.approx(4, abs=0.2)
    assert variances[1].value == pytest.approx(1.951e-5, rel=0.05)
    assert biases[1].value == pytest.approx(5e-10, rel=0.15)
    assert variances[2].value / steps[2] ** 2 == pytest.approx(0.190363, rel=0.05)


def test_the_whole_step_is_the_law_of_the_data() -> None:
    """s = r: the target is x_r itself, and its variance that of the posterior."""
    law, n = gaussian(Linear()), 4
    t = rows(0.5, n)
    found = discrete_spread(exact_flow(law), law, torch.randn(n, 1).double(), t, 0 * t, 0 * t, draws=20_000)
    assert found.variance.tolist() == pytest.approx([0.25 * 0.25 / 0.3125] * n, rel=0.05)
    with pytest.raises(ShortflowError, match="2 draws"):
        discrete_spread(exact_flow(law), law, torch.randn(n, 1).double(), t, t, t, draws=1)


# ----------------------------------------------------------------------------------------------------- adaptive weights


@pytest.mark.parametrize(
    ("dimension", "want", "tolerance"),
    [(1, -0.607, 0.03), (4, -0.313, 0.01), (16, -0.109, 0.004), (64, -0.0313, 0.003), (256, -0.0073, 0.002)],
)
def test_the_adaptive_weight_is_biased_by_skewness(dimension: int, want: float, tolerance: float) -> None:
    """z = Exp(1) − 1 in every coordinate, the true answer 0: methods, section 6.2."""
    generator = torch.Generator().manual_seed(0)
    z = torch.empty(200_000 // dimension + 20_000, dimension, dtype=torch.float64).exponential_(generator=generator) - 1
    c = 0.0 if dimension > 4 else 1e-6 if dimension > 1 else 1e-4  # in one dimension 1/z² alone has no mean
    assert float(adaptive_point(z, c=c).mean()) == pytest.approx(want, abs=tolerance)


def test_the_bias_of_the_adaptive_weight_is_measured_from_draws(generator: torch.Generator) -> None:
    """0 for a Gaussian posterior; for two points at ±1 seen with γ: Z = W/σ (x_0 − x̂), first order −E[z³]/E[z²]."""
    law = gaussian(Linear())
    t = rows(0.6, 4000)
    within(mean_of(adaptive_bias(law, law.sample_marginal(t, generator), t, generator=generator)), 0)
    points = finite(Linear())
    x, t = torch.full((2000, 1), 0.3, dtype=torch.float64), rows(0.6, 2000)
    gamma = points.responsibilities(x[:1], t[:1])[0]
    z = points.points[:, 0] - (gamma * points.points[:, 0]).sum()
    want = float((gamma * z**3).sum() ** 2 / (gamma * z**2).sum() ** 3)
    assert want > 0.01
    found = mean_of(adaptive_bias(points, x, t, draws=256, generator=generator))
    assert found.value == pytest.approx(want, rel=0.15)
