"""The baselines of the shortcut-models paper on the linear path: consistency training and distillation by steps of 1/128.

    ct-linear:  target velocity (x_t − x̂_0)/t,   x̂_0 = X_{s,0}(x_s), x_s on the same straight line (same noise)
    cd-linear:  the same with x_s one Euler step of length 1/128 of a frozen, guided teacher

| symbol in the paper | field |
|---|---|
| x_t = t x_1 + (1 − t) x_0 with noise x_0 at t = 0 | `path` Linear; our t is 1 − t, and u here is −v there |
| one time input | `conditioning` StartOnly |
| d = 1, 1/2, …, 1/64: coarse to fine over the run | `ct-linear`: `objective.times` StagedDyadic(order="coarse-to-fine", jump="data") |
| the 1/128 grid | `cd-linear`: `objective.times` Neighbours(steps=128) |
| teacher velocity with CFG scale w | `cd-linear`: `objective.target.first` Reference(guidance=w), `--teacher RUN` |
| EMA network for the second jump | `objective.teacher` Ema(0.999) |

Where the authors' code differs: its finest step of consistency training is 1/64, so that 128 steps use times that were
never trained (`levels=8` ends at 1/128); its sampler for the distilled model takes Euler steps, and that for the
trained one is told steps outside its training.

Sampling: one jump, or several with new noise in between.

Expected: FID in 128, 4 and 1 steps: training CelebA-HQ 53.7, 19.0, 33.2, ImageNet-256 42.8, 43.0, 69.7; distillation
59.5, 39.6, 38.2 and 132.8, 98.0, 136.5 (the paper's table, recalled and not re-read).
"""

from shortflow.flowmap import AverageVelocity, StartOnly
from shortflow.losses import SquaredError
from shortflow.objective import Ema, Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import TwoStep
from shortflow.times import Neighbours, StagedDyadic
from shortflow.velocity import Conditional, Reference

BIBTEX = """@inproceedings{frans2025one,
  title     = {One Step Diffusion via Shortcut Models},
  author    = {Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""

ADAMW = Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999)
PUBLISHED = Published(batch=256, steps=810_000, dropout=0.0, network="DiT-B/2, ImageNet-256 latents")


def ct_linear(levels: int = 7) -> Recipe:
    """Consistency training on the linear path, from the coarsest grid to the finest."""
    return Recipe(
        name="ct-linear",
        title="Consistency training, as a baseline of shortcut models",
        year=2024,
        arxiv="2410.12557",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartOnly(),
        objective=Objective(
            times=StagedDyadic(levels=levels, order="coarse-to-fine", jump="data"),
            target=TwoStep(first=Conditional()),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.0,
            teacher=Ema(rate=0.999),
        ),
        optimizer=ADAMW,
        published=PUBLISHED,
    )


def cd_linear(steps: int = 128, guidance: float = 1.5) -> Recipe:
    """Consistency distillation on the linear path from a flow-matching teacher."""
    return Recipe(
        name="cd-linear",
        title="Consistency distillation, as a baseline of shortcut models",
        year=2024,
        arxiv="2410.12557",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartOnly(),
        objective=Objective(
            times=Neighbours(steps=steps),
            target=TwoStep(first=Reference(guidance=guidance), solver="euler"),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.0,
            teacher=Ema(rate=0.999),
        ),
        optimizer=ADAMW,
        published=PUBLISHED,
    )
