"""sCT: continuous-time consistency training in the TrigFlow form (simplified, stabilised consistency models).

    L = e^{w(t)}/D ‖F_θ − F⁻ − g‖² − w(t),   g = −cos²t (σ_d F⁻ − dx_t/dt) − r cos t sin t (x_t + σ_d dF⁻/dt)
    normalised to g/(‖g‖ + c)

| symbol in the paper | field |
|---|---|
| x_t = cos(t) x_0 + sin(t) z, z ~ N(0, σ_d² I) | `path` Cosine(noise_scale=σ_d), `sigma_data` σ_d = 0.5 |
| t ∈ [0, π/2] | π/2 times the t here, which is also what the network is told (`conditioning` StartOnly) |
| f_θ = cos(t) x − sin(t) σ_d F_θ(x/σ_d, t) | `parameterization` TrigFlow |
| t = arctan(e^τ/σ_d), τ ~ N(P_mean, P_std²) | `objective.times` ToData(TrigLogNormal(mean, std)) |
| dx_t/dt = cos(t) z − sin(t) x_0 | `objective.target.velocity` Conditional |
| cos(t) df/dt | `objective.target.weight` CosineWeight |
| r, tangent warm-up over H = 10k of 400k steps | `objective.target.warmup` 1/40 |
| g/(‖g‖ + c), c = 0.1 | `objective.target.normalize` |
| e^{w(t)}/D ‖F − F⁻ − g‖² − w(t) | `objective.metric` SquaredError(mean), `objective.weighting` Variational (ℓ = −w) |

Where published code differs: ports divide by the warm-up length (an error for length 0), lose σ_d in the tangent, and
use the root mean square for ‖·‖ (`norm="rms"` here).

Sampling: one jump, or two with new noise at the angle 1.1 in between (`--steps 2 --middle 0.7`).

Expected: CIFAR-10 FID 2.85 in one step, 2.06 in two.
"""

from shortflow.flowmap import StartOnly, TrigFlow
from shortflow.losses import SquaredError, Variational
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Cosine
from shortflow.recipe import Published, Recipe
from shortflow.targets import CosineWeight, Tangent
from shortflow.times import ToData, TrigLogNormal
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{lu2025simplifying,
  title     = {Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models},
  author    = {Lu, Cheng and Song, Yang},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""


def sct(mean: float = -1.0, std: float = 1.4, sigma_data: float = 0.5, warmup: float = 1 / 40) -> Recipe:
    """Continuous-time consistency training with the published CIFAR-10 settings."""
    return Recipe(
        name="sct",
        title="Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (training)",
        year=2024,
        arxiv="2410.11081",
        path=Cosine(noise_scale=sigma_data),
        parameterization=TrigFlow(),
        conditioning=StartOnly(),
        sigma_data=sigma_data,
        objective=Objective(
            times=ToData(law=TrigLogNormal(mean=mean, std=std, sigma_data=sigma_data)),
            target=Tangent(velocity=Conditional(), weight=CosineWeight(), warmup=warmup, normalize=0.1),
            metric=SquaredError(reduce="mean"),
            weighting=Variational(),
            label_dropout=0.0,
        ),
        optimizer=Optimizer(algorithm="radam", lr=1e-4, betas=(0.9, 0.99), clip=None, ema=0.9999),
        published=Published(batch=512, steps=400_000, dropout=0.2, network="DDPM++ with TrigFlow changes, CIFAR-10"),
    )
