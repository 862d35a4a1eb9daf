"""The intrinsic dimension: of the circle, of points, of learned velocities; and by neighbours."""

import math

import pytest
import torch
from torch import Tensor

from oracles import f64, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import FiniteData, Gaussian, exact_flow
from shortflow.theory.dimension import (
    learned_dimension,
    neighbour_dimension,
    neighbour_distances,
    posterior_dimension,
    two_neighbours,
)
from shortflow.theory.estimates import mean_of


def circle(n: int) -> Tensor:
    """Points of the unit circle in three dimensions, in a plane at an angle."""
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    flat = torch.stack([torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)], 1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    return flat @ turn


def dimension_at(law: FiniteData, time: float, n: int = 64) -> tuple[float, float]:
    """(tr Cov[v_c | x_t]/τ², d̂) in the mean."""
    t = torch.full((n,), time, dtype=torch.float64)
    x = law.sample_marginal(t, torch.Generator().manual_seed(0))
    return float(law.velocity_variance(x, t).mean()), float(posterior_dimension(law, x, t).mean())


@pytest.mark.parametrize(("time", "raw"), [(0.2, 1.65), (0.1, 1.25), (0.05, 1.11), (0.02, 1.04)])
def test_a_circle_in_three_dimensions_has_one(time: float, raw: float) -> None:
    """20,000 points: the traces are those of methods, section 6.2; the factor α² takes most of their excess away."""
    trace, found = dimension_at(FiniteData(path=Linear(), points=circle(20_000)), time)
    assert trace == pytest.approx(raw, abs=0.02)
    assert found == pytest.approx(1, abs=0.07 if time > 0.1 else 0.02)


@pytest.mark.parametrize("path", [Cosine(noise_scale=0.5), VarianceExploding(sigma_max=20.0)], ids=str)
def test_the_dimension_depends_on_the_noise_level_only(path: Path) -> None:
    """The same point and level on other paths: x/α and η."""
    points, level = circle(500), 0.1
    linear = FiniteData(path=Linear(), points=points)
    t = f64(level / (1 + level))
    x = linear.sample_marginal(t, torch.Generator().manual_seed(0))
    time = f64(2 / math.pi * math.atan(level / 0.5)) if isinstance(path, Cosine) else f64(level / 20)
    want = posterior_dimension(linear, x, t)
    found = posterior_dimension(linear.on(path), x / (1 - t) * path.alpha(time), time)
    torch.testing.assert_close(found, want)


def test_isolated_points_have_none() -> None:
    """1.38, .64, 1e−50 at t = .5, .2, .05 for three points (methods, section 6.2): to 0, as a memorised set does."""
    points = f64(-1.0, 0.2, 1.5)[:, None]
    found = [dimension_at(FiniteData(path=Linear(), points=points), time, 4000)[1] for time in (0.5, 0.2, 0.05)]
    assert found[0] > found[1] > found[2]
    assert found[2] < 1e-6


@pytest.mark.parametrize("d", [1, 2])
def test_neighbours_know_the_dimension(d: int, generator: torch.Generator) -> None:
    """Of the flat torus, which has no edges, in eight dimensions."""
    angle = 2 * math.pi * torch.rand(4000, d, generator=generator, dtype=torch.float64)
    points = torch.zeros(4000, 8, dtype=torch.float64)
    points[:, : 2 * d] = torch.cat([torch.cos(angle), torch.sin(angle)], 1)
    distances = neighbour_distances(points[:1500], points, 10, own=True)
    for found in (two_neighbours(distances), neighbour_dimension(distances)):
        assert abs(found.value - d) < 4 * found.error
        assert 0 < found.error < 0.05 * d


def test_edges_take_from_the_dimension(generator: torch.Generator) -> None:
    """A cube with five sides has most of its 4000 points near a face: both estimators say less, and not much less."""
    points = torch.rand(4000, 5, generator=generator, dtype=torch.float64)
    distances = neighbour_distances(points[:1500], points, 10, own=True)
    for found in (two_neighbours(distances), neighbour_dimension(distances)):
        assert 3.9 < found.value < 5 + 3 * found.error


def test_distances_to_neighbours_are_exact_and_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points, queries = torch.randn(50, 6), torch.randn(7, 6)
    points[3] = points[11]
    want = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, :4]
    own = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, 1:4]
    for block in (2**24, 60):
        monkeypatch.setattr("shortflow.theory.dimension.BLOCK", block)
        torch.testing.assert_close(neighbour_distances(queries, points, 4), want)
        found = neighbour_distances(points, points, 3, own=True)
        torch.testing.assert_close(found, own)
        assert found[3, 0] == found[11, 0] == 0
    with pytest.raises(ShortflowError, match="no 50 neighbours"):
        neighbour_distances(points, points, 50, own=True)


def test_copies_are_left_out() -> None:
    points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(2, 1)
    with pytest.raises(ShortflowError, match="copies"):
        two_neighbours(neighbour_distances(points, points, 3, own=True))


def test_a_learned_velocity_has_the_dimension_of_its_law(generator: torch.Generator) -> None:
    """Of one dimension exactly; of several on average over the sign vectors."""
    law = mixture(Cosine(), 2)
    t = torch.full((50,), 0.3, dtype=torch.float64)
    x = law.sample_marginal(t, generator)
    found = learned_dimension(exact_flow(law), x, t, generator=generator)
    torch.testing.assert_close(found, posterior_dimension(law, x, t))
    points = FiniteData(path=Linear(), points=circle(200), steps=2)
    t = torch.full((2000,), 0.2, dtype=torch.float64)
    x = points.sample_marginal(t, generator)
    gap = mean_of(learned_dimension(exact_flow(points), x, t, generator=generator) - posterior_dimension(points, x, t))
    assert abs(gap.value) < 5 * gap.error
    assert gap.error < 0.05


def test_a_gaussian_of_full_rank_has_all_dimensions() -> None:
    law, t = Gaussian(path=Linear(), std=1.0, sample_shape=(7,)), f64(0.01)
    assert posterior_dimension(law, torch.zeros(1, 7, dtype=torch.float64), t).item() == pytest.approx(7, rel=1e-3)
