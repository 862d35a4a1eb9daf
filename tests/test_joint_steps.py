"""Prediction and target from shared passes: the same loss and gradients as from separate ones, at less cost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortflow.config import RunConfig, override, recipe_named
from shortflow.cost import step_cost
from shortflow.data import DataSpec
from shortflow.draw import References
from shortflow.hub import build_flow
from shortflow.nn.configs import SiTConfig
from shortflow.objective import Objective, Online
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, flow_matching
from shortflow.reframe import reframe
from shortflow.streams import Streams
from shortflow.tangent import ForwardMode
from shortflow.train.step import TrainStep
from shortflow.typing import Batch, Progress

SPEC = DataSpec(name="noise", shape=(4, 8, 8), image=True, classes=tuple("abc"))
ROWS = 16


def joined(recipe: Recipe) -> bool:
    objective = recipe.objective
    return isinstance(objective.teacher, Online) and objective.target.joins


NAMES = [name for name in [*RECIPES, "meanflow/pixels", "esc/pixels"] if joined(recipe_named(name))]


def losses(recipe: Recipe, objective: Objective, seed: int, dropout: float = 0.0) -> tuple[Tensor, list[Tensor], Any]:
    """(loss, gradients, logs) of one step in float64 on noise."""
    torch.manual_seed(0)
    network = SiTConfig(size="tiny", width=32, depth=1, heads=2, patch=4, dropout=dropout)
    flow = build_flow(RunConfig(recipe=recipe, network=network), SPEC).double()
    for weight in flow.parameters():
        nn.init.normal_(weight, std=0.1)
    teacher = build_flow(RunConfig(recipe=flow_matching(), network=network), SPEC).double()
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.1)
    step = TrainStep(flow, objective, References(teacher=reframe(teacher, recipe.path)))
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, *SPEC.shape, generator=g, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=g, dtype=torch.float64) if objective.pairs else None
    label = torch.arange(ROWS) % 3
    progress = Progress(images=500, total=1000, batch=ROWS)
    loss, terms = step(step.draw(Batch(x=x, label=label, eps=eps), Streams(seed=seed), progress))
    found = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    return loss, [torch.zeros(()) if g is None else g for g in found], terms


def test_these_recipes_share_passes() -> None:
    shared = {"meanflow", "esc", "esc-plus", "sct", "sct-linear", "alphaflow", "imf", "soflow"}
    assert shared | {"sct-distilled", "ayf-emd", "ayf-lmd"} <= set(NAMES)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_shared_passes_give_the_same_loss_and_gradients(
    name: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_named(name)
    for seed in (0, 1):
        found = losses(recipe, recipe.objective, seed, dropout)
        with monkeypatch.context() as patch:
            patch.setattr(type(recipe.objective.target), "joins", False)
            expected = losses(recipe, recipe.objective, seed, dropout)
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-9, atol=1e-11)
        for key, log in expected[2].logs.items():
            torch.testing.assert_close(found[2].logs[key], log, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("name", ["esc", "meanflow", "sct"])
def test_the_stock_derivative_gives_the_same_gradients(name: str) -> None:
    recipe = recipe_named(name)
    stock = replace(recipe.objective, target=replace(recipe.objective.target, derivative=ForwardMode()))  # type: ignore[call-arg]
    torch.testing.assert_close(
        losses(recipe, recipe.objective, 3)[:2], losses(recipe, stock, 3)[:2], rtol=1e-9, atol=1e-11
    )


def guided(omega: float, kappa: float, ratio: float) -> Recipe:
    """ESC with the given guidance and an exact share of rows with r < t."""
    settings = [
        f"recipe.objective.target.velocity.omega={omega}",
        f"recipe.objective.target.velocity.kappa={kappa}",
        "recipe.objective.target.velocity.window=[0, 1]",
    ]
    run = override(RunConfig(recipe=recipe_named("esc"), network=SiTConfig(size="tiny")), settings)
    times: Any = run.recipe.objective.times
    return replace(run.recipe, objective=replace(run.recipe.objective, times=replace(times, ratio=ratio)))


@pytest.mark.parametrize(("omega", "kappa", "passes"), [(1.0, 0.0, 0), (0.5, 0.5, 0), (2.0, 0.0, 1), (0.2, 0.5, 1)])
def test_the_cost_is_the_floor(omega: float, kappa: float, passes: int) -> None:
    """3 F, and the tangent on the share ρ of jumps (ρ F); of rows with a class, all ask for the unconditional velocity
    where it has a weight, and those that jump for the conditional one where it has."""
    recipe = guided(omega, kappa, 0.25)
    shown = 1 - recipe.objective.label_dropout
    floor = 3 + 0.25 + shown * (passes + (0.25 if kappa else 0))
    assert step_cost(recipe) == pytest.approx(floor, rel=0.06)
