"""What a run checks before it trusts itself, and that it notices what is wrong."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from shortflow.config import recipe_named
from shortflow.errors import ShortflowError
from shortflow.optimizer import Optimizer
from shortflow.streams import Streams
from shortflow.tangent import CentralDifference, DualPass, ForwardMode
from shortflow.train import TrainStep, train
from shortflow.train.checks import check_derivative, check_gradients, check_weights
from shortflow.train.engine import Engine
from shortflow.typing import Progress


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


def test_a_network_that_is_zero_passes() -> None:
    step, recipe = step_of(), recipe_named("meanflow")
    last: Any = step.flow.network.last
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    check_derivative(step.flow, DualPass(), step.draw(tiny.batches(recipe)(0), Streams(), Progress()))


@dataclass(frozen=True, kw_only=True)
class Wrong(DualPass):
    """A tenth too large."""

    def keeping(self, f: Any, x: Tensor, t: Tensor, v: Tensor) -> Any:
        values, rate = super().keeping(f, x, t, v)
        return values, 1.1 * rate


def test_a_wrong_derivative_stops_the_run_before_its_first_step() -> None:
    recipe = recipe_named("meanflow")
    target = replace(recipe.objective.target, derivative=Wrong())  # type: ignore[call-arg]
    step = TrainStep(tiny.flow_map(recipe), replace(recipe.objective, target=target))
    before = [weight.clone() for weight in step.flow.parameters()]
    with pytest.raises(ShortflowError, match=r"derivative of MLP .* by Wrong differs from central .* by [79]%"):
        next(train(step, tiny.settings(), Optimizer(), tiny.batches(recipe)))
    assert all(torch.equal(a, b) for a, b in zip(before, step.flow.parameters(), strict=True))
