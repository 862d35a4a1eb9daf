"""Curvature, energy and turning of marginal flows: the closed forms of Gaussian data."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from oracles import f64, gaussian, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import FiniteData, Gaussian
from shortflow.theory.bounds import trajectory
from shortflow.theory.estimates import mean_of
from shortflow.theory.nodes import level_of, noise_nodes, times_of
from shortflow.theory.straightness import ddim, motion, straightness

PATHS = [Linear(), Cosine(), Cosine(noise_scale=0.5), VarianceExploding(sigma_max=20.0)]


def at(time: float, n: int) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_times_of_levels_invert_the_levels_of_times(path: Path) -> None:
    t = f64(1e-4, 0.01, 0.3, 0.9, 0.999)
    torch.testing.assert_close(times_of(path, level_of(path, t)), t, rtol=1e-9, atol=1e-12)
    assert times_of(path, f64(1e9)).item() == pytest.approx(1)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("low", [0.0, 0.002, 0.3])
def test_quadratures_over_noise_levels(path: Path, low: float) -> None:
    """Of polynomials and of a function with a layer at each end, and nothing of the interval is left out."""
    times, weights = noise_nodes(path, low, 1.0, 32)
    assert bool((times.diff() < 0).all())
    assert bool((weights > 0).all())
    assert weights.sum().item() == pytest.approx(1 - low, abs=1e-5)
    assert (weights * times**2).sum().item() == pytest.approx((1 - low**3) / 3, abs=1e-5)
    with pytest.raises(ShortflowError, match="low < high"):
        noise_nodes(path, 0.5, 0.5)
    with pytest.raises(ShortflowError, match="2 nodes"):
        noise_nodes(path, 0.0, 1.0, 1)


@pytest.mark.parametrize("time", [0.2, 0.7])
def test_curvature_of_a_gaussian(time: float, generator: torch.Generator) -> None:
    """E‖D_t v‖²/D = m''² + S''²; linear S'' = c²τ²/S³, cosine (π/2)²(τ² − c²)(c² cos⁴ − τ² sin⁴)/S³."""
    c, mu, n = 0.5, 0.3, 20_000
    for path, scale in ((Linear(), 1.0), (Cosine(), 1.0)):
        law = gaussian(path)
        x = law.sample_marginal(at(time, n), generator)
        s = float(law.marginal(x[:1], at(time, 1))[1])
        if isinstance(path, Linear):
            mean, bend = 0.0, c**2 * scale**2 / s**3
        else:
            cos, sin = math.cos(math.pi * time / 2), math.sin(math.pi * time / 2)
            bend = (math.pi / 2) ** 2 * (scale**2 - c**2) * (c**2 * cos**4 - scale**2 * sin**4) / s**3
            mean = -((math.pi / 2) ** 2) * cos * mu
        found = mean_of(motion(law, x, at(time, n)).curvature)
        assert abs(found.value - (mean**2 + bend**2)) < 5 * found.error


def test_data_as_wide_as_the_noise_flow_straight_on_the_cosine_path() -> None:
    law = Gaussian(path=Cosine(noise_scale=0.5), std=0.5, sample_shape=(3,))
    x = torch.randn(8, 3, dtype=torch.float64)
    assert motion(law, x, at(0.4, 8)).curvature.max().item() < 1e-20
    bent = Gaussian(path=Linear(noise_scale=0.5), std=0.5, sample_shape=(3,))
    assert motion(bent, x, at(0.4, 8)).curvature.min().item() > 1e-3


def test_energy_and_straightness_of_the_linear_path(generator: torch.Generator) -> None:
    """KE = c² + τ² + μ² − cτπ/2, of which cτ(2 − π/2) is more than the straight flow W₂² needs."""
    law, n = gaussian(Linear()), 4000
    times, weights = noise_nodes(law.path, 0.0, 1.0, 24)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    energy = sum(
        float(weight) * motion(law, law.sample_marginal(at(float(time), n), generator), at(float(time), n)).energy
        for time, weight in zip(times, weights, strict=True)
    )
    found = mean_of(torch.as_tensor(energy))
    assert abs(found.value - (0.25 + 1 + 0.09 - 0.5 * math.pi / 2)) < 5 * found.error
    points = trajectory(law, x, [1.0, *times.tolist(), 0.0])
    gap = mean_of(straightness(law, points[1:-1], times, weights, x - points[-1]))
    assert abs(gap.value - 0.5 * (2 - math.pi / 2)) < 5 * gap.error


def test_a_circle_turns_by_its_angle() -> None:
    """Two coordinates of one Gaussian with different widths turn; one coordinate alone never does."""
    one, two = (Gaussian(path=Linear(), std=std) for std in (0.5, f64(0.2, 1.0)))
    x = torch.randn(5, 1, dtype=torch.float64)
    assert motion(one, x, at(0.5, 5)).turning.max().item() < 1e-12
    law, x = two, torch.ones(1, 2, dtype=torch.float64)
    times = torch.linspace(1, 0, 201, dtype=torch.float64)
    total, directions = 0.0, []
    for time in times.tolist():
        point = law.flow_map(x, at(1.0, 1), at(time, 1))
        total += float(motion(law, point, at(time, 1)).turning) / 200
        v = law.velocity(point, at(time, 1))[0]
        directions.append(math.atan2(float(v[1]), float(v[0])))
    turned = sum(abs(b - a) for a, b in itertools.pairwise(directions))
    assert total == pytest.approx(turned, rel=0.01)
    assert turned > 0.1


@pytest.mark.parametrize("path", [Linear(), Cosine(), VarianceExploding(sigma_max=20.0)], ids=str)
def test_ddim_steps_reach_the_exact_end_with_first_order(path: Path) -> None:
    law = mixture(path, 400)
    x = path.sigma(f64(1.0))[:, None] * f64(-1.0, 0.3, 1.2)[:, None]
    exact = law.flow_map(x, at(1.0, 3), at(0.1, 3))
    errors = []
    for steps in (64, 128, 256):
        grid = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64).tolist()
        errors.append(float((ddim(law, x, grid) - exact).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_one_point_is_reached_in_one_step() -> None:
    """The conditional flow is straight: DDIM is exact on every path."""
    for path in (Linear(), Cosine()):
        law = FiniteData(path=path, points=f64(0.3, -0.7)[None])
        x = torch.randn(4, 2, dtype=torch.float64)
        torch.testing.assert_close(ddim(law, x, [1.0, 0.0]), law.points.expand(4, 2))
