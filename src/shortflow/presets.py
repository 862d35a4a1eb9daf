"""Sensible runs for known data: which network, budget and settings to start from, written as overrides.

Published settings are for ImageNet latents and days of training. What differs on small data stands in the tables below,
one line each, and is visible in `shortflow show` and in the run file.
"""

from collections.abc import Sequence
from dataclasses import replace

from shortflow.config import DataConfig, RunConfig, override
from shortflow.data import Dataset
from shortflow.errors import ConfigError
from shortflow.nn.configs import MLPConfig, NetworkConfig, SiTConfig
from shortflow.pairs import Pairs
from shortflow.recipe import Recipe
from shortflow.train.settings import TrainSettings

__all__ = ["preset", "settled"]

# Short runs want a larger learning rate, a faster average, a fall of the rate at the end, and no algorithm that holds
# its steps back for the first thousand.
_SHORT = (
    "optimizer.algorithm=adamw",
    "optimizer.lr=1e-3",
    "optimizer.cooldown=0.4",
    "optimizer.ema=0.995",
    "optimizer.clip=1.0",
    "optimizer.weight_decay=0",
)
# What is learned at the data end takes time to travel to the noise end, grid point by grid point and level by level: a
# run of a thousand steps wants few of them, and a teacher that keeps up.
_TINY = {
    "shortcut": (
        "objective.times.levels=5",
        "conditioning.steps=32",
        "objective.target.bootstrap.guided_gap=0.0625",
        "objective.teacher.rate=0.99",
    ),
    "ct": ("objective.times.count.s1=20", "objective.teacher.count.s1=20", "objective.teacher.mu0=0.5"),
    # The gradient of an unsquared norm, or one that nearly is, does not shrink near the solution: the step has to.
    "ict": ("objective.times.count.s1=80", "optimizer.lr=1e-3"),
    "ect": ("optimizer.lr=5e-4",),
    "tcm": ("optimizer.lr=2e-4",),
    # Unweighted, neighbours on the grid differ by the square of their step: low noise levels are learned last.
    "cd": ("objective.weighting=ByTime", "objective.weighting.rule=inverse-step"),
    # The difference between the network and its average enters divided by the first step.
    "rcgm": ("objective.times.at.size=0.1", "objective.teacher.rate=0.95"),
    "ct-linear": ("objective.times.levels=5", "objective.teacher.rate=0.99"),
    "cd-linear": ("objective.times.steps=32", "objective.teacher.rate=0.99"),
    "progressive-distillation": (
        "objective.times.levels=5",
        "conditioning.steps=32",
        "objective.target.guided_gap=0.0625",
        "objective.teacher.stages=5",
        "objective.teacher.rate=0.95",
    ),
}

# Guidance sharpens classes at the expense of variety; where classes are easy, variety is what counts.
_EASY = ("digits", "mnist", "fashion-mnist", "cifar10")
_PLAIN = ("objective.target.velocity.omega=1", "objective.target.velocity.kappa=0")
_UNGUIDED = {
    "esc": _PLAIN,
    "esc-plus": _PLAIN,
    "meanflow": _PLAIN,
    "sct-linear": _PLAIN,
    "shortcut": ("objective.target.bootstrap.guidance=1",),
    "live-reflow": ("objective.coupling.guidance=1",),
    "progressive-distillation": ("objective.target.guidance=1", "objective.label_dropout=0"),
    "cd-linear": ("objective.target.first.guidance=1",),
    "imf": ("objective.target.velocity=Conditional", "objective.guidance=null"),
    "soflow": ("objective.target.direct.velocity=Conditional", "objective.target.bootstrap.steps.first=Conditional"),
    "alphaflow": (
        "objective.target.direct.velocity=Conditional",
        "objective.target.bootstrap.first=Conditional",
        "objective.target.limit.velocity=Conditional",
    ),
    "tvm": ("objective.target.direct.velocity=Conditional",),
}

# In few dimensions the noise of one pair is skewed, and dividing by its own size (the adaptive weight)
# moves the fixed point: bias ≈ −E[z³]/(D E[z²]) per coordinate. Points are trained with plain squared errors.
_LOW_DIMENSION = {
    "esc": ("objective.weighting.parts.0.power=0",),
    "esc-plus": ("objective.weighting.parts.0.power=0",),
    "alphaflow": ("objective.weighting.parts.0.power=0",),
    "meanflow": ("objective.weighting.power=0",),
    "soflow": ("objective.weighting.power=0",),
    # The unsquared norm divides by that size, too: its fixed point is a median. With c = 1 it is nearly a square.
    "tcm": ("objective.metric.c=1",),
    # A bound on each coordinate's correction moves the fixed point in the same way,
    "rcgm": ("objective.target.clip=null",),
    # and two coordinates do not show how noisy a point is: the network has to be told.
    "imf": ("objective.weighting.power=0", "conditioning=StartAndGap"),
}

# Short runs of small networks: a larger rate still, and no row is spent on an unconditional model that nobody asks for.
_SMALL: tuple[str, ...] = ("digits", "mnist", "fashion-mnist")
_DATA: dict[str, tuple[str, ...]] = dict.fromkeys(_SMALL, ("optimizer.lr=2e-3", "objective.label_dropout=0"))

_NETWORKS: dict[str, NetworkConfig] = {
    "digits": SiTConfig(size="digits", patch=4, width=128),
    "mnist": SiTConfig(size="digits", patch=4, width=128),
    "fashion-mnist": SiTConfig(size="digits", patch=4, width=128),
    "cifar10": SiTConfig(size="mnist", width=256, depth=8, heads=4, patch=4),
}

_MNIST = TrainSettings(images=256_000, batch=128, group=32, log_every=20, preview_every=500, save_every=500)
_BUDGETS = {
    "digits": TrainSettings(images=192_000, batch=128, group=32, log_every=20, preview_every=500, save_every=500),
    "mnist": _MNIST,
    "fashion-mnist": TrainSettings(
        images=256_000, batch=128, group=32, log_every=20, preview_every=500, save_every=500
    ),
    "cifar10": TrainSettings(images=12_800_000, batch=128, group=32, preview_every=2000, save_every=2000),
}
_POINTS = TrainSettings(images=1_024_000, batch=512, group=64, preview_every=1000, save_every=1000)
_FOLDER = TrainSettings(images=12_800_000, batch=128, group=32, preview_every=1000, save_every=1000)
# Latents are what the published settings are for: SiT-B/2, and a batch of 256 for 80 epochs of ImageNet.
_LATENTS = TrainSettings(images=102_400_000, batch=256, group=64, preview_every=5000, save_every=5000)

# The published 50,000 pairs of 128 steps would take a small network far longer than its training.
_PAIRS = {
    "digits": Pairs(count=8_192, steps=32),
    "mnist": Pairs(count=16_384, steps=32),
    "fashion-mnist": Pairs(count=16_384, steps=32),
}
_PAIRS_OF_POINTS = Pairs(count=65_536, steps=32)

_LARGEST_PATCH = 32  # a token for a whole image would be no transformer


def _patch(shape: tuple[int, ...]) -> int:
    """The smallest patch that divides both sides and leaves at most 256 tokens."""
    _, h, w = shape
    for patch in range(1, min(h, w, _LARGEST_PATCH) + 1):
        if h % patch == 0 and w % patch == 0 and (h // patch) * (w // patch) <= 256:
            return patch
    side = min(512, max(16, min(h, w) // 16 * 16))
    raise ConfigError(
        f"images of {h}×{w} pixels have no patch of at most {_LARGEST_PATCH} pixels that leaves 256 tokens or fewer; "
        f"choose another side, such as --resolution {side}"
    )


def preset(recipe: Recipe, data: DataConfig, dataset: Dataset) -> RunConfig:
    """A run of `recipe` on `dataset` to start from; unconditional data get the recipe without guidance and classes."""
    name = data.source
    if dataset.kind == "points":
        network: NetworkConfig = MLPConfig()
        budget = _POINTS
    elif dataset.kind == "latents":
        _, h, w = dataset.shape
        network = SiTConfig(size="B", patch=2 if h * w > 256 and h % 2 == w % 2 == 0 else 1)
        budget, data = _LATENTS, replace(data, flip="pairs" not in recipe.objective.needs)
    else:
        network = _NETWORKS.get(name, SiTConfig(size="mnist", width=256, depth=8, heads=4, patch=_patch(dataset.shape)))
        budget = _BUDGETS.get(name, _FOLDER)
    run = RunConfig(recipe=recipe, network=network, data=data, train=budget)
    if "pairs" in recipe.objective.needs:
        run = replace(run, pairs=_PAIRS_OF_POINTS if dataset.kind == "points" else _PAIRS.get(name, Pairs()))
    easy = name in _EASY or dataset.kind == "points"
    objective = recipe.objective
    guided = objective.guided is not None or objective.guidance is not None  # the settings for pixels are not
    run = override(
        run,
        [
            *(() if dataset.kind == "latents" else _SHORT),
            *_DATA.get(name, ()),
            *(_TINY.get(recipe.name, ()) if name in _SMALL or dataset.kind == "points" else ()),
            *(_UNGUIDED.get(recipe.name, ()) if easy and guided else ()),
            *(_LOW_DIMENSION.get(recipe.name, ()) if dataset.kind == "points" else ()),
        ],
    )
    if not dataset.conditional:
        run = RunConfig(recipe=run.recipe.unconditional(), network=run.network, data=data, train=run.train)
    return run


def settled(run: RunConfig, settings: Sequence[str]) -> RunConfig:
    """`override` on a preset, where what the preset chose beside a setting follows it.

    A new network.size brings its own width, depth and heads, and the group is at most the batch.
    """
    named = {setting.partition("=")[0].strip() for setting in settings}
    network, group = run.network, run.train.group
    if isinstance(network, SiTConfig) and named & {"size", "network.size"}:
        network = replace(network, width=None, depth=None, heads=None)
    run = override(replace(run, network=network, train=replace(run.train, group=None)), settings)
    if group is None or named & {"group", "train.group"}:
        return run
    return replace(run, train=replace(run.train, group=min(group, run.train.batch)))
