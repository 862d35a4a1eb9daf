"""Align Your Flow (AYF): distillation of a teacher's flow map from its two ends, t (EMD) and r (LMD).

    EMD: F target F⁻ + g,  g = (v_φ − F⁻) − (t − r) D_t F⁻        LMD: ∂_r X_{t,r}(x_t) → v_φ(X_{t,r}(x_t), r)
    g ← g/(‖g‖ + 0.1)

| symbol in the paper | field |
|---|---|
| v_φ, the teacher | `objective.target.velocity` Reference, `--teacher RUN` |
| autoguidance λ v_φ + (1 − λ) v_weak | Reference(autoguidance=λ), `--weak RUN` |
| f = x + (s − t) F_θ(x, t, s) | `parameterization` AverageVelocity; r is s there |
| tangent normalisation c = 0.1 | `objective.target.normalize` |
| warm-up r_k of the tangent | `ayf-emd`: `objective.target.warmup` |

Where published code differs: there is none. In the paper the coefficient r_k stops at 0.99, here it reaches 1. Not
established are the law of (t, s), here uniform on the triangle; the weight of a row, there |t − s| times a function that
is not known, here 1; how long the warm-up is, here a tenth of the run; the optimiser, here this library's; and batch,
steps, dropout.

Sampling: one jump, or jumps on any grid, with some new noise in between (`--sampler gamma`).

Expected: ImageNet-512 (S) FID 3.32 in one step, 1.70 in four (EMD), 6.70 in four (LMD); with adversarial fine-tuning
1.92 and 1.64.
"""

from shortflow.flowmap import AverageVelocity, StartAndEnd
from shortflow.losses import SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Tangent, Target, Terminal
from shortflow.times import Triangle
from shortflow.velocity import Reference

BIBTEX = """@inproceedings{sabour2025align,
  title     = {Align Your Flow: Scaling Continuous-Time Flow Map Distillation},
  author    = {Sabour, Amirmojtaba and Fidler, Sanja and Kreis, Karsten},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025}
}"""


def _recipe(name: str, title: str, target: Target) -> Recipe:
    return Recipe(
        name=name,
        title=f"Align Your Flow: Scaling Continuous-Time Flow Map Distillation ({title})",
        year=2025,
        arxiv="2506.14603",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndEnd(),
        objective=Objective(
            times=Triangle(),
            target=target,
            metric=SquaredError(reduce="mean"),
            label_dropout=0.0,
        ),
        optimizer=Optimizer(algorithm="adam", lr=1e-4, betas=(0.9, 0.99), clip=None, ema=0.9999),
        published=Published(network="size S, ImageNet-512"),
    )


def ayf_emd(autoguidance: float = 1.0, warmup: float = 0.1, normalize: float = 0.1) -> Recipe:
    """Eulerian map distillation; with `autoguidance` other than 1 it needs a weaker model too."""
    velocity = Reference(autoguidance=autoguidance)
    return _recipe("ayf-emd", "Eulerian", Tangent(velocity=velocity, warmup=warmup, normalize=normalize))


def ayf_lmd(autoguidance: float = 1.0, normalize: float = 0.1) -> Recipe:
    """Lagrangian map distillation."""
    velocity = Reference(autoguidance=autoguidance)
    return _recipe("ayf-lmd", "Lagrangian", Terminal(velocity=velocity, through=False, normalize=normalize))
