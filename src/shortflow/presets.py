"""Sensible runs for known data: which network, budget and settings to start from, written as overrides.

Published settings are for ImageNet latents and days of training. What differs on small data stands in the tables below,
one line each, and is visible in `shortflow show` and in the run file.
"""

from shortflow.config import DataConfig, RunConfig, override
from shortflow.data import Dataset
from shortflow.errors import ConfigError
from shortflow.nn.configs import MLPConfig, SiTConfig
from shortflow.objective import Recipe
from shortflow.train.settings import TrainSettings

__all__ = ["preset"]

# Short runs want a larger learning rate, a faster average, and schedules that end early.
_SHORT = ("optimizer.lr=1e-3", "optimizer.ema=0.995", "optimizer.clip=1.0", "optimizer.weight_decay=0")

# Guidance sharpens classes at the expense of variety; on small data the classes are easy and the variety is what counts.
_UNGUIDED = {
    "esc": ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0"),
    "meanflow": ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0"),
    "shortcut": ("objective.target.bootstrap.guidance=1",),
}

_NETWORKS = {
    "digits": SiTConfig(size="digits", patch=2),
    "mnist": SiTConfig(size="mnist", patch=4),
    "fashion-mnist": SiTConfig(size="mnist", patch=4),
    "cifar10": SiTConfig(size="mnist", width=256, depth=8, heads=4, patch=4),
}

_BUDGETS = {
    "digits": TrainSettings(images=192_000, batch=128, log_every=20, preview_every=500, save_every=500),
    "mnist": TrainSettings(images=1_280_000, batch=128, preview_every=1000, save_every=1000),
    "fashion-mnist": TrainSettings(images=1_280_000, batch=128, preview_every=1000, save_every=1000),
    "cifar10": TrainSettings(images=12_800_000, batch=128, preview_every=2000, save_every=2000),
}
_POINTS = TrainSettings(images=1_024_000, batch=512, preview_every=1000, save_every=1000)
_FOLDER = TrainSettings(images=12_800_000, batch=128, preview_every=1000, save_every=1000)


def _patch(shape: tuple[int, ...]) -> int:
    """The smallest patch that divides both sides and leaves at most 256 tokens."""
    _, h, w = shape
    for patch in range(1, min(h, w) + 1):
        if h % patch == 0 and w % patch == 0 and (h // patch) * (w // patch) <= 256:
            return patch
    raise ConfigError(
        f"images of {h}×{w} pixels have no patch size that leaves at most 256 tokens; choose another --resolution"
    )


def preset(recipe: Recipe, data: DataConfig, dataset: Dataset) -> RunConfig:
    """A run of `recipe` on `dataset` to start from; unconditional data get the recipe without guidance and classes."""
    name = data.source
    if not dataset.is_image:
        network, budget = MLPConfig(), _POINTS
    else:
        network = _NETWORKS.get(name, SiTConfig(size="mnist", width=256, depth=8, heads=4, patch=_patch(dataset.shape)))
        budget = _BUDGETS.get(name, _FOLDER)
    run = RunConfig(recipe=recipe, network=network, data=data, train=budget)
    run = override(run, [*_SHORT, *_UNGUIDED.get(recipe.name, ())])
    if dataset.labels is None:
        run = RunConfig(recipe=run.recipe.unconditional(), network=run.network, data=data, train=run.train)
    return run
