"""What published transformers mean by their weights: time, sign, outputs, units of the latents, how they were trained.

All of them share one layout, that of DiT, whose names `shortflow.nn.sit` has taken over. What differs is convention:

| kind | second time | time of the data | output | further weights | latents of | × |
|---|---|---|---|---|---|---|
| esc | t − r | 0 | average velocity | `logvar_linear` | sd-vae-ft-ema | 0.18125 |
| meanflow | t − r | 0 | average velocity | | sd-vae-ft-ema | 0.18215 |
| sit | | 1 | velocity towards the data, and a part of no use | | sd-vae-ft-ema | 0.18215 |
| repa | | 0 | velocity | `projectors`, not needed | sd-vae-ft-mse | 0.18215 |
| dit | | index 0 of 1000 | noise, and a variance | | sd-vae-ft-ema | 0.18215 |

A time that runs from noise to data is turned round in the weights, see `shortflow.hub.interop.layout`. The autoencoder
is the one that the project's training makes its latents with.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from shortflow.flowmap import DiffusionIndex, NoisePrediction
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Cosine
from shortflow.recipe import Published, Recipe
from shortflow.recipes.esc import esc
from shortflow.recipes.flow_matching import flow_matching
from shortflow.recipes.meanflow import meanflow
from shortflow.targets import Direct
from shortflow.times import Diagonal, Uniform

__all__ = ["KINDS", "Kind", "without_head"]

USUAL = 0.18215  # what Stable Diffusion's first autoencoder is used with


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The conventions of a project.

    Attributes:
        project: where its weights are from.
        recipe: how it was trained, given the width of the network.
        second: whether the network takes t − r beside t.
        log_variance: whether it may have the head `logvar_linear`.
        doubled: whether it may have twice the channels in its output, of which the first half counts.
        reversed: whether its time runs from noise to data, and its velocity with it.
        ignored: beginnings of names that only training needs.
        autoencoder: what its latents are made with.
        latent_scale: what they are multiplied by.
    """

    project: str
    recipe: Callable[[int], Recipe]
    second: bool = False
    log_variance: bool = False
    doubled: bool = False
    reversed: bool = False
    ignored: tuple[str, ...] = ()
    autoencoder: str = "sd-vae-ft-ema"
    latent_scale: float = USUAL


def _esc(width: int) -> Recipe:
    return esc(probability=0.2, omega=0.2, kappa=0.92, window=(0.0, 0.75)) if width >= 1152 else esc()


def _meanflow(width: int) -> Recipe:
    if width < 1024:
        return meanflow()
    return meanflow(omega=0.2, kappa=0.92, window=(0.0, 0.8 if width < 1152 else 0.75))


def _flow(title: str, year: int, arxiv: str, published: Published) -> Callable[[int], Recipe]:
    def recipe(width: int) -> Recipe:
        return replace(flow_matching(), title=title, year=year, arxiv=arxiv, published=published)

    return recipe


def _dit(width: int) -> Recipe:
    """Noise prediction at the levels of DDPM's 1000 steps, seen on the cosine path, which preserves variance, too.

    The path ends at the last of the levels, ᾱ = 4.0e-5. DiT draws the index uniformly, which is no uniform time.
    """
    told = DiffusionIndex()
    kept = float(told.log_kept(torch.tensor([told.steps - 1.0], dtype=torch.float64)))
    last = math.atan(math.sqrt(math.expm1(-kept))) * 2 / math.pi
    return Recipe(
        name="dit",
        title="Scalable Diffusion Models with Transformers",
        year=2022,
        arxiv="2212.09748",
        path=Cosine(),
        parameterization=NoisePrediction(),
        conditioning=told,
        objective=Objective(
            times=Diagonal(law=Uniform(low=0.0, high=last)),
            target=Direct(),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.1,
        ),
        optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.999), clip=None, ema=0.9999),
        published=Published(batch=256, steps=7_000_000, dropout=0.0, network="DiT-XL/2, ImageNet-256 latents"),
    )


_SIT = Published(batch=256, steps=7_000_000, dropout=0.0, network="SiT-XL/2, ImageNet-256 latents")
_REPA = Published(batch=256, steps=4_000_000, dropout=0.0, network="SiT-XL/2, ImageNet-256 latents")

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "esc": Kind(
            project="EDAPINENUT/ExplicitShortCut", recipe=_esc, second=True, log_variance=True, latent_scale=0.18125
        ),
        "meanflow": Kind(project="zhuyu-cs/MeanFlow", recipe=_meanflow, second=True),
        "sit": Kind(
            project="willisma/SiT",
            recipe=_flow("SiT: Exploring Flow and Diffusion-based Generative Models", 2024, "2401.08740", _SIT),
            doubled=True,
            reversed=True,
        ),
        "repa": Kind(
            project="sihyun-yu/REPA",
            recipe=_flow("Representation Alignment for Generation", 2024, "2410.06940", _REPA),
            ignored=("projectors.",),
            autoencoder="sd-vae-ft-mse",
        ),
        "dit": Kind(project="facebookresearch/DiT", recipe=_dit, doubled=True),
    }
)
"""The kinds of weights that can be imported."""


def without_head(recipe: Recipe) -> Recipe:
    """The recipe without the log-variance, for weights that have no such head."""
    return replace(recipe, objective=replace(recipe.objective, weighting=Adaptive(power=1.0, c=1e-3)))
