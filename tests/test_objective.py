"""Draws, evaluation, equivalences between methods, and combinations of parts that are refused."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oracles import f64, log_slope
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import (
    AverageVelocity,
    EDMSkip,
    FlowMap,
    LogSigma,
    LogStep,
    StartAndGap,
    StartOnly,
    Transfer,
    TrigFlow,
)
from shortflow.guidance import Guided
from shortflow.losses import (
    Adaptive,
    ByTime,
    KernelMMD,
    Product,
    PseudoHuber,
    SquaredError,
    Unweighted,
    Variational,
)
from shortflow.objective import Ema, Objective, Online, Optimizer, Recipe, ScheduledEma
from shortflow.paths import Cosine, CustomPath, Linear, Path, VarianceExploding
from shortflow.recipes import RECIPES, esc, flow_matching, imm, meanflow, sct, shortcut
from shortflow.streams import Streams
from shortflow.targets import Direct, Split, Tangent, TwoStep
from shortflow.times import (
    Diagonal,
    Dyadic,
    Gradual,
    GridLaw,
    GridPairs,
    GroupedJumps,
    Independent,
    KarrasGrid,
    Sorted,
    ToData,
)
from shortflow.typing import Batch, Draw, LossTerms, Progress
from shortflow.velocity import Conditional, Mixture
from steps import draw_at, gradient, loss_and_gradient, mlp, network_for

NULL = 4


def close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def batch(n: int = 16, d: int = 3, labels: bool = True, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return Batch(x=x, label=torch.randint(0, 4, (n,), generator=generator) if labels else None)


def drawn(
    recipe: Recipe, n: int = 16, labels: bool = True, streams: Streams = Streams(seed=3), **batch_of: int
) -> Draw:
    null = NULL if recipe.null_class and labels else None
    progress = Progress(images=13, total=1000)
    return recipe.objective.draw(batch(n, labels=labels, **batch_of), recipe.path, streams, progress, null)


def flow_of(recipe: Recipe, classes: int = 4, seed: int = 1, dropout: float = 0.0) -> FlowMap:
    return recipe.flow_map(network_for(recipe, classes, seed=seed, dropout=dropout))


def everything(draw: Draw) -> dict[str, Tensor]:
    return {
        "times": torch.stack(draw.times),
        "eps": draw.eps,
        "x_t": draw.x_t,
        "coin": draw.coin,
        "dropped": draw.dropped,
        "dropout_seed": torch.tensor(draw.dropout_seed),
    }


# --------------------------------------------------------------------------------------------------------------- draw


def test_a_draw_is_a_pure_function_of_its_streams() -> None:
    recipe = esc()
    one, again = everything(drawn(recipe)), everything(drawn(recipe))
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in (Streams(seed=4), Streams(seed=3, images=512), Streams(seed=3, rank=1)):
        changed = everything(drawn(recipe, streams=other))
        assert not any(torch.equal(one[name], changed[name]) for name in ("times", "eps", "coin", "dropout_seed"))


def test_streams_are_named_so_that_one_does_not_shift_another() -> None:
    """Label dropout, another law of times and the velocity's coins leave all other numbers as they are."""
    objective = replace(meanflow().objective, target=Tangent())
    at = [Batch(x=batch().x, label=batch().label), Linear(), Streams(seed=5), Progress(), NULL]
    plain = everything(replace(objective, label_dropout=0.0).draw(*at))
    hidden = everything(replace(objective, label_dropout=0.5).draw(*at))
    assert hidden["dropped"].any()
    assert not plain["dropped"].any()
    assert all(torch.equal(plain[name], hidden[name]) for name in plain if name != "dropped")
    other = everything(replace(objective, times=Gradual(), label_dropout=0.5).draw(*at))
    assert all(torch.equal(other[name], hidden[name]) for name in ("eps", "coin", "dropped", "dropout_seed"))
    assert not torch.equal(other["times"], hidden["times"])


def test_a_draw_is_what_it_says() -> None:
    """x_t on the path; ε standard normal; the share of hidden classes; nothing of the batch is changed."""
    recipe, given = meanflow(), batch(4000)
    label = given.label.clone() if given.label is not None else None
    draw = recipe.objective.draw(given, recipe.path, Streams(), Progress(), NULL)
    t = draw.times.t[:, None]
    close(draw.x_t, (1 - t) * given.x + t * draw.eps, 1e-14)
    assert abs(draw.eps.mean().item()) < 5 / (12_000**0.5)
    assert draw.eps.var().item() == pytest.approx(1, abs=5 * (2 / 12_000) ** 0.5)
    assert draw.dropped.double().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / 4000) ** 0.5)
    assert draw.label is given.label
    assert torch.equal(draw.label, label)
    assert torch.equal(draw.condition == NULL, draw.dropped)


def test_hiding_no_class_still_tells_the_network_the_class() -> None:
    """With probability 0 published code passes no label at all, and the network takes class 0 for every row."""
    recipe = replace(meanflow(), objective=replace(meanflow().objective, target=Tangent(), label_dropout=0.0))
    draw, flow = drawn(recipe), flow_of(recipe)
    assert draw.condition is draw.label
    zero = replace(draw, label=torch.zeros_like(draw.label))
    got, other = (recipe.objective.evaluate(flow, flow, which).logs["error"] for which in (draw, zero))
    assert ((got - other).abs()[draw.label != 0] > 1e-4).all()


def test_hiding_classes_without_a_null_class_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(IncompatibleParts, match="no null class; build it with null_class=True"):
        meanflow().objective.draw(batch(), Linear(), Streams(), Progress(), None)


def test_on_the_diagonal_only_rows_without_a_jump_lose_their_class() -> None:
    recipe = replace(shortcut(), objective=replace(shortcut().objective, label_dropout=0.5))
    draw = drawn(recipe, 64)
    assert draw.dropped.any()
    assert not (draw.dropped & draw.times.bootstrap).any()


# ----------------------------------------------------------------------------------------------------------- evaluate


class Spy(nn.Module):
    """Passes everything on to a network and keeps the labels and times of every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, []
        self.num_classes, self.null_label = network.num_classes, network.null_label
        self.log_variance = network.log_variance

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        self.calls.append(label)
        return self.network(x, time, second, label)


def test_hidden_classes_are_hidden_in_every_pass() -> None:
    """Prediction and derivative see the same labels; the guidance passes run on rows with a class only."""
    recipe = meanflow(ratio=1.0)
    recipe = replace(recipe, objective=replace(recipe.objective, label_dropout=0.5))
    draw, spy = drawn(recipe), Spy(network_for(recipe))
    flow = recipe.flow_map(spy)
    recipe.objective.evaluate(flow, flow, draw)
    student, guidance, derivative = spy.calls
    assert draw.dropped.any()
    assert torch.equal(student, draw.condition)
    assert torch.equal(derivative, draw.condition[draw.times.bootstrap])
    kept = draw.label[~draw.dropped]
    assert torch.equal(guidance, torch.cat([kept, torch.full_like(kept, NULL)]))
    spy.calls.clear()
    meanflow(omega=2.0, kappa=0.0).objective.evaluate(flow, flow, draw)
    assert torch.equal(spy.calls[1], torch.full_like(kept, NULL))


@pytest.mark.parametrize("name", RECIPES)
def test_the_target_branch_has_no_gradient(name: str) -> None:
    """With teacher weights of its own that require a gradient: theirs is exactly none, the network's is not zero."""
    recipe = RECIPES[name]()
    flow, teacher = flow_of(recipe), flow_of(recipe, seed=2)
    loss = recipe.objective.evaluate(flow, teacher, drawn(recipe, 32)).loss
    loss.sum().backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert sum(weight.grad.abs().sum().item() for weight in flow.parameters() if weight.grad is not None) > 1e-3


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "flow-matching"])
def test_targets_use_the_weights_of_the_teacher(name: str) -> None:
    recipe = RECIPES[name]()
    flow, teacher, draw = flow_of(recipe), flow_of(recipe, seed=2), drawn(recipe, 32)
    own, other = (recipe.objective.evaluate(flow, which, draw).loss for which in (flow, teacher))
    copied = recipe.objective.evaluate(flow, copy.deepcopy(flow), draw).loss
    close(own, copied, 0)
    boot, second = draw.times.bootstrap, draw.times.s > draw.times.r  # a second step of length zero uses no weights
    assert (own - other)[boot & second].abs().min() > 1e-12
    if recipe.objective.guided is None:
        close(own[~boot], other[~boot], 0)


def test_decays_of_the_teachers() -> None:
    half = Progress(images=1, total=2)
    assert [teacher.decay(half) for teacher in (Online(), Ema(rate=0.99))] == [0.0, 0.99]
    assert ScheduledEma(mu0=0.95).decay(Progress()) == pytest.approx(0.95)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "imm"])
def test_permuting_the_rows_permutes_the_losses(name: str) -> None:
    """Rows with and without a jump in any order (published code concatenates them, which misaligns shuffled rows)."""
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe), drawn(recipe, 32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    changes = {name: getattr(draw, name)[order] for name in ("x", "eps", "x_t", "label", "dropped", "coin")}
    shuffled = replace(draw, **changes, times=draw.times.take(order))
    one, other = (recipe.objective.evaluate(flow, flow, d) for d in (draw, shuffled))
    close(other.loss, one.loss[order], 1e-10)
    for log in one.logs:
        torch.testing.assert_close(other.logs[log], one.logs[log][order], rtol=1e-10, atol=1e-10, equal_nan=True)


def test_permuting_groups_permutes_the_losses_and_rows_of_a_group_share_one() -> None:
    recipe = imm()
    flow, draw = flow_of(recipe), drawn(recipe, 16)
    order = torch.arange(16).reshape(4, 4)[[2, 0, 3, 1]][:, [1, 0, 3, 2]].flatten()
    changes = {name: getattr(draw, name)[order] for name in ("x", "eps", "x_t", "label", "dropped", "coin")}
    shuffled = replace(draw, **changes, times=draw.times.take(order))
    one, other = (recipe.objective.evaluate(flow, flow, d).loss for d in (draw, shuffled))
    close(other, one[order], 1e-12)
    close(one, one[::4].repeat_interleave(4), 0)


def test_logs_have_the_values_they_name() -> None:
    recipe = meanflow(omega=1.0, kappa=0.0, ratio=0.5)
    flow, draw = flow_of(recipe), drawn(recipe)
    terms = recipe.objective.evaluate(flow, flow, draw)
    t, _, r = draw.times
    with torch.no_grad():
        u = flow.network(draw.x_t, t, t - r, draw.condition)
    error = (u - (draw.eps - draw.x)).square().mean(1)
    close(terms.logs["velocity_error"], error)
    boot = draw.times.bootstrap
    assert terms.logs["diagonal_error"][boot].isnan().all()
    close(terms.logs["diagonal_error"][~boot], error[~boot])
    v, one = draw.eps - draw.x, torch.ones_like(t)
    rate = torch.func.jvp(lambda x, t: flow.network(x, t, t - r, draw.condition), (draw.x_t, t), (v, one))[1]
    close(terms.logs["tangent"][boot], rate.square().mean(1).sqrt().detach()[boot])
    close(terms.loss.detach(), terms.logs["error"] / (terms.logs["error"] + 1e-3))
    assert not any(log.requires_grad for log in terms.logs.values())


def test_velocity_error_is_per_unit_of_time_in_every_parameterisation() -> None:
    recipe = sct()
    flow, draw = flow_of(recipe), drawn(recipe)
    logs = recipe.objective.evaluate(flow, flow, draw).logs
    with torch.no_grad():
        v = torch.pi / 2 * 0.5 * flow.network(draw.x_t / 0.5, draw.times.t, None, draw.label)
    close(logs["velocity_error"], (v - recipe.path.velocity(draw.x, draw.eps, draw.times.t)).square().mean(1))


class Wide(nn.Module):
    """A log-variance of shape (b, 1)."""

    def log_variance(self, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.zeros(len(time), 1, dtype=torch.float64)

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def test_losses_are_one_number_a_row() -> None:
    recipe = sct()
    flow = recipe.flow_map(Wide())
    with pytest.raises(ShortflowError, match="one number a row"):
        recipe.objective.evaluate(flow, flow, drawn(recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_dropout_masks_are_shared_by_prediction_and_target(name: str) -> None:
    """A function of the step's seed alone: the same loss twice, another one for another seed."""
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe, dropout=0.3).train(), drawn(recipe)
    losses = [recipe.objective.evaluate(flow, flow, replace(draw, dropout_seed=seed)).loss for seed in (7, 7, 8)]
    close(losses[0], losses[1], 0)
    assert (losses[0] - losses[2]).abs().max() > 1e-6


@pytest.mark.parametrize("parameterization", [AverageVelocity(), Transfer()])
def test_two_steps_with_s_at_t_have_no_error_under_dropout(parameterization: AverageVelocity | Transfer) -> None:
    """X_{s,r} ∘ X_{t,s} at s = t is the prediction itself, exactly if both see the same masks."""
    objective = Objective(times=GroupedJumps(group=1), target=TwoStep(), metric=SquaredError(space="state"))
    flow = FlowMap(mlp(num_classes=4, null_class=True, dropout=0.5), Cosine(), parameterization).train()
    draw = objective.draw(batch(), Cosine(), Streams(), Progress(), NULL)
    draw = draw.with_times(draw.times._replace(s=draw.times.t))
    close(objective.evaluate(flow, flow, draw).loss, torch.zeros(16).double(), 1e-28)


# ------------------------------------------------------------------------------------------- equivalences of methods


def bare(draw: Draw) -> Draw:
    return replace(draw, label=None, dropped=torch.zeros_like(draw.dropped), null_label=None)


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
    assert log_slope(gaps, differences) == pytest.approx(1, abs=0.1)


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


# --------------------------------------------------------------------------------- what published code stumbles over


@pytest.mark.parametrize("name", ["shortcut", "meanflow", "esc"])
def test_the_null_class_is_trained_where_guidance_uses_it(name: str) -> None:
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe), drawn(recipe, 64)
    assert draw.dropped.any()
    recipe.objective.evaluate(flow, flow, draw).loss.mean().backward()
    table = flow.network.y_embedder.embedding_table.weight
    assert table.grad[NULL].norm() > 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_without_classes(name: str) -> None:
    """y = None everywhere; the loss is that of the recipe without guidance."""
    recipe = RECIPES[name]().unconditional()
    flow, draw = flow_of(recipe, classes=0), drawn(recipe, 32, labels=False)
    assert draw.condition is None
    assert not draw.dropped.any()
    loss, slope = loss_and_gradient(recipe.objective, flow, draw)
    assert loss.isfinite().all()
    assert slope.norm() > 1e-3
    spy = Spy(flow.network)
    recipe.objective.evaluate(recipe.flow_map(spy), recipe.flow_map(spy), draw)
    assert all(label is None for label in spy.calls)


@pytest.mark.parametrize("name", RECIPES)
def test_a_conditional_recipe_accepts_data_without_classes(name: str) -> None:
    """Guidance is the identity there, so the loss is that of the unconditional recipe."""
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe, classes=0), drawn(recipe, 32, labels=False)
    got = loss_and_gradient(recipe.objective, flow, draw)
    want = loss_and_gradient(recipe.unconditional().objective, flow, draw)
    close(got[0], want[0], 0)
    close(got[1], want[1], 0)


def test_a_batch_without_a_guided_row_works() -> None:
    """A window that no row falls into, and rows that are all hidden: the unguided loss."""
    recipe = meanflow(omega=2.0, kappa=0.0, window=(0.0, 1e-9))
    plain = meanflow(omega=1.0, kappa=0.0)
    flow, draw = flow_of(recipe), drawn(recipe)
    close(loss_and_gradient(recipe.objective, flow, draw)[0], loss_and_gradient(plain.objective, flow, draw)[0], 0)
    hidden, full = replace(draw, dropped=torch.ones(16, dtype=torch.bool)), meanflow(omega=2.0, kappa=0.0)
    a, b = (loss_and_gradient(which.objective, flow, hidden)[0] for which in (full, plain))
    close(a, b, 0)


def test_warmup_of_length_0_works() -> None:
    recipe, warm = sct(warmup=0.0), sct(warmup=1 / 40)
    draw = drawn(recipe)
    end = replace(draw, progress=Progress(images=1, total=1))
    flow = flow_of(recipe)
    start = recipe.objective.evaluate(flow, flow, replace(draw, progress=Progress())).loss
    close(start, warm.objective.evaluate(flow, flow, end).loss, 0)
    assert (start - warm.objective.evaluate(flow, flow, draw).loss).abs().max() > 1e-6


PATHS: dict[str, Path] = {
    "linear": Linear(),
    "scaled": Linear(noise_scale=0.5),
    "cosine": Cosine(),
    "trig": Cosine(noise_scale=0.5),
    "ve": VarianceExploding(sigma_max=80.0),
    "ve-small": VarianceExploding(sigma_max=3.0),
    "custom": CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: t,
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: torch.ones_like(t),
    ),
}
REFUSED = {("ct", path) for path in PATHS if path != "ve"} | {("sct", path) for path in PATHS if path != "trig"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_works_on_a_path_or_is_refused_at_construction(name: str, path: str) -> None:
    recipe = RECIPES[name]()
    if (name, path) in REFUSED:
        with pytest.raises(IncompatibleParts):
            replace(recipe, path=PATHS[path])
        return
    recipe = replace(recipe, path=PATHS[path])
    flow = flow_of(recipe)
    loss, slope = loss_and_gradient(recipe.objective, flow, drawn(recipe, 32))
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    assert slope.norm() > 0


# ------------------------------------------------------------------------------------------------------------ refusals


def two_step(**changes: object) -> Objective:
    parts = {"times": GroupedJumps(), "target": TwoStep(first=Conditional()), **changes}
    return Objective(**parts)  # pyright: ignore[reportArgumentType]


INCOMPATIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "tangent with two-step times": (
        lambda: Objective(times=Dyadic(), target=Tangent()),
        "Tangent with Dyadic: .*use Sorted or Gradual or Independent or ToData times, or the target Split$",
    ),
    "tangent with grid pairs": (
        lambda: Objective(times=GridPairs(), target=Tangent()),
        "Tangent with GridPairs: .*or the target TwoStep$",
    ),
    "tangent without gaps": (
        lambda: Objective(times=Diagonal(), target=Tangent()),
        "Tangent with Diagonal: .*or the target Direct$",
    ),
    "two steps without gaps": (
        lambda: two_step(times=Diagonal()),
        "TwoStep with Diagonal: .*zero gaps; use GridPairs or GroupedJumps times, or the target Direct$",
    ),
    "two steps with mixed gaps": (
        lambda: two_step(times=Dyadic()),
        "TwoStep with Dyadic: .*mixed gaps; use GridPairs or GroupedJumps times, or the target Split$",
    ),
    "two steps with continuous times": (
        lambda: two_step(times=ToData()),
        r"TwoStep with ToData: .*two-step \(s < t\).*continuous \(s = t\).*or the target Tangent$",
    ),
    "direct with gaps": (
        lambda: Objective(times=Sorted(), target=Direct()),
        "Direct with Sorted: .*use Diagonal times, or the target Tangent$",
    ),
    "split without diagonal rows": (
        lambda: Objective(times=GridPairs(), target=Split()),
        "Split with GridPairs: .*use Dyadic times, or the target TwoStep$",
    ),
    "kernel with ungrouped times": (
        lambda: two_step(times=GridPairs(), metric=KernelMMD(group=4)),
        r"KernelMMD compares groups of 4 rows .* GridPairs draws groups of 1; use GroupedJumps\(group=4\)",
    ),
    "kernel with other groups": (
        lambda: two_step(times=GroupedJumps(group=2), metric=KernelMMD(group=4)),
        r"draws groups of 2; use GroupedJumps\(group=4\)",
    ),
    "states with diagonal rows": (
        lambda: Objective(times=Sorted(), target=Tangent(), metric=SquaredError(space="state")),
        "states are equal by construction where r = t, which Sorted draws; use space='output'",
    ),
    "guidance without a null class": (
        lambda: Objective(times=Sorted(), target=Tangent(velocity=Guided()), label_dropout=0.0),
        "omega 1, kappa 0.5, .* label_dropout is 0, .*set label_dropout to 0.1 or remove the guidance",
    ),
    "guided small steps without a null class": (
        lambda: Objective(times=Dyadic(), target=Split(bootstrap=TwoStep(guidance=2.0)), label_dropout=0.0),
        "scale 2 at the smallest step.* label_dropout is 0",
    ),
    "guided small steps of another length": (
        lambda: Objective(times=Dyadic(levels=5), target=Split(bootstrap=TwoStep(guidance=2.0))),
        "jumps of length 0.015625.*set guided_gap to 0.0625, the smallest one, or set guidance to 1",
    ),
    "guided small steps without dyadic times": (
        lambda: Objective(times=GroupedJumps(), target=TwoStep(guidance=2.0)),
        "use Dyadic times, or set guidance to 1",
    ),
    "classes hidden on rows that never come": (
        lambda: two_step(dropped_rows="diagonal"),
        "GroupedJumps never draws, so the null class would never be trained; use dropped_rows='all'",
    ),
    "division by a zero step": (
        lambda: Objective(times=ToData(), target=Tangent(), weighting=ByTime(rule="inverse-step")),
        "divides by t − s, which is 0 on rows that ToData draws; use GridPairs or GroupedJumps",
    ),
    "division by a zero gap": (
        lambda: Objective(
            times=Sorted(), target=Tangent(), weighting=Product(parts=(ByTime(rule="inverse-gap"), Adaptive()))
        ),
        "divides by t − r, which is 0 on rows that Sorted draws",
    ),
    "an empty window": (lambda: meanflow(window=(1.0, 0.0)), r"window \[1.0, 0.0\] is empty"),
    "guidance of guidance": (lambda: Guided(base=Guided()), "guide once"),
    "log steps without dyadic times": (
        lambda: replace(meanflow(), conditioning=LogStep()),
        r"Sorted with LogStep\(steps=128\).*use Dyadic times with LogStep\(steps=128\)",
    ),
    "dyadic times without log steps": (
        lambda: replace(shortcut(), conditioning=StartAndGap()),
        r"Dyadic with StartAndGap.*use Dyadic times with LogStep\(steps=128\)",
    ),
    "log steps of another grid": (
        lambda: replace(shortcut(), conditioning=LogStep(steps=64)),
        r"use Dyadic times with LogStep\(steps=128\)",
    ),
    "grid pairs off their path": (
        lambda: Recipe(name="ct", path=Cosine(), objective=two_step(times=GridPairs())),
        r"GridPairs draws noise levels up to 80.0, .*use VarianceExploding\(sigma_max=80.0\)",
    ),
    "grid pairs of another noise level": (
        lambda: Recipe(
            name="ct",
            path=VarianceExploding(sigma_max=80.0),
            conditioning=LogSigma(),
            objective=two_step(times=GridPairs(grid=KarrasGrid(sigma_max=20.0))),
        ),
        r"use VarianceExploding\(sigma_max=20.0\)",
    ),
    "one time for many ends": (
        lambda: replace(meanflow(), conditioning=StartOnly()),
        "Sorted draws many ends r, but StartOnly tells the network t only; use StartAndGap",
    ),
    "one noise level for many ends": (
        lambda: replace(imm(), conditioning=LogSigma()),
        "LogSigma tells the network t only",
    ),
    "trigflow off its path": (
        lambda: replace(meanflow(), parameterization=TrigFlow()),
        "TrigFlow needs the cosine path",
    ),
    "trigflow with another scale": (lambda: replace(sct(), sigma_data=1.0), r"use Cosine\(noise_scale=1.0\)"),
    "edm off its path": (
        lambda: replace(meanflow(), parameterization=EDMSkip()),
        r"EDMSkip needs the variance-exploding path.*use VarianceExploding\(\)",
    ),
    "variational before adaptive": (lambda: Product(parts=(Variational(), Adaptive())), "must be the last part"),
}


@pytest.mark.parametrize("what", INCOMPATIBLE)
def test_incompatible_parts_are_refused_by_name_with_the_remedy(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, before any random number is drawn."""
    build, message = INCOMPATIBLE[what]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: pytest.fail("a random number was drawn"))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: pytest.fail("a random number was drawn"))
    with pytest.raises(IncompatibleParts, match=message):
        build()


TIMES = (Diagonal(), Sorted(), Gradual(), Independent(), ToData(), Dyadic(), GridPairs(), GroupedJumps())


@pytest.mark.parametrize("law", TIMES, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("target", [Direct(), TwoStep(), Tangent(), Split()], ids=lambda target: type(target).__name__)
def test_following_the_remedy_gives_an_objective(law: object, target: object) -> None:
    """Every pair of target and law fits, or names laws and targets that do."""
    try:
        Objective(times=law, target=target)  # pyright: ignore[reportArgumentType]
    except IncompatibleParts as error:
        times, _, targets = str(error).rpartition("; use ")[2].partition(" times, or the target ")
        laws = {type(other).__name__: other for other in TIMES}
        others = {type(other).__name__: other for other in (Direct(), TwoStep(), Tangent(), Split())}
        for name in times.split(" or "):
            Objective(times=laws[name], target=target)  # pyright: ignore[reportArgumentType]
        for name in targets.split(" or "):
            Objective(times=law, target=others[name])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Objective(label_dropout=1.0), r"label_dropout must be in \[0, 1\), got 1"),
        (lambda: Ema(rate=1.0), r"rate must be between 0 and 1, got 1.0; use Online\(\)"),
        (lambda: ScheduledEma(mu0=1.5), "mu0 must be between 0 and 1, got 1.5"),
        (lambda: Optimizer(lr=0.0), "optimizer.lr = 0.0 is impossible"),
        (lambda: Optimizer(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: Optimizer(clip=0.0), "optimizer.clip"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        build()


def test_guidance_in_words() -> None:
    assert flow_matching().objective.guided is None
    assert meanflow(omega=1.0, kappa=0.0).objective.guided is None
    assert meanflow(window=(0.0, 0.8)).objective.guided == "training guidance (omega 1, kappa 0.5, window [0, 0.8])"
    assert shortcut().objective.guided == "training guidance (scale 1.5 at the smallest step)"


def test_unconditional_takes_guidance_out_of_every_target() -> None:
    guided = Guided(base=Mixture(probability=0.3))
    cases = {
        Tangent(velocity=guided): Tangent(velocity=guided.base),
        Direct(velocity=guided): Direct(velocity=guided.base),
        TwoStep(first=guided): TwoStep(first=guided.base),
    }
    for target, want in cases.items():
        law = {Tangent: Sorted(), Direct: Diagonal(), TwoStep: GroupedJumps()}[type(target)]
        plain = Objective(times=law, target=target).unconditional()
        assert (plain.target, plain.label_dropout) == (want, 0.0)
    split = Objective(times=Dyadic(), target=Split(direct=Direct(velocity=guided), bootstrap=TwoStep(guidance=2.0)))
    assert split.unconditional().target == Split(direct=Direct(velocity=guided.base), bootstrap=TwoStep())


def test_values_are_values() -> None:
    """Frozen, comparable by content; loss terms hold one number a row."""
    assert meanflow() == meanflow()
    assert meanflow() != meanflow(omega=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        meanflow().objective.label_dropout = 0.2  # pyright: ignore[reportAttributeAccessIssue]
    terms = LossTerms(loss=f64(1.0, 2.0), logs={"error": f64(1.0, 2.0)})
    assert terms.loss.tolist() == terms.logs["error"].tolist()
    assert Objective().weightings == (Unweighted(),)
