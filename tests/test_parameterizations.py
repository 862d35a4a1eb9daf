"""Each parameterisation against the formula of its source, and all of them at the corners of time."""

import math

import pytest
import torch
from torch import Tensor

from maps import CONDITIONINGS, PATHS, SIGMA_DATA, Affine, called, every_combination, points, polynomial
from oracles import derivative, f64, log_slope
from shortflow import conditionings, flowmap, parameterizations
from shortflow.errors import ShortflowError
from shortflow.flowmap import (
    AverageVelocity,
    Denoiser,
    EDMSkip,
    FlowMap,
    Parameterization,
    SimpleEDM,
    Transfer,
    TrigFlow,
    TrigJump,
)
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import Gaussian
from steps import close

# Every kind of jump: to the data, short, of length zero at both ends and between, and of the whole length.
T = f64(0.0, 1e-9, 1e-3, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0)
R = f64(0.0, 0.0, 5e-4, 0.0, 0.2, 0.4, 0.0, 0.999, 1.0)


def test_the_names_stay_where_they_were() -> None:
    for parts in (parameterizations, conditionings):
        for name in parts.__all__:
            assert getattr(flowmap, name) is getattr(parts, name)
        assert set(parts.__all__) < set(flowmap.__all__)


# ------------------------------------------------------------------------------------------------------- laws of all


@every_combination
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_at_the_corners_of_time(
    parameterization: Parameterization, path: Path, dtype: torch.dtype
) -> None:
    """Values and derivatives in t and in r, in both precisions: none is NaN or infinite."""
    t, r = T.to(dtype), R.to(dtype)
    one = torch.ones_like(t)

    def coefficients(t: Tensor, r: Tensor) -> Tensor:
        return torch.stack(parameterization.coefficients(path, SIGMA_DATA, t, r))

    found = [
        coefficients(t, r),
        derivative(coefficients, (t, r), (one, torch.zeros_like(t))),
        derivative(coefficients, (t, r), (torch.zeros_like(t), one)),
        torch.stack(parameterization.coefficient_rates(path, SIGMA_DATA, t, r)),
        torch.stack(parameterization.rates(path, SIGMA_DATA, t)),
    ]
    scale = parameterization.input_scale(path, SIGMA_DATA, t)
    if scale is not None:
        found += [scale, derivative(lambda t: parameterization.input_scale(path, SIGMA_DATA, t), (t,), (one,))]
    for values in found:
        assert values.dtype == dtype
        assert bool(torch.isfinite(values).all()), values


@every_combination
def test_coefficient_rates_are_the_derivatives_of_the_coefficients(
    parameterization: Parameterization, path: Path
) -> None:
    got = parameterization.coefficient_rates(path, SIGMA_DATA, T, R)
    for i in (0, 1):
        want = derivative(
            lambda t, i=i: parameterization.coefficients(path, SIGMA_DATA, t, R)[i], (T,), (torch.ones_like(T),)
        )
        close(got[i], want)
        assert not got[i].requires_grad


@every_combination
def test_rates_in_both_ends_cancel_on_the_diagonal(parameterization: Parameterization, path: Path) -> None:
    """X_{t,t} = id for every t, so (∂_t + ∂_r)(a, b) = 0 at r = t."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    along_t = parameterization.coefficient_rates(path, SIGMA_DATA, t, t)
    along_r = parameterization.rates(path, SIGMA_DATA, t)
    for i in (0, 1):
        close(along_t[i], -along_r[i], 1e-11)


@pytest.mark.parametrize("path", PATHS, ids=called)
@pytest.mark.parametrize("conditioning", CONDITIONINGS, ids=called)
def test_what_the_network_is_told_is_finite_with_its_derivative(
    conditioning: conditionings.Conditioning, path: Path
) -> None:
    def told(t: Tensor) -> Tensor:
        time, second = conditioning.inputs(path, t, R)
        return torch.stack((time, torch.zeros_like(time) if second is None else second))

    assert bool(torch.isfinite(told(T)).all())
    assert bool(torch.isfinite(derivative(told, (T,), (torch.ones_like(T),))).all())


@every_combination
def test_jumps_of_the_exact_velocity_are_exact_to_second_order(parameterization: Parameterization, path: Path) -> None:
    """With F from the true velocity at t, X_{t,t−h} misses the flow map by O(h²), whatever the parameterisation."""
    law = Gaussian(path=path, mean=0.3, std=0.5)
    flow = FlowMap(Affine(0), path, parameterization, sigma_data=SIGMA_DATA)
    t = f64(0.6)
    x = 0.9 * path.sigma(t)[:, None]
    output = flow.output_of(x, law.velocity(x, t), t)
    steps = [h / max(1.0, path.sigma(f64(1.0)).item()) for h in (1e-2, 3e-3, 1e-3)]
    errors = [(flow.move(x, output, t, t - h) - law.flow_map(x, t, t - h)).abs().item() for h in steps]
    assert log_slope(steps, errors) == pytest.approx(2, abs=0.05)


# ---------------------------------------------------------------------------------------------------- by their formulas


@pytest.mark.parametrize("path", PATHS, ids=called)
def test_a_denoiser_takes_ddim_steps(path: Path) -> None:
    """X = (σ_r/σ_t) x + (α_r − α_t σ_r/σ_t) x̂: the transfer step of the velocity that x̂ stands for."""
    x, data = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    ratio = path.sigma(r) / path.sigma(t)
    a, b = Denoiser().coefficients(path, SIGMA_DATA, t, r)
    close(a, ratio)
    close(b, path.alpha(r) - path.alpha(t) * ratio)
    denoiser, transfer = (FlowMap(Affine(0), path, p) for p in (Denoiser(), Transfer()))
    v = denoiser.velocity_of(x, data, t)
    close(path.data(x, v, t), data, 1e-10)
    close(denoiser.move(x, data, t, r), transfer.move(x, v, t, r), 1e-10)


@pytest.mark.parametrize("path", PATHS, ids=called)
def test_a_denoiser_told_the_data_lands_on_the_path(path: Path) -> None:
    x, eps = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    flow = FlowMap(Affine(0), path, Denoiser(normalize=True), sigma_data=SIGMA_DATA)
    close(flow.move(path.interpolate(x, eps, t), x, t, r), path.interpolate(x, eps, r), 1e-11)


def test_a_jump_of_a_denoiser_from_time_zero_is_the_identity() -> None:
    x, output = points()
    zero = torch.zeros(4, dtype=torch.float64)
    for path in PATHS:
        assert torch.equal(FlowMap(Affine(0), path, Denoiser()).move(x, output, zero, zero), x)


@pytest.mark.parametrize("path", PATHS, ids=called)
def test_simple_edm_is_its_formula(path: Path) -> None:
    t, r, s = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3), SIGMA_DATA
    alpha_t, alpha_r, sigma_t, sigma_r = path.alpha(t), path.alpha(r), path.sigma(t) / s, path.sigma(r) / s
    a, b = SimpleEDM().coefficients(path, s, t, r)
    close(a, (alpha_t * alpha_r + sigma_t * sigma_r) / (alpha_t**2 + sigma_t**2))
    close(b, -(alpha_r * sigma_t - alpha_t * sigma_r) * s / (alpha_t**2 + sigma_t**2).sqrt())
    scale = SimpleEDM().input_scale(path, s, t)
    assert scale is not None
    close(scale, 1 / (s * (alpha_t**2 + sigma_t**2).sqrt()))


def test_simple_edm_is_trigflow_on_the_cosine_path() -> None:
    x, output = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    path = Cosine(noise_scale=0.5)
    edm, trig = (FlowMap(Affine(1), path, p, sigma_data=0.5) for p in (SimpleEDM(), TrigFlow()))
    close(edm.move(x, output, t, r), trig.move(x, output, t, r))
    close(edm.velocity_of(x, output, t), trig.velocity_of(x, output, t))
    close(edm(x, t, r), trig(x, t, r))


def test_simple_edm_to_the_data_is_edm_with_the_other_sign() -> None:
    x, output = points()
    path, t, end = VarianceExploding(), f64(0.002, 0.4, 3.0, 80.0) / 80, torch.zeros(4, dtype=torch.float64)
    simple, skip = (FlowMap(Affine(1), path, p, sigma_data=0.5) for p in (SimpleEDM(), EDMSkip()))
    close(simple.move(x, output, t, end), skip.move(x, -output, t, end))


@pytest.mark.parametrize("path", [Linear(), Linear(noise_scale=0.5), VarianceExploding(), polynomial()], ids=called)
def test_simple_edm_keeps_what_white_data_leave_open(path: Path) -> None:
    """For data N(0, σ_d²): c_skip x is E[x_r | x_t] and c_out² the variance of what is left; F sees N(0, 1)."""
    t, r, s = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3), SIGMA_DATA
    spread = path.alpha(t) ** 2 * s**2 + path.sigma(t) ** 2
    shared = path.alpha(t) * path.alpha(r) * s**2 + path.sigma(t) * path.sigma(r)
    end = path.alpha(r) ** 2 * s**2 + path.sigma(r) ** 2
    a, b = SimpleEDM().coefficients(path, s, t, r)
    close(a, shared / spread)
    close(b**2, end - shared**2 / spread, 1e-11)
    scale = SimpleEDM().input_scale(path, s, t)
    assert scale is not None
    close(scale**2 * spread, torch.ones_like(t))


@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_a_trigonometric_jump_is_a_ddim_step_on_the_cosine_path(noise_scale: float) -> None:
    x, output = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    path = Cosine(noise_scale=noise_scale)
    trig, ddim = (FlowMap(Affine(1), path, p) for p in (TrigJump(), Transfer()))
    close(trig.move(x, output, t, r), ddim.move(x, output * math.pi / 2, t, r))
    a, b = TrigJump().coefficients(path, 1.0, f64(1.0), f64(1 / 3))
    close(a, f64(0.5))
    close(b, f64(-math.sqrt(3) / 2))


def test_scaled_average_velocities() -> None:
    """X = x + (r − t) w F and v = w F: w = `scale`, times σ_d where the output is in units of the data."""
    x, output = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    for parameterization, w in (
        (AverageVelocity(scale=2.0), 2.0),
        (AverageVelocity(normalize=True, scale=2.0), 1.0),
        (AverageVelocity(normalize=True), 0.5),
        (AverageVelocity(), 1.0),
    ):
        flow = FlowMap(Affine(1), Linear(), parameterization, sigma_data=0.5)
        close(flow.move(x, output, t, r), x + w * (r - t)[:, None] * output)
        close(flow.velocity_of(x, output, t), w * output)
        close(flow.average_velocity(x, t, r - 0.05), w * flow.predict(x, t, r - 0.05), 1e-11)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(ShortflowError, match="AverageVelocity: scale must be a positive finite number, got"):
        AverageVelocity(scale=scale)
