"""Reflow: flow matching on pairs that a teacher has coupled, so that paths stop crossing and one step suffices.

    reflow:       x̂ = the teacher's image of the noise ε (128 guided steps);   L = ‖u_θ(x_t, t) − (ε − x̂)‖²/D
    live-reflow:  on 1/8 of the batch x̂ is what the network itself makes of ε in 8 steps; the rest is flow matching

| symbol in the paper | field |
|---|---|
| (x_0, x_1), the coupling by the teacher | `reflow`: `objective.pairs`, made from `--teacher RUN` before training |
| v = x_1 − x_0 | −v here, the conditional velocity of the pair: `objective.target` |
| bootstrap_every = 8 | `live-reflow`: ratio 1/8 of `objective.times` |
| 8 Euler steps of the online network, with CFG | `live-reflow`: `objective.coupling` LivePairs(steps, guidance) |
| dt_base = 0 on reflow rows, 7 on the others | `live-reflow`: `conditioning` JumpFlag |

Start `reflow` from the teacher with `--init-from RUN`, or from scratch.

Where the authors' code differs: live reflow there reuses the noise of the flow-matching rows and one key for two
draws; here every row has its own noise. It takes the pairs' images from the online weights, as here.

Sampling: `reflow` by steps along its velocity, one of them once the flow is straight; `live-reflow` by one jump, or
jumps on any grid.

Expected: FID in 128, 4 and 1 steps: reflow CelebA-HQ 16.1, 18.4, 23.2, ImageNet-256 16.9, 32.8, 44.8; live reflow 6.3,
27.2, 43.3 and 46.3, 95.8, 58.1 (from the table of the shortcut-models paper, recalled and not re-read).
"""

from shortflow.coupling import LivePairs
from shortflow.flowmap import AverageVelocity, JumpFlag, StartOnly
from shortflow.losses import SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Along, Direct
from shortflow.times import Diagonal, GridLaw, ToData, WithDiagonal

BIBTEX = """@inproceedings{liu2023flow,
  title     = {Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow},
  author    = {Liu, Xingchao and Gong, Chengyue and Liu, Qiang},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}

@inproceedings{frans2025one,
  title     = {One Step Diffusion via Shortcut Models},
  author    = {Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""

ADAMW = Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999)
PUBLISHED = Published(batch=256, steps=810_000, dropout=0.0, network="DiT-B/2, ImageNet-256 latents")


def reflow(steps: int = 128) -> Recipe:
    """Flow matching on a teacher's pairs, on the grid of `steps` times."""
    return Recipe(
        name="reflow",
        title="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        year=2022,
        arxiv="2209.03003",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartOnly(),
        objective=Objective(
            times=Diagonal(law=GridLaw(n=steps)),
            target=Direct(),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.0,
            pairs=True,
        ),
        optimizer=ADAMW,
        published=PUBLISHED,
    )


def live_reflow(share: float = 0.125, steps: int = 8, guidance: float = 1.5) -> Recipe:
    """Flow matching and reflow on the network's own pairs at the same time."""
    grid = GridLaw(n=128)
    return Recipe(
        name="live-reflow",
        title="Live reflow, as a baseline of shortcut models",
        year=2024,
        arxiv="2410.12557",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=JumpFlag(),
        objective=Objective(
            times=WithDiagonal(jumps=ToData(law=grid), law=grid, ratio=share, count="exact"),
            target=Along(),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.1,
            dropped_rows="diagonal",
            coupling=LivePairs(steps=steps, guidance=guidance),
        ),
        optimizer=ADAMW,
        published=PUBLISHED,
    )
