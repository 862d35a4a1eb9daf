"""SoFlow: the two-step target as a difference quotient whose step shrinks over the run.

    Δ = [f_θ(x_t, t, r) − sg f_θ(x_s, s, r)]/(t − s),   L = sign(b) ⟨F_θ, sg(w Δ)⟩/D,   w = (‖Δ‖²/D + ε)^{−p}

| symbol in the paper | field |
|---|---|
| f(x_t, t, s) = a x + b F, Euler: a = 1, b = s − t | `parameterization` AverageVelocity (TrigJump for their "Trig"); r is s there |
| x_l = x_t + v' (l − t), the Euler step | `objective.target.bootstrap.steps` TwoStep(solver="euler"); s is l there |
| l = t − ρ_k (t − s), ρ from 0.1 to 0.002 geometrically | `objective.times.jumps.at` Geometric |
| t ~ LN(0.2, 0.8), s ~ LN(−1, 0.8), s ≤ t − 1e-4 | `objective.times.jumps.base` Independent(least) |
| 75 % flow matching, t ~ LN(−0.2, 1) | `objective.times` WithDiagonal(ratio=0.25) |
| the loss above | `objective.target.bootstrap` Secant with `metric` SquaredError and `weighting` Adaptive: twice its gradient |
| guidance scale W = 3, velocity mix 0.25, fading above t = 0.8 | FadingGuidance |

Published settings for pixels (`soflow/pixels`): no flow-matching rows, t ~ LN(−0.9, 1.6), s ~ LN(−4, 1.6), ρ from 1 to
3.125e-4, p = 0.75, ε = 1e-3, no guidance.

Where the authors' code differs: its loss of the jumps has half the gradient of a squared error, so that they count half
as much against flow matching as here; the configuration documents a form "Triangular" which the noising code does not
know; dropout random states are copied on CUDA only. With their "Trig" form flow-matching errors are divided by π/2
once, here they are in units of the output.

Sampling: one jump; for several the paper adds new noise in between (`--sampler re-noise`), plain jumps work as well.

Expected: ImageNet-256 FID in one and two steps 4.85, 4.24 (B/2), 3.73, 3.42 (M/2), 3.20, 2.90 (L/2), 2.96, 2.66 (XL/2);
CIFAR-10 2.86, 2.28.
"""

from typing import Literal

from shortflow.errors import ConfigError
from shortflow.flowmap import AverageVelocity, StartAndEnd
from shortflow.guidance import FadingGuidance
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Direct, Secant, Split, TwoStep
from shortflow.times import Between, Geometric, Independent, LogitNormal, WithDiagonal
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{luo2026soflow,
  title     = {SoFlow: Solution Flow Models for One-Step Generative Modeling},
  author    = {Luo, Tianze and Yuan, Haotian and Liu, Zhuang},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}"""


def soflow(setting: Literal["latents", "pixels"] = "latents", scale: float = 3.0, mix: float = 0.25) -> Recipe:
    """SoFlow in the Euler form; `setting` chooses between the published ImageNet and CIFAR-10 settings."""
    if setting == "pixels":
        jumps = Between(
            base=Independent(
                start=LogitNormal(mu=-0.9, sigma=1.6), end=LogitNormal(mu=-4.0, sigma=1.6), ratio=1.0, least=1e-4
            ),
            at=Geometric(start=1.0, end=3.125e-4),
        )
        objective = Objective(
            times=jumps,
            target=Secant(steps=TwoStep(first=Conditional(), solver="euler")),
            metric=SquaredError(reduce="mean"),
            weighting=Adaptive(power=0.75, c=1e-3),
            label_dropout=0.0,
        )
        optimizer = Optimizer(algorithm="radam", lr=1e-4, betas=(0.9, 0.999), clip=None, ema=0.9999)
        published = Published(batch=1024, steps=800_000, dropout=0.3, network="DDPM++, CIFAR-10")
    elif setting == "latents":
        velocity = FadingGuidance(base=Conditional(), scale=scale, mix=mix)
        jumps = Between(
            base=Independent(
                start=LogitNormal(mu=0.2, sigma=0.8), end=LogitNormal(mu=-1.0, sigma=0.8), ratio=1.0, least=1e-4
            ),
            at=Geometric(start=0.1, end=0.002),
        )
        objective = Objective(
            times=WithDiagonal(jumps=jumps, law=LogitNormal(mu=-0.2, sigma=1.0), ratio=0.25, count="exact"),
            target=Split(
                direct=Direct(velocity=velocity), bootstrap=Secant(steps=TwoStep(first=velocity, solver="euler"))
            ),
            metric=SquaredError(reduce="mean"),
            weighting=Adaptive(power=1.0, c=0.01),
            label_dropout=0.1,
        )
        optimizer = Optimizer(lr=1e-4, betas=(0.9, 0.99), clip=None, ema=0.9999)
        published = Published(batch=256, steps=1_200_000, dropout=0.0, network="DiT-B/2 to XL/2, ImageNet-256 latents")
    else:
        raise ConfigError(f"soflow has the settings 'latents' and 'pixels', not {setting!r}")
    return Recipe(
        name="soflow",
        title="SoFlow: Solution Flow Models for One-Step Generative Modeling",
        year=2025,
        arxiv="2512.15657",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndEnd(),
        objective=objective,
        optimizer=optimizer,
        published=published,
    )
