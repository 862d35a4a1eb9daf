"""Methods that are the same: with the same draw, small network and float64, the same loss and the same gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oracles import log_slope
from shortflow.draw import Draw
from shortflow.flowmap import (
    AverageVelocity,
    FlowMap,
    StartOnly,
    Transfer,
)
from shortflow.losses import (
    Adaptive,
    KernelMMD,
    Product,
    PseudoHuber,
    SquaredError,
    Variational,
)
from shortflow.objective import Objective
from shortflow.paths import Cosine, Linear, Path
from shortflow.recipe import Recipe
from shortflow.recipes import esc, meanflow, sct, shortcut
from shortflow.streams import Streams
from shortflow.tangent import CentralDifference
from shortflow.targets import Direct, Tangent, TwoStep
from shortflow.times import (
    Diagonal,
    GridLaw,
    GroupedJumps,
    Sorted,
    ToData,
)
from shortflow.typing import Progress
from shortflow.velocity import Conditional
from steps import NULL, batch, close, draw_at, drawn, flow_of, gradient, loss_and_gradient, mlp


def plain_draw(path: Path, n: int = 12, to_data: bool = False, diagonal: bool = True) -> Draw:
    given = batch(n, labels=False)
    times = Sorted(ratio=0.6 if diagonal else 1.0).stratified(n)
    draw = draw_at(path, given.x, given.x.flip(0) * 0.7 + 0.1, times.t, times.r * (0 if to_data else 1))
    return replace(draw, coin=torch.linspace(0, 0.99, n))


def test_sct_on_the_linear_path_is_meanflow_with_r_at_0() -> None:
    """Loss and gradient: the tangent form ‖F − sg(F + D_t f)‖², D_t f the derivative of f = x − tF(x, t) as a whole."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), plain_draw(Linear(), to_data=True)
    objective = Objective(times=ToData(), target=Tangent(), metric=SquaredError(reduce="sum"), label_dropout=0.0)
    loss, slope = loss_and_gradient(objective, flow, draw)
    t, v = draw.times.t, draw.eps - draw.x

    def f(x: Tensor, t: Tensor) -> Tensor:
        return x - t[:, None] * flow.network(x, t, t, None)

    rate = torch.func.jvp(f, (draw.x_t, t), (v, torch.ones_like(t)))[1].detach()
    output = flow.network(draw.x_t, t, t, None)
    want = (output - (output + rate).detach()).square().sum(1)
    close(loss, want.detach(), 1e-11)
    close(slope, gradient(want.mean(), flow.network), 1e-10)


def test_improved_meanflow_has_the_same_loss_and_gradient() -> None:
    """‖u + (t − r) sg(D_t u) − sg(v)‖²: the target solved for v instead of u."""
    flow, draw = FlowMap(mlp(), Linear(), AverageVelocity()), plain_draw(Linear())
    objective = Objective(times=Sorted(), target=Tangent(), metric=SquaredError(reduce="sum"), label_dropout=0.0)
    loss, slope = loss_and_gradient(objective, flow, draw)
    (t, _, r), v = draw.times, draw.eps - draw.x
    rate = torch.func.jvp(lambda x, t: flow.network(x, t, t - r, None), (draw.x_t, t), (v, torch.ones_like(t)))[1]
    want = (flow.network(draw.x_t, t, t - r, None) + (t - r)[:, None] * rate.detach() - v).square().sum(1)
    close(loss, want.detach(), 1e-11)
    close(slope, gradient(want.mean(), flow.network), 1e-10)


def test_esc_without_its_additions_is_meanflow() -> None:
    """No plug-in rows, no ramp, no log-variance: the same law of times, loss and gradient, guidance included."""
    ours, theirs = esc(probability=0.0, ramp=0.0), meanflow()
    u = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in zip(
        ours.objective.times.times(u, Progress()), theirs.objective.times.times(u[:, :3], Progress()), strict=True
    ):
        assert torch.equal(a, b)
    flow, draw = flow_of(theirs), drawn(theirs, 32)
    objective = replace(ours.objective, weighting=theirs.objective.weighting)
    one, other = loss_and_gradient(objective, flow, draw), loss_and_gradient(theirs.objective, flow, draw)
    close(one[0], other[0], 0)
    close(one[1], other[1], 0)
    assert (loss_and_gradient(esc().objective, flow_of(esc()), draw)[0] - other[0]).abs().max() > 1e-6


@pytest.mark.parametrize(
    "objective",
    [
        Objective(times=Sorted(), target=Tangent(), label_dropout=0.0),
        Objective(times=GroupedJumps(), target=TwoStep(first=Conditional()), label_dropout=0.0),
        Objective(times=GroupedJumps(), target=TwoStep(), metric=SquaredError(space="state"), label_dropout=0.0),
    ],
)
def test_ddim_and_euler_parameterisations_agree_on_the_linear_path_only(objective: Objective) -> None:
    network = mlp()
    for path in (Linear(), Linear(noise_scale=0.5), Cosine()):
        draw = plain_draw(path, diagonal=not isinstance(objective.target, TwoStep))
        draw = draw.with_times(draw.times._replace(s=0.3 * draw.times.r + 0.7 * draw.times.t))
        (a, da), (b, db) = (
            loss_and_gradient(objective, FlowMap(network, path, form), draw) for form in (AverageVelocity(), Transfer())
        )
        if isinstance(path, Linear):
            close(a, b, 1e-12)
            close(da, db, 1e-11)
        else:
            assert (a - b)[draw.times.bootstrap].abs().min() > 1e-8


def test_ddim_and_euler_parameterisations_agree_on_the_cosine_path_as_the_gap_closes() -> None:
    """Loss of the tangent target: they differ at first order in t − r."""
    network, objective = mlp(), Objective(times=Sorted(), target=Tangent(), label_dropout=0.0)
    gaps, differences = [0.04, 0.02, 0.01, 0.005], []
    for gap in gaps:
        draw = plain_draw(Cosine())
        draw = draw.with_times(draw.times._replace(r=draw.times.t - gap * draw.times.t))
        a, b = (
            loss_and_gradient(objective, FlowMap(network, Cosine(), form), draw)[0]
            for form in (AverageVelocity(), Transfer())
        )
        differences.append((a - b).norm().item())
    assert log_slope(gaps, differences) == pytest.approx(1, abs=0.05)


def test_shortcut_models_without_bootstrap_rows_are_flow_matching_on_a_grid() -> None:
    """One level (the finest), hence no self-consistency: same times, loss and gradient."""
    recipe = shortcut(share=0.0, guidance=1.0)
    plain = Objective(times=Diagonal(law=GridLaw(n=128)), target=Direct(), dropped_rows="diagonal")
    flow, draw, other = (
        flow_of(recipe),
        drawn(recipe, 32),
        drawn(replace(recipe, objective=plain, conditioning=StartOnly()), 32),
    )
    u = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in zip(recipe.objective.times.times(u, Progress()), plain.times.times(u[:, :1], Progress()), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(draw.dropped, other.dropped)
    one, two = loss_and_gradient(recipe.objective, flow, draw), loss_and_gradient(plain, flow, draw)
    close(one[0], two[0], 0)
    close(one[1], two[1], 0)


def test_moment_matching_with_one_particle_is_a_kernel_distance() -> None:
    """2 (1 − k(X_{t,r}(x_t), sg X_{s,r}(x_s))), a scaled and bounded distance between the two."""
    objective = Objective(
        times=GroupedJumps(group=1), target=TwoStep(first=Conditional()), metric=KernelMMD(group=1, epsilon=1e-12)
    )
    flow = FlowMap(mlp(num_classes=4, null_class=True), Linear(), AverageVelocity())
    draw = objective.draw(batch(), Linear(), Streams(seed=1), Progress(), NULL)
    loss, slope = loss_and_gradient(objective, flow, draw)
    (t, s, r), y = draw.times, draw.condition
    x_s = (1 - s)[:, None] * draw.x + s[:, None] * draw.eps
    distance = (flow(draw.x_t, t, r, y) - flow(x_s, s, r, y).detach()).norm(dim=1)
    want = 2 * (1 - torch.exp(-distance / (t - r) / 3))
    close(loss, want.detach(), 1e-9)
    close(slope, gradient(want.mean(), flow.network), 1e-8)


def test_weightings_that_change_nothing() -> None:
    """Adaptive with power 0, and a log-variance of 0: loss and gradient of the network are the plain ones."""
    network = mlp(log_variance=True)
    with torch.no_grad():
        network.logvar_linear.weight.zero_()
        network.logvar_linear.bias.zero_()
    flow, draw = FlowMap(network, Linear(), AverageVelocity()), plain_draw(Linear())
    plain = Objective(times=Sorted(), target=Tangent(), label_dropout=0.0)
    loss, slope = loss_and_gradient(plain, flow, draw)
    for weighting in (Adaptive(power=0.0), Variational(), Product(parts=(Adaptive(power=0.0), Variational()))):
        got = loss_and_gradient(replace(plain, weighting=weighting), flow, draw)
        close(got[0], loss, 0)
        size = sum(w.numel() for name, w in network.named_parameters() if "logvar" not in name)
        names = torch.cat([torch.full((w.numel(),), "logvar" not in name) for name, w in network.named_parameters()])
        assert names.sum() == size
        close(got[1][names], slope[names], 1e-14)


def test_the_loss_in_states_does_not_depend_on_the_parameterisation() -> None:
    """A DDIM network built from an Euler network, F = (x + (r − t)u − āx)/b̄: same states, loss and gradient."""
    path, network = Cosine(), mlp()

    class Converted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor, gap: Tensor, label: Tensor | None = None) -> Tensor:
            a, b = path.transfer(t, t - gap)
            return (x - gap[:, None] * self.network(x, t, gap, label) - a[:, None] * x) / b[:, None]

    objective = Objective(
        times=GroupedJumps(), target=TwoStep(first=Conditional()), metric=PseudoHuber(c=0.1), label_dropout=0.0
    )
    draw = plain_draw(path, diagonal=False)
    draw = draw.with_times(draw.times._replace(s=0.5 * (draw.times.r + draw.times.t)))
    one = loss_and_gradient(objective, FlowMap(network, path, AverageVelocity()), draw)
    other = loss_and_gradient(objective, FlowMap(Converted(), path, Transfer()), draw)
    close(one[0], other[0], 1e-11)
    close(one[1], other[1], 1e-10)


def test_the_derivative_at_fixed_end_is_that_along_v_1_1_in_x_t_and_gap() -> None:
    """MeanFlow with the derivative of u(x, t, r) along (v, 1, 0) and with that of u(x, t, h), h = t − r, along
    (v, 1, 1): same loss and gradient. Along (v, 1, 0) in (x, t, h), where the end moves too, it is another one."""
    recipe = meanflow(omega=1.0, kappa=0.0, ratio=0.6)
    flow, draw = flow_of(recipe), drawn(recipe, 32)
    loss, slope = loss_and_gradient(recipe.objective, flow, draw)
    (t, _, r), v, one = draw.times, draw.eps - draw.x, torch.ones(32, dtype=torch.float64)

    def u(x: Tensor, t: Tensor, gap: Tensor) -> Tensor:
        return flow.network(x, t, gap, draw.condition)

    def meanflow_loss(along: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        rate = torch.func.jvp(u, (draw.x_t, t, t - r), along)[1]
        error = (u(draw.x_t, t, t - r) - (v - (t - r)[:, None] * rate).detach()).square().sum(1)
        return error / (error.detach() + 1e-3)

    want = meanflow_loss((v, one, one))
    close(loss, want.detach(), 1e-11)
    close(slope, gradient(want.mean(), flow.network), 1e-10)
    moving = gradient(meanflow_loss((v, one, 0 * one)).mean(), flow.network)
    assert (moving - slope).norm() > 1e-3 * slope.norm()


@pytest.mark.parametrize("recipe", [meanflow(), esc(), sct(warmup=0.0)], ids=lambda recipe: recipe.name)
def test_central_differences_converge_to_forward_mode_at_second_order(recipe: Recipe) -> None:
    """Loss and gradient: errors O(h²)."""
    flow, draw, objective = flow_of(recipe), drawn(recipe, 32), recipe.objective
    exact = loss_and_gradient(objective, flow, draw)
    steps, errors = [4e-3, 2e-3, 1e-3, 5e-4], []
    assert isinstance(objective.target, Tangent)
    for step in steps:
        target = replace(objective.target, derivative=CentralDifference(step=step))
        got = loss_and_gradient(replace(objective, target=target), flow, draw)
        errors.append([(a - b).norm().item() for a, b in zip(got, exact, strict=True)])
    losses, gradients = zip(*errors, strict=True)
    assert log_slope(steps, list(losses)) == pytest.approx(2, abs=0.05)
    assert log_slope(steps, list(gradients)) == pytest.approx(2, abs=0.05)
