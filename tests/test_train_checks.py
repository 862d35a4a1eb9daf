"""What a run checks before it trusts itself, and that it notices what is wrong."""

from collections.abc import Callable
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
from shortflow.streams import Streams
from shortflow.tangent import CentralDifference, DualPass, ForwardMode
from shortflow.train import TrainStep, train
from shortflow.train.checks import check_derivative, check_gradients, check_weights, derivatives_of
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
        check_derivative(step.flow, derivative, draw)


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
        check_derivative(flow, right, draw)
    with pytest.raises(ShortflowError, match="by Wrong differs from central differences by 9%"):
        check_derivative(flow, Wrong(), draw)


def attention_of(block: Any) -> None:
    """Make the tangent of a block's attention twice as large, its value as it is."""
    inner = block.attn.forward

    def forward(*args: Any) -> Any:
        result = inner(*args)
        return dual(result.value, 2 * result.tangent, result.policy) if isinstance(result, Dual) else result

    block.attn.forward = forward


def test_every_layer_is_seen_behind_gates_that_are_zero() -> None:
    """A wrong rule inside a block of the transformer, whose gate and last layer are zero at first."""
    flow, draw = fresh("meanflow", "sit")
    attention_of(flow.network.blocks[0])  # type: ignore[union-attr,index]
    with pytest.raises(ShortflowError, match="an operation of the network has a wrong rule"):
        check_derivative(flow, DualPass(), draw)


def test_the_check_leaves_weights_and_random_numbers_as_they_are() -> None:
    flow, draw = fresh("meanflow", "sit")
    before = [(weight, weight.detach().clone()) for weight in flow.parameters()]
    state, precision = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    check_derivative(flow, DualPass(), draw)
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
    check_derivative(flow, Wrong(), step.draw(tiny.batches(recipe)(0), Streams(), Progress()))


def test_every_part_of_a_target_is_asked_for_its_derivative() -> None:
    assert derivatives_of(recipe_named("meanflow").objective.target) == (DualPass(),)
    assert derivatives_of(recipe_named("alphaflow").objective.target) == (DualPass(),)  # where s = t
    assert derivatives_of(recipe_named("shortcut").objective.target) == ()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_wrong_derivative_stops_the_run_before_its_first_step(kind: str) -> None:
    recipe = recipe_named("meanflow")
    target = replace(recipe.objective.target, derivative=Wrong())  # type: ignore[call-arg]
    network = NETWORKS[kind](**needed(recipe))
    step = TrainStep(recipe.flow_map(network), replace(recipe.objective, target=target))
    before = [weight.clone() for weight in step.flow.parameters()]
    batch = Batch(x=torch.randn(8, *network.shape), label=torch.arange(8) % 4)  # type: ignore[arg-type]
    with pytest.raises(ShortflowError, match=r"derivative of \w+ .* by Wrong differs from central .* by 9%"):
        next(train(step, tiny.settings(batch=8), Optimizer(), lambda k: batch))
    assert all(torch.equal(a, b) for a, b in zip(before, step.flow.parameters(), strict=True))
