"""What every exact flow map satisfies, on all laws: the identities that methods turn into losses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracles import along_flow, column, derivative, divergence, f64, finite, gaussian, jacobian, mixture
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.theory import FiniteData, Gaussian, GaussianMixture, Law

PATHS: dict[str, Path] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "linear-0.7": Linear(noise_scale=0.7),
    "cosine-0.7": Cosine(noise_scale=0.7),
    "exploding": VarianceExploding(sigma_max=3.0),
    "polynomial": CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: t * (2 - t),
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: 2 - 2 * t,
    ),
}
LAWS: dict[str, tuple[Callable[[Path], Law], float]] = {
    # The solved maps get the few steps that the tolerance needs.
    "gaussian": (gaussian, 1e-9),
    "mixture": (lambda path: mixture(path, 16), 1e-5),
    "finite": (lambda path: finite(path, 20), 1e-5),
}
X, T, S, R = column(1.1, 0.25, -0.6), f64(0.7, 0.8, 0.5), f64(0.45, 0.6, 0.4), f64(0.2, 0.35, 0.3)


# Forward derivatives through a solver are slow: one path for each of the solved maps, the other paths below.
@pytest.fixture(params=["gaussian linear", "gaussian cosine", "mixture cosine", "finite linear"])
def case(request: pytest.FixtureRequest) -> tuple[Law, float]:
    name, path = request.param.split()
    build, tolerance = LAWS[name]
    return build(PATHS[path]), tolerance


@pytest.fixture(params=["gaussian", "mixture", "finite"])
def rough(request: pytest.FixtureRequest) -> Law:
    """A law whose solver takes two steps, for what holds whatever the number of steps."""
    build = {"gaussian": gaussian, "mixture": lambda p: mixture(p, 2), "finite": lambda p: finite(p, 2)}
    return build[request.param](Cosine(noise_scale=0.7))


def vanishes(residual: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(residual, torch.zeros_like(residual), rtol=0, atol=tolerance)


def gap(late: Tensor, early: Tensor) -> Tensor:
    return (late - early)[:, None]


def test_semigroup(case: tuple[Law, float]) -> None:
    law, tolerance = case
    vanishes(law.flow_map(law.flow_map(X, T, S), S, R) - law.flow_map(X, T, R), tolerance)


def test_eulerian(case: tuple[Law, float]) -> None:
    """∂_t X_{t,r} + ∇X_{t,r} v_t = 0."""
    law, tolerance = case
    vanishes(along_flow(law, lambda x, t: law.flow_map(x, t, R), X, T), tolerance)


def test_lagrangian(case: tuple[Law, float]) -> None:
    """d/dr X_{t,r}(x) = d/dr [(r − t) u_{t,r}(x)] = v_r(X_{t,r}(x))."""
    law, tolerance = case
    slope = derivative(lambda r: gap(r, T) * law.average_velocity(X, T, r), (R,), (torch.ones_like(R),))
    vanishes(slope - law.velocity(law.flow_map(X, T, R), R), tolerance)


def test_meanflow(case: tuple[Law, float]) -> None:
    """u = v − (t − r) D_t u, and v = u + (t − r) D_t u."""
    law, tolerance = case
    u, v = law.average_velocity(X, T, R), law.velocity(X, T)
    slope = along_flow(law, lambda x, t: law.average_velocity(x, t, R), X, T)
    vanishes(v - gap(T, R) * slope - u, tolerance)


def test_two_jumps_average_to_one(case: tuple[Law, float]) -> None:
    """(t − r) u_{t,r} = (t − s) u_{t,s} + (s − r) u_{s,r}∘X_{t,s}, and with s in the middle the plain mean."""
    law, tolerance = case
    for s in (S, (T + R) / 2):
        first, second = law.average_velocity(X, T, s), law.average_velocity(law.flow_map(X, T, s), s, R)
        mean = (gap(T, s) * first + gap(s, R) * second) / gap(T, R)
        vanishes(mean - law.average_velocity(X, T, R), tolerance)


def test_zero_jump(rough: Law) -> None:
    vanishes(rough.flow_map(X, T, T) - X, 1e-15)
    vanishes(rough.average_velocity(X, T, T) - rough.velocity(X, T), 1e-14)
    vanishes(rough.transfer_velocity(X, T, T) - rough.velocity(X, T), 1e-14)


def test_derivative_at_zero_gap_is_half_the_acceleration(rough: Law) -> None:
    slope = along_flow(rough, lambda x, t: rough.average_velocity(x, t, T), X, T)
    vanishes(slope - 0.5 * rough.acceleration(X, T), 1e-12)


def test_inverse(case: tuple[Law, float]) -> None:
    law, tolerance = case
    vanishes(law.flow_map(law.flow_map(X, T, R), R, T) - X, tolerance)


def test_volume_changes_by_the_divergence(case: tuple[Law, float]) -> None:
    """det ∇X_{t,r}(x) = exp ∫_t^r div v_s(X_{t,s}(x)) ds, by Simpson's rule in s."""
    law, tolerance = case
    n = 65
    weight = torch.ones(n, dtype=torch.float64)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    nodes = (T + torch.linspace(0, 1, n, dtype=torch.float64)[:, None] * (R - T)).flatten()
    along = law.flow_map(X.repeat(n, 1), T.repeat(n), nodes)
    rate = divergence(lambda x: law.velocity(x, nodes), along).reshape(n, len(T))
    change = (weight @ rate) / (3 * (n - 1)) * (R - T)
    volume = torch.linalg.det(jacobian(lambda x: law.flow_map(x, T, R), X))
    vanishes(volume.log() - change, max(tolerance, 1e-6))


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("build", [gaussian, lambda path: mixture(path, 2)])
def test_both_velocities_are_the_jump(build: Callable[[Path], Law], path: str) -> None:
    """X = x + (r − t) u = ā x + b̄ F on every path."""
    law = build(PATHS[path])
    end, (a, b) = law.flow_map(X, T, R), law.path.transfer(T, R)
    vanishes(X - gap(T, R) * law.average_velocity(X, T, R) - end, 1e-12)
    vanishes(a[:, None] * X + b[:, None] * law.transfer_velocity(X, T, R) - end, 1e-12)


@pytest.mark.parametrize("path", list(PATHS))
def test_the_flow_of_every_path_solves_its_own_equation(path: str) -> None:
    """The solver works on the linear path; along any other, ∂_r X = v_r(X) must still hold."""
    law, h = mixture(PATHS[path], 32), 1e-5
    ends = law.flow_map(X.repeat(3, 1), T.repeat(3), torch.cat([R - h, R, R + h]))
    below, end, above = ends.split(len(T))
    vanishes((above - below) / (2 * h) - law.velocity(end, R), 1e-5)


@pytest.mark.parametrize(("name", "noise_scale"), [("gaussian", 1.0), ("gaussian", 0.5), ("mixture", 0.5)])
def test_trigflow_tangent_vanishes(name: str, noise_scale: float) -> None:
    """f = cosθ x − sinθ F̃: df/dθ = −cosθ(F̃ − x') − sinθ(x + F̃') = 0, ' = d/dθ along the flow, F̃ = (2/π) F."""
    build, tolerance = LAWS[name]
    law, zero, unit = build(Cosine(noise_scale=noise_scale)), torch.zeros_like(T), 2 / math.pi
    cos, sin = torch.cos(T / unit)[:, None], torch.sin(T / unit)[:, None]
    network = unit * law.transfer_velocity(X, T, zero)
    slope = unit**2 * along_flow(law, lambda x, t: law.transfer_velocity(x, t, zero), X, T)
    vanishes(cos * X - sin * network - law.flow_map(X, T, zero), tolerance)
    vanishes(-cos * (network - unit * law.velocity(X, T)) - sin * (X + slope), 10 * tolerance)


# --- variance, score, density: identities of any data law -----------------------------------------------------------


def planar(path: Path) -> dict[str, Law]:
    means = torch.tensor([[-1.0, 0.4], [0.7, -0.6], [0.2, 1.5]], dtype=torch.float64)
    return {
        "gaussian": Gaussian(path=path, mean=means[0], std=f64(0.4, 0.9)),
        "mixture": GaussianMixture(path=path, weights=f64(1, 2, 3), means=means, stds=f64(0.2, 0.5, 0.4)),
        "finite": FiniteData(path=path, points=means, weights=f64(1, 2, 3)),
    }


PLANE = torch.tensor([[0.3, -0.2], [1.0, 1.0], [-0.5, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_variance_is_what_the_divergence_leaves(name: str, path: str) -> None:
    """tr Cov[v_c | x] = (W/α)(D σ' − σ div v), σ with its noise scale."""
    law, p = planar(PATHS[path])[name], PATHS[path]
    div = divergence(lambda x: law.velocity(x, T), PLANE)
    want = p.wronskian(T) / p.alpha(T) * (2 * p.d_sigma(T) - p.sigma(T) * div)
    vanishes(law.velocity_variance(PLANE, T) - want, 1e-10)


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_tweedie_and_its_neighbours(name: str, path: str) -> None:
    """x̂ = (x + σ² s)/α, s = ∇log p, and x = α x̂ + σ ε̂."""
    law, p = planar(PATHS[path])[name], PATHS[path]
    x = PLANE.clone().requires_grad_()
    score = torch.autograd.grad(law.log_density(x, T).sum(), x)[0]
    alpha, sigma = p.alpha(T)[:, None], p.sigma(T)[:, None]
    vanishes(law.score(PLANE, T) - score, 1e-10)
    vanishes(law.posterior_data(PLANE, T) - (PLANE + sigma**2 * score) / alpha, 1e-10)
    vanishes(alpha * law.posterior_data(PLANE, T) + sigma * law.posterior_noise(PLANE, T) - PLANE, 1e-12)
    vanishes(p.data(PLANE, law.velocity(PLANE, T), T) - law.posterior_data(PLANE, T), 1e-10)
    vanishes(p.velocity_from_score(PLANE, score, T) - law.velocity(PLANE, T), 1e-9)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_density_obeys_the_continuity_equation(name: str) -> None:
    """D_t log p_t = −div v_t."""
    law = planar(Cosine())[name]
    rate = along_flow(law, law.log_density, PLANE, T)
    vanishes(rate + divergence(lambda x: law.velocity(x, T), PLANE), 1e-10)


@pytest.mark.parametrize("name", ["gaussian", "mixture", "finite"])
def test_intrinsic_dimension_at_time_zero(name: str) -> None:
    """tr Cov[v_c | x] → W² · dimension of the data as t → 0: 2 for densities in the plane, 0 for isolated points."""
    law, t = planar(Linear())[name], f64(1e-3, 1e-3, 1e-3)
    x = 0.999 * torch.tensor([[-1.0, 0.4], [0.7, -0.6], [0.2, 1.5]], dtype=torch.float64)
    vanishes(law.velocity_variance(x, t) - (0 if name == "finite" else 2), 1e-2 if name != "finite" else 1e-100)
