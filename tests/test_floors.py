"""The least that a step of each recipe can cost, derived by hand from its formula, row by row: no pass beyond it.

With ρ the share of the rows that jump (r < t), in F: a prediction costs 3, a derivative without gradient 1 beyond the
value, a prediction with gradient through its derivative 6, every other value 1. What a step knows already is free: the
prediction where r = t is the network's own velocity, the value of a dual pass is the prediction, and X_{r,r} is the
identity. Nor is anything computed that would be multiplied by zero.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shortflow.config import RunConfig, recipe_named
from shortflow.cost import NETWORK, SPEC, whole_cost
from shortflow.draw import Draw
from shortflow.dual import Dual
from shortflow.guidance import Guided
from shortflow.hub import build_flow
from shortflow.nn import SiT
from shortflow.objective import Objective
from shortflow.recipes import RECIPES, SETTINGS
from shortflow.streams import Streams
from shortflow.train.step import TrainStep
from shortflow.typing import Batch, Progress

NAMES = [*RECIPES, *(f"{name}/{setting}" for name, settings in SETTINGS.items() for setting in settings[1:])]


class Rows:
    """The kinds of rows of a draw."""

    def __init__(self, draw: Draw) -> None:
        t, s, r = draw.times
        self.draw = draw
        self.jump, self.shown = r < t, ~draw.dropped
        self.moves, self.limit = (s > r) & (r < t), (s == t) & (r < t)

    @property
    def smallest(self) -> Tensor:
        """Jumps of two of the 128 steps."""
        return self.jump & ((self.draw.times.t - self.draw.times.r) * 128 < 3)

    @property
    def told(self) -> Tensor:
        """Rows where the guidance that the network is told differs from none."""
        everywhere = torch.arange(len(self.jump))
        guidance = self.draw.velocity_guidance(everywhere, self.draw.times.t)
        assert guidance is not None
        return guidance[:, 0] != 1


def share(*masks: Tensor) -> float:
    return float(torch.stack(torch.broadcast_tensors(*masks)).all(0).double().mean())


def guided(rows: Rows, velocity: Any) -> float:
    """Of rows with a class: v_∅ where its weight is not zero, and v_c, which is known where r = t."""
    assert isinstance(velocity, Guided)
    acts = rows.shown & velocity.acts(rows.draw, rows.draw.everything)
    free = abs(1 - velocity.omega - velocity.kappa) > 1e-9
    return free * share(acts) + (velocity.kappa != 0) * share(acts, rows.jump)


def tangent(rows: Rows, objective: Objective) -> float:
    """3, and D_t F where r < t along a velocity that is known (MeanFlow, ESC, sCT)."""
    target: Any = objective.target
    return 3 + share(rows.jump) + (guided(rows, target.velocity) if isinstance(target.velocity, Guided) else 0)


def two_steps(rows: Rows, objective: Objective) -> float:
    """3, and the second step where there is one."""
    return 3 + share(rows.moves)


def imf(rows: Rows, objective: Objective) -> float:
    """v_c is the direction where r < t and the head's prediction where r = t; v_∅ is needed inside the window."""
    return 3 + share(rows.jump) + share(rows.jump, rows.shown) + share(rows.shown, rows.told)


def soflow(rows: Rows, objective: Objective) -> float:
    """The second step, v_∅ of rows with a class, and v_c of those that jump."""
    return 3 + share(rows.moves) + share(rows.shown) + share(rows.shown, rows.jump)


def alphaflow(rows: Rows, objective: Objective) -> float:
    """The second step, or D_t F where α = 0; the guidance of every row."""
    second = share(rows.moves, ~rows.limit) + share(rows.limit)
    target: Any = objective.target
    return 3 + second + guided(rows, target.direct.velocity)


def rates(rows: Rows, objective: Objective) -> float:
    """Gradient through the derivative where r < t, and one velocity: v at r (LSD) or at t (ESD)."""
    return 3 + 3 * share(rows.jump) + share(rows.jump)


FLOORS: dict[str, Callable[[Rows, Objective], float]] = {
    **dict.fromkeys(("flow-matching", "edm", "reflow"), lambda rows, objective: 3.0),
    **dict.fromkeys(("ct", "ict", "ect", "ct-linear", "imm", "tcm", "soflow/pixels"), two_steps),
    **dict.fromkeys(("sct", "sct-linear", "meanflow", "esc", "esc-plus"), tangent),
    # two steps of the network, and of the smallest jumps with a class both without it, too
    "shortcut": lambda rows, objective: 3 + 2 * share(rows.jump) + 2 * share(rows.smallest, rows.shown),
    "progressive-distillation": lambda rows, objective: 5 + 2 * share(rows.smallest, rows.shown),
    "psd": lambda rows, objective: 3 + 2 * share(rows.jump),
    # eight Euler steps, guided where there is a class
    "live-reflow": lambda rows, objective: 3 + 8 * share(rows.jump) + 8 * share(rows.jump, rows.shown),
    "imf": imf,
    "soflow": soflow,
    "alphaflow": alphaflow,
    "lsd": rates,
    # ∇X·v beside ∂_t X, whose value is known
    "esd": lambda rows, objective: rates(rows, objective) + share(rows.jump),
    # the averaged network's velocity at the end of the jump, and v_∅ where r = t
    "tvm": lambda rows, objective: rates(rows, objective) + share(~rows.jump, rows.shown),
    # two segments of the averaged network
    "rcgm": lambda rows, objective: 3 + 2 * share(rows.moves),
    # Heun's step of the teacher
    **dict.fromkeys(("cd", "cd-linear"), lambda rows, objective: 5 + share(rows.moves)),
    # the teacher's velocity, and the derivative along it or at the end
    **dict.fromkeys(("sct-distilled", "ayf-emd", "ayf-lmd"), lambda rows, objective: 5.0),
}

ABOVE: dict[str, Callable[[Rows], float]] = {
    # One pass has one tangent here: that along v without gradient comes from another one, with its value.
    "esd": lambda rows: share(rows.jump),
}
"""What is above the floor, and why."""


QUICK = ("esc", "shortcut", "imm", "ct")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_no_pass_beyond_what_the_formula_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, draws = recipe_named(name), []
    original = Objective.draw

    def draw(self: Objective, *args: Any, **kwargs: Any) -> Draw:
        draws.append(original(self, *args, **kwargs))
        return draws[-1]

    monkeypatch.setattr(Objective, "draw", draw)
    cost = whole_cost(recipe)
    floor = FLOORS.get(name) or FLOORS[name.split("/")[0]]
    found = [Rows(one) for one in draws]
    least = sum(floor(rows, recipe.objective) + ABOVE.get(name, lambda rows: 0)(rows) for rows in found) / len(found)
    assert cost.predicted == pytest.approx(least, abs=1e-9)


def test_every_recipe_has_its_floor() -> None:
    assert {name.split("/")[0] for name in FLOORS} == set(RECIPES)


def test_in_half_precision_only_the_rows_of_a_quotient_have_a_second_prediction() -> None:
    """SoFlow under bf16: 3 F, the second step and the output in full precision where r < t, and the guidance."""
    recipe = recipe_named("soflow")
    flow = build_flow(RunConfig(recipe=recipe, network=NETWORK), SPEC)
    step, passes = TrainStep(flow, recipe.objective, bf16=True), []
    flow.network.register_forward_pre_hook(
        lambda _, args: passes.append((len(args[0]), torch.is_autocast_enabled("cpu")))
    )
    x, label = torch.randn(64, *SPEC.shape), torch.arange(64) % 4
    draw = step.draw(Batch(x=x, label=label), Streams(seed=0), Progress())
    step(draw)
    shown = ~draw.dropped
    both = int(shown.sum()) + int((shown & draw.times.bootstrap).sum())
    assert sum(rows for rows, half in passes if half) == 64 + int((shown & ~draw.times.bootstrap).sum())
    assert sum(rows for rows, half in passes) == 64 + 2 * 16 + both


def test_blocks_of_the_velocity_head_carry_no_tangents() -> None:
    """Only the output of improved MeanFlow is differentiated; what the head alone needs runs on values."""
    recipe = recipe_named("imf")
    flow = build_flow(RunConfig(recipe=recipe, network=replace(NETWORK, depth=3, head_depth=2)), SPEC)
    network, found = flow.network, []
    assert isinstance(network, SiT)
    for block in network.velocity_blocks:
        block.register_forward_pre_hook(lambda _, args: found.append(isinstance(args[0], Dual)))
    step, batch = TrainStep(flow, recipe.objective), Batch(x=torch.randn(16, *SPEC.shape), label=torch.arange(16) % 4)
    step(step.draw(batch, Streams(seed=0), Progress()))
    assert found == [False] * 3 * 2  # two predictions, one pass for the guidance
