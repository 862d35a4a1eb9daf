"""What one training step of every recipe costs and takes, on one small network. Run by `benchmarks.step --recipes`."""

from typing import Any

import torch

from benchmarks.measure import peak_memory, ratios, timed
from benchmarks.subjects import QUICK, Size, built
from shortflow.config import recipe_named
from shortflow.cost import whole_cost
from shortflow.draw import References
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, flow_matching
from shortflow.reframe import reframe
from shortflow.streams import Streams
from shortflow.train.step import TrainStep
from shortflow.typing import Batch, Progress

__all__ = ["measured"]

SIZE = Size(network="S", patch=2, batch=32, depth=1, side=8)
DRAWS = 4


class Stepping:
    """Loss and gradient of a recipe's step, for `DRAWS` draws spread over the run, as training makes them."""

    def __init__(self, recipe: Recipe, size: Size) -> None:
        flow, teacher = built(size, recipe), reframe(built(size, flow_matching()), recipe.path)
        self.step = TrainStep(flow, recipe.objective, References(teacher=teacher, weak=teacher))
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(size.batch, *size.spec.shape, generator=g)
        self.eps = torch.randn(self.x.shape, generator=g) if recipe.objective.pairs else None
        self.label = torch.arange(size.batch) % len(size.spec.classes)

    def one(self, i: int) -> None:
        rows = len(self.x)
        progress = Progress(images=rows * (2 * i + 1), total=2 * rows * DRAWS, batch=rows)
        batch = Batch(x=self.x, label=self.label, eps=self.eps)
        self.step(self.step.draw(batch, Streams(seed=i), progress))[0].backward()
        self.step.zero_grad(set_to_none=True)

    def all(self) -> None:
        for i in range(DRAWS):
            self.one(i)

    def forward(self) -> None:
        """As many passes without gradient as `all` makes steps."""
        t = torch.full((len(self.x),), 0.5)
        with torch.no_grad():
            for _ in range(DRAWS):
                self.step.flow.predict(self.x, t, t / 2, self.label)


def measured(rounds: int, quick: bool = False) -> dict[str, Any]:
    """Of each recipe: {"predicted", "measured" (arithmetic in F), "ratio" (time in F), "memory", …}."""
    size = QUICK if quick else SIZE
    names = ["flow-matching", "esc"] if quick else list(RECIPES)
    steppings = {name: Stepping(recipe_named(name), size) for name in names}
    runs = {"forward": steppings["flow-matching"].forward, **{name: each.all for name, each in steppings.items()}}
    times = ratios(timed(runs, rounds), "forward")
    record = {}
    for name, each in steppings.items():
        cost = whole_cost(recipe_named(name), size.config, size.spec, size.batch)
        memory = peak_memory(lambda each=each: each.one(DRAWS - 1))
        record[name] = {"predicted": cost.predicted, "measured": cost.measured, "memory": memory, **times[name]}
        record[name]["seconds"] /= DRAWS
    return {"network": size.words, "batch": size.batch, "recipes": record}
