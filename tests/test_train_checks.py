"""What a run checks before it trusts itself, and that it notices what is wrong."""

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from shortflow.config import recipe_named
from shortflow.draw import Draw
from shortflow.dual import Dual, dual
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.nn import MLP, SiT, UNet
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES
from shortflow.streams import Streams
from shortflow.tangent import CentralDifference, DualPass, ForwardMode, Slope, along_path, in_time
from shortflow.targets import Eulerian, Tangent
from shortflow.train import TrainStep, train
from shortflow.train.checks import check_gradients, check_slopes, check_weights
from shortflow.train.engine import Engine
from shortflow.typing import Batch, Progress
from steps import needed


class Two(Engine):
    """An engine that hears from another process what it says itself, changed."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.world, self.change = 2, change

    def gathered(self, value: Any) -> list[Any]:
        return [value, self.change(dict(value))]


def step_of(name: str = "meanflow") -> TrainStep:
    recipe = recipe_named(name)
    return TrainStep(tiny.flow_map(recipe, dropout=0.2), recipe.objective, tiny.references(recipe)).train()


def check_slope(flow: FlowMap, slope: Slope, draw: Draw) -> bool:
    return check_slopes(flow, (slope,), draw)


def altered(name: str) -> Any:
    return lambda sums: {**sums, name: sums[name] + 1e-9}


def test_equal_processes_pass_and_one_alone_does() -> None:
    step = step_of("shortcut")
    for engine in (Engine(), Two(lambda sums: sums)):
        check_weights(engine, step)
        check_gradients(engine, step)


@pytest.mark.parametrize("name", ["network: network.first.weight", "teacher: network.last.bias"])
def test_other_weights_are_noticed(name: str) -> None:
    with pytest.raises(ShortflowError, match=f"the weights {name} of process 1 are not those of process 0"):
        check_weights(Two(altered(name)), step_of("shortcut"))


@pytest.mark.parametrize("missing", [False, True])
def test_other_gradients_are_noticed(missing: bool) -> None:
    step = step_of()
    for weight in step.flow.parameters():
        weight.grad = torch.ones_like(weight)
    name = "network.first.weight"
    change = (lambda sums: {key: value for key, value in sums.items() if key != name}) if missing else altered(name)
    with pytest.raises(ShortflowError, match=f"the gradient of {name} in process 1 is not that in process 0"):
        check_gradients(Two(change), step)


@pytest.mark.parametrize("derivative", [DualPass(), ForwardMode(), CentralDifference()], ids=repr)
@pytest.mark.parametrize("name", ["meanflow", "sct", "esc"])
def test_derivatives_pass(name: str, derivative: Any) -> None:
    step, recipe = step_of(name), recipe_named(name)
    for seed in range(5):
        draw = step.draw(tiny.batches(recipe)(seed), Streams(seed=seed), Progress())
        assert check_slope(step.flow, along_path(derivative), draw)


# What each recipe differentiates, and how; those that are not named take no derivative.
MOVING = ("meanflow", "esc", "esc-plus", "imf", "sct", "sct-linear", "sct-distilled", "alphaflow", "ayf-emd")
SLOPES = {
    **{name: [("along the path", "DualPass"), ("in time", "DualPass")] for name in MOVING},
    "lsd": [("in the end of the jump", "differentiated")],
    "tvm": [("in the end of the jump", "differentiated")],
    "ayf-lmd": [("in the end of the jump", "kept")],
    "esd": [("in time", "differentiated"), ("in space", "differentiated")],
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_derivative_of_a_recipe_is_checked(name: str) -> None:
    """On a network as a run begins with, zero; and rows that come from several draws."""
    slopes = recipe_named(name).objective.target.slopes()
    assert [(slope.where, slope.by) for slope in slopes] == SLOPES.get(name, [])
    flow, draw = fresh(name, "sit")
    for slope in slopes:
        assert check_slope(flow, slope, draw)


def test_a_residual_along_the_learned_velocity_is_one_derivative() -> None:
    assert [slope.along for slope in Eulerian(detach_space=False).slopes()] == [(0, 1, 0), (1, 1, 0)]
    flow, draw = fresh("esd", "unet")
    assert check_slope(flow, in_time(moving=True), draw)


@pytest.mark.parametrize("name", [name for name in SLOPES if name in ("meanflow", "lsd", "tvm", "ayf-lmd", "esd")])
def test_a_wrong_rule_is_seen_in_every_derivative(name: str) -> None:
    """That of a layer which all of them pass."""
    flow, draw = fresh(name, "sit")
    doubled(flow.network.blocks[0].mlp)  # type: ignore[union-attr,index]
    for slope in recipe_named(name).objective.target.slopes():
        with pytest.raises(ShortflowError, match=f"{slope.where}, by {slope.by}, differs from central .* wrong rule"):
            check_slope(flow, slope, draw)


@dataclass(frozen=True, kw_only=True)
class Wrong(DualPass):
    """A tenth too large."""

    def keeping(self, f: Any, x: Tensor, t: Tensor, v: Tensor) -> Any:
        values, rate = super().keeping(f, x, t, v)
        return values, 1.1 * rate


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda **needs: MLP(shape=(2,), width=32, depth=2, **needs),
    "sit": lambda **needs: SiT(shape=(2, 8, 8), patch=4, width=16, depth=2, heads=2, **needs),
    "unet": lambda **needs: UNet(shape=(2, 8, 8), channels=4, multipliers=(1, 2), depth=1, attention=(1,), **needs),
}


def fresh(name: str, kind: str) -> tuple[FlowMap, Draw]:
    """A flow map as a run begins with, whose network is zero, and the first draw."""
    recipe = recipe_named(name)
    network = NETWORKS[kind](**needed(recipe))
    step = TrainStep(recipe.flow_map(network), recipe.objective).train()
    batch = Batch(x=torch.randn(8, *network.shape), label=torch.arange(8) % 4)  # type: ignore[arg-type]
    draw = step.draw(batch, Streams(), Progress())
    with torch.no_grad():
        assert not step.flow.predict(draw.x_t, draw.times.t, draw.times.r, *draw.inputs(slice(0, 8))).any()
    return step.flow, draw


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", ["meanflow", "sct"])
def test_a_network_that_is_still_zero_hides_no_wrong_derivative(name: str, kind: str) -> None:
    flow, draw = fresh(name, kind)
    for right in (DualPass(), ForwardMode(), CentralDifference()):
        check_slope(flow, along_path(right), draw)
    with pytest.raises(ShortflowError, match="by Wrong, differs from central differences by 9%"):
        check_slope(flow, along_path(Wrong()), draw)


def doubled(layer: Any) -> None:
    """Make the tangent of a layer twice as large, its value as it is."""
    inner = layer.forward

    def forward(*args: Any) -> Any:
        result = inner(*args)
        return dual(result.value, 2 * result.tangent, result.policy) if isinstance(result, Dual) else result

    layer.forward = forward


def test_every_layer_is_seen_behind_gates_that_are_zero() -> None:
    """A wrong rule inside a block of the transformer, whose gate and last layer are zero at first."""
    flow, draw = fresh("meanflow", "sit")
    doubled(flow.network.blocks[0].attn)  # type: ignore[union-attr,index]
    with pytest.raises(ShortflowError, match="an operation of the network has a wrong rule"):
        check_slope(flow, along_path(DualPass()), draw)


def test_what_is_small_beside_the_rest_is_seen_on_its_own() -> None:
    """A wrong rule on the way of the times, which is lost in the derivative along the path."""
    flow, draw = fresh("meanflow", "sit")
    doubled(flow.network.blocks[0].adaLN_modulation)  # type: ignore[union-attr,index]
    path, time = Tangent().slopes()
    assert check_slope(flow, path, draw)
    with pytest.raises(ShortflowError, match="in time, by DualPass, differs from central differences"):
        check_slope(flow, time, draw)


def test_the_check_leaves_weights_and_random_numbers_as_they_are() -> None:
    flow, draw = fresh("meanflow", "sit")
    before = [(weight, weight.detach().clone()) for weight in flow.parameters()]
    state, precision = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    check_slope(flow, along_path(DualPass()), draw)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.allow_tf32 is precision
    for weight, (same, value) in zip(flow.parameters(), before, strict=True):
        assert weight is same
        assert torch.equal(weight, value)
        assert weight.grad is None


def test_what_does_not_change_passes() -> None:
    """A network that ignores its inputs has no derivative to be wrong, beyond rounding."""
    recipe = recipe_named("meanflow")
    flow = tiny.flow_map(recipe)
    flow.network.forward = lambda x, *others: torch.full_like(x, 3.0) + 1e-9 * x  # type: ignore[method-assign]
    step = TrainStep(flow, recipe.objective)
    assert check_slope(flow, along_path(Wrong()), step.draw(tiny.batches(recipe)(0), Streams(), Progress()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_wrong_derivative_stops_the_run_before_its_first_step(kind: str) -> None:
    recipe = recipe_named("meanflow")
    target = replace(recipe.objective.target, derivative=Wrong())  # type: ignore[call-arg]
    network = NETWORKS[kind](**needed(recipe))
    step = TrainStep(recipe.flow_map(network), replace(recipe.objective, target=target))
    before = [weight.clone() for weight in step.flow.parameters()]
    batch = Batch(x=torch.randn(8, *network.shape), label=torch.arange(8) % 4)  # type: ignore[arg-type]
    with pytest.raises(ShortflowError, match=r"derivative of \w+ .* by Wrong, differs from central .* by 9%"):
        next(train(step, tiny.settings(batch=8), Optimizer(), lambda k: batch))
    assert all(torch.equal(a, b) for a, b in zip(before, step.flow.parameters(), strict=True))


# --------------------------------------------------------------------------------------- steps that are not finite


def broken(recipe: Recipe, bad: Container[int]) -> Callable[[int], Batch]:
    """Batches with a row that is not finite, in the steps (from 0) that are bad."""
    whole = tiny.batches(recipe)

    def batch_of(k: int) -> Batch:
        batch = whole(k)
        return replace(batch, x=batch.x.index_fill(0, torch.tensor([0]), math.nan)) if k in bad else batch

    return batch_of


@pytest.mark.parametrize("name", ["meanflow", "esd", "shortcut"])
@pytest.mark.parametrize("start", [0, 3])
def test_a_first_step_that_is_not_finite_is_skipped_as_any_other(name: str, start: int) -> None:
    step, recipe = step_of(name), recipe_named(name)
    batch_of = broken(recipe, {start, start + 1})
    records = list(train(step, tiny.settings(start + 4), Optimizer(), batch_of, start=start))
    assert [record.skipped for record in records] == [True, True, False, False]


def test_the_check_is_made_in_the_first_step_that_is_finite() -> None:
    recipe = recipe_named("meanflow")
    target = replace(recipe.objective.target, derivative=Wrong())  # type: ignore[call-arg]
    step = TrainStep(tiny.flow_map(recipe), replace(recipe.objective, target=target))
    records = train(step, tiny.settings(8), Optimizer(), broken(recipe, {0, 1}))
    assert [next(records).skipped for _ in range(2)] == [True, True]
    with pytest.raises(ShortflowError, match="by Wrong, differs from central differences"):
        next(records)


def test_gradients_that_are_not_finite_are_equal_and_say_nothing() -> None:
    step = step_of()
    for weight in step.flow.parameters():
        weight.grad = torch.ones_like(weight)
    assert check_gradients(Two(lambda sums: sums), step)
    name, weight = next(iter(step.flow.named_parameters()))
    weight.grad = torch.full_like(weight, math.nan)
    assert not check_gradients(Two(lambda sums: sums), step)
    # In one process only, they have not been exchanged.
    with pytest.raises(ShortflowError, match=f"the gradient of {name} in process 1 is not that in process 0"):
        check_gradients(Two(lambda sums: {**sums, name: 1.0}), step)


@dataclass(frozen=True, kw_only=True)
class NotFinite(DualPass):
    """As of a rule that divides nothing by nothing."""

    def keeping(self, f: Any, x: Tensor, t: Tensor, v: Tensor) -> Any:
        values, rate = super().keeping(f, x, t, v)
        return values, math.nan * rate


def test_a_derivative_that_alone_is_not_finite_is_a_wrong_one() -> None:
    flow, draw = fresh("meanflow", "mlp")
    with pytest.raises(ShortflowError, match="along the path, by NotFinite, is not finite where the network is: an op"):
        check_slope(flow, along_path(NotFinite()), draw)
