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

Where published code differs: there is none. The law of (t, s) is not known for certain; here uniform on the triangle.
The paper multiplies the tangent by |t − s| and divides by the norm, which normalisation undoes. Batch, steps and
optimiser were not checked against the paper.

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
        published=Published(batch=2048, steps=50_000, dropout=0.0, network="EDM2-S, ImageNet-512 latents"),
    )


def ayf_emd(autoguidance: float = 1.0, warmup: float = 0.1, normalize: float = 0.1) -> Recipe:
    """Eulerian map distillation; with `autoguidance` other than 1 it needs a weaker model too."""
    velocity = Reference(autoguidance=autoguidance)
    return _recipe("ayf-emd", "Eulerian", Tangent(velocity=velocity, warmup=warmup, normalize=normalize))


def ayf_lmd(autoguidance: float = 1.0, normalize: float = 0.1) -> Recipe:
    """Lagrangian map distillation."""
    velocity = Reference(autoguidance=autoguidance)
    return _recipe("ayf-lmd", "Lagrangian", Terminal(velocity=velocity, through=False, normalize=normalize))
