import math

import pytest
import torch
from torch import Tensor

from oracles import along_flow, column, derivative, divergence, f64, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear
from shortflow.theory import Gaussian, GaussianMixture

# π = (.3, .7), μ = (−1, .8), sd = (.2, .5), τ = 1, x = .25, t = .4.
GOLDEN = {
    "linear": {
        "gamma": (0.067055143851, 0.932944856149),
        "data": 0.558397957196,
        "velocity": -0.770994892991,
        "score": 0.531492339487,
        "variance": 1.881665878116,
        "log_density": -0.618857112896,
        "slope": -0.322498817174,
        "acceleration": 2.844359322908,
        "short": 0.496374189381,
        "long": 0.670095250490,
    },
    "cosine": {
        "gamma": (0.114684772574, 0.885315227426),
        "data": 0.464440692507,
        "velocity": -0.700666614939,
        "score": 0.363946470735,
        "variance": 2.845180433872,
        "log_density": -0.971217581870,
        "slope": -0.331022320223,
        "acceleration": 2.174380021989,
        "short": 0.474602394406,
        "long": 0.675228566375,
    },
}
PATHS = {"linear": Linear(), "cosine": Cosine()}
both = pytest.mark.parametrize("name", ["linear", "cosine"])


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def plane(path: Linear | Cosine) -> GaussianMixture:
    """Three axis-aligned components in the plane."""
    return GaussianMixture(
        path=path,
        weights=f64(0.2, 0.5, 0.3),
        means=torch.tensor([[-1.0, 0.4], [0.7, -0.6], [0.2, 1.5]], dtype=torch.float64),
        stds=torch.tensor([[0.2, 0.6], [0.5, 0.3], [0.4, 0.4]], dtype=torch.float64),
    )


@both
def test_golden_numbers_at_a_point(name: str) -> None:
    law, x, t, golden = mixture(PATHS[name]), column(0.25), f64(0.4), GOLDEN[name]
    got = {
        "data": law.posterior_data(x, t),
        "velocity": law.velocity(x, t),
        "score": law.score(x, t),
        "variance": law.velocity_variance(x, t),
        "log_density": law.log_density(x, t),
        "slope": divergence(lambda x: law.velocity(x, t), x),
        "acceleration": law.acceleration(x, t),
    }
    for what, value in got.items():
        assert value.item() == pytest.approx(golden[what], abs=2e-12), what
    close(law.responsibilities(x, t)[0], f64(*golden["gamma"]), 2e-12)


@both
def test_golden_flow_maps(name: str) -> None:
    law = mixture(PATHS[name])
    ends = law.flow_map(column(0.25, 0.25), f64(0.4, 0.9), f64(0.1, 0.05))[:, 0]
    close(ends, f64(GOLDEN[name]["short"], GOLDEN[name]["long"]), 1e-9)


@both
def test_one_component_is_the_gaussian(name: str) -> None:
    path, x, t, r = PATHS[name], f64(1.1, -0.4)[None], f64(0.7), f64(0.2)
    mean, std = f64(0.3, -0.2), f64(0.5, 0.8)
    law = GaussianMixture(path=path, weights=f64(5.0), means=mean[None], stds=std[None], steps=20)
    want = Gaussian(path=path, mean=mean, std=std)
    for what in ("velocity", "posterior_data", "posterior_noise", "score", "velocity_variance", "log_density"):
        close(getattr(law, what)(x, t), getattr(want, what)(x, t))
    close(law.flow_map(x, t, r), want.flow_map(x, t, r), 1e-7)


@both
def test_score_is_the_gradient_of_the_log_density(name: str) -> None:
    law, t = plane(PATHS[name]), f64(0.1, 0.5, 1.0)
    x = torch.tensor([[0.3, -0.2], [1.0, 1.0], [-0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    close(torch.autograd.grad(law.log_density(x, t).sum(), x)[0], law.score(x, t))


@both
def test_log_density_changes_by_minus_the_divergence_along_the_flow(name: str) -> None:
    law, t = plane(PATHS[name]), f64(0.1, 0.5, 0.9)
    x = torch.tensor([[0.3, -0.2], [1.0, 1.0], [-0.5, 2.0]], dtype=torch.float64)
    close(along_flow(law, law.log_density, x, t), -divergence(lambda x: law.velocity(x, t), x))


@both
def test_ends_of_time_need_no_division(name: str) -> None:
    """t = 0: x is the data, E[ε | x] = 0 and Cov[v_c | x] = W² I. t = 1: the posterior is the prior."""
    path = PATHS[name]
    law, x = plane(path), f64(0.3, -0.2)[None]
    zero, one, w2 = f64(0.0), f64(1.0), path.wronskian(f64(0.0)) ** 2
    close(law.posterior_data(x, zero), x)
    close(law.posterior_noise(x, zero), torch.zeros_like(x))
    close(law.velocity_variance(x, zero), 2 * w2)
    mean = (law.weights[:, None] * law.means).sum(0)
    second = (law.weights[:, None] * (law.means**2 + law.stds**2)).sum(0)
    close(law.posterior_data(x, one), mean[None])
    close(law.posterior_noise(x, one), x)
    close(law.velocity_variance(x, one), w2 * (second - mean**2).sum())


def test_flow_map_from_pure_noise_to_data_is_the_quantile_map() -> None:
    """In one dimension the flow is monotone: F_0(X_{1,0}(x)) = Φ(x)."""
    law, x = mixture(Linear(), 40), column(-1.5, -0.3, 0.0, 0.8, 2.0)
    end = law.flow_map(x, torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))

    def normal(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(z / math.sqrt(2)))

    data = 0.3 * normal((end + 1) / 0.2) + 0.7 * normal((end - 0.8) / 0.5)
    close(data, normal(x), 1e-6)


def test_time_label_change_does_not_move_the_flow() -> None:
    """Linear and cosine see the same marginals up to scale: X is conjugate under x/√((1 − t)² + t²)."""
    t, r, x = f64(0.8), f64(0.2), column(0.4)
    norm_t, norm_r = (torch.sqrt((1 - s) ** 2 + s**2)[:, None] for s in (t, r))
    angle_t, angle_r = (torch.atan2(s, 1 - s) * 2 / math.pi for s in (t, r))
    want = mixture(Linear(), 40).flow_map(x, t, r) / norm_r
    close(mixture(Cosine(), 40).flow_map(x / norm_t, angle_t, angle_r), want, 1e-8)


def test_derivative_of_velocity_in_time_matches_finite_differences() -> None:
    law, x, t, h = plane(Cosine()), f64(0.3, -0.2)[None], f64(0.6), 1e-5
    got = derivative(lambda t: law.velocity(x, t), (t,), (torch.ones_like(t),))
    close(got, (law.velocity(x, t + h) - law.velocity(x, t - h)) / (2 * h), 1e-8)


def test_samples_have_the_moments_of_the_mixture(generator: torch.Generator) -> None:
    law, n = plane(Linear()), 40_000
    x = law.sample(n, generator, torch.float64)
    mean = (law.weights[:, None] * law.means).sum(0)
    variance = (law.weights[:, None] * (law.means**2 + law.stds**2)).sum(0) - mean**2
    assert bool(((x.mean(0) - mean).abs() < 5 * torch.sqrt(variance / n)).all())
    # The kurtosis of these coordinates is below 4, so the variance of a squared deviation is below 3 variance².
    assert bool(((x.var(0) - variance).abs() < 5 * variance * math.sqrt(3 / n)).all())


def test_bad_parameters_are_named() -> None:
    ok = {"path": Linear(), "weights": f64(1, 1), "means": column(0, 1), "stds": f64(1, 1)}
    with pytest.raises(ShortflowError, match="weights must be positive"):
        GaussianMixture(**(ok | {"weights": f64(1, 0)}))
    with pytest.raises(ShortflowError, match="stds must be positive"):
        GaussianMixture(**(ok | {"stds": f64(1, -1)}))
    with pytest.raises(ShortflowError, match=r"means have dimension 1, x has the shape \(1, 2\)"):
        GaussianMixture(**ok).velocity(f64(1, 2)[None], f64(0.5))
