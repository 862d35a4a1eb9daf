import math

import pytest
import torch
from torch import Tensor

from oracles import along_flow, column, f64, gaussian, log_slope
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import Gaussian, rk4, rk4_average_velocity

# μ = .3, c = .5, τ = 1, t = .7, r = .2, x = 1.1; closed forms, checked by hand.
GOLDEN = {
    "linear": {
        "std_t": 0.715891053164,
        "std_r": 0.447213595500,
        "flow_map": 0.870941998030,
        "average_velocity": 0.458116003940,
        "velocity": 0.931707317073,
        "score": -1.970731707317,
        "data": 0.447804878049,
        "noise": 1.379512195122,
        "variance": 0.487804878049,
        "du_dt": 0.947182626266,
        "acceleration": 0.961332540155,
    },
    "cosine": {
        "std_t": 0.919466948623,
        "std_r": 0.567114298100,
        "flow_map": 0.879777014217,
        "average_velocity": 0.440445971566,
        "velocity": 0.123404359512,
        "score": -1.140029162710,
        "data": 0.429390602324,
        "noise": 1.015773421740,
        "variance": 0.729638123135,
        "du_dt": -0.634083224107,
        "acceleration": -1.882332471700,
    },
}
PATHS = {"linear": Linear(), "cosine": Cosine()}
both = pytest.mark.parametrize("name", ["linear", "cosine"])


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@both
def test_golden_numbers(name: str) -> None:
    law, x, t, r = gaussian(PATHS[name]), column(1.1), f64(0.7), f64(0.2)
    got = {
        "std_t": law.marginal(x, t)[1],
        "std_r": law.marginal(x, r)[1],
        "flow_map": law.flow_map(x, t, r),
        "average_velocity": law.average_velocity(x, t, r),
        "velocity": law.velocity(x, t),
        "score": law.score(x, t),
        "data": law.posterior_data(x, t),
        "noise": law.posterior_noise(x, t),
        "variance": law.velocity_variance(x, t),
        "du_dt": along_flow(law, lambda x, t: law.average_velocity(x, t, r), x, t),
        "acceleration": law.acceleration(x, t),
    }
    for what, value in got.items():
        assert value.item() == pytest.approx(GOLDEN[name][what], abs=2e-12), what
    residual = got["velocity"] - (t - r)[:, None] * got["du_dt"] - got["average_velocity"]
    assert residual.abs().item() < 1e-12


@pytest.mark.parametrize("path", [Linear(noise_scale=0.7), Cosine(noise_scale=0.7)])
def test_velocity_is_the_textbook_regression(path: Path) -> None:
    """v = α'μ + (αα'c² + σσ')/S² (x − αμ), in several coordinates of different scale."""
    mean, std, t = f64(0.3, -1.0, 2.0), f64(0.5, 0.1, 2.0), f64(0.0, 0.35, 1.0)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(3, 3)
    a, s, da, ds = (f(t)[:, None] for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
    want = da * mean + (a * da * std**2 + s * ds) / (a**2 * std**2 + s**2) * (x - a * mean)
    close(Gaussian(path=path, mean=mean, std=std).velocity(x, t), want)


@pytest.mark.parametrize("path", [Linear(), Cosine(), Linear(noise_scale=0.7), Cosine(noise_scale=0.7)])
def test_acceleration_is_the_second_derivative_of_the_closed_form(path: Path) -> None:
    """a = m'' + (S''/S)(x − m); linear S'' = c²τ²/S³, cosine S'' = (π/2)²(τ² − c²)(c² cos⁴ − τ² sin⁴)/S³."""
    law, x, t, c, mean = gaussian(path), column(1.1, -0.4), f64(0.7, 0.1), 0.5, 0.3
    m, s = law.marginal(x, t)
    tau = path.noise_scale
    if isinstance(path, Linear):
        want = c**2 * tau**2 / s**4 * (x - m)
    else:
        quarter = (math.pi / 2) ** 2
        cos4, sin4 = torch.cos(math.pi / 2 * t)[:, None] ** 4, torch.sin(math.pi / 2 * t)[:, None] ** 4
        want = -quarter * path.alpha(t)[:, None] * mean + quarter * (tau**2 - c**2) * (
            c**2 * cos4 - tau**2 * sin4
        ) / s**4 * (x - m)
    close(law.acceleration(x, t), want)


def test_one_jump_from_noise_is_the_affine_map_of_the_two_laws() -> None:
    """X_{1,0}(x) = μ + (c/τ) x, and X_{t,0} = c x/√(t² + (1 − t)²c²) for centred data."""
    x, zero = column(1.1, -0.4), f64(0.0, 0.0)
    for path in (Linear(noise_scale=0.8), Cosine(noise_scale=0.8)):
        close(gaussian(path).flow_map(x, zero + 1, zero), 0.3 + 0.5 / 0.8 * x)
    t = f64(0.3, 0.9)
    want = 0.5 * x / torch.sqrt(t**2 + (1 - t) ** 2 * 0.25)[:, None]
    close(Gaussian(path=Linear(), std=0.5).flow_map(x, t, zero), want)


def test_cosine_flow_of_data_as_wide_as_the_noise_is_a_translation() -> None:
    law, x, t, r = Gaussian(path=Cosine(noise_scale=0.5), mean=0.3, std=0.5), column(1.1), f64(0.9), f64(0.2)
    move = 0.3 * (torch.cos(math.pi / 2 * r) - torch.cos(math.pi / 2 * t))
    close(law.flow_map(x, t, r), x + move[:, None])
    centred = Gaussian(path=Cosine(noise_scale=0.5), std=0.5)
    assert centred.velocity(x, t).abs().item() < 1e-15


def test_narrow_data_follow_the_conditional_path() -> None:
    """c → 0: v → v_c with ε = (x − αμ)/σ, and the flow map is the transfer with it."""
    path, x, t, r = Cosine(), column(1.1), f64(0.7), f64(0.2)
    law = Gaussian(path=path, mean=0.3, std=1e-8)
    data = torch.full_like(x, 0.3)
    eps = (x - path.alpha(t)[:, None] * data) / path.sigma(t)[:, None]
    close(law.velocity(x, t), path.velocity(data, eps, t), 1e-12)
    close(law.flow_map(x, t, r), path.interpolate(data, eps, r), 1e-12)


@both
def test_ends_of_time(name: str) -> None:
    """t = 0: x itself is the data and the noise is unknown. t = 1: x is the noise and the data are unknown."""
    law, x = gaussian(PATHS[name]), column(1.1)
    close(law.posterior_data(x, f64(0.0)), x)
    close(law.posterior_noise(x, f64(0.0)), torch.zeros_like(x))
    close(law.posterior_data(x, f64(1.0)), torch.full_like(x, 0.3))
    close(law.posterior_noise(x, f64(1.0)), x)
    w = PATHS[name].wronskian(f64(0.0))
    close(law.velocity_variance(x, f64(0.0)), w**2)
    close(law.velocity_variance(x, f64(1.0)), w**2 * 0.25)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-5, 5e-4, 1e-3, 0.1])
def test_average_velocity_keeps_its_digits_at_every_gap(gap: float) -> None:
    """Linear, t = .7: u = m' + (S_r − S_t)/(r − t) · (x − m)/S_t, with S_r² − S_t² divided by hand."""
    law, x, t, c, mean = gaussian(Linear()), column(1.1), 0.7, 0.5, 0.3
    r = t - gap
    s_t, s_r = (math.sqrt((1 - time) ** 2 * c**2 + time**2) for time in (t, r))
    secant = (-(2 - r - t) * c**2 + r + t) / (s_t + s_r)
    want = -mean + secant * (1.1 - (1 - t) * mean) / s_t
    assert law.average_velocity(x, f64(t), f64(r)).item() == pytest.approx(want, abs=2e-11)


@both
def test_derivative_of_average_velocity_at_zero_gap_is_half_the_acceleration(name: str) -> None:
    """u_{t,r} = v − ½(t − r) a + O((t − r)²), so D_t u → ½ a as r → t."""
    law, x, t = gaussian(PATHS[name]), column(1.1, -0.2), f64(0.7, 0.3)
    slope = along_flow(law, lambda x, now: law.average_velocity(x, now, t), x, t)
    close(slope, 0.5 * law.acceleration(x, t))


@both
def test_velocity_variance_is_the_spread_of_simulated_conditional_velocities(
    name: str, generator: torch.Generator
) -> None:
    path, n, t = PATHS[name], 100_000, 0.6
    law = gaussian(path)
    time = torch.full((n,), t, dtype=torch.float64)
    x0 = law.sample(n, generator, torch.float64)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    x_t = path.interpolate(x0, eps, time)
    error = (path.velocity(x0, eps, time) - law.velocity(x_t, time)).flatten(1).square().sum(1)
    want = law.velocity_variance(x_t[:1], time[:1]).item()
    assert abs(error.mean().item() - want) < 5 * want * math.sqrt(2 / n)


def test_variance_and_log_density_add_over_coordinates() -> None:
    mean, std, t, x = f64(0.3, -1.0), f64(0.5, 0.1), f64(0.6), f64(0.4, -0.2)[None]
    law = Gaussian(path=Cosine(), mean=mean, std=std)
    parts = [Gaussian(path=Cosine(), mean=float(mean[i]), std=float(std[i])) for i in range(2)]
    for what in ("velocity_variance", "log_density"):
        want = sum(getattr(part, what)(x[:, i : i + 1], t) for i, part in enumerate(parts))
        close(getattr(law, what)(x, t), want)


@both
def test_log_density_integrates_to_one_and_has_the_score_as_gradient(name: str) -> None:
    law = gaussian(PATHS[name])
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.full((4001,), 0.4, dtype=torch.float64)
    log_p = law.log_density(x, t)
    assert torch.trapezoid(log_p.exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-10)
    close(torch.autograd.grad(log_p.sum(), x)[0], law.score(x, t))


@pytest.mark.parametrize(("name", "want"), [("linear", 0.785398), ("cosine", 1.233701)])
def test_flow_matching_floor(name: str, want: float) -> None:
    """∫ Var[v_c | x] dt = (π/2) c τ W."""
    law, t = gaussian(PATHS[name]), torch.linspace(0, 1, 2001, dtype=torch.float64)
    floor = torch.trapezoid(law.velocity_variance(torch.zeros(2001, 1, dtype=torch.float64), t), t)
    assert floor.item() == pytest.approx(want, abs=2e-6)


def test_marginal_kinetic_energy_of_the_linear_path() -> None:
    """∫ E‖v‖² dt = c² + τ² − cτπ/2 + μ²; v is affine, so two points of x give its second moment."""
    law, t = gaussian(Linear()), torch.linspace(0, 1, 2001, dtype=torch.float64)
    m, s = law.marginal(torch.zeros(2001, 1, dtype=torch.float64), t)
    energy = (law.velocity(m + s, t).square() + law.velocity(m - s, t).square()) / 2
    assert torch.trapezoid(energy[:, 0], t).item() == pytest.approx(0.25 + 1 - 0.25 * math.pi + 0.09, abs=2e-6)


def test_samples_have_the_declared_moments(generator: torch.Generator) -> None:
    n, mean, std = 40_000, f64(0.3, -1.0), f64(0.5, 2.0)
    law = Gaussian(path=VarianceExploding(sigma_max=2.0), mean=mean, std=std)
    x_t = law.sample_marginal(torch.full((n,), 0.5, dtype=torch.float64), generator)
    for x, scale in ((law.sample(n, generator, torch.float64), std), (x_t, torch.sqrt(std**2 + 1))):
        assert bool(((x.mean(0) - mean).abs() < 5 * scale / math.sqrt(n)).all())
        assert bool(((x.std(0) / scale - 1).abs() < 5 / math.sqrt(2 * n)).all())


def test_shape_of_samples() -> None:
    assert Gaussian(path=Linear(), sample_shape=(3, 4, 4)).sample(5).shape == (5, 3, 4, 4)
    assert Gaussian(path=Linear(), mean=f64(0, 1)).shape == (2,)
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    law = Gaussian(path=Linear(), mean=0.3, std=0.5)
    close(law.velocity(image, f64(0.4, 0.4)).flatten(), law.velocity(image.reshape(96, 1), f64(0.4).repeat(96))[:, 0])


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ShortflowError, match="std must be positive, got 0"):
        Gaussian(path=Linear(), std=0.0)
    with pytest.raises(ShortflowError, match=r"mean of shape \(3,\).*samples of shape \(2,\)"):
        Gaussian(path=Linear(), mean=f64(0, 0, 0)).velocity(f64(1, 2)[None], f64(0.5))
    with pytest.raises(ShortflowError, match="steps must be at least 1, got 0"):
        rk4(lambda x, t: x, column(1.0), f64(1.0), f64(0.0), steps=0)


@both
def test_runge_kutta_has_order_four(name: str) -> None:
    law, x, t, r = gaussian(PATHS[name]), column(1.1), f64(0.9), f64(0.1)
    steps = [32, 64, 128, 256]
    errors = [(rk4(law.velocity, x, t, r, n) - law.flow_map(x, t, r)).abs().item() for n in steps]
    assert log_slope([1 / n for n in steps], errors) == pytest.approx(4, abs=0.05)


def test_runge_kutta_at_zero_gap_is_the_identity_and_the_velocity() -> None:
    law, x, t = gaussian(Linear()), column(1.1), f64(0.7)
    assert torch.equal(rk4(law.velocity, x, t, t), x)
    close(rk4_average_velocity(law.velocity, x, t, t), law.velocity(x, t), 1e-14)
