"""Shortcut models (SCD): one network for jumps of length 1, 1/2, …, 1/128, each taught by two of half its length.

    L = ‖s_θ(x_t, t, 2d) − sg(s_θ̄(x_t, t, d) + s_θ̄(x_{t+d}, t + d, d))/2‖²/D,   x_{t+d} = x_t + d s_θ̄(x_t, t, d)
    and flow matching at d → 0

| symbol in the paper | field |
|---|---|
| x_t = t x_1 + (1 − t) x_0 with noise x_0 at t = 0 | `path` Linear; our t is 1 − t, and u here is −s_θ there |
| d ∈ {1/128, …, 1/2, 1}, x_t' with t a multiple of d | `objective.times` Dyadic(levels=7) |
| k, share of the batch that bootstraps (1/4) | `objective.times.share` |
| s_θ(x_t, t, d), told log₂(1/d) | `conditioning` LogStep(steps=128) |
| s_target = (s_θ(x_t, t, d) + s_θ(x'_{t+d}, t + d, d))/2 | `objective.target.bootstrap` TwoStep() |
| x_1 − x_0 at d → 0 | `objective.target.direct` Direct(Conditional) |
| class hidden on flow-matching rows only | `objective.dropped_rows` "diagonal" |
| clipping at ±4 (published code) | `objective.target.bootstrap.clip` |
| EMA parameters for the targets, .999 | `objective.teacher` Ema |
| CFG scale w at the smallest bootstrapped step | `objective.target.bootstrap.guidance` |

The guided velocity is stored in jumps of 1/64 and longer, while jumps of 1/128 stay unguided: samples in 128 steps are
unguided, those in fewer steps are guided.

`shortcut(continuous=True)` has jumps of any length. The fixed point of the dyadic form is the map of 128 Euler steps.

Where the authors' code differs, and what is done here:
- the published code uses the first B − B_b images again for flow matching, bootstrap images included, and never the
  last ones; here the rows are disjoint and all used;
- bootstrap and flow-matching noise share a key there; here all rows have their own noise;
- the published default bootstraps 1/8 of the batch, the paper says 1/4; here 1/4 (`share=0.125` for the other);
- flow-matching rows are told d = 1/128, as in the published code (the paper says d = 0);
- their network divides attention logits by the head size, ours by its square root;
- with fewer bootstrap rows than levels the published rule trains d = 1 alone; here each row then takes a random level.

Sampling: jumps of one length, 1, 2, 4, …, 128 of them on the uniform grid.

Expected: FID in 128, 4, 1 steps, CelebA-HQ 6.9, 13.8, 20.5 (B/2), ImageNet-256 15.5, 28.3, 40.3 (B/2), 3.8, 7.8, 10.6
(XL/2).
"""

from dataclasses import replace

from shortflow.flowmap import AverageVelocity, LogStep, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import SquaredError
from shortflow.objective import Ema, Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Direct, Split, TwoStep
from shortflow.times import Between, Dyadic, Fixed, Triangle, Uniform, WithDiagonal
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{frans2025one,
  title     = {One Step Diffusion via Shortcut Models},
  author    = {Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""


def shortcut(guidance: float = 1.5, share: float = 0.25, levels: int = 7, continuous: bool = False) -> Recipe:
    """Shortcut models. `guidance` 1.5 is the paper's for ImageNet; 1 for CelebA-HQ.

    With `continuous` jumps have any length, uniform on the triangle r < t, split at their middle, and the network is
    told t − r itself; guidance is then that of the flow-matching rows, from which all jumps inherit it.
    """
    objective = Objective(
        times=Dyadic(levels=levels, share=share),
        target=Split(
            direct=Direct(),
            bootstrap=TwoStep(first=None, clip=4.0, guidance=guidance, guided_gap=2.0 ** (1 - levels)),
        ),
        metric=SquaredError(reduce="mean"),
        label_dropout=0.1,
        dropped_rows="diagonal",
        teacher=Ema(rate=0.999),
    )
    if continuous:
        velocity = Guided(base=Conditional(), omega=guidance, kappa=0.0) if guidance != 1 else Conditional()
        objective = replace(
            objective,
            times=WithDiagonal(jumps=Between(base=Triangle(), at=Fixed(value=0.5)), law=Uniform(), ratio=share),
            target=Split(direct=Direct(velocity=velocity), bootstrap=TwoStep(first=None, clip=4.0)),
        )
    return Recipe(
        name="shortcut",
        title="One Step Diffusion via Shortcut Models",
        year=2024,
        arxiv="2410.12557",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap() if continuous else LogStep(steps=2**levels),
        objective=objective,
        optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999),
        published=Published(batch=256, steps=810_000, dropout=0.0, network="DiT-B/2, XL/2, ImageNet-256 latents"),
    )
