"""Targets on exact flow maps give the exact flow map back; the pieces of each target; the limit s → t."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from oracles import column, f64, finite, gaussian, log_slope, mixture
from shortflow.draw import Draw
from shortflow.dropout import shared_dropout
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import AverageVelocity, EDMSkip, FlowMap, Parameterization, StartOnly, Transfer, TrigFlow
from shortflow.guidance import Guided
from shortflow.nn import SiT
from shortflow.paths import Cosine, Linear, Path, VarianceExploding
from shortflow.recipes import esc, sct
from shortflow.tangent import CentralDifference
from shortflow.targets import (
    CosineWeight,
    Direct,
    Split,
    Tangent,
    TangentWeight,
    Target,
    TargetValue,
    TwoStep,
    UnitWeight,
)
from shortflow.theory import ExactNetwork, FiniteData, Gaussian, Law
from shortflow.typing import Progress, expand
from shortflow.velocity import Conditional, Mixture, PlugIn, Velocity
from steps import Marginal, close, draw_at, gradient, mlp, randomize

X = column(1.1, 0.25, -0.6, 0.8, -1.3)
T = f64(0.7, 0.9, 0.5, 0.4, 1.0)
R = f64(0.2, 0.0, 0.2, 0.4, 0.0)  # the fourth row has r = t


def exact(law: Law, parameterization: Parameterization) -> FlowMap:
    output = "average_velocity" if isinstance(parameterization, AverageVelocity) else "transfer"
    return FlowMap(ExactNetwork(law, output), law.path, parameterization)


def points(law: Law, share: float = 1.0) -> Draw:
    """The rows above with jumps cut to `share`; (x, ε) are noise that only conditional velocities would look at."""
    return draw_at(law.path, torch.zeros_like(X), torch.zeros_like(X), T, T - share * (T - R), x_t=X)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A law, a form of the flow map, how much of the jumps is taken, and how exact the law's own solver is then."""

    build: Callable[[Path], Law] = gaussian
    path: Path
    parameterization: Parameterization
    share: float = 1.0
    tolerance: float = 1e-11


FORMS = [(path, form) for path in (Linear(), Cosine()) for form in (AverageVelocity(), Transfer())]
CASES = [
    *(Case(path=path, parameterization=form) for path, form in FORMS),
    Case(build=lambda path: mixture(path, 6), path=Cosine(), parameterization=Transfer(), share=0.2, tolerance=1e-5),
    Case(
        build=lambda path: finite(path, 6), path=Linear(), parameterization=AverageVelocity(), share=0.2, tolerance=1e-5
    ),
    *(
        pytest.param(Case(build=build, path=path, parameterization=form, tolerance=1e-5), marks=pytest.mark.slow)
        for build in (lambda path: mixture(path, 20), lambda path: finite(path, 40))
        for path, form in FORMS
    ),
]


def name(case: Case) -> str:
    law = type(case.build(case.path)).__name__
    return f"{law}-{type(case.path).__name__}-{type(case.parameterization).__name__}-{case.share}"


# --------------------------------------------------------------------------------- the exact map is a fixed point


@pytest.mark.parametrize("case", CASES, ids=name)
def test_tangent_target_of_the_exact_map_is_the_exact_map(case: Case) -> None:
    """MeanFlow's identity with the marginal velocity, on every path and in both parameterisations."""
    law = case.build(case.path)
    flow, draw = exact(law, case.parameterization), points(law, case.share)
    want = flow.predict(X, T, draw.times.r)
    rows = slice(None) if case.build is gaussian else slice(0, 4)  # pure noise at t = 1 costs Runge–Kutta digits
    for weight in (UnitWeight(), CosineWeight()):
        value = Tangent(velocity=Marginal(law=law), weight=weight)(flow, draw)
        assert value.space == "output"
        close(value.value[rows], want[rows], case.tolerance)


def test_a_wrong_map_is_not_a_fixed_point() -> None:
    law = gaussian(Linear())
    flow = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity())
    value = Tangent(velocity=Marginal(law=law))(flow, points(law)).value
    assert (value - flow.predict(X, T, R))[:3].abs().min() > 0.05


@pytest.mark.parametrize("parameterization", [AverageVelocity(), Transfer()])
@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_plug_in_velocity_of_the_whole_data_set_gives_the_exact_map_of_the_data_set(
    path: Path, parameterization: Parameterization
) -> None:
    """ESC with probability 1 and the data set as the batch; the classes are those of the rows, hidden ones included."""
    data = column(-1.0, 0.2, 1.5, 0.7)
    law = FiniteData(path=path, points=data, labels=torch.tensor([0, 1, 0, 1]), steps=8)
    flow = exact(law, parameterization)
    draw = draw_at(
        path,
        data,
        column(0.5, -0.3, 0.1, -1.2),
        f64(0.7, 0.8, 0.5, 0.6),
        f64(0.5, 0.6, 0.5, 0.4),
        label=law.labels,
        dropped=torch.tensor([False, False, True, True]),
        null_label=2,
    )
    velocity = esc(probability=1.0, omega=1.0, kappa=0.0).objective.target.velocities()[0]
    close(velocity(flow, draw), law.velocity(draw.x_t, draw.times.t, draw.condition), 1e-12)
    value = Tangent(velocity=velocity)(flow, draw).value
    close(value, flow.predict(draw.x_t, draw.times.t, draw.times.r, draw.condition), 1e-5)


class ExactTrigFlow(nn.Module):
    """F(x/σ_d, t) with X_{t,0}(x) = cos θ x − sin θ σ_d F, times `scale`."""

    def __init__(self, law: Law, sigma_data: float, scale: float = 1.0) -> None:
        super().__init__()
        self.law, self.sigma_data, self.scale = law, sigma_data, scale

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        x = self.sigma_data * x
        end, theta = self.law.flow_map(x, time, torch.zeros_like(time)), expand(time, x) * math.pi / 2
        return self.scale * (torch.cos(theta) * x - end) / (self.sigma_data * torch.sin(theta))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("std", [0.3, 0.8])
def test_sct_tangent_of_the_exact_trigflow_map_is_zero(std: float, sigma_data: float) -> None:
    """Also when data and noise differ in scale. An output without σ_d (the published slip) is not a fixed point."""
    law = Gaussian(path=Cosine(noise_scale=sigma_data), mean=0.3, std=std)
    draw = draw_at(law.path, torch.zeros_like(X), torch.zeros_like(X), T, torch.zeros_like(T), x_t=X)
    target = sct(sigma_data=sigma_data).objective.target
    assert isinstance(target, Tangent)
    for normalize in (None, 0.1):
        moved = replace(target, velocity=Marginal(law=law), normalize=normalize, warmup=0.0)
        for scale in (1.0, sigma_data):
            flow = FlowMap(
                ExactTrigFlow(law, sigma_data, scale), law.path, TrigFlow(), StartOnly(), sigma_data=sigma_data
            )
            output = flow.predict(X, T, torch.zeros_like(T))
            tangent = moved(flow, draw).value - output
            if scale == 1:
                close(tangent, torch.zeros_like(X), 1e-10)
                close(flow(X, T, torch.zeros_like(T)), law.flow_map(X, T, torch.zeros_like(T)), 1e-12)
            else:
                assert tangent.abs().max() > 0.05


@pytest.mark.parametrize("case", CASES, ids=name)
def test_two_own_steps_of_the_exact_map_are_one(case: Case) -> None:
    """The semigroup, and its form for average velocities: u_{t,r} = ((t−s) u_{t,s} + (s−r) u_{s,r}∘X_{t,s})/(t−r)."""
    law = case.build(case.path)
    flow, t, x = exact(law, case.parameterization), T[:3], X[:3]
    r = t - case.share * (t - R[:3])
    for share in (0.5, 0.9):
        s = r + share * (t - r)
        draw = draw_at(case.path, x, x, t, r, s, x_t=x)
        state = TwoStep(first=None)(flow, draw)
        assert state.space == "state"
        close(state.value, law.flow_map(x, t, r), case.tolerance)
        output = state.in_space("output", flow, draw)
        close(output, flow.predict(x, t, r), 10 * case.tolerance)
        if isinstance(case.parameterization, AverageVelocity):
            first, second = flow.predict(x, t, s), flow.predict(flow(x, t, s), s, r)
            close(output, share * second + (1 - share) * first, 1e-12)


# --------------------------------------------------------------------------------------------- the limit s → t


def rescaled_residuals(
    objective_first: Velocity, target: Target, flow: FlowMap, draw: Draw, deltas: list[float]
) -> tuple[list[float], list[float]]:
    """Errors of (t−r)/δ · (F − T_δ) against F − F_tgt, and of the gradients of their squares."""
    t, _, r = draw.times
    output = flow.predict(draw.x_t, t, r)
    continuous = output - target(flow, draw).value
    wanted = gradient(continuous.square().sum(), flow.network)
    errors, gradients = [], []
    for delta in deltas:
        output = flow.predict(draw.x_t, t, r)
        near = replace(draw, times=draw.times._replace(s=t - delta))
        residual = output - TwoStep(first=objective_first)(flow, near).in_space("output", flow, near)
        factor = expand((t - r) / delta, residual)
        errors.append((factor * residual - continuous).norm().item())
        got = gradient((factor * residual.square()).sum(), flow.network)
        gradients.append((got - wanted).norm().item() / wanted.norm().item())
    return errors, gradients


@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_two_step_target_becomes_the_tangent_target_at_first_order(path: Path) -> None:
    """(t−r)/δ times the discrete residual, and (t−r)/δ times the gradient of its square, converge with slope 1.

    The two-step target here is that of consistency training: conditional velocity first, network second.
    """
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t, r = f64(0.9, 0.8, 0.7, 0.6, 0.95, 0.5), f64(0.1, 0.0, 0.3, 0.2, 0.5, 0.1)
    flow = FlowMap(mlp(), path, AverageVelocity())
    # In u-form the first step of the limit is x − δ v; on the cosine path the DDIM step differs from it by O(δ²).
    draw, deltas = draw_at(path, x, eps, t, r), [0.02, 0.01, 0.005, 0.0025]
    errors, gradients = rescaled_residuals(Conditional(), Tangent(), flow, draw, deltas)
    assert log_slope(deltas, errors) == pytest.approx(1, abs=0.05)
    assert log_slope(deltas, gradients) == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.05


def test_one_conditional_step_misses_the_exact_map_at_first_order_in_u() -> None:
    """On the exact map with the marginal velocity, T − u is O(δ²), hence O(δ) after the factor (t − r)/δ."""
    law = gaussian(Linear())
    flow = exact(law, AverageVelocity())
    sizes, errors = [0.04, 0.02, 0.01, 0.005], []
    for delta in sizes:
        draw = draw_at(law.path, X[:3], X[:3], T[:3], R[:3], T[:3] - delta, x_t=X[:3])
        output = TwoStep(first=Marginal(law=law))(flow, draw).in_space("output", flow, draw)
        errors.append((output - flow.predict(X[:3], T[:3], R[:3])).norm().item() / delta)
    assert log_slope(sizes, errors) == pytest.approx(1, abs=0.05)


# -------------------------------------------------------------------------------------------------- two steps


@pytest.mark.parametrize("path", [Linear(), Cosine(noise_scale=0.5), VarianceExploding(sigma_max=3.0)])
def test_conditional_first_step_lands_on_the_path(path: Path) -> None:
    """x_s = α_s x + σ_s ε with the same (x, ε), exactly; then the network's jump from there."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s, r = f64(1.0, 0.8, 0.5, 0.3), f64(0.4, 0.7, 0.1, 0.2), f64(0.0, 0.7, 0.0, 0.1)
    flow = FlowMap(mlp(), path, Transfer())
    got = TwoStep(first=Conditional())(flow, draw_at(path, x, eps, t, r, s)).value
    x_s = expand(path.alpha(s), x) * x + expand(path.sigma(s), x) * eps
    close(got, flow(x_s, s, r).detach(), 1e-12)
    close(got[1], x_s[1], 1e-12)  # s = r: the second jump has length zero


class Constant(nn.Module):
    """The same output everywhere, one for each class; class 2 is no class."""

    num_classes, null_label = 2, 2

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = f64(*values)

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.ones_like(x) * (self.values[0] if label is None else expand(self.values[label], x))


class Minus(nn.Module):
    """F = −x."""

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return -x


def test_clip_bounds_the_middle_state_and_the_output() -> None:
    """clip((u_1 + u_2)/2) with u_1 = −x_t and u_2 = −clip(x_s), x_s = 3x_t/2; the bound on x_s does not alter u_1."""
    flow, x, half = FlowMap(Minus(), Linear(), AverageVelocity()), column(0.5, 1.5, 3.0), f64(0.5, 0.5, 0.5)
    draw = draw_at(Linear(), x, x, torch.ones_like(half), torch.zeros_like(half), half, x_t=x)
    value = TwoStep(first=None, clip=2.0)(flow, draw)
    assert value.space == "output"
    close(value.value, column(-0.625, -1.75, -2.0), 1e-12)
    close(TwoStep(first=None)(flow, draw).in_space("output", flow, draw), -1.25 * x, 1e-12)


@pytest.mark.parametrize(("scale", "want"), [(1.5, 1 + 1.5 * 1.0), (0.0, 1.0), (1.0, 2.0)])
def test_guidance_acts_on_the_smallest_jump_of_rows_with_a_class(scale: float, want: float) -> None:
    """Outputs 2 and 5 with a class, 1 without: u_∅ + w (u_c − u_∅). A scale of 0 is the unconditional output."""
    flow = FlowMap(Constant(2.0, 5.0, 1.0), Linear(), AverageVelocity())
    t = f64(0.5, 0.5, 0.5, 0.5)
    gap = f64(1 / 64, 1 / 32, 1 / 64, 1 / 64)
    draw = draw_at(
        Linear(),
        torch.zeros(4, 2).double(),
        torch.zeros(4, 2).double(),
        t,
        t - gap,
        t - gap / 2,
        label=torch.tensor([0, 0, 1, 0]),
        dropped=torch.tensor([False, False, False, True]),
        null_label=2,
    )
    output = TwoStep(first=None, guidance=scale)(flow, draw).in_space("output", flow, draw)[:, 0]
    close(output, f64(want, 2.0, 1 + 4 * scale, 1.0), 1e-10)


# ----------------------------------------------------------------------------------------------- the tangent


@dataclass(frozen=True, kw_only=True)
class NoWeight(TangentWeight):
    """w = 0: the target is the teacher's own output."""

    def __call__(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


def random_draw(path: Path, n: int = 6, d: int = 3, share: float = 1.0, seed: int = 0) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.3, 0.95, n, dtype=torch.float64)
    r = t * torch.linspace(0, 0.8, n, dtype=torch.float64)
    return draw_at(path, x, eps, t, r, progress=Progress(images=int(1000 * share), total=1000))


def test_tangent_target_is_meanflows_formula() -> None:
    """v − (t − r) D_t u, and D_t u in the log."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    t, _, r = draw.times
    v = draw.eps - draw.x
    rate = torch.func.jvp(lambda x, t: flow.network(x, t, t - r, None), (draw.x_t, t), (v, torch.ones_like(t)))[
        1
    ].detach()
    value = Tangent()(flow, draw)
    close(value.value, v - (t - r)[:, None] * rate, 1e-12)
    close(value.logs["tangent"], rate.square().mean(1).sqrt(), 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_warmup_grows_the_propagated_part_and_length_zero_means_none(share: float) -> None:
    """A warm-up of length 0 divides by zero in published code; here it is full strength from the first step."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear(), share=share)
    v = draw.eps - draw.x
    full = Tangent()(flow, draw).value
    close(Tangent(warmup=0.0)(flow, draw).value, full, 0)
    warm = Tangent(warmup=0.25)(flow, draw).value
    close(warm - v, min(1.0, share / 0.25) * (full - v), 1e-12)


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_normalised_tangent(norm: str) -> None:
    """F + g/(‖g‖ + c) with g = F_tgt − F of the plain target; rows with r = t keep their velocity."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    t = draw.times.t
    draw = replace(draw, times=draw.times._replace(r=torch.cat([draw.times.r[:5], t[5:]])))
    output = flow.predict(draw.x_t, t, draw.times.r).detach()
    g = Tangent()(flow, draw).value - output
    size = g.norm(dim=1) if norm == "l2" else g.square().mean(1).sqrt()
    got = Tangent(normalize=0.1, norm=norm)(flow, draw).value  # pyright: ignore[reportArgumentType]
    close(got[:5], (output + g / (size + 0.1)[:, None])[:5], 1e-12)
    close(got[5], (draw.eps - draw.x)[5], 1e-14)


class Repeated(nn.Module):
    """A network on d coordinates, applied to each of several copies of them."""

    def __init__(self, network: nn.Module, d: int) -> None:
        super().__init__()
        self.network, self.d = network, d

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        copies = x.shape[1] // self.d
        return torch.cat([self.network(part, time, second, label) for part in x.chunk(copies, 1)], 1)


def test_rms_normalisation_does_not_depend_on_batch_size_or_copies_of_the_coordinates() -> None:
    path, network = Linear(), mlp()
    flow, draw = FlowMap(Repeated(network, 3), path, AverageVelocity()), random_draw(path)
    target = Tangent(normalize=0.1, norm="rms")
    value = target(flow, draw).value
    some = draw_at(path, draw.x[:2], draw.eps[:2], draw.times.t[:2], draw.times.r[:2])
    close(target(flow, some).value, value[:2], 1e-12)
    twice = draw_at(path, draw.x.repeat(1, 2), draw.eps.repeat(1, 2), draw.times.t, draw.times.r)
    close(target(flow, twice).value, value.repeat(1, 2), 1e-12)
    plain = replace(target, norm="l2")
    assert (plain(flow, twice).value - plain(flow, draw).value.repeat(1, 2)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("path", "parameterization", "sigma_data"),
    [
        (Linear(), AverageVelocity(), 1.0),
        (Linear(noise_scale=0.5), AverageVelocity(normalize=True), 0.5),
        (Cosine(), Transfer(), 1.0),
        (Cosine(noise_scale=0.5), TrigFlow(), 0.5),
        (VarianceExploding(sigma_max=3.0), EDMSkip(), 0.5),
        (VarianceExploding(sigma_max=3.0), AverageVelocity(), 1.0),
    ],
)
def test_tangent_target_pulls_the_state_against_its_derivative(
    path: Path, parameterization: Parameterization, sigma_data: float
) -> None:
    """In every parameterisation the step to the target is a negative multiple of D_t X, taken here from X itself."""
    flow, draw = FlowMap(mlp(), path, parameterization, sigma_data=sigma_data), random_draw(path)
    t, _, r = draw.times
    v = path.velocity(draw.x, draw.eps, t)
    rate = torch.func.jvp(lambda x, t: flow(x, t, r), (draw.x_t, t), (v, torch.ones_like(t)))[1]
    step = Tangent()(flow, draw).in_space("state", flow, draw) - flow(draw.x_t, t, r)
    _, b = flow.coefficients(t, r)
    close(step, -b.abs()[:, None] * rate, 1e-10)


def test_central_differences_give_the_same_target() -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    got = Tangent(derivative=CentralDifference(step=1e-4))(flow, draw).value
    close(got, Tangent()(flow, draw).value, 1e-7)


# ------------------------------------------------------------------------------------------ rows, logs, gradients


@pytest.mark.parametrize("parameterization", [AverageVelocity(), Transfer()])
def test_rows_without_a_gap_get_the_velocity(parameterization: Parameterization) -> None:
    path = Cosine()
    flow, draw = FlowMap(mlp(), path, parameterization), random_draw(path)
    draw = replace(draw, times=draw.times._replace(r=torch.where(torch.arange(6) % 2 == 0, draw.times.t, draw.times.r)))
    v = path.velocity(draw.x, draw.eps, draw.times.t)
    value = Tangent()(flow, draw)
    close(value.value[::2], v[::2], 1e-14)
    assert value.logs["tangent"][::2].isnan().all()
    assert value.logs["tangent"][1::2].isfinite().all()
    close(Direct()(flow, draw).value, v, 1e-14)


def test_direct_target_is_the_output_that_stands_for_the_velocity() -> None:
    path = Cosine(noise_scale=0.5)
    flow, draw = FlowMap(mlp(), path, TrigFlow(), sigma_data=0.5), random_draw(path)
    output = Direct()(flow, draw).value
    close(output, path.velocity(draw.x, draw.eps, draw.times.t) / (0.5 * math.pi / 2), 1e-13)


def test_split_sends_each_row_to_its_target() -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    t, _, r = draw.times
    r = torch.where(torch.arange(6) % 3 == 1, t, r)
    draw = replace(draw, times=draw.times._replace(s=(t + r) / 2, r=r))
    value, boot = Split(bootstrap=TwoStep(first=None, clip=1.5))(flow, draw), draw.times.bootstrap
    rows = boot.nonzero()[:, 0]
    alone = replace(
        draw,
        **{name: getattr(draw, name)[rows] for name in ("x", "eps", "x_t", "dropped", "coin")},
        times=draw.times.take(rows),
    )
    close(value.value[boot], TwoStep(first=None, clip=1.5)(flow, alone).value, 1e-12)
    close(value.value[~boot], (draw.eps - draw.x)[~boot], 1e-14)
    assert value.value[boot].abs().max() <= 1.5


def test_state_and_output_are_two_forms_of_one_target() -> None:
    path = Cosine(noise_scale=0.5)
    flow, draw = FlowMap(mlp(), path, TrigFlow(), sigma_data=0.5), random_draw(path)
    output = TargetValue(value=draw.x, space="output")
    state = TargetValue(value=output.in_space("state", flow, draw), space="state")
    t, _, r = draw.times
    angle = ((t - r) * math.pi / 2)[:, None]
    close(state.value, torch.cos(angle) * draw.x_t - 0.5 * torch.sin(angle) * draw.x, 1e-13)
    close(state.in_space("output", flow, draw), draw.x, 1e-12)
    assert state.in_space("state", flow, draw) is state.value


@pytest.mark.parametrize(
    "target",
    [Direct(), TwoStep(first=None), TwoStep(first=Conditional(), clip=1.0), Tangent(), Tangent(normalize=0.1), Split()],
)
def test_targets_carry_no_gradient(target: Target) -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    draw = replace(draw, times=draw.times._replace(s=(draw.times.t + draw.times.r) / 2))
    value = target(flow, draw)
    assert not value.value.requires_grad
    assert not any(log.requires_grad for log in value.logs.values())


@pytest.mark.parametrize("kind", ["mlp", "sit"])
def test_all_passes_of_a_step_share_the_dropout_masks(kind: str) -> None:
    """At s = t the two steps are one, and at w = 0 the tangent target is the output: exactly, with dropout on."""
    shape = (3,) if kind == "mlp" else (1, 4, 4)
    network = (
        mlp(dropout=0.5)
        if kind == "mlp"
        else randomize(SiT(shape=(1, 4, 4), width=16, depth=2, heads=2, patch=2, dropout=0.3))
    )
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    r = torch.where(torch.arange(5) == 2, T, R)  # one row without a jump in the middle: passes run on the others
    draw = replace(draw_at(Linear(), x, eps, T, r), dropout_seed=7)
    flow = FlowMap(network, Linear(), AverageVelocity()).train()
    with torch.no_grad(), shared_dropout(7, 5):
        output = flow.predict(draw.x_t, T, r)
    boot = draw.times.bootstrap
    for target in (Tangent(weight=NoWeight()), Split()):
        close(target(flow, draw).value[boot], output[boot], 1e-12)
        other = replace(draw, dropout_seed=8)
        assert (target(flow, other).value - output)[boot].abs().flatten(1).max(1).values.min() > 1e-3


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TwoStep(first=None, clip=0.0), "clip must be positive or null, got 0"),
        (lambda: Tangent(warmup=1.5), r"share of the run and must be in \[0, 1\], got 1.5"),
        (lambda: Tangent(normalize=-1.0), "normalize must be positive or null, got -1"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], Target], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()


def test_guidance_of_a_given_first_step_is_refused() -> None:
    with pytest.raises(IncompatibleParts, match="wrapping it in Guided"):
        TwoStep(first=Conditional(), guidance=2.0)


def test_velocities_inside() -> None:
    guided = Guided(base=Mixture(plug_in=PlugIn()))
    assert Tangent(velocity=guided).velocities() == (guided,)
    assert TwoStep(first=None).velocities() == ()
    assert Split(bootstrap=TwoStep(first=guided)).velocities() == (Conditional(), guided)
