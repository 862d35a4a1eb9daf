"""Targets of infinitesimal steps that compare rates: zero on exact maps, and gradients against hand-made ones."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp as double_backward

from exactmaps import FORMS, R, T, X, exact, form_name, gauss, points
from oracles import f64, log_slope, mixture
from shortflow.draw import Draw, References
from shortflow.dropout import shared_dropout
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, Parameterization, Transfer
from shortflow.losses import SquaredError
from shortflow.nn import SiT
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear, Path
from shortflow.targets import Eulerian, Split, Tangent, Target, Terminal, TwoStep
from shortflow.theory import ExactNetwork
from shortflow.times import Sorted
from shortflow.typing import expand
from shortflow.velocity import Conditional, Own, Reference
from steps import Marginal, close, draw_at, gradient, loss_and_gradient, mlp, randomize

every_form = pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS, ids=form_name)
# The velocity at the end of a jump is asked with r = t, where EDM's exact output is 0/0.
regular = pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS[:-1], ids=form_name)
ALL = torch.arange(4)


def random_draw(path: Path, shape: tuple[int, ...] = (3,), n: int = 6, seed: int = 0) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.4, 0.95, n, dtype=torch.float64)
    return draw_at(path, x, eps, t, t * torch.linspace(0, 0.7, n, dtype=torch.float64))


def split(target: Target) -> Objective:
    return Objective(times=Sorted(), target=Split(bootstrap=target), label_dropout=0.0)


# -------------------------------------------------------------------------------------------------- on exact maps


@regular
def test_tangent_along_the_own_velocity_is_exact(path: Path, form: Parameterization, sigma_data: float) -> None:
    """iMF, and ESD without gradient: base and direction the network's own velocity, which on the exact map is v."""
    law = gauss(path)
    flow, draw = exact(law, form, sigma_data), points(path)
    for target in (
        Tangent(velocity=Own()),
        Tangent(velocity=Marginal(law=law), direction=Own()),
        Tangent(velocity=Own(), direction=Marginal(law=law)),
    ):
        close(target(flow, draw).value, flow.predict(X, T, R), 1e-9)


@regular
def test_another_direction_leaves_only_the_noise_of_the_base(
    path: Path, form: Parameterization, sigma_data: float
) -> None:
    """On the exact map F_tgt − F = −sign(b) a (v_c − v): the derivative along v has no noise, along v_c it has."""
    law = gauss(path)
    flow, draw = exact(law, form, sigma_data), points(path)
    noise = Conditional()(flow, draw) - law.velocity(X, T)
    a, b = flow.coefficients(T, R)
    got = Tangent(velocity=Conditional(), direction=Own())(flow, draw).value - flow.predict(X, T, R)
    close(got, expand(-torch.sign(b) * a, X) * noise, 1e-9)
    both = Tangent(velocity=Conditional())(flow, draw).value - flow.predict(X, T, R)
    assert (both - got)[:3].abs().min() > 1e-3  # the data are their mean: no noise at t = 1


@regular
def test_the_velocity_at_the_end_of_the_exact_map(path: Path, form: Parameterization, sigma_data: float) -> None:
    """∂_r X_{t,r}(x) = v_r(X_{t,r}(x)), with the network's own velocity and with a teacher's."""
    law = gauss(path)
    flow = exact(law, form, sigma_data)
    draw = replace(points(path), references=References(teacher=flow))
    want = law.velocity(law.flow_map(X, T, R), R)
    for velocity in (Own(), Reference()):
        target = Terminal(velocity=velocity)
        output, rate = target.compared(flow, flow, draw, ALL)
        close(output, flow.predict(X, T, R), 0)
        close(rate, want, 1e-10)
        value = target(flow, draw)
        assert value.space == "rate"
        close(value.value, want, 1e-10)
        for normalize in (None, 0.1):
            still = Terminal(velocity=velocity, through=False, normalize=normalize)(flow, draw)
            assert still.space == "output"
            close(still.value, output, 1e-9)


@every_form
@pytest.mark.parametrize("detach", [True, False])
def test_the_eulerian_residual_of_the_exact_map_is_zero(
    path: Path, form: Parameterization, sigma_data: float, detach: bool
) -> None:
    law = gauss(path)
    flow, draw = exact(law, form, sigma_data), points(path)
    target = Eulerian(velocity=Marginal(law=law), detach_space=detach)
    output, residual = target.compared(flow, flow, draw, ALL)
    close(output, flow.predict(X, T, R), 0)
    close(residual, torch.zeros_like(X), 1e-10)
    close(target(flow, draw).value, torch.zeros_like(X), 0)


@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_residuals_of_the_exact_map_of_a_mixture(path: Path) -> None:
    law = mixture(path, 16)
    flow, draw = FlowMap(ExactNetwork(law, "transfer"), path, Transfer()), points(path, t=f64(0.4, 0.6, 0.5, 0.8))
    for target in (Terminal(), Eulerian(), Eulerian(detach_space=False)):
        _, rate = target.compared(flow, flow, draw, ALL)
        close(rate, target(flow, draw).value, 2e-5)


def test_a_wrong_map_has_residuals() -> None:
    law = gauss(Linear())
    flow, draw = FlowMap(ExactNetwork(law, "velocity"), law.path, AverageVelocity()), points(Linear())
    for target in (Terminal(), Eulerian()):
        _, rate = target.compared(flow, flow, draw, ALL)
        assert (rate - target(flow, draw).value).abs().min() > 0.01


# ----------------------------------------------------------------------------------------------------- both limits


@every_form
def test_terminal_without_gradient_is_the_limit_of_two_steps(
    path: Path, form: Parameterization, sigma_data: float
) -> None:
    """X_{t,s}(x) + (r − s) v, v the velocity at the end of the long step: (X − that)/(s − r) → v − ∂_r X as s → r."""
    law = gauss(path)
    flow, draw = FlowMap(mlp(1), path, form, sigma_data=sigma_data), points(path)
    draw = replace(draw, references=References(teacher=exact(law, AverageVelocity())))
    output = flow.predict(X, T, R).detach()
    _, b = flow.coefficients(T, R)
    got = Terminal(velocity=Reference(), through=False)(flow, draw).value - output
    sizes, errors = [0.01, 0.005, 0.0025, 0.00125], []
    for size in sizes:
        s = R + size
        long = flow(X, T, s)
        steps = long - size * law.velocity(long, s)
        quotient = (flow(X, T, R) - steps).detach() / size
        errors.append((-expand(torch.sign(b), X) * quotient - got).norm().item())
    assert log_slope(sizes, errors) == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.1 * got.norm()


def test_normalised_terminal_tangent() -> None:
    """F + g/(‖g‖ + c)."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    output = flow.predict(draw.x_t, draw.times.t, draw.times.r).detach()
    g = Terminal(through=False)(flow, draw).value - output
    for norm, size in (("l2", g.norm(dim=1)), ("rms", g.square().mean(1).sqrt())):
        got = Terminal(through=False, normalize=0.1, norm=norm)(flow, draw).value  # pyright: ignore[reportArgumentType]
        close(got, output + g / (size + 0.1)[:, None], 1e-12)


# ------------------------------------------------------------------------------------------------------- gradients


def end_rate(flow: FlowMap, draw: Draw) -> Tensor:
    """∂_r X_{t,r}(x_t) by two reverse passes, with gradient."""
    t, _, r = draw.times
    return double_backward(lambda r: flow(draw.x_t, t, r), (r,), (torch.ones_like(r),), create_graph=True)[1]


@pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS, ids=form_name)
def test_gradient_of_terminal_velocity_matching(path: Path, form: Parameterization, sigma_data: float) -> None:
    """‖∂_r X − sg u_{r,r}(X)‖²: loss and gradient, which flows through the derivative and not into the velocity."""
    flow, draw = FlowMap(mlp(), path, form, sigma_data=sigma_data), random_draw(path)
    loss, slope = loss_and_gradient(split(Terminal()), flow, draw)
    t, _, r = draw.times
    goal = flow.velocity(flow(draw.x_t, t, r), r).detach()
    want = (end_rate(flow, draw) - goal).square().mean(1)
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), flow.network), 1e-9)
    into = (end_rate(flow, draw) - flow.velocity(flow(draw.x_t, t, r), r)).square().mean()
    assert (gradient(into, flow.network) - slope).norm() > 1e-2 * slope.norm()


def test_terminal_velocities_are_those_of_the_teacher() -> None:
    """An average as the teacher: ∂_r X of the trained network, at its own end point, against the average's velocity."""
    flow, average = (FlowMap(mlp(seed=seed), Linear(), AverageVelocity()) for seed in (1, 2))
    draw = random_draw(Linear())
    loss, slope = loss_and_gradient(split(Terminal()), flow, draw, average)
    t, _, r = draw.times
    goal = average.velocity(flow(draw.x_t, t, r), r).detach()
    want = (end_rate(flow, draw) - goal).square().mean(1)
    close(loss, want.detach(), 1e-11)
    close(slope, gradient(want.mean(), flow.network), 1e-10)


def partial(flow: FlowMap, draw: Draw, v: Tensor) -> tuple[Tensor, Tensor]:
    """(∂_t X, ∇X·v) by two reverse passes, with gradient."""
    (t, _, r), x = draw.times, draw.x_t
    at_t = double_backward(lambda t: flow(x, t, r), (t,), (torch.ones_like(t),), create_graph=True)[1]
    at_x = double_backward(lambda x: flow(x, t, r), (x,), (v,), create_graph=True)[1]
    return at_t, at_x


@pytest.mark.parametrize(("path", "form", "sigma_data"), FORMS, ids=form_name)
@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_eulerian_residual(path: Path, form: Parameterization, sigma_data: float, detach: bool) -> None:
    """‖∂_t X + ∇X·sg v‖², with and without gradient through ∇X."""
    flow, draw = FlowMap(mlp(), path, form, sigma_data=sigma_data), random_draw(path)
    loss, slope = loss_and_gradient(split(Eulerian(detach_space=detach)), flow, draw)
    slopes = []
    for cut in (detach, not detach):
        in_time, in_space = partial(flow, draw, flow.velocity(draw.x_t, draw.times.t).detach())
        want = (in_time + (in_space.detach() if cut else in_space)).square().mean(1)
        close(loss, want.detach(), 1e-9)
        slopes.append(gradient(want.mean(), flow.network))
    close(slope, slopes[0], 1e-9)
    assert (slopes[1] - slope).norm() > 1e-2 * slope.norm()


def test_the_velocity_of_the_eulerian_residual_is_the_teachers() -> None:
    flow, average = (FlowMap(mlp(seed=seed), Linear(), AverageVelocity()) for seed in (1, 2))
    draw = random_draw(Linear())
    loss, slope = loss_and_gradient(split(Eulerian()), flow, draw, average)
    in_time, in_space = partial(flow, draw, average.velocity(draw.x_t, draw.times.t).detach())
    want = (in_time + in_space.detach()).square().mean(1)
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), flow.network), 1e-10)


@pytest.mark.parametrize("path", [Linear(), Cosine()])
@pytest.mark.parametrize("form", [AverageVelocity(), Transfer()])
def test_eulerian_distillation_without_gradient_is_a_tangent(path: Path, form: Parameterization) -> None:
    """‖F − sg(F − sign(b) D_t X)‖² with the own velocity: value and gradient of Tangent(velocity=Own())."""
    flow, draw = FlowMap(mlp(), path, form), random_draw(path)
    loss, slope = loss_and_gradient(split(Tangent(velocity=Own())), flow, draw)
    in_time, in_space = partial(flow, draw, flow.velocity(draw.x_t, draw.times.t).detach())
    t, _, r = draw.times
    output, b = flow.predict(draw.x_t, t, r), flow.coefficients(t, r)[1]
    want = (output - (output - expand(torch.sign(b), output) * (in_time + in_space)).detach()).square().mean(1)
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), flow.network), 1e-9)


class Affine(nn.Module):
    """F = w_1 x + w_2 t + w_3 h, h = t − r: every derivative by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(f64(0.7, -0.4, 1.3))

    def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None = None) -> Tensor:
        return self.w[0] * x + expand(self.w[1] * time + self.w[2] * second, x)


def test_rates_by_hand() -> None:
    """With X = x − h F and ∂_r F = −w_3: ∂_r X = F + h w_3 and D_t X = v − F − h (w_1 v + w_2 + w_3)."""
    flow, draw = FlowMap(Affine(), Linear(), AverageVelocity()), random_draw(Linear())
    assert isinstance(flow.network, Affine)
    (t, _, r), x = draw.times, draw.x_t
    w, h = flow.network.w, (t - r)[:, None]
    v = draw.eps - draw.x
    output, rate = flow.end_rate(x, t, r)
    close(output, w[0] * x + expand(w[1] * t, x) + w[2] * h)
    close(rate, output + h * w[2])
    _, residual = flow.residual(x, t, r, v)
    close(residual, v - output - h * (w[0] * v + w[1] + w[2]))


def test_improved_meanflow_in_its_own_form() -> None:
    """‖û + (t − r) sg(D) − v_g‖², D the derivative of û along u_{t,t}, not along v_g: loss and gradient."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), random_draw(Linear())
    objective = Objective(
        times=Sorted(), target=Tangent(direction=Own()), metric=SquaredError(reduce="sum"), label_dropout=0.0
    )
    loss, slope = loss_and_gradient(objective, flow, draw)
    (t, _, r), v = draw.times, draw.eps - draw.x
    along = flow.velocity(draw.x_t, t).detach()
    rate = double_backward(
        lambda x, t: flow.predict(x, t, r), (draw.x_t, t), (along, torch.ones_like(t)), create_graph=True
    )[1]
    form = flow.predict(draw.x_t, t, r) + expand(t - r, v) * rate.detach()
    want = (form - v).square().sum(1)
    close(loss, want.detach(), 1e-10)
    close(slope, gradient(want.mean(), flow.network), 1e-10)


@pytest.mark.parametrize(
    "target", [Terminal(), Terminal(through=False), Eulerian(), Eulerian(detach_space=False), Tangent(direction=Own())]
)
def test_targets_of_some_rows_are_those_of_all_and_carry_no_gradient(target: Target) -> None:
    flow, draw = FlowMap(mlp(), Cosine(), Transfer()), random_draw(Cosine())
    whole, rows = target(flow, draw), torch.tensor([5, 1, 2])
    assert not whole.value.requires_grad
    close(target.at(flow, draw, rows).value, whole.value[rows], 1e-12)
    if target.compares == "rate":
        every = target.compared(flow, flow, draw, torch.arange(6))
        for some, all_ in zip(target.compared(flow, flow, draw, rows), every, strict=True):
            close(some, all_[rows], 1e-12)
            assert some.requires_grad


# ---------------------------------------------------------------------------------------------- dropout, precision


def sit(dropout: float = 0.0) -> SiT:
    network = SiT(shape=(1, 4, 4), width=16, depth=2, heads=2, patch=2, dropout=dropout)
    randomize(network)
    return network


@pytest.mark.parametrize("target", [Terminal(), Eulerian(), Eulerian(detach_space=False), Terminal(through=False)])
def test_rates_and_targets_share_the_dropout_masks(target: Target) -> None:
    """What is compared, its output and the target are those of one thinned network, on any rows."""
    flow = FlowMap(sit(0.3), Linear(), AverageVelocity()).train()
    draw = replace(random_draw(Linear(), (1, 4, 4)), dropout_seed=7)
    (t, _, r), x, rows = draw.times, draw.x_t, torch.tensor([4, 0])

    class Thinned(nn.Module):
        def forward(self, x: Tensor, time: Tensor, second: Tensor, label: Tensor | None = None) -> Tensor:
            with shared_dropout(7, 6, rows):
                return flow.network(x, time, second, label)

    thinned = FlowMap(Thinned(), Linear(), AverageVelocity())
    alone = draw_at(Linear(), draw.x[rows], draw.eps[rows], t[rows], r[rows], x_t=x[rows])
    close(target.at(flow, draw, rows).value, target(thinned, alone).value, 1e-11)
    if target.compares == "rate":
        got, want = target.compared(flow, flow, draw, rows), target.compared(thinned, thinned, alone, torch.arange(2))
        for one, other in zip(got, want, strict=True):
            close(one, other, 1e-11)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Terminal(normalize=0.1), "normalize needs through=False"),
        (lambda: Terminal(through=False, normalize=0.0), "Terminal: normalize must be positive or null, got 0"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], Target], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()


def test_kinds() -> None:
    assert (Terminal().compares, Terminal(through=False).compares, Eulerian().compares) == ("rate", "jump", "rate")
    assert (Terminal().grounded, Terminal(velocity=Reference()).grounded) == (False, True)
    assert Split(bootstrap=Eulerian()).compares == "rate"
    with pytest.raises(TypeError, match="compares outputs, not rates"):
        TwoStep().compared(*(FlowMap(mlp(), Linear(), AverageVelocity()),) * 2, random_draw(Linear()), ALL)
