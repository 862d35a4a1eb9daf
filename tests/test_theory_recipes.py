"""Every recipe's times, target, metric and weighting on exact flow maps: on the solution nothing is left to learn.

Data are one point, so that the conditional velocity is the marginal one and every first step, discrete or not, is
exact. Then the error of every method is 0 on the exact map, in its own parameterisation, on its own path, at its own
times. On other laws the conditional velocity has its variance, and all of it must still run.
"""

import pytest
import torch
from torch import Tensor

from shortflow.config import recipe_named
from shortflow.draw import References
from shortflow.flowmap import FlowMap
from shortflow.paths import Cosine
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES
from shortflow.streams import Streams
from shortflow.theory import FiniteData, Gaussian, GaussianMixture, Law, exact_flow
from shortflow.typing import Batch, LossTerms, Progress
from steps import network_for

N, POINT = 32, 0.3


class ExactMap(FlowMap):
    """The flow map of a recipe whose outputs are those that make the exact jumps of a law."""

    law: Law

    def predict(
        self, x_t: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        jumps = r < t
        end = torch.where(jumps, r, t / 2)  # any other end than t
        far = self.pull_back(x_t, self.law.flow_map(x_t, t, end), t, end)
        near = self.output_of(x_t, self.law.velocity(x_t, t), t)
        return torch.where(jumps[:, None], far, near)

    def predict_both(
        self, x_t: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, t, r), self.predict(x_t, t, t)

    def predict_head(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        return self.predict(x_t, t, t)


def exact(recipe: Recipe, law: Law) -> ExactMap:
    """The exact map as the recipe's: of its network only what weights the loss is asked."""
    flow = recipe.flow_map(network_for(recipe, classes=0))
    flow.__class__, flow.law = ExactMap, law  # type: ignore[assignment]
    return flow  # type: ignore[return-value]


def terms_of(recipe: Recipe, law: Law, progress: Progress, generator: torch.Generator) -> LossTerms:
    """The loss of a batch of the law on its exact map."""
    flow, objective = exact(recipe, law), recipe.objective
    references = References(teacher=exact_flow(law), weak=exact_flow(law))
    x = law.sample(N, generator, torch.float64)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64) if "pairs" in objective.needs else None
    draw = objective.draw(Batch(x=x, label=None, eps=eps), recipe.path, Streams(seed=3), progress, None, references)
    with torch.no_grad():
        return objective.evaluate(flow, flow, draw)


@pytest.mark.parametrize("progress", [Progress(images=13, total=1000), Progress(images=900, total=1000)])
@pytest.mark.parametrize("name", list(RECIPES))
def test_the_error_of_every_recipe_vanishes_on_the_solution(
    name: str, progress: Progress, generator: torch.Generator
) -> None:
    recipe = recipe_named(name).unconditional()
    law = Gaussian(path=recipe.path, mean=POINT, std=1e-10, sample_shape=(3,))
    terms = terms_of(recipe, law, progress, generator)
    assert terms.loss.isfinite().all()
    assert terms.logs["error"].abs().max() < 1e-7
    # On a curved path the average velocity of a jump is not that of its start.
    quantity = "diagonal_error" if isinstance(recipe.path, Cosine) else "velocity_error"
    assert terms.logs[quantity].nan_to_num().abs().max() < 1e-7


@pytest.mark.parametrize("kind", ["mixture", "points"])
@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_runs_on_the_exact_map_of_any_law(name: str, kind: str, generator: torch.Generator) -> None:
    recipe = recipe_named(name).unconditional()
    points = 0.5 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    law: Law = FiniteData(path=recipe.path, points=points, steps=2)
    if kind == "mixture":
        stds = torch.full((4,), 0.2, dtype=torch.float64)
        law = GaussianMixture(path=recipe.path, weights=torch.ones(4), means=points, stds=stds, steps=2)
    terms = terms_of(recipe, law, Progress(images=500, total=1000), generator)
    assert terms.loss.isfinite().all()
    assert terms.logs["error"].isfinite().all()
    assert terms.logs["error"].mean() > 0
