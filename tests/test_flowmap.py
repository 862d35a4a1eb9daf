import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from maps import CONDITIONINGS, PATHS, SIGMA_DATA, Affine, called, every_combination, points
from oracles import column, derivative, f64
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import (
    AngleOnly,
    AverageVelocity,
    Conditioning,
    Denoiser,
    EDMSkip,
    FlowMap,
    LogSigma,
    LogStep,
    NoisePrediction,
    Parameterization,
    SimpleEDM,
    StartAndEnd,
    StartAndGap,
    StartOnly,
    Transfer,
    TrigFlow,
)
from shortflow.nn import MLP
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.theory import ExactNetwork, FiniteData, Gaussian

times = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))


class Table(nn.Module):
    """F = 0 with a log-variance head that returns what it is given as a table."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        return torch.zeros_like(x)

    def log_variance(self, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
        return self.head(time)


# ------------------------------------------------------------------------------------------------ boundary and inverses


def check_identity(flow: FlowMap, t: float, x: float) -> None:
    point = f64(x, 1.0)[None]
    assert torch.equal(flow(point, f64(t), f64(t)), point)
    single = flow.float()
    time = torch.tensor([t], dtype=torch.float32)
    assert torch.equal(single(point.float(), time, time), point.float())


@every_combination
@given(t=times, seed=st.integers(0, 1000), x=st.floats(-100, 100))
@settings(max_examples=15, deadline=None)
def test_a_jump_of_length_zero_is_the_identity_for_any_weights(
    parameterization: Parameterization, path: Path, t: float, seed: int, x: float
) -> None:
    check_identity(FlowMap(Affine(seed), path, parameterization, sigma_data=SIGMA_DATA), t, x)


@pytest.mark.parametrize("path", PATHS, ids=called)
@pytest.mark.parametrize("conditioning", CONDITIONINGS, ids=called)
@given(t=times, seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_jump_of_length_zero_is_the_identity_whatever_the_network_is_told(
    conditioning: Conditioning, path: Path, t: float, seed: int
) -> None:
    check_identity(FlowMap(Affine(seed), path, Transfer(), conditioning, sigma_data=SIGMA_DATA), t, 1.5)


def known(parameterization: Parameterization, path: Path, t: float) -> bool:
    """Whether an output at t stands for a velocity that rounding leaves.

    That of a denoiser grows as 1/σ, that of a noise prediction as 1/α; what a velocity of one changes in the output
    vanishes likewise.
    """
    if isinstance(parameterization, NoisePrediction):
        return float(path.alpha(torch.tensor([t], dtype=torch.float64))) > 1e-6
    return not isinstance(parameterization, Denoiser) or t > 1e-6


@every_combination
@given(t=st.floats(0.02, 1.0), share=st.floats(0.0, 0.95), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_pull_back_undoes_move(
    parameterization: Parameterization, path: Path, t: float, share: float, seed: int
) -> None:
    assume(known(parameterization, path, t))
    flow = FlowMap(Affine(seed), path, parameterization, sigma_data=SIGMA_DATA)
    x, output = points()
    start, end = torch.full((4,), t, dtype=torch.float64), torch.full((4,), share * t, dtype=torch.float64)
    state = flow.move(x, output, start, end)
    torch.testing.assert_close(flow.pull_back(x, state, start, end), output, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.move(x, flow.pull_back(x, output, start, end), start, end), output)


@every_combination
@given(t=times)
@settings(max_examples=25, deadline=None)
def test_output_and_velocity_are_inverse(parameterization: Parameterization, path: Path, t: float) -> None:
    flow = FlowMap(Affine(0), path, parameterization, sigma_data=SIGMA_DATA)
    x, output = points()
    time = torch.full((4,), t, dtype=torch.float64)
    torch.testing.assert_close(flow.output_of(x, flow.velocity_of(x, output, time), time), output)
    if known(parameterization, path, t):
        torch.testing.assert_close(
            flow.velocity_of(x, flow.output_of(x, output, time), time), output, rtol=1e-7, atol=1e-7
        )


# ------------------------------------------------------------------------------------------------------- rates


@every_combination
def test_velocity_is_the_slope_of_the_jump_where_it_starts(parameterization: Parameterization, path: Path) -> None:
    """(∂_r a, ∂_r b) at r = t by automatic differentiation, and v = ∂_r X_{t,r} there."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    rates = parameterization.rates(path, SIGMA_DATA, t)
    for i in (0, 1):
        want = derivative(
            lambda r, i=i: parameterization.coefficients(path, SIGMA_DATA, t, r)[i], (t,), (torch.ones_like(t),)
        )
        torch.testing.assert_close(rates[i], want, rtol=1e-12, atol=1e-12)
    flow = FlowMap(Affine(3), path, parameterization, sigma_data=SIGMA_DATA)
    x, _ = points(11)
    slope = derivative(lambda r: flow(x, t, r), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(flow.velocity(x, t), slope, rtol=1e-10, atol=1e-10)


@every_combination
def test_coefficient_rates_are_finite_differences(parameterization: Parameterization, path: Path) -> None:
    t, r = f64(0.3, 0.5, 0.8, 0.99), f64(0.0, 0.4, 0.8, 0.2)
    h = 1e-6
    got = parameterization.coefficient_rates(path, SIGMA_DATA, t, r)
    ahead = parameterization.coefficients(path, SIGMA_DATA, t + h, r)
    behind = parameterization.coefficients(path, SIGMA_DATA, t - h, r)
    for i in (0, 1):
        torch.testing.assert_close(got[i], (ahead[i] - behind[i]) / (2 * h), rtol=1e-6, atol=1e-6)
        assert not got[i].requires_grad


# ---------------------------------------------------------------------------------- parameterisations by their formulas


def test_average_velocity_is_transfer_on_the_linear_path() -> None:
    x, output = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    for path in (Linear(), Linear(noise_scale=0.5)):
        euler, ddim = (FlowMap(Affine(1), path, p) for p in (AverageVelocity(), Transfer()))
        assert torch.equal(euler.move(x, output, t, r), ddim.move(x, output, t, r))
        assert torch.equal(euler(x, t, r), ddim(x, t, r))
        torch.testing.assert_close(euler.move(x, output, t, r), x + (r - t)[:, None] * output)
    euler, ddim = (FlowMap(Affine(1), Cosine(), p) for p in (AverageVelocity(), Transfer()))
    assert not torch.allclose(euler.move(x, output, t, r), ddim.move(x, output, t, r))


def test_transfer_of_the_conditional_velocity_lands_on_the_path() -> None:
    x, eps = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    for path in PATHS:
        flow = FlowMap(Affine(1), path, Transfer())
        landed = flow.move(path.interpolate(x, eps, t), path.velocity(x, eps, t), t, r)
        torch.testing.assert_close(landed, path.interpolate(x, eps, r), rtol=1e-10, atol=1e-10)


def test_trigflow_is_transfer_with_a_scaled_output() -> None:
    """v = (π/2) σ_data F turns one into the other; and the formula itself with the angle θ = πt/2."""
    path = Cosine(noise_scale=0.5)
    x, output = points()
    t, r = f64(0.2, 0.5, 0.9, 1.0), f64(0.1, 0.5, 0.0, 0.3)
    trig, ddim = FlowMap(Affine(1), path, TrigFlow(), sigma_data=0.5), FlowMap(Affine(1), path, Transfer())
    got = trig.move(x, output, t, r)
    torch.testing.assert_close(got, ddim.move(x, output * math.pi / 2 * 0.5, t, r))
    angle = (math.pi / 2 * (t - r))[:, None]
    torch.testing.assert_close(got, angle.cos() * x - angle.sin() * 0.5 * output)
    torch.testing.assert_close(trig.predict(x, t, r), trig.network(2 * x, t, t - r, None))


def test_edm_skip_golden_values() -> None:
    """c_skip and c_out of consistency models at σ = 80 and σ = 1 with σ_min = .002, σ_d = .5."""
    path = VarianceExploding(sigma_max=80.0)
    a, b = EDMSkip().coefficients(path, 0.5, f64(1.0, 1 / 80, 0.002 / 80), f64(*[0.002 / 80] * 3))
    torch.testing.assert_close(a, f64(3.9063e-5, 0.200641, 1.0), rtol=2e-5, atol=0)
    torch.testing.assert_close(b, f64(0.499978, 0.446319, 0.0), rtol=2e-6, atol=1e-16)
    scale = EDMSkip().input_scale(path, 0.5, f64(1.0, 1 / 80))
    assert scale is not None
    torch.testing.assert_close(scale, f64(0.01249976, 0.8944272), rtol=2e-6, atol=0)


def test_edm_and_trigflow_are_one_denoiser() -> None:
    """θ = atan(σ/σ_d), x_trig = cos θ · x_VE: both networks see x_trig/σ_d, and F_EDM = −F_Trig gives the same x̂."""
    sigma_data, sigma_max = 0.5, 80.0
    sigma = f64(0.01, 0.4, 3.0, 60.0)
    x, output = points()
    ve = FlowMap(Affine(1), VarianceExploding(sigma_max=sigma_max), EDMSkip(), sigma_data=sigma_data)
    trig = FlowMap(Affine(1), Cosine(noise_scale=sigma_data), TrigFlow(), sigma_data=sigma_data)
    theta = torch.atan(sigma / sigma_data)
    x_trig = theta.cos()[:, None] * x
    t_ve, t_trig, end = sigma / sigma_max, theta * (2 / math.pi), torch.zeros(4, dtype=torch.float64)
    scale = ve.parameterization.input_scale(ve.path, sigma_data, t_ve)
    assert scale is not None
    torch.testing.assert_close(scale[:, None] * x, x_trig / sigma_data)
    torch.testing.assert_close(ve.move(x, -output, t_ve, end), trig.move(x_trig, output, t_trig, end))


def test_normalised_average_velocity_sees_unit_variance() -> None:
    """c_in = 1/(σ_d √(α² + t²)) on the linear path whose noise has the data's scale, and v = σ_d F."""
    parameterization, path = AverageVelocity(normalize=True), Linear(noise_scale=0.5)
    t = f64(0.0, 0.3, 1.0)
    scale = parameterization.input_scale(path, 0.5, t)
    assert scale is not None
    torch.testing.assert_close(scale, 1 / (0.5 * ((1 - t) ** 2 + t**2).sqrt()))
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 40_000, 1, generator=g, dtype=torch.float64)
    x_t = path.interpolate(0.5 * data, noise, torch.full((40_000,), 0.3, dtype=torch.float64))
    assert (scale[1] * x_t).std().item() == pytest.approx(1, abs=0.02)
    a, b = parameterization.coefficients(path, 0.5, f64(0.9), f64(0.2))
    assert (a.item(), b.item()) == (1, pytest.approx(-0.35))


@pytest.mark.parametrize("path", [Linear(), Linear(noise_scale=0.5), Cosine()], ids=called)
def test_exact_networks_make_the_exact_flow_map(path: Path) -> None:
    """Average velocity and transfer form of one law: the same map, velocity, average velocity and tangent identity."""
    law = Gaussian(path=path, mean=0.3, std=0.5)
    x, t, r = column(1.1, -0.4, 0.2), f64(0.7, 1.0, 0.5), f64(0.2, 0.0, 0.5)
    average = FlowMap(ExactNetwork(law), path, AverageVelocity())
    ddim = FlowMap(ExactNetwork(law, "transfer"), path, Transfer())
    for flow in (average, ddim):
        torch.testing.assert_close(flow(x, t, r), law.flow_map(x, t, r))
        torch.testing.assert_close(flow.velocity(x, t), law.velocity(x, t))
        jump = r < t
        got = flow.average_velocity(x[jump], t[jump], r[jump])
        torch.testing.assert_close(got, law.average_velocity(x[jump], t[jump], r[jump]))
    v = law.velocity(x, t)
    u, rate = average.tangent(x, t, r, v)
    torch.testing.assert_close(u, v - (t - r)[:, None] * rate, rtol=1e-9, atol=1e-9)  # the MeanFlow identity


# ------------------------------------------------------------------------------------------------------- conditioning


def test_conditioning_values() -> None:
    path, t, r = VarianceExploding(sigma_max=80.0), f64(0.5, 1.0, 0.75), f64(0.25, 0.0, 0.75)
    assert StartOnly().inputs(path, t, r) == (t, None)
    time, gap = StartAndGap(scale=1000.0).inputs(path, t, r)
    assert gap is not None
    assert (time.tolist(), gap.tolist()) == ([500, 1000, 750], [250, 1000, 0])
    time, end = StartAndEnd(scale=1000.0).inputs(path, t, r)
    assert end is not None
    assert (time.tolist(), end.tolist()) == ([500, 1000, 750], [250, 0, 750])
    angle, second = AngleOnly().inputs(path, t, r)
    assert second is None
    torch.testing.assert_close(angle, f64(math.pi / 4, math.pi / 2, 3 * math.pi / 8))
    time, level = LogStep(steps=128).inputs(path, t, r)
    assert level is not None
    assert (time.tolist(), level.tolist()) == ([0.5, 1, 0.75], [2, 0, 7])
    time, second = LogSigma().inputs(path, f64(1.0, 1 / 80, 0.002 / 80), r)
    assert second is None
    torch.testing.assert_close(time, f64(math.log(80) / 4, 0, math.log(0.002) / 4))
    thousandfold, _ = LogSigma(scale=250.0).inputs(path, f64(1.0, 1 / 80, 0.002 / 80), r)
    torch.testing.assert_close(thousandfold, 1000 * time)
    assert bool(torch.isfinite(LogSigma().inputs(path, f64(0.0), f64(0.0))[0]).all())


@pytest.mark.parametrize("conditioning", CONDITIONINGS, ids=called)
def test_conditioning_says_whether_there_is_a_second_input(conditioning: Conditioning) -> None:
    assert (conditioning.inputs(Linear(), f64(0.5), f64(0.2))[1] is not None) == conditioning.second


def test_step_conditioning_is_constant_below_the_finest_step() -> None:
    """log₂(1/(t − r)) counts gaps below 1/steps as 1/steps; above, its derivative in t is −1/((t − r) ln 2)."""
    path, t = Linear(), f64(0.5)

    def level(time: Tensor, r: Tensor) -> Tensor:
        value = LogStep(steps=8).inputs(path, time, r)[1]
        assert value is not None
        return value

    one = torch.ones_like(t)
    assert derivative(lambda time: level(time, t - 0.05), (t,), (one,)).item() == 0
    steep = derivative(lambda time: level(time, t - 0.25), (t,), (one,))
    torch.testing.assert_close(steep, f64(-4 / math.log(2)))


def test_the_network_is_told_what_the_conditioning_says() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None) -> Tensor:
            seen.append((time.tolist(), None if second is None else second.tolist(), label))
            return x

    x, label = column(1.0), torch.tensor([2])
    FlowMap(Spy(), Linear(), AverageVelocity())(x, f64(0.75), f64(0.5), label)
    FlowMap(Spy(), Linear(), AverageVelocity(), StartOnly())(x, f64(0.75), f64(0.5))
    assert seen == [([0.75], [0.25], label), ([0.75], None, None)]


# -------------------------------------------------------------------------------------------- what it carries, refusals


def test_classes_are_those_of_the_network() -> None:
    with_null = FlowMap(MLP(shape=(2,), width=4, depth=1, num_classes=5, null_class=True), Linear(), AverageVelocity())
    without = FlowMap(MLP(shape=(2,), width=4, depth=1, num_classes=5), Linear(), AverageVelocity())
    plain = FlowMap(Affine(0), Linear(), AverageVelocity())
    assert (with_null.num_classes, with_null.null_label) == (5, 5)
    assert (without.num_classes, without.null_label) == (5, None)
    assert (plain.num_classes, plain.null_label) == (0, None)
    law = FiniteData(path=Linear(), points=column(-1, 0.2, 1.5), labels=torch.tensor([0, 1, 1]))
    assert FlowMap(ExactNetwork(law), Linear(), AverageVelocity()).null_label == 2


@pytest.mark.parametrize(
    ("parameterization", "path", "sigma_data", "words"),
    [
        (TrigFlow(), Linear(), 0.5, r"TrigFlow needs the cosine path.*use Cosine\(noise_scale=0\.5\)"),
        (TrigFlow(), Cosine(), 0.5, r"TrigFlow needs .*noise_scale = sigma_data = 0\.5"),
        (EDMSkip(), Linear(), 0.5, r"EDMSkip needs .*use VarianceExploding\(\)"),
        (SimpleEDM(), Linear(), -0.5, "sigma_data must be a positive finite number, got -0.5"),
        (AverageVelocity(), Linear(), 0.0, "sigma_data must be a positive finite number, got 0"),
        (AverageVelocity(), Linear(), math.nan, "sigma_data must be a positive finite number, got nan"),
        (AverageVelocity(), Linear(), math.inf, "sigma_data must be a positive finite number, got inf"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_remedy(
    parameterization: Parameterization, path: Path, sigma_data: float, words: str
) -> None:
    with pytest.raises(IncompatibleParts, match=words):
        FlowMap(Affine(0), path, parameterization, sigma_data=sigma_data)


def test_log_variance_is_one_number_a_row() -> None:
    t, r = f64(0.5, 0.7), f64(0.1, 0.7)
    flow = FlowMap(Table(lambda time: 2 * time), Linear(), AverageVelocity())
    assert flow.log_variance(t, r).tolist() == [1.0, 1.4]
    with pytest.raises(IncompatibleParts, match="log_variance=True"):
        FlowMap(Affine(0), Linear(), AverageVelocity()).log_variance(t, r)


def test_a_log_variance_column_is_refused() -> None:
    """(b, 1) against losses of shape (b) would broadcast to (b, b) and make ℓ one global number."""
    flow = FlowMap(Table(lambda time: time[:, None]), Linear(), AverageVelocity())
    with pytest.raises(ShortflowError, match=r"one number a row, \(2,\), got \(2, 1\)"):
        flow.log_variance(f64(0.5, 0.7), f64(0.1, 0.7))
