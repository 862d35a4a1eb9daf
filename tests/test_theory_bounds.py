"""The bound on W₂: attained, never below the distance, zero on the exact map; and it holds for networks that are
trained."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oracles import f64, finite, gaussian, mixture
from shortflow.flowmap import AverageVelocity, FlowMap, Transfer
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import ExactNetwork, FiniteData, Gaussian, Law, Rotated, exact_flow
from shortflow.theory.bounds import continuous_bound, discrete_bound, trajectory
from steps import mlp


class Perturbed(nn.Module):
    """The exact average velocity of a law, times 1 + a, plus b."""

    def __init__(self, law: Law, a: float, b: float) -> None:
        super().__init__()
        self.exact, self.a, self.b = ExactNetwork(law), a, b

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return (1 + self.a) * self.exact(x, time, second, label) + self.b


def noise(path: Path, n: int, d: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return path.sigma(f64(1.0)) * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", [Linear(), Cosine(noise_scale=0.5)], ids=str)
@pytest.mark.parametrize("build", [gaussian, lambda path: mixture(path, 16), lambda path: finite(path, 16)])
def test_the_bound_of_an_exact_map_is_zero(build, path: Path) -> None:
    law = build(path)
    found = continuous_bound(exact_flow(law), law, noise(path, 8), end=0.1, nodes=3)
    # Runge–Kutta steps, of another number on the way than in one jump.
    assert found.value < 2e-3
    assert found.distance.value < 2e-3


def test_a_shifted_velocity_attains_the_bound() -> None:
    """u + b: X^θ = X + (r − t)b, D_t X^θ = −b everywhere, so W₂ = distance = bound = b."""
    law = gaussian(Linear())
    flow = FlowMap(Perturbed(law, 0.0, 0.3), law.path, AverageVelocity())
    found = continuous_bound(flow, law, noise(law.path, 50))
    assert found.value == pytest.approx(0.3, rel=1e-5)
    assert found.distance.value == pytest.approx(0.3, rel=1e-9)
    assert found.holds
    assert [term.value for term in found.terms] == pytest.approx([0.3] * 32)


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=str)
def test_the_bound_lies_above_the_true_distance_of_gaussians(path: Path) -> None:
    """X^θ_{1,0} is affine: W₂² = (m' − m)² + (s' − s)² in closed form, below the distance from the same noise."""
    law = gaussian(path)
    flow = FlowMap(Perturbed(law, 0.1, 0.2), path, AverageVelocity())
    x = noise(path, 2000)
    found = continuous_bound(flow, law, x)
    # X^θ = x − (1 + a)u − b with u = x − X, X = μ + c x.
    mean, std = 1.1 * 0.3 - 0.2, abs(1.1 * 0.5 - 0.1)
    true = math.hypot(mean - 0.3, std - 0.5)
    assert true < found.distance.value + 4 * found.distance.error
    assert found.distance.value <= found.value
    assert found.value < 4 * true
    assert found.error < 0.05 * found.value


def test_nodes_and_jumps_give_bounds_of_one_distance() -> None:
    """The sum over ever finer grids becomes the integral."""
    law = gaussian(Linear())
    flow = FlowMap(Perturbed(law, 0.1, 0.1), law.path, Transfer())
    x = noise(law.path, 200)
    integral = continuous_bound(flow, law, x, end=0.1, nodes=24)
    sums = []
    for n in (4, 64):
        found = discrete_bound(flow, law, x, torch.linspace(1, 0.1, n + 1, dtype=torch.float64).tolist())
        assert found.holds
        assert found.distance.value == pytest.approx(integral.distance.value, rel=1e-6)
        sums.append(found.value)
    assert sums[0] <= sums[1] * (1 + 1e-3)
    assert sums[1] == pytest.approx(integral.value, rel=0.02)


def test_below_its_lowest_time_a_network_is_asked_for_one_jump_only() -> None:
    """The bound is that of the other times, and the error of the jump from the lowest one: here b and b · lowest."""
    law = gaussian(Linear())
    flow = FlowMap(Perturbed(law, 0.0, 0.3), law.path, AverageVelocity())
    found = continuous_bound(flow, law, noise(law.path, 50), lowest=0.25)
    assert found.rest.value == pytest.approx(0.075)
    assert min(found.times) > 0.25
    assert found.value == pytest.approx(0.3, rel=1e-5)
    assert found.holds


def test_trajectories_are_the_flow_at_many_times() -> None:
    law = finite(Cosine(), 40)
    x = noise(law.path, 5)
    points = trajectory(law, x, [1.0, 0.6, 0.3])
    torch.testing.assert_close(points[2], law.flow_map(x, f64(*[1.0] * 5), f64(*[0.3] * 5)), rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------- of many other maps


@pytest.mark.parametrize("path", [Linear(), Cosine(), VarianceExploding(sigma_max=5.0)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_for_any_network(path: Path, seed: int) -> None:
    """Random weights, in two dimensions, from the same noise: along the same trajectories it is no matter of chance."""
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    law = FiniteData(path=path, points=points, steps=4)
    flow = FlowMap(mlp(2, seed, second_time=True), path, Transfer())
    found = continuous_bound(flow, law, noise(path, 64, 2), end=0.05)
    assert found.distance.value > 0.1
    assert found.holds, (found.distance, found.value)


# ------------------------------------------------------------------------------------------------------- rotated laws


def test_a_rotated_law_is_a_law() -> None:
    """A Gaussian with any covariance: marginal moments, velocity and flow are those of R diag(c²) Rᵀ."""
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    base = Gaussian(path=Linear(), mean=f64(0.1, -0.4), std=f64(0.3, 1.2))
    law = Rotated(path=Linear(), base=base, rotation=turn)
    covariance = turn @ torch.diag(f64(0.09, 1.44)) @ turn.T
    x, t, r = torch.randn(4, 2, dtype=torch.float64), f64(0.9, 0.5, 0.3, 0.8), f64(0.1, 0.4, 0.3, 0.0)
    for k in range(4):
        s = float(t[k])
        total = (1 - s) ** 2 * covariance + s**2 * torch.eye(2, dtype=torch.float64)
        m = (1 - s) * turn @ f64(0.1, -0.4)
        score = -torch.linalg.solve(total, x[k] - m)
        v = -(x[k] + s * score) / (1 - s)
        torch.testing.assert_close(law.velocity(x, t)[k], v)
    torch.testing.assert_close(law.flow_map(x, t, r) @ turn, base.flow_map(x @ turn, t, r))
    other = law.on(Cosine(), 7)
    assert isinstance(other, Rotated)
    assert (other.base.path, other.steps) == (Cosine(), 7)
    with pytest.raises(ValueError, match="one path"):
        replace(law, path=Cosine())
    with pytest.raises(ValueError, match="orthogonal"):
        replace(law, rotation=2 * turn)
    with pytest.raises(ValueError, match="3 coordinates"):
        replace(law, rotation=torch.eye(3))
    z = law.sample_posterior(x.repeat(2000, 1), t.repeat(2000), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.reshape(2000, 4, 2).mean(0), law.posterior_data(x, t), atol=0.1, rtol=0)
