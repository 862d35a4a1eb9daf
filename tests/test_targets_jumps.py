"""Targets of finite steps: on exact maps, in their limits, and against the formulas of the papers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exactmaps import FORMS, R, T, X, exact, form_name, gauss, points
from oracles import column, f64, finite, log_slope, mixture
from shortflow.draw import Draw, References
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, Parameterization, Transfer
from shortflow.guidance import Guided
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear, Path
from shortflow.targets import Along, Secant, Split, Tangent, Target, TwoStep
from shortflow.theory import ExactNetwork
from shortflow.times import Dyadic, GroupedJumps, Sorted
from shortflow.typing import expand
from shortflow.velocity import Conditional, Own, Reference
from steps import Marginal, close, draw_at, gradient, loss_and_gradient, mlp

every_form = pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS, ids=form_name)
SIZES = [0.02, 0.01, 0.005, 0.0025]


def random_draw(path: Path, share: float = 0.5, n: int = 6) -> Draw:
    """Jumps of different lengths with s = t − share (t − r)."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.4, 0.95, n, dtype=torch.float64)
    r = t * torch.linspace(0, 0.7, n, dtype=torch.float64)
    return draw_at(path, x, eps, t, r, r if share == 1 else t - share * (t - r))


# ------------------------------------------------------------------------------------------- two steps on exact maps


@pytest.mark.parametrize(("solver", "order"), [("transfer", 2), ("euler", 2), ("heun", 3)])
@pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS[2:5], ids=form_name)
def test_error_of_a_first_step_along_the_exact_velocity(
    path: Path, form: Parameterization, sigma_data: float, solver: str, order: int
) -> None:
    """One step of length δ misses X_{t,r} by O(δ²), one of Heun by O(δ³)."""
    law = gauss(path)
    flow, errors = exact(law, form, sigma_data), []
    target = TwoStep(first=Own(), solver=solver)  # pyright: ignore[reportArgumentType]
    for size in SIZES:
        state = target(flow, points(path, T - size))
        assert state.space == "state"
        errors.append((state.value - law.flow_map(X, T, R)).norm().item())
    assert log_slope(SIZES, errors) == pytest.approx(order, abs=0.05)


def test_heuns_step_by_hand() -> None:
    """x + δ (v(x, t) + v(x + δ v, s))/2 with δ = s − t, consistency distillation's."""
    law, path = gauss(Cosine()), Cosine()
    s = T - 0.2
    v = law.velocity(X, T)
    middle = X - 0.2 * v
    x_s = X - 0.1 * (v + law.velocity(middle, s))
    student = FlowMap(mlp(1), path, Transfer())
    draw = replace(points(path, s), references=References(teacher=exact(law, Transfer())))
    for first in (Own(), Reference()):
        teacher = exact(law, Transfer()) if first == Own() else student
        got = TwoStep(first=first, solver="heun")(teacher, draw).value
        close(got, teacher(x_s, s, R).detach(), 1e-12)


@every_form
@pytest.mark.parametrize("segments", [1, 2, 5])
def test_any_number_of_jumps_of_the_exact_map_is_one(
    path: Path, form: Parameterization, sigma_data: float, segments: int
) -> None:
    law = gauss(path)
    flow = exact(law, form, sigma_data)
    draw = points(path, 0.3 * R + 0.7 * T)
    close(TwoStep(first=None, segments=segments)(flow, draw).value, law.flow_map(X, T, R), 1e-10)


def test_segments_are_equal_jumps() -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    t, s, r = draw.times
    x = draw.x_t + expand(s - t, draw.x) * (draw.eps - draw.x)
    grid = [s, s + (r - s) / 3, s + (r - s) * 2 / 3, r]
    for start, end in pairwise(grid):
        x = flow(x, start, end).detach()
    close(TwoStep(segments=3)(flow, draw).value, x, 1e-12)


def test_the_midpoint_of_the_exact_map_of_a_mixture() -> None:
    """PSD-M: ½(u_{t,s} + u_{s,r}∘X_{t,s}) with s = (t + r)/2."""
    law = mixture(Linear(), 12)
    flow = FlowMap(ExactNetwork(law), law.path, AverageVelocity())
    t, r = f64(0.4, 0.5, 0.6, 0.8), f64(0.1, 0.3, 0.2, 0.5)
    draw = points(Linear(), (t + r) / 2, t, r)
    got = TwoStep(first=None)(flow, draw).in_space("output", flow, draw)
    close(got, law.average_velocity(X, t, r), 1e-6)


def test_rows_below_the_boundary_take_the_second_step_of_the_frozen_teacher() -> None:
    """Truncated consistency training: X^φ_{s,r}(x_s) where s < .5, the network's own elsewhere."""
    path = Linear()
    law, student = gauss(path), FlowMap(mlp(1), path, AverageVelocity())
    s = f64(0.6, 0.3, 0.5, 0.49)
    draw = replace(points(path, s), references=References(teacher=exact(law, AverageVelocity())))
    x_s = X + (s - T)[:, None] * law.velocity(X, T)
    got = TwoStep(first=Reference(), below=0.5)(student, draw).value
    low = torch.tensor([False, True, False, True])[:, None]
    close(got, torch.where(low, law.flow_map(x_s, s, R), student(x_s, s, R)).detach(), 1e-12)
    none = replace(draw, times=draw.times._replace(s=T - 0.01))
    close(TwoStep(first=Reference(), below=0.1)(student, none).value, TwoStep(first=Reference())(student, none).value)


@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_targets_along_the_conditional_velocity_are_right_in_the_mean(path: Path) -> None:
    """The mean over the data given x_t, exact for a finite data set: two steps miss X_{t,r} by O(δ²), the difference
    quotient misses the output by O(δ), and the tangent target, affine in v, not at all. Single rows are far off."""
    law = finite(path, 16)
    flow, n = FlowMap(ExactNetwork(law, "transfer"), path, Transfer()), len(law.points)
    x, t, r = column(0.3), f64(0.6), f64(0.2)
    share = law.responsibilities(x, t)
    eps = (x - expand(path.alpha(t), x) * law.points) / expand(path.sigma(t), x)
    state, output = law.flow_map(x, t, r), flow.predict(x, t, r)
    tangent = Tangent()(flow, draw_at(path, law.points, eps, t.expand(n), r.expand(n))).value
    close(share @ tangent, output, 1e-5)
    assert (tangent - output).abs().min() > 0.1
    states, outputs = [], []
    for size in SIZES:
        draw = draw_at(path, law.points, eps, t.expand(n), r.expand(n), (t - size).expand(n))
        close(draw.x_t, x.expand(n, 1))
        states.append((share @ TwoStep()(flow, draw).value - state).norm().item())
        outputs.append((share @ Secant()(flow, draw).value - output).norm().item())
    assert log_slope(SIZES, states) == pytest.approx(2, abs=0.05)
    assert log_slope(SIZES, outputs) == pytest.approx(1, abs=0.05)


# --------------------------------------------------------------------------------------------- difference quotients


@every_form
@pytest.mark.parametrize("solver", ["transfer", "euler"])
def test_secant_of_the_exact_map_is_the_exact_map_at_first_order(
    path: Path, form: Parameterization, sigma_data: float, solver: str
) -> None:
    law = gauss(path)
    flow, errors = exact(law, form, sigma_data), []
    output = flow.predict(X, T, R)
    steps = TwoStep(first=Marginal(law=law), solver=solver)  # pyright: ignore[reportArgumentType]
    for size in SIZES:
        value = Secant(steps=steps)(flow, points(path, T - size))
        assert value.space == "output"
        errors.append((value.value - output).norm().item())
    assert log_slope(SIZES, errors) == pytest.approx(1, abs=0.05)


@every_form
def test_secant_becomes_the_tangent(path: Path, form: Parameterization, sigma_data: float) -> None:
    """On any network and with the conditional velocity, value by value, at first order."""
    flow, draw = FlowMap(mlp(), path, form, sigma_data=sigma_data), random_draw(path)
    want, errors = Tangent()(flow, draw).value, []
    for size in SIZES:
        near = replace(draw, times=draw.times._replace(s=draw.times.t - size))
        errors.append((Secant()(flow, near).value - want).norm().item())
    assert log_slope(SIZES, errors) == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.1 * want.norm()


def test_secant_over_the_whole_jump_is_a_straight_step() -> None:
    """s = r on the linear path: no network behind it, the target is v."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear(), 1.0)
    assert torch.equal(draw.times.s, draw.times.r)
    close(Secant()(flow, draw).value, Along()(flow, draw).value, 1e-12)
    close(Secant(clip=0.01)(flow, draw).value, draw.eps - draw.x, 1e-12)  # nothing is clipped where s = r


def rcgm_residual(flow: FlowMap, draw: Draw, segments: int) -> tuple[Tensor, Tensor]:
    """(F, ρ), ρ = (t − r) F/Δ − Σ F̄_i δ_i/Δ − v, as RCGM writes it on the linear path."""
    (t, s, r), v = draw.times, draw.eps - draw.x
    x = draw.x_t - expand(t - s, draw.x) * v
    total = torch.zeros_like(x)
    for i in range(segments):
        start, end = s + (r - s) * (i / segments), s + (r - s) * ((i + 1) / segments)
        mean = flow.predict(x, start, end)
        x = x - expand(start - end, x) * mean
        total = total + expand(start - end, x) * mean
    output = flow.predict(draw.x_t, t, r)
    return output, (expand(t - r, x) * output - total) / expand(t - s, x) - v


@pytest.mark.parametrize("clip", [None, 0.3])
def test_secant_is_rcgms_residual(clip: float | None) -> None:
    """F − clip(ρ, ±.3) with Δ = .01; rows that are shorter than Δ have ρ = F − v, not clipped."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    t, _, r = draw.times
    r = torch.where(torch.arange(6) == 3, t - 0.004, r)
    draw = replace(draw, times=draw.times._replace(s=torch.maximum(t - 0.01, r), r=r))
    output, residual = rcgm_residual(flow, draw, 2)
    assert (residual.abs() > 0.3).any()
    assert (residual.abs() < 0.3).any()
    close(residual[3], (output - draw.eps + draw.x)[3], 1e-11)
    bound = torch.full((6, 1), torch.inf if clip is None else clip, dtype=torch.float64)
    bound[3] = torch.inf
    want = output - torch.maximum(torch.minimum(residual, bound), -bound)
    got = Secant(steps=TwoStep(solver="euler", segments=2), clip=clip)(flow, draw).value
    close(got, want.detach(), 1e-10)


@pytest.mark.parametrize("size", [0.01, 0.001])
@pytest.mark.parametrize("segments", [1, 3])
def test_size_of_rcgms_residual_on_an_exact_map(size: float, segments: int) -> None:
    """ρ = −½ Δ (S_r/S_t) D_t v + O(Δ²), with the golden numbers of μ = .3, c = .5, t = .7, r = .2, x = 1.1 (linear)."""
    flow = exact(gauss(Linear()), AverageVelocity())
    draw = points(Linear(), f64(0.7 - size), f64(0.7), f64(0.2), column(1.1))
    steps = TwoStep(first=Own(), solver="euler", segments=segments)
    residual = flow.predict(draw.x_t, draw.times.t, draw.times.r) - Secant(steps=steps)(flow, draw).value
    want = -0.5 * size * 0.447213595500 / 0.715891053164 * 0.961332540155
    assert residual.item() == pytest.approx(want, rel=3 * size)


@pytest.mark.parametrize("path", [Linear(), Cosine()])
@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_secant_with_an_adaptive_weight_has_soflows_gradient(path: Path, form: Parameterization) -> None:
    """sign(b) ⟨F, sg(wΔ)⟩/D with Δ = (f_t − f_s)/(t − s) and w = 1/(‖Δ‖²/D + .01): half of our gradient."""
    flow, draw = FlowMap(mlp(), path, form), random_draw(path, 0.1)
    objective = Objective(
        times=GroupedJumps(),
        target=Secant(steps=TwoStep(solver="euler")),
        metric=SquaredError(reduce="mean"),
        weighting=Adaptive(power=1.0, c=0.01),
        label_dropout=0.0,
    )
    _, slope = loss_and_gradient(objective, flow, draw)
    t, s, r = draw.times
    x_s = draw.x_t + expand(s - t, draw.x) * path.velocity(draw.x, draw.eps, t)
    delta = ((flow(draw.x_t, t, r) - flow(x_s, s, r)) / expand(t - s, draw.x)).detach()
    w = 1 / (delta.square().mean(1) + 0.01)
    _, b = flow.coefficients(t, r)
    soflow = (torch.sign(b) * w * (flow.predict(draw.x_t, t, r) * delta).mean(1)).mean()
    close(0.5 * slope, gradient(soflow, flow.network), 1e-10)


def test_the_gradient_of_the_secant_becomes_meanflows() -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    secant = Objective(times=GroupedJumps(), target=Secant(), label_dropout=0.0)
    meanflow = Objective(times=Sorted(), target=Tangent(), label_dropout=0.0)
    _, want = loss_and_gradient(meanflow, flow, draw)
    errors = []
    for size in SIZES:
        near = replace(draw, times=draw.times._replace(s=draw.times.t - size))
        errors.append((loss_and_gradient(secant, flow, near)[1] - want).norm().item())
    assert log_slope(SIZES, errors) == pytest.approx(1, abs=0.05)


def test_secant_starts_from_the_prediction_of_the_trained_network() -> None:
    """With another teacher g is (X^θ − X^θ̄ ∘ …)/(t − s): the prediction of the one, the second step of the other."""
    flow, teacher = (FlowMap(mlp(seed=seed), Linear(), AverageVelocity()) for seed in (1, 2))
    draw = random_draw(Linear())
    t, s, r = draw.times
    output = flow.predict(draw.x_t, t, r).detach()
    x_s = draw.x_t + expand(s - t, draw.x) * (draw.eps - draw.x)
    g = (flow(draw.x_t, t, r) - teacher(x_s, s, r)) / expand(t - s, draw.x)
    close(Secant()(teacher, draw, output).value, (output + g).detach(), 1e-11)


# ------------------------------------------------------------------------------------------------- straight steps


@every_form
def test_along_the_conditional_velocity_ends_on_the_path(path: Path, form: Parameterization, sigma_data: float) -> None:
    """Trajectory matching: the state α_r x + σ_r ε, with the r = t rows' output that stands for the velocity."""
    flow, draw = FlowMap(mlp(), path, form, sigma_data=sigma_data), random_draw(path)
    t, _, r = draw.times
    r = torch.where(torch.arange(6) % 3 == 1, t, r)
    draw = replace(draw, times=draw.times._replace(s=t, r=r))
    value = Along()(flow, draw)
    close(value.in_space("state", flow, draw), path.interpolate(draw.x, draw.eps, r), 1e-11)
    v = path.velocity(draw.x, draw.eps, t)
    assert value.velocity is not None
    close(value.velocity, v, 1e-13)
    close(flow.velocity_of(draw.x_t, value.value, t)[r == t], v[r == t], 1e-11)


def test_alpha_flow_at_its_ends() -> None:
    """û = αv + (1 − α) u(x_s): flow matching over (t, r) at α = 1, and in between by hand; loss and gradient."""
    flow = FlowMap(mlp(), Linear(), AverageVelocity())
    two = Objective(times=GroupedJumps(), target=TwoStep(solver="euler"), label_dropout=0.0)
    for alpha in (1.0, 0.3):
        draw = random_draw(Linear(), alpha)
        (t, s, r), v = draw.times, draw.eps - draw.x
        loss, slope = loss_and_gradient(two, flow, draw)
        behind = flow.predict(draw.x_t + expand(s - t, v) * v, s, r).detach()
        want = (flow.predict(draw.x_t, t, r) - alpha * v - (1 - alpha) * behind).square().mean(1)
        close(loss, want.detach(), 1e-11)
        close(slope, gradient(want.mean(), flow.network), 1e-10)
        if alpha == 1:
            along = Objective(times=Sorted(), target=Along(), label_dropout=0.0)
            other = loss_and_gradient(along, flow, draw)
            close(other[0], loss, 1e-11)
            close(other[1], slope, 1e-10)


def test_a_stage_of_progressive_distillation_is_the_bootstrap_target_of_a_frozen_network() -> None:
    """½(u_1 + u_2) with two half steps of the snapshot, the middle clipped at ±4; loss and gradient of the student."""
    student, frozen = (FlowMap(mlp(seed=seed), Linear(), AverageVelocity()) for seed in (1, 2))
    draw = random_draw(Linear())
    draw = replace(draw, x_t=3 * draw.x_t)
    t, s, r = draw.times
    first = frozen.predict(draw.x_t, t, s)
    middle = draw.x_t + expand(s - t, draw.x) * first
    assert (middle.abs() > 4).any()
    mean = (first + frozen.predict(middle.clamp(-4, 4), s, r)) / 2
    want = (student.predict(draw.x_t, t, r) - mean.detach()).square().mean(1)
    stage = TwoStep(first=None, clip=4.0)
    close(stage(frozen, draw).value, mean.clamp(-4, 4).detach(), 1e-11)
    objective = Objective(times=Dyadic(), target=Split(bootstrap=stage), label_dropout=0.0)
    loss, slope = loss_and_gradient(objective, student, draw, frozen)
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), student.network), 1e-10)


# ------------------------------------------------------------------------------------------------ rows and gradients

TARGETS: list[Target] = [
    TwoStep(solver="euler", segments=2),
    TwoStep(first=None, clip=2.0),
    TwoStep(first=Own(), solver="heun"),
    Secant(clip=1.0),
    Secant(steps=TwoStep(first=None)),
    Along(),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_targets_of_some_rows_are_those_of_all(target: Target) -> None:
    """In any order, and without a gradient."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    whole = target(flow, draw)
    assert not whole.value.requires_grad
    rows = torch.tensor([4, 0, 3])
    close(target.at(flow, draw, rows).value, whole.value[rows], 1e-13)


@given(share=st.floats(0.01, 0.99), segments=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_the_exact_map_is_a_fixed_point_wherever_the_jump_is_split(share: float, segments: int) -> None:
    law = gauss(Cosine())
    flow = exact(law, Transfer())
    draw = points(Cosine(), T - share * (T - R))
    target = Secant(steps=TwoStep(first=None, segments=segments))
    close(target(flow, draw).value, flow.predict(X, T, R), 1e-9)


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TwoStep(segments=0), "segments must be at least 1, got 0"),
        (lambda: TwoStep(solver="heun"), r"use first=Reference\(\) or Own\(\), or solver='transfer'"),
        (lambda: TwoStep(first=Guided(), solver="heun"), "known everywhere"),
        (lambda: TwoStep(first=None, solver="euler"), "leave the solver out, or use first=Own"),
        (lambda: TwoStep(below=0.0), "below must be a time between 0 and 1, or null, got 0.0"),
        (lambda: Secant(clip=-1.0), "clip must be positive or null, got -1"),
        (lambda: Secant(steps=TwoStep(clip=4.0)), "clip the difference"),
    ],
)
def test_impossible_steps_are_refused(build: Callable[[], Target], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()


def test_a_teacher_that_is_not_there_is_asked_for() -> None:
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    for target in (TwoStep(first=Reference()), TwoStep(below=0.9)):
        with pytest.raises(IncompatibleParts, match="pass --teacher RUN"):
            target(flow, draw)


def test_velocities_and_needs_of_steps() -> None:
    assert Secant(steps=TwoStep(first=None)).velocities() == ()
    assert Secant().velocities() == (Conditional(),)
    assert not Secant(steps=TwoStep(first=None)).grounded
    assert TwoStep(first=Reference()).grounded
    below = Objective(times=GroupedJumps(), target=TwoStep(below=0.3), label_dropout=0.0)
    assert (below.needs, below.lowest) == (frozenset({"teacher"}), 0.3)
