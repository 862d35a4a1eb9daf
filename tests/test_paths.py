import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oracles import column, derivative, f64
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.theory import Gaussian


def polynomial() -> CustomPath:
    """α = 1 − t², σ = t(2 − t), W = 2 − 2t + 2t² ≥ 3/2."""
    return CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: t * (2 - t),
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: 2 - 2 * t,
    )


scales = st.floats(0.1, 10.0)
paths = st.one_of(
    scales.map(lambda k: Linear(noise_scale=k)),
    scales.map(lambda k: Cosine(noise_scale=k)),
    st.floats(0.5, 80.0).map(lambda k: VarianceExploding(sigma_max=k)),
    st.just(polynomial()),
)
times = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))
numbers = st.floats(-5.0, 5.0)
every_path = pytest.mark.parametrize(
    "path", [Linear(), Linear(noise_scale=0.5), Cosine(), Cosine(noise_scale=0.5), VarianceExploding(), polynomial()]
)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@given(path=paths, t=times, x=numbers, eps=numbers)
@settings(max_examples=200, deadline=None)
def test_point_and_velocity_give_back_data_and_noise(path: Path, t: float, x: float, eps: float) -> None:
    time, data, noise = f64(t), column(x), column(eps)
    x_t, v = path.interpolate(data, noise, time), path.velocity(data, noise, time)
    close(path.data(x_t, v, time), data)
    close(path.noise(x_t, v, time), noise)
    close(path.scaled_score(x_t, v, time), -noise)


@given(path=paths, t=times, x=numbers, v=numbers)
@settings(max_examples=200, deadline=None)
def test_data_and_noise_give_back_point_and_velocity(path: Path, t: float, x: float, v: float) -> None:
    time, x_t, velocity = f64(t), column(x), column(v)
    data, noise = path.data(x_t, velocity, time), path.noise(x_t, velocity, time)
    close(path.interpolate(data, noise, time), x_t, 1e-9)
    close(path.velocity(data, noise, time), velocity, 1e-9)


@given(path=paths, t=st.floats(1e-3, 0.999), x=numbers, v=numbers)
@settings(max_examples=100, deadline=None)
def test_score_and_velocity_are_inverse(path: Path, t: float, x: float, v: float) -> None:
    time, x_t, velocity = f64(t), column(x), column(v)
    close(path.velocity_from_score(x_t, path.score(x_t, velocity, time), time), velocity, 1e-8)


@given(path=paths, t=times, r=times, x=numbers, eps=numbers)
@settings(max_examples=200, deadline=None)
def test_transfer_of_the_conditional_velocity_stays_on_the_path(
    path: Path, t: float, r: float, x: float, eps: float
) -> None:
    start, end, data, noise = f64(t), f64(r), column(x), column(eps)
    a, b = path.transfer(start, end)
    jump = a[:, None] * path.interpolate(data, noise, start) + b[:, None] * path.velocity(data, noise, start)
    close(jump, path.interpolate(data, noise, end))


@given(path=paths, t=times, r=times)
@settings(max_examples=200, deadline=None)
def test_special_transfer_is_the_general_formula(path: Path, t: float, r: float) -> None:
    for special, general in zip(path.transfer(f64(t), f64(r)), Path.transfer(path, f64(t), f64(r)), strict=True):
        close(special, general)


@every_path
def test_transfer_starts_as_the_identity_and_leaves_along_v(path: Path) -> None:
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    a, b = path.transfer(t, t)
    close(a, torch.ones_like(t))
    close(b, torch.zeros_like(t))
    for part, slope in ((0, torch.zeros_like(t)), (1, torch.ones_like(t))):
        close(derivative(lambda r, part=part: path.transfer(t, r)[part], (t,), (torch.ones_like(t),)), slope)


def test_transfer_of_linear_is_euler_and_of_cosine_a_rotation() -> None:
    t, r = f64(1.0, 0.7), f64(0.0, 0.2)
    for got, want in zip(Linear(noise_scale=3.0).transfer(t, r), (f64(1, 1), f64(-1.0, -0.5)), strict=True):
        close(got, want)
    a, b = Cosine(noise_scale=3.0).transfer(t, r)
    close(a, f64(0.0, math.cos(math.pi / 4)))
    close(b, f64(-2 / math.pi, -2 / math.pi * math.sin(math.pi / 4)))


@pytest.mark.parametrize(
    ("path", "wronskian"),
    [
        (Linear(), 1.0),
        (Linear(noise_scale=0.5), 0.5),
        (Cosine(), math.pi / 2),
        (Cosine(noise_scale=0.5), math.pi / 4),
        (VarianceExploding(sigma_max=80.0), 80.0),
    ],
)
def test_wronskian_is_constant(path: Path, wronskian: float) -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    close(path.wronskian(t), torch.full_like(t, wronskian))
    close(Path.wronskian(path, t), torch.full_like(t, wronskian))


@every_path
def test_declared_derivatives_are_derivatives(path: Path) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for f, df in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma), (path.log_snr, path.d_log_snr)):
        close(derivative(f, (t,), (torch.ones_like(t),)), df(t))
    assert bool((path.d_log_snr(t) < 0).all())


@every_path
def test_time_zero_is_data(path: Path) -> None:
    x, eps = column(1.7), column(-0.4)
    close(path.interpolate(x, eps, f64(0.0)), x)


def test_time_one_is_noise_of_the_declared_scale() -> None:
    x, eps = column(1.7), column(-0.4)
    close(Linear(noise_scale=0.5).interpolate(x, eps, f64(1.0)), 0.5 * eps)
    close(Cosine(noise_scale=0.5).interpolate(x, eps, f64(1.0)), 0.5 * eps)
    close(VarianceExploding(sigma_max=80.0).interpolate(x, eps, f64(1.0)), x + 80 * eps)


def test_conditional_energy_of_cosine_over_linear() -> None:
    """∫E‖v_c‖² dt = ∫(α'² E x² + σ'²) dt; the straight line is least, the quarter circle π²/8 times as long."""
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)

    def energy(path: Path) -> float:
        return float(torch.trapezoid(path.d_alpha(t) ** 2 * 0.49 + path.d_sigma(t) ** 2, t))

    assert energy(Cosine()) / energy(Linear()) == pytest.approx(math.pi**2 / 8, rel=1e-6)
    assert energy(polynomial()) > energy(Linear())


# --- time changes: the flow maps of two paths are conjugate ---------------------------------------------------------


def laws(*paths: Path) -> list[Gaussian]:
    return [Gaussian(path=path, mean=0.3, std=0.5) for path in paths]


def test_linear_and_variance_exploding_flows_are_conjugate() -> None:
    """x_lin = x_VE/(1 + σ), t = σ/(1 + σ)."""
    linear, exploding = laws(Linear(), VarianceExploding(sigma_max=10.0))
    sigma_t, sigma_r, x = f64(9.0, 2.0, 0.5), f64(0.0, 0.1, 0.2), column(4.0, -1.0, 0.3)
    want = exploding.flow_map(x, sigma_t / 10, sigma_r / 10)
    end = linear.flow_map(x / (1 + sigma_t[:, None]), sigma_t / (1 + sigma_t), sigma_r / (1 + sigma_r))
    close(end * (1 + sigma_r[:, None]), want)


def test_linear_and_cosine_flows_are_conjugate() -> None:
    """x_cos = x_lin/√((1 − t)² + t²), tan(πt'/2) = t/(1 − t)."""
    linear, cosine = laws(Linear(), Cosine())
    t, r, x = f64(1.0, 0.7, 0.4), f64(0.0, 0.2, 0.1), column(1.1, -0.5, 2.0)

    def scale(t: Tensor) -> Tensor:
        return (1 / torch.sqrt((1 - t) ** 2 + t**2))[:, None]

    def angle(t: Tensor) -> Tensor:
        return torch.atan2(t, 1 - t) * 2 / math.pi

    close(cosine.flow_map(scale(t) * x, angle(t), angle(r)), scale(r) * linear.flow_map(x, t, r))


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_flow_maps_scale_with_data_and_noise(kind: type[Linear] | type[Cosine]) -> None:
    """x → kx with (c, τ) → k(c, τ) carries X to kX."""
    k, t, r, x = 3.0, f64(0.9, 0.4), f64(0.1, 0.3), column(1.1, -0.5)
    law = Gaussian(path=kind(noise_scale=0.7), mean=0.3, std=0.5)
    large = Gaussian(path=kind(noise_scale=0.7 * k), mean=0.3 * k, std=0.5 * k)
    close(large.flow_map(k * x, t, r), k * law.flow_map(x, t, r))
    close(large.velocity(k * x, t), k * law.velocity(x, t))


# --- conventions of the literature ----------------------------------------------------------------------------------


def test_shortcut_models_run_from_noise_to_data_with_the_opposite_sign() -> None:
    """Frans et al.: time τ = 1 − t, x_τ = (1 − τ) noise + τ data, shortcut s = data − noise, x_{τ+d} = x_τ + d s."""
    data, noise, tau, d = column(1.7, -0.3), column(-0.4, 0.9), f64(0.25, 0.5), f64(0.25, 0.5)
    x = (1 - tau)[:, None] * noise + tau[:, None] * data
    s = data - noise
    path, t = Linear(), 1 - tau
    close(path.interpolate(data, noise, t), x)
    close(path.velocity(data, noise, t), -s)
    a, b = path.transfer(t, t - d)
    close(a[:, None] * x + b[:, None] * (-s), x + d[:, None] * s)


def test_interpolants_from_noise_to_data_reverse_time() -> None:
    """Boffi et al.: time 1 − t, so X_{s,t} with s ≤ t is the flow map from 1 − s to 1 − t and the drift is −v."""
    law = Gaussian(path=Linear(), mean=0.3, std=0.5)
    s, t, x, h = f64(0.3), f64(0.8), column(1.1), 1e-5
    drift = (law.flow_map(x, 1 - s, 1 - (s + h)) - law.flow_map(x, 1 - s, 1 - (s - h))) / (2 * h)
    close(drift, -law.velocity(x, 1 - s), 1e-9)
    close(law.flow_map(law.flow_map(x, 1 - s, 1 - t), 1 - t, 1 - s), x)


def test_trigflow_angle_and_velocity() -> None:
    """θ = πt/2, x_θ = cosθ x + sinθ z with z ~ N(0, σ_d²), v_θ = cosθ z − sinθ x = (2/π) v_t."""
    data, eps, theta, sigma_data = column(1.7, -0.3), column(-0.4, 0.9), f64(0.3, 1.2), 0.5
    path, t, z = Cosine(noise_scale=sigma_data), theta * 2 / math.pi, sigma_data * eps
    cos, sin = torch.cos(theta)[:, None], torch.sin(theta)[:, None]
    x, v = cos * data + sin * z, cos * z - sin * data
    close(path.interpolate(data, eps, t), x)
    close(path.velocity(data, eps, t), math.pi / 2 * v)
    close(path.data(x, math.pi / 2 * v, t), cos * x - sin * v)


def test_edm_noise_levels_are_the_variance_exploding_path() -> None:
    """t = σ/σ_max; the network of the EDM parameterisation is minus the TrigFlow one at θ = atan(σ/σ_d)."""
    sigma_max, sigma_data, sigma, x = 80.0, 0.5, f64(0.1, 2.0, 40.0), column(1.0, -3.0, 25.0)
    exploding, trig = laws(VarianceExploding(sigma_max=sigma_max), Cosine(noise_scale=sigma_data))
    end = exploding.flow_map(x, sigma / sigma_max, torch.zeros_like(sigma))
    level = sigma[:, None]
    c_skip = sigma_data**2 / (level**2 + sigma_data**2)
    c_out = level * sigma_data / torch.sqrt(level**2 + sigma_data**2)
    f_edm = (end - c_skip * x) / c_out

    theta = torch.atan(sigma / sigma_data)
    cos, sin = torch.cos(theta)[:, None], torch.sin(theta)[:, None]
    f_trig = (cos * (cos * x) - trig.flow_map(cos * x, theta * 2 / math.pi, torch.zeros_like(theta))) / (
        sin * sigma_data
    )
    close(f_edm, -f_trig, 1e-9)


# --- what is refused ------------------------------------------------------------------------------------------------


def custom(**changes: object) -> CustomPath:
    """The linear path from functions, some of them replaced."""
    linear = Linear()
    parts = {
        "alpha_fn": linear.alpha,
        "sigma_fn": linear.sigma,
        "d_alpha_fn": linear.d_alpha,
        "d_sigma_fn": linear.d_sigma,
    }
    return CustomPath(**(parts | changes))


def test_custom_path_from_the_linear_functions_is_linear() -> None:
    path, t, r = custom(), f64(0.0, 0.7, 1.0), f64(0.0, 0.2, 0.4)
    close(path.wronskian(t), torch.ones_like(t))
    for got, want in zip(path.transfer(t, r), Linear().transfer(t, r), strict=True):
        close(got, want)


def test_polynomial_path_has_the_wronskian_of_its_formula() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    close(polynomial().wronskian(t), 2 - 2 * t + 2 * t**2)


def test_custom_path_in_the_wrong_direction_is_refused() -> None:
    with pytest.raises(ShortflowError, match=r"α_0 must be 1 and σ_0 must be 0 .*got α_0 = 0, σ_0 = 1"):
        custom(
            alpha_fn=lambda t: t,
            sigma_fn=lambda t: 1 - t,
            d_alpha_fn=torch.ones_like,
            d_sigma_fn=lambda t: -torch.ones_like(t),
        )


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [({"d_alpha_fn": torch.ones_like}, "α' at t = .* is 1,"), ({"d_sigma_fn": lambda t: 2 * t}, "σ' at t = 0.01")],
)
def test_custom_path_with_a_wrong_derivative_is_refused(changes: dict[str, object], culprit: str) -> None:
    with pytest.raises(ShortflowError, match=culprit):
        custom(**changes)


def test_custom_path_whose_noise_grows_no_faster_than_its_data_is_refused() -> None:
    """σ = t/2 − t²/2 falls back to zero: the Wronskian of (1, σ) is σ', zero at t = 1/2."""
    with pytest.raises(ShortflowError, match="must be positive"):
        custom(
            alpha_fn=torch.ones_like,
            d_alpha_fn=torch.zeros_like,
            sigma_fn=lambda t: 0.5 * t - 0.5 * t**2,
            d_sigma_fn=lambda t: 0.5 - t,
        )


def test_custom_path_whose_wronskian_vanishes_only_at_an_end_is_refused() -> None:
    """α = cos², σ = sin² of πt/2: W = (π/2) sin(πt), and the conversions would divide by it at t = 0 and t = 1."""
    with pytest.raises(ShortflowError, match=r"must be positive, got .* at t = (0|1)\.00"):
        custom(
            alpha_fn=lambda t: torch.cos(math.pi / 2 * t) ** 2,
            sigma_fn=lambda t: torch.sin(math.pi / 2 * t) ** 2,
            d_alpha_fn=lambda t: -math.pi / 2 * torch.sin(math.pi * t),
            d_sigma_fn=lambda t: math.pi / 2 * torch.sin(math.pi * t),
        )


def test_custom_path_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ShortflowError, match="α_0 must be 1"):
        custom(alpha_fn=lambda t: torch.full_like(t, torch.nan))
    with pytest.raises(ShortflowError, match="σ'"):
        custom(d_sigma_fn=lambda t: torch.full_like(t, torch.nan))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_impossible_noise_scales_are_refused(scale: float) -> None:
    for build in (lambda: Linear(noise_scale=scale), lambda: Cosine(noise_scale=scale)):
        with pytest.raises(ShortflowError, match="noise_scale must be a positive finite number"):
            build()
    with pytest.raises(ShortflowError, match="sigma_max"):
        VarianceExploding(sigma_max=scale)
