"""Draws and their evaluation: streams, labels, teachers, rows, logs, and what published code stumbles over."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from oracles import f64
from shortflow.draw import Draw, References
from shortflow.errors import IncompatibleParts, ShortflowError
from shortflow.flowmap import (
    AverageVelocity,
    FlowMap,
    Transfer,
)
from shortflow.guidance import Guided
from shortflow.losses import (
    KernelMMD,
    PseudoHuber,
    SquaredError,
    Unweighted,
)
from shortflow.objective import Ema, Objective, Online, ScheduledEma
from shortflow.optimizer import Optimizer
from shortflow.paths import Cosine, Linear, Path
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, esc, flow_matching, imm, meanflow, sct, shortcut
from shortflow.streams import Streams
from shortflow.targets import Direct, Split, Tangent, Target, TwoStep
from shortflow.times import (
    Diagonal,
    Dyadic,
    Gradual,
    GroupedJumps,
    Sorted,
)
from shortflow.typing import Batch, LossTerms, Progress, expand
from shortflow.velocity import Conditional, Mixture, PlugIn
from steps import MIDDLE, NULL, batch, close, drawn, flow_of, frozen, loss_and_gradient, mlp, network_for, taken


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
    """Passes everything on to a network and keeps the labels of every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, []
        self.num_classes, self.null_label = network.num_classes, network.null_label
        self.log_variance = network.log_variance

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None, *told: Tensor) -> Tensor:
        self.calls.append(label)
        return self.network(x, time, second, label, *told)

    def both(
        self, x: Tensor, time: Tensor, second: Tensor | None, label: Tensor | None, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        self.calls.append(label)
        return self.network.both(x, time, second, label, guidance)


def test_hidden_classes_are_hidden_in_every_pass() -> None:
    """Prediction and derivative see the same labels; the guidance passes run on rows with a class only."""
    recipe = meanflow(ratio=1.0)
    recipe = replace(recipe, objective=replace(recipe.objective, label_dropout=0.5))
    draw, spy = drawn(recipe), Spy(network_for(recipe))
    flow = recipe.flow_map(spy)
    recipe.objective.evaluate(flow, flow, draw)
    guidance, prediction = spy.calls  # the prediction with its derivative
    assert draw.dropped.any()
    assert draw.times.bootstrap.all()
    assert torch.equal(prediction, draw.condition)
    kept = draw.label[~draw.dropped]
    assert torch.equal(guidance, torch.cat([kept, torch.full_like(kept, NULL)]))
    spy.calls.clear()
    meanflow(omega=2.0, kappa=0.0).objective.evaluate(flow, flow, draw)
    assert torch.equal(spy.calls[0], torch.full_like(kept, NULL))


@pytest.mark.parametrize("name", RECIPES)
def test_the_target_branch_has_no_gradient(name: str) -> None:
    """With teacher weights of its own that require a gradient: theirs is exactly none, the network's is not zero."""
    recipe = RECIPES[name]()
    flow, teacher = flow_of(recipe), flow_of(recipe, seed=2)
    loss = recipe.objective.evaluate(flow, teacher, drawn(recipe, 32)).loss
    loss.sum().backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert sum(weight.grad.abs().sum().item() for weight in flow.parameters() if weight.grad is not None) > 1e-3


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().objective.times.gap != "zero"])
def test_targets_use_the_weights_of_the_teacher(name: str) -> None:
    """On rows with a second step by the network; the others are the same whoever asks, unless they are guided."""
    recipe = without_clip(RECIPES[name]())
    flow, teacher, draw = flow_of(recipe), flow_of(recipe, seed=2), drawn(recipe, 32, progress=MIDDLE)
    own, other = (recipe.objective.evaluate(flow, which, draw).loss for which in (flow, teacher))
    copied = recipe.objective.evaluate(flow, copy.deepcopy(flow), draw).loss
    close(own, copied, 0)
    boot, s = draw.times.bootstrap, draw.times.s
    second = boot & (s > draw.times.r) & (s >= recipe.objective.lowest)  # below that the frozen model steps
    assert second.any()
    assert (own - other)[second].abs().min() > 1e-12
    if recipe.objective.guided is None and recipe.objective.guidance is None:
        close(own[~boot], other[~boot], 0)


def test_decays_of_the_teachers() -> None:
    half = Progress(images=1, total=2)
    assert [teacher.decay(half) for teacher in (Online(), Ema(rate=0.99))] == [0.0, 0.99]
    assert ScheduledEma(mu0=0.95).decay(Progress()) == pytest.approx(0.95)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "imm"])
def test_permuting_the_rows_permutes_the_losses(name: str) -> None:
    """Rows with and without a jump in any order (published code concatenates them, which misaligns shuffled rows)."""
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe), drawn(recipe, 32, progress=MIDDLE)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    shuffled = taken(draw, order)
    one, other = (recipe.objective.evaluate(flow, flow, d) for d in (draw, shuffled))
    close(other.loss, one.loss[order], 1e-10)
    for log in one.logs:
        torch.testing.assert_close(other.logs[log], one.logs[log][order], rtol=1e-10, atol=1e-10, equal_nan=True)


def test_permuting_groups_permutes_the_losses_and_rows_of_a_group_share_one() -> None:
    recipe = imm()
    flow, draw = flow_of(recipe), drawn(recipe, 16)
    order = torch.arange(16).reshape(4, 4)[[2, 0, 3, 1]][:, [1, 0, 3, 2]].flatten()
    shuffled = taken(draw, order)
    one, other = (recipe.objective.evaluate(flow, flow, d).loss for d in (draw, shuffled))
    close(other, one[order], 1e-12)
    close(one, one[::4].repeat_interleave(4), 0)


class Turned(nn.Module):
    """x ↦ Q F(Qᵀ x) on flattened samples, F a network of points."""

    def __init__(self, network: nn.Module, rotation: Tensor) -> None:
        super().__init__()
        self.network, self.rotation = network, rotation
        self.num_classes, self.null_label = network.num_classes, network.null_label
        self.log_variance = network.log_variance

    def forward(self, x: Tensor, *told: Tensor | None) -> Tensor:
        return self.turned(self.network(self.straight(x), *told), x)

    def both(self, x: Tensor, *told: Tensor | None) -> tuple[Tensor, Tensor]:
        output, velocity = self.network.both(self.straight(x), *told)
        return self.turned(output, x), self.turned(velocity, x)

    def straight(self, x: Tensor) -> Tensor:
        return turn(x, self.rotation.T).flatten(1)

    def turned(self, output: Tensor, x: Tensor) -> Tensor:
        return turn(output, self.rotation).reshape(x.shape)


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Q x of every flattened sample."""
    return (x.flatten(1) @ rotation.T).reshape(x.shape)


def turned_references(references: References, path: Path, rotation: Tensor) -> References:
    models = {name: model for name, model in vars(references).items() if model is not None}
    return References(**{name: frozen(path, Turned(model.network, rotation)) for name, model in models.items()})


def unclipped(part: Target) -> Target:
    """The target without bounds on coordinates, whatever is inside it."""
    inner = {f.name: getattr(part, f.name) for f in fields(part)}
    changes = {name: unclipped(value) for name, value in inner.items() if isinstance(value, Target)}
    return replace(part, **changes, **({"clip": None} if "clip" in inner else {}))


def without_clip(recipe: Recipe) -> Recipe:
    """The recipe without the clipping of coordinates, the one step that knows the axes."""
    return replace(recipe, objective=replace(recipe.objective, target=unclipped(recipe.objective.target)))


def other_losses() -> dict[str, Objective]:
    """Metrics and norms that no recipe has by default."""
    jumps, first = GroupedJumps(group=4), TwoStep(first=Mixture())
    return {
        "pseudo-huber": Objective(times=jumps, target=first, metric=PseudoHuber(c=0.3)),
        "unbiased-mmd": Objective(times=jumps, target=first, metric=KernelMMD(unbiased=True)),
        "rms-norm": Objective(times=Sorted(ratio=0.5), target=Tangent(velocity=PlugIn(), normalize=0.1, norm="rms")),
    }


@pytest.mark.parametrize("name", [*RECIPES, *other_losses()])
def test_no_loss_knows_the_axes(name: str) -> None:
    """Data, noise and network turned by the same Q: the same loss of every row, and the same gradient."""
    if name in RECIPES:
        recipe = without_clip(RECIPES[name]())
    else:
        recipe = replace(meanflow(), objective=other_losses()[name])
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    given, shape = batch(32, d=6, pairs="pairs" in recipe.objective.needs), (32, 1, 2, 3)
    given = replace(given, x=given.x.reshape(shape), eps=None if given.eps is None else given.eps.reshape(shape))
    draw, network = drawn(recipe, given=given, progress=MIDDLE), network_for(recipe, d=6)
    still, moved = (recipe.flow_map(Turned(network, q)) for q in (torch.eye(6, dtype=torch.float64), rotation))
    turned = replace(draw, **{part: turn(getattr(draw, part), rotation) for part in ("x", "eps", "x_t")})
    draw, turned = (
        replace(which, references=turned_references(which.references, recipe.path, flow.network.rotation))
        for which, flow in ((draw, still), (turned, moved))
    )
    (want, slope), (got, other) = (
        loss_and_gradient(recipe.objective, flow, which) for flow, which in ((still, draw), (moved, turned))
    )
    close(got, want, 1e-10)
    close(other, slope, 1e-9)
    assert (loss_and_gradient(recipe.objective, still, turned)[0] - want).abs().max() > 1e-5  # Q is not in vain
    if name == "esc":
        plain = PlugIn()(still, draw)
        close(PlugIn()(moved, turned), turn(plain, rotation), 1e-10)
        assert (plain - Conditional()(still, draw)).flatten(1).norm(dim=1).max() > 0.1  # other images do count


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
    t = draw.times.t
    with torch.no_grad():  # from t to 0: the average velocity of the jump
        v = (draw.x_t - flow(draw.x_t, t, torch.zeros_like(t), draw.label)) / expand(t, draw.x_t)
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
def test_dropout_masks_are_a_function_of_the_seed_of_the_step(name: str) -> None:
    """The same loss twice, another one for another seed."""
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


# --------------------------------------------------------------------------------- what published code stumbles over


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().null_class])
def test_the_null_class_is_trained_where_there_is_one(name: str) -> None:
    """Guidance uses it, in training or later."""
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
    """Guidance is the identity there, so the loss is that of the unconditional recipe, to rounding: without guidance no
    row knows a velocity for another, so that fewer passes have more rows each."""
    recipe = RECIPES[name]()
    flow, draw = flow_of(recipe, classes=0), drawn(recipe, 32, labels=False)
    got = loss_and_gradient(recipe.objective, flow, draw)
    want = loss_and_gradient(recipe.unconditional().objective, flow, draw)
    close(got[0], want[0], 1e-13)
    close(got[1], want[1], 1e-12)


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


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Objective(label_dropout=1.0), r"label_dropout must be in \[0, 1\), got 1"),
        (lambda: Ema(rate=1.0), r"rate must be between 0 and 1, got 1.0; use Online\(\)"),
        (lambda: ScheduledEma(mu0=1.5), "mu0 must be between 0 and 1, got 1.5"),
        (lambda: Optimizer(lr=0.0), "optimizer.lr must be positive and finite, got 0.0"),
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
    split = Objective(
        times=Dyadic(), target=Split(direct=Direct(velocity=guided.base), bootstrap=TwoStep(first=None, guidance=2.0))
    )
    assert split.unconditional().target == Split(direct=Direct(velocity=guided.base), bootstrap=TwoStep(first=None))
    split = Objective(times=Dyadic(), target=Split(direct=Direct(velocity=guided), bootstrap=TwoStep(first=None)))
    assert split.unconditional().target == Split(direct=Direct(velocity=guided.base), bootstrap=TwoStep(first=None))


def test_values_are_values() -> None:
    """Frozen, comparable by content; loss terms hold one number a row."""
    assert meanflow() == meanflow()
    assert meanflow() != meanflow(omega=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        meanflow().objective.label_dropout = 0.2  # pyright: ignore[reportAttributeAccessIssue]
    terms = LossTerms(loss=f64(1.0, 2.0), logs={"error": f64(1.0, 2.0)})
    assert terms.loss.tolist() == terms.logs["error"].tolist()
    assert Objective().weightings == (Unweighted(),)
