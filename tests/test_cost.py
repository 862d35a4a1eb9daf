"""The cost of a step: exact where passes can be counted by hand, and the table in the package is what is measured."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shortflow.config import recipe_named
from shortflow.cost import Counter, known_costs, step_cost, whole_cost
from shortflow.guidance import Guided
from shortflow.recipes import RECIPES, SETTINGS, flow_matching, ict, meanflow, sct, shortcut
from shortflow.tangent import CentralDifference
from shortflow.targets import Tangent
from shortflow.times import Sorted
from shortflow.velocity import Conditional

NAMES = [*RECIPES, *(f"{name}/{setting}" for name, settings in SETTINGS.items() for setting in settings[1:])]
PLAIN = 2.964  # forward and backward, without the gradient of the input of the first layers


FEW = ("esc", "shortcut", "imf", "esd", "tvm")  # every kind of pass is in one of them


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in NAMES])
def test_the_passes_add_up_to_what_is_measured(name: str) -> None:
    """No arithmetic outside the passes of networks that counts, and none of them more than its kind should cost."""
    cost = whole_cost(recipe_named(name))
    assert cost.predicted == pytest.approx(cost.measured, rel=0.05)


def test_the_table_has_every_recipe_and_setting_and_no_other() -> None:
    defaults = {f"{name}/{settings[0]}": name for name, settings in SETTINGS.items()}
    assert set(known_costs()) == {*NAMES, *defaults}
    assert all(known_costs()[setting] == known_costs()[name] for setting, name in defaults.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_what_is_measured(name: str) -> None:
    """After a change of a recipe or of a derivative: python scripts/method_pages.py --costs."""
    assert known_costs()[name] == pytest.approx(step_cost(recipe_named(name)), rel=0.03)


def test_counting_is_that_of_the_flop_counter_of_torch() -> None:
    layer, x = torch.nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8)

    def work() -> None:
        y = layer(x).flatten(1)
        (torch.func.jvp(lambda z: z @ z.T, (y,), (y,))[1].sum() + y.sum()).backward()

    with FlopCounterMode(display=False) as official:
        work()
    with Counter() as ours:
        work()
    assert ours.total == official.get_total_flops() > 0


def test_a_plain_step_is_three_passes() -> None:
    assert step_cost(flow_matching()) == pytest.approx(3, rel=0.02)


def test_a_second_jump_adds_one_pass_and_a_bootstrapped_row_two() -> None:
    assert step_cost(ict()) == pytest.approx(PLAIN + 1, abs=0.02)  # few rows have no second jump
    quarter, half = (step_cost(shortcut(guidance=1.0, share=share)) for share in (0.25, 0.5))
    assert half - quarter == pytest.approx(0.25 * 2, abs=0.02)


def test_a_derivative_is_counted_by_what_it_does() -> None:
    exact = step_cost(sct()) - PLAIN
    assert exact == pytest.approx(1, abs=0.15)  # the value is the prediction; attention has two products more
    target = sct().objective.target
    assert isinstance(target, Tangent)
    differences = replace(sct().objective, target=replace(target, derivative=CentralDifference()))
    assert step_cost(replace(sct(), objective=differences)) - PLAIN == pytest.approx(3, abs=0.05)


def test_guidance_costs_a_pass_for_each_velocity_that_it_mixes_in() -> None:
    def cost(omega: float, kappa: float) -> float:
        """Without jumps and hidden classes."""
        velocity = Guided(base=Conditional(), omega=omega, kappa=kappa)
        objective = replace(meanflow().objective, times=Sorted(ratio=0.0), target=Tangent(velocity=velocity))
        return step_cost(replace(meanflow(), objective=replace(objective, label_dropout=0.01)))

    none = cost(1.0, 0.0)
    assert cost(2.0, 0.0) - none == pytest.approx(1, abs=0.03)
    # The conditional velocity at r = t is the prediction.
    assert cost(1.0, 0.5) - none == pytest.approx(1, abs=0.03)
    assert cost(0.7, 0.3) - none == pytest.approx(0, abs=0.03)


def test_measuring_leaves_the_global_generator_where_it_was() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = step_cost(flow_matching())
    assert torch.equal(torch.get_rng_state(), before)
    assert step_cost(flow_matching()) == first
