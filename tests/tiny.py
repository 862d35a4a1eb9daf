"""Runs small enough to be trained to the end inside a test: four clusters of points, an MLP, a dozen steps."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from shortflow.data import ClassConsistent, Shuffled
from shortflow.draw import References
from shortflow.flowmap import FlowMap
from shortflow.nn import MLP
from shortflow.recipe import Recipe
from shortflow.train import TrainSettings
from shortflow.typing import Batch
from steps import needed, references_for

CLASSES = 4
LABELS = np.arange(96) % CLASSES
NOISE = np.random.default_rng(1).standard_normal((96, 2)).astype(np.float32)
POINTS = (np.random.default_rng(0).standard_normal((96, 2)) + LABELS[:, None]).astype(np.float32)


def settings(steps: int = 12, batch: int = 16, **others: object) -> TrainSettings:
    """`steps` steps, a line every 4, no previews, nothing saved before the end, no trackers, which are slow to load."""
    defaults = {"log_every": 4, "preview_every": 0, "save_every": 1000, "trackers": ()}
    return TrainSettings(images=steps * batch, batch=batch, **{**defaults, **others})  # type: ignore[arg-type]


def classes_of(recipe: Recipe) -> int:
    return CLASSES if recipe.null_class else 0


def flow_map(recipe: Recipe, dropout: float = 0.0, seed: int = 0) -> FlowMap:
    """The recipe's flow map on an MLP whose last layers are not zero, so that derivatives are not."""
    torch.manual_seed(seed)
    network = MLP(shape=(2,), width=16, depth=2, dropout=dropout, **needed(recipe, classes_of(recipe)))
    for last in (network.last, network.velocity_last):
        if last is not None:
            nn.init.normal_(last.weight, std=0.2)
    return recipe.flow_map(network)


def references(recipe: Recipe) -> References:
    """The frozen models that the recipe follows."""
    found = references_for(recipe, classes_of(recipe), 2)
    return References(**{role: None if model is None else model.float() for role, model in vars(found).items()})


def batches(recipe: Recipe, batch: int = 16) -> Callable[[int], Batch]:
    """The batch of a step, in the order that the recipe wants."""
    if recipe.batches == "class-consistent":
        order = ClassConsistent(labels=LABELS, batch_size=batch, seed=0)
    else:
        order = Shuffled(n=len(POINTS), batch_size=batch, seed=0)

    def batch_of(step: int) -> Batch:
        rows = order.indices(step)
        label = torch.from_numpy(LABELS[rows]) if recipe.null_class else None
        eps = torch.from_numpy(NOISE[rows]) if "pairs" in recipe.objective.needs else None
        return Batch(x=torch.from_numpy(POINTS[rows]), label=label, eps=eps)

    return batch_of
