"""Models on other paths and in other units: against the exact laws there, on all pairs of paths."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads import headed, told_draw
from oracles import column, derivative, f64, log_slope
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import (
    AverageVelocity,
    EDMSkip,
    FlowMap,
    LogStep,
    Parameterization,
    StartAndGap,
    StartOnly,
    Transfer,
    TrigFlow,
)
from shortflow.guidance import guide
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.reframe import ReframedFlowMap, equal_ratio_time, reframe
from shortflow.sample import PushForward, grid_times
from shortflow.theory import ExactNetwork, FiniteData, Gaussian, GaussianMixture, Law, rk4
from steps import close, mlp

# Fast data, slow noise: σ/α = t/(1 − t²) has no closed inverse here.
BENT = CustomPath(
    alpha_fn=lambda t: 1 - t**2, sigma_fn=lambda t: t, d_alpha_fn=lambda t: -2 * t, d_sigma_fn=torch.ones_like
)
PATHS: dict[str, Path] = {
    "linear": Linear(),
    "linear, half noise": Linear(noise_scale=0.5),
    "cosine": Cosine(),
    "cosine, half noise": Cosine(noise_scale=0.5),
    "exploding": VarianceExploding(sigma_max=80.0),
    "bent": BENT,
}
UNITS = {"same units": (1.0, 0.0), "other units": (2.5, -0.4)}
T, R = f64(0.9, 0.6, 0.35, 0.12), f64(0.1, 0.6, 0.0, 0.05)
POINTS = column(1.1, 0.25, -0.6, 0.4)

each_pair = pytest.mark.parametrize(("old", "new"), [(a, b) for a in PATHS for b in PATHS])
each_units = pytest.mark.parametrize(("scale", "shift"), UNITS.values(), ids=UNITS)


def gauss(path: Path, scale: float = 1.0, shift: float = 0.0) -> Gaussian:
    """N(0.3, 0.5²) as it looks in units with x_old = scale · x + shift."""
    return Gaussian(path=path, mean=(0.3 - shift) / scale, std=0.5 / scale)


def two(path: Path, scale: float = 1.0, shift: float = 0.0, steps: int = 50) -> GaussianMixture:
    means = (column(-1.0, 0.8) - shift) / scale
    return GaussianMixture(path=path, weights=f64(0.3, 0.7), means=means, stds=f64(0.2, 0.5) / scale, steps=steps)


def exact(law: Law, output: Literal["average_velocity", "velocity", "transfer"] = "average_velocity") -> FlowMap:
    form: Parameterization = Transfer() if output == "transfer" else AverageVelocity()
    ends = "diagonal" if output == "velocity" else "any"
    return FlowMap(ExactNetwork(law, output), law.path, form, StartAndGap(), ends=ends)


def early(path: Path, t: Tensor) -> Tensor:
    """Times that the exploding path reaches with σ ≤ 8, where digits are still to be had."""
    return t / 10 if isinstance(path, VarianceExploding) else t


# ------------------------------------------------------------------------------------------------------- against laws


@each_units
@each_pair
def test_a_reframed_exact_model_is_the_exact_model_there(old: str, new: str, scale: float, shift: float) -> None:
    law = gauss(PATHS[new], scale, shift)
    flow = reframe(exact(gauss(PATHS[old])), PATHS[new], scale=scale, shift=shift)
    t, r = early(PATHS[new], T), early(PATHS[new], R)
    close(flow.velocity(POINTS, t), law.velocity(POINTS, t), 1e-9)
    close(flow(POINTS, t, r), law.flow_map(POINTS, t, r), 1e-9)
    if isinstance(flow, ReframedFlowMap):  # whose output is that of `Transfer`, whatever the model's own is
        close(flow.predict(POINTS, t, r), law.transfer_velocity(POINTS, t, r), 1e-9)
    jump = r < t
    u = law.average_velocity(POINTS, t, r)
    close(flow.average_velocity(POINTS, t, r)[jump], u[jump], 1e-9)


@pytest.mark.parametrize(
    ("old", "new", "scale", "shift"),
    [
        ("cosine", "linear, half noise", 2.5, -0.4),
        ("exploding", "bent", 1.0, 0.3),
    ],
)
def test_curved_flows_too(old: str, new: str, scale: float, shift: float) -> None:
    """A mixture, whose map is solved numerically with an error below that."""
    law = two(PATHS[new], scale, shift, 200)
    flow = reframe(exact(two(PATHS[old], steps=200), "transfer"), PATHS[new], scale=scale, shift=shift)
    t, r = early(PATHS[new], T), early(PATHS[new], R)
    close(flow.velocity(POINTS, t), law.velocity(POINTS, t), 1e-9)
    close(flow(POINTS, t, r), law.flow_map(POINTS, t, r), 1e-9)


@pytest.mark.parametrize("new", ["linear", "cosine", "bent"])
def test_both_ends_of_time(new: str) -> None:
    """t = 1 has no data and r = 0 no noise: nothing is divided by either."""
    for old in ("linear", "cosine", "bent"):
        law = gauss(PATHS[new], 2.0, 0.5)
        flow = reframe(exact(gauss(PATHS[old])), PATHS[new], scale=2.0, shift=0.5)
        one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        close(flow(POINTS, one, zero), law.flow_map(POINTS, one, zero), 1e-9)
        close(flow.velocity(POINTS, one), law.velocity(POINTS, one), 1e-9)
        close(flow.velocity(POINTS, zero), law.velocity(POINTS, zero), 1e-9)
        close(flow(POINTS, zero, zero), POINTS)


@pytest.mark.parametrize(("old", "new"), [("linear", "cosine")])
def test_the_reframed_velocity_integrates_to_the_exact_map(old: str, new: str) -> None:
    law = two(PATHS[new], 1.5, 0.2)
    flow = reframe(exact(two(PATHS[old]), "velocity"), PATHS[new], scale=1.5, shift=0.2)
    t, r = f64(0.9, 0.7, 0.5, 0.3), f64(0.05, 0.1, 0.02, 0.2)
    want = law.flow_map(POINTS, t, r)
    close(rk4(flow.velocity, POINTS, t, r, steps=64), want, 1e-7)
    sizes, errors = [1 / 16, 1 / 32, 1 / 64], []
    for size in sizes:
        errors.append(float((heun(flow, POINTS, t, r, round(1 / size)) - want).abs().max()))
    assert log_slope(sizes, errors) == pytest.approx(2, abs=0.05)


def heun(flow: FlowMap, x: Tensor, t: Tensor, r: Tensor, steps: int) -> Tensor:
    h = (r - t) / steps
    for i in range(steps):
        a, b = t + i * h, t + (i + 1) * h
        v = flow.velocity(x, a)
        x = x + h[:, None] / 2 * (v + flow.velocity(x + h[:, None] * v, b))
    return x


def test_there_and_back_is_the_model_itself() -> None:
    law = gauss(Linear())
    there = reframe(exact(law), Cosine(noise_scale=0.5), scale=2.0, shift=0.1)
    back = reframe(there, Linear(), scale=0.5, shift=-0.05)
    close(back.velocity(POINTS, T), law.velocity(POINTS, T), 1e-9)
    close(back(POINTS, T, R), law.flow_map(POINTS, T, R), 1e-9)


def test_consistency_models_keep_their_jumps_to_the_data() -> None:
    """EDMSkip, in which the velocity of the network means nothing: only F at r = 0 is right."""
    law = gauss(VarianceExploding(sigma_max=80.0))
    form = EDMSkip()

    class Denoiser(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
            sigma = law.path.sigma(time)[:, None]
            state = x * torch.sqrt(sigma**2 + 0.25)
            zero = torch.zeros_like(time)
            a, b = form.coefficients(law.path, 0.5, time, zero)
            return (law.flow_map(state, time, zero) - a[:, None] * state) / b[:, None]

    flow = reframe(FlowMap(Denoiser(), law.path, form, StartOnly(), sigma_data=0.5, ends="zero"), Linear())
    t, zero = f64(0.9, 0.6, 0.35, 0.12), torch.zeros(4, dtype=torch.float64)
    close(flow(POINTS, t, zero), gauss(Linear()).flow_map(POINTS, t, zero), 1e-9)
    assert flow.ends == "zero"


# ---------------------------------------------------------------------------------------------------------- the times


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=20, deadline=None)
@given(t=st.floats(0.0, 1.0))
def test_the_time_of_a_ratio_is_found(path: Path, t: float) -> None:
    at = f64(t)
    close(equal_ratio_time(path, 0.7 * path.alpha(at), 0.7 * path.sigma(at)), at, 1e-9)


def test_the_published_time_changes() -> None:
    """linear t = σ/(1 + σ), and tan θ = t/(1 − t)."""
    sigma = f64(0.002, 0.5, 3.0, 80.0)
    exploding = VarianceExploding(sigma_max=80.0)
    t = equal_ratio_time(Linear(), exploding.alpha(sigma / 80), exploding.sigma(sigma / 80))
    close(t, sigma / (1 + sigma))
    theta = equal_ratio_time(Cosine(), Linear().alpha(t), Linear().sigma(t)) * math.pi / 2
    close(theta.tan(), t / (1 - t), 1e-10)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_times_are_differentiated_as_by_central_differences(path: Path) -> None:
    t, h = f64(0.1, 0.3, 0.6), 1e-6

    def time(t: Tensor) -> Tensor:
        return equal_ratio_time(path, 1 - t, 2.0 * t)

    slope = derivative(time, (t,), (torch.ones_like(t),))
    close(slope, (time(t + h) - time(t - h)) / (2 * h), 1e-7)


def test_the_tangent_of_a_reframed_model_is_that_of_the_exact_one() -> None:
    law, flow = gauss(Cosine()), reframe(exact(gauss(BENT), "transfer"), Cosine())
    v, one = law.velocity(POINTS, T), torch.ones_like(T)
    r = f64(0.1, 0.5, 0.0, 0.05)
    got = derivative(lambda x, t: flow.predict(x, t, r), (POINTS, T), (v, one))
    close(got, derivative(lambda x, t: law.transfer_velocity(x, t, r), (POINTS, T), (v, one)), 1e-8)


# ------------------------------------------------------------------------------------------------------ what is known


def test_beyond_its_last_time_a_model_is_asked_there() -> None:
    """σ = 80 is not yet pure noise: on the linear path it is t = 80/81, and what lies above is asked at σ = 80."""
    law = gauss(VarianceExploding(sigma_max=80.0))
    flow = reframe(exact(law), Linear())
    assert flow.span == pytest.approx((0.0, 80 / 81), abs=1e-12)
    one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    # A sample from noise ε is the model's own sample from σ_max ε.
    own = law.flow_map(80.0 * POINTS, one, zero)
    close(flow(POINTS, one, zero), own, 1e-9)
    close(flow.velocity(POINTS, one), POINTS - law.posterior_data(80.0 * POINTS, one), 1e-9)


def test_before_its_first_time_a_model_is_asked_there() -> None:
    law = gauss(VarianceExploding(sigma_max=80.0))
    old = exact(law)
    first = 0.002 / 80
    old.span = (first, 1.0)
    flow = reframe(old, Linear())
    assert flow.span[0] == pytest.approx(0.002 / 1.002, abs=1e-12)
    zero = torch.zeros(4, dtype=torch.float64)
    # At x' = x the noise that is expected is that at the first time, and the data are what is left.
    noise = law.posterior_noise(POINTS, torch.full_like(zero, first))
    close(flow.velocity(POINTS, zero), noise - POINTS, 1e-9)
    close(flow(POINTS, zero, zero), POINTS)
    # A jump to the data ends where the model's own samples end, with the noise of the first time.
    t = f64(0.9, 0.6, 0.35, 0.12)
    want = gauss(Linear()).flow_map(POINTS, t, zero)
    close(flow(POINTS, t, zero), want, 1e-4)


def test_nothing_to_do_gives_the_model_back() -> None:
    flow = exact(gauss(Linear()))
    assert reframe(flow, Linear()) is flow
    assert isinstance(reframe(flow, Linear(), shift=0.1), ReframedFlowMap)
    assert isinstance(reframe(flow, Linear(noise_scale=2.0)), ReframedFlowMap)


def test_what_a_model_says_about_itself_goes_along() -> None:
    flow = FlowMap(
        mlp(1, num_classes=3, null_class=True, log_variance=True),
        Cosine(),
        Transfer(),
        sigma_data=0.5,
        guided="w = 2",
    )
    new = reframe(flow, Linear(), scale=0.5)
    assert (new.num_classes, new.null_label, new.guided, new.ends) == (3, 3, "w = 2", "any")
    assert (new.path, new.sigma_data, new.span) == (Linear(), 1.0, (0.0, 1.0))
    # Linear noise against data twice as large: tan(πt'/2)·0.5 = t/(1 − t) with t' the time of the model.
    there = [torch.atan(0.5 * t / (1 - t)) * 2 / math.pi for t in (T, R)]
    label = torch.tensor([0, 1, 2, 3])
    close(new.log_variance(T, R, label), flow.log_variance(*there, label))
    assert float(new.log_variance(T, R, label).detach().std()) > 1e-3
    assert list(new.parameters()) == list(flow.parameters())


def test_dyadic_jumps_remain_only_where_times_do() -> None:
    dyadic = FlowMap(mlp(1), Linear(), AverageVelocity(), LogStep(), ends="dyadic")
    assert reframe(dyadic, Cosine()).ends == "diagonal"
    assert reframe(dyadic, Linear(), shift=0.3).ends == "dyadic"
    # Data and noise of half the size: the same ratio at the same time.
    assert reframe(dyadic, Linear(noise_scale=0.5), scale=2.0).ends == "dyadic"


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_impossible_units_are_refused(scale: float, shift: float) -> None:
    with pytest.raises(IncompatibleParts, match="scale must be positive and finite and shift finite"):
        reframe(exact(gauss(Linear())), Cosine(), scale=scale, shift=shift)


# ----------------------------------------------------------------------------------------------- beside other parts


def classes(path: Path, scale: float = 1.0) -> FiniteData:
    points = column(-1.0, 0.2, 1.5, 0.9) / scale
    return FiniteData(path=path, points=points, labels=torch.tensor([0, 0, 1, 1]), steps=50)


def test_guidance_and_reframing_commute() -> None:
    flow, label = exact(classes(Linear()), "transfer"), torch.tensor([0, 1, 0, 1])
    inside = reframe(guide(flow, 2.0), Cosine(), scale=2.0)
    outside = guide(reframe(flow, Cosine(), scale=2.0), 2.0)
    law = classes(Cosine(), 2.0)
    v = 2 * law.velocity(POINTS, T, label) - law.velocity(POINTS, T, torch.full((4,), 2))
    for guided in (inside, outside):
        close(guided.velocity(POINTS, T, label), v, 1e-9)
    close(inside(POINTS, T, R, label), outside(POINTS, T, R, label), 1e-9)


def test_networks_that_are_told_their_guidance_get_the_window_in_their_own_times() -> None:
    told: list[Tensor] = []

    class Told(ExactNetwork):
        def forward(self, x, time, second=None, label=None, guidance=None):  # type: ignore[no-untyped-def]
            told.append(guidance)
            return super().forward(x, time, second, label)

    flow = reframe(FlowMap(Told(gauss(Linear())), Linear(), AverageVelocity(), told=True), Cosine())
    tan = math.tan(math.pi / 8)
    flow.predict(POINTS, T, R, None, f64(2.0, 0.25, 0.5).expand(4, 3))
    close(told[-1], f64(2.0, tan / (1 + tan), 0.5).expand(4, 3))
    flow.predict(POINTS, T, R)
    close(told[-1], f64(1.0, 0.0, 1.0).expand(4, 3))
    guide(flow, 3.0, (0.0, 0.25)).predict(POINTS, T, R)
    close(told[-1], f64(3.0, 0.0, tan / (1 + tan)).expand(4, 3))


def test_the_head_alone_is_the_one_beside_the_output() -> None:
    flow, draw = reframe(headed(), Cosine(), scale=2.0), told_draw()
    t = draw.times.t
    both = flow.predict_both(draw.x_t, t, t, draw.label, draw.guidance)
    close(flow.predict_head(draw.x_t, t, draw.label, draw.guidance), both[1], 1e-13)
    assert (both[0] - both[1]).abs().min() > 1e-4


def test_samplers_take_it_for_what_it_is() -> None:
    """Euler steps along another path land on the same samples, to first order."""
    law = gauss(Linear())
    flow = reframe(exact(law, "velocity"), Cosine())
    assert flow.ends == "diagonal"
    want = law.flow_map(POINTS, torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    sizes = [16, 32, 64]
    errors = [
        float((PushForward().run(flow, POINTS[None], grid_times(flow, n), None) - want).abs().max()) for n in sizes
    ]
    assert log_slope([1 / n for n in sizes], errors) == pytest.approx(1, abs=0.05)


def test_single_precision_is_enough_for_a_student() -> None:
    """In float32 with times drawn up to 1, where cos(π/2) rounds to a negative number."""
    law = gauss(Cosine(noise_scale=0.5), 2.0)
    t = torch.cat([torch.linspace(0, 1, 41), torch.ones(1)])
    x = torch.linspace(-1, 1, 42)[:, None]
    for old in ("linear", "exploding", "cosine", "bent"):
        flow = reframe(exact(gauss(PATHS[old])), law.path, scale=2.0)
        got = flow.velocity(x, t)
        assert got.dtype == torch.float32
        want = law.velocity(x.double(), t.double())
        tolerance = 2e-2 if old == "exploding" else 1e-4  # above σ = 80 the last denoiser is kept
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_trigflow_is_the_linear_model_in_other_words() -> None:
    """TrigFlow's own units, θ and σ_data, against Transfer on the same path."""
    law = gauss(Cosine(noise_scale=0.5))

    class Trig(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None = None) -> Tensor:
            return law.transfer_velocity(0.5 * x, time, time - second) / (0.5 * math.pi / 2)

    flow = reframe(FlowMap(Trig(), law.path, TrigFlow(), StartAndGap(), sigma_data=0.5), Linear())
    wanted = replace(law, path=Linear())
    close(flow.velocity(POINTS, T), wanted.velocity(POINTS, T), 1e-9)
    close(flow(POINTS, T, R), wanted.flow_map(POINTS, T, R), 1e-9)
