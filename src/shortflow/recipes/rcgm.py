"""RCGM: a short first step along the velocity, then several jumps of the averaged network.

    ρ = (t − r) F/Δ − (1/Δ) Σ_i F̄_i δ_i − v',   target F⁻ − clip(ρ, ±1),   first step Δ = 0.01, then N equal jumps to r

| symbol in the paper | field |
|---|---|
| t ~ U(0, 1), r ~ U(0, t) | `objective.times.base` Nested |
| t_m = max(t − Δ, r) | `objective.times.at` Step(size=Δ) |
| N segments of the EMA network | `objective.target.steps.segments` |
| clip(ρ, ±1) | `objective.target.clip` |
| v' = v + enhancement · (F_c − F_∅) | `objective.target.steps.first` Guided(omega=1, kappa=enhancement) |
| EMA κ with its own warm-up | `objective.teacher` GrowingEma |

With fewer than Δ left (t − r < Δ) the target is v' itself, as in the code.

Where published code differs: the official repository was not available; a re-implementation unpacks six values where it
makes seven, divides by t − r = 0, and freezes a random share at its first step. None of that is here. Its decay of the
averaged network is 0.99 (here, too), the paper's 0.999. Batch, steps, network and dropout
are not established, nor are the optimiser and the share of hidden classes, which are this library's here.

Sampling: jumps on any grid; the code mixes them with new noise (`--sampler gamma`).

Expected: ImageNet-256 FID in two steps 1.48 (VA-VAE), 1.92 (SD-VAE); in one 14.94 with N = 2, 294 with
N = 1 (κ = 0.999).
"""

from shortflow.flowmap import AverageVelocity, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import SquaredError
from shortflow.objective import GrowingEma, Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Secant, TwoStep
from shortflow.times import Between, Nested, Step
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{sun2026anystep,
  title     = {Any-step Generation via N-th Order Recursive Consistent Velocity Field Estimation},
  author    = {Sun, Peng and Lin, Tao},
  booktitle = {International Conference on Learning Representations},
  year      = {2026},
  url       = {https://openreview.net/forum?id=GnawtLKGkP}
}"""


def rcgm(size: float = 0.01, segments: int = 2, enhancement: float = 0.0, decay: float = 0.99) -> Recipe:
    """Recursive consistent velocity field estimation with `segments` jumps after the first step."""
    velocity = Guided(base=Conditional(), omega=1.0, kappa=enhancement) if enhancement else Conditional()
    return Recipe(
        name="rcgm",
        title="Any-step Generation via N-th Order Recursive Consistent Velocity Field Estimation",
        year=2025,
        arxiv="",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap(),
        objective=Objective(
            times=Between(base=Nested(), at=Step(size=size)),
            target=Secant(steps=TwoStep(first=velocity, solver="euler", segments=segments), clip=1.0),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.1,
            teacher=GrowingEma(rate=decay),
        ),
        optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.95), clip=None, ema=0.9999),
        published=Published(network="ImageNet-256 latents"),
    )
