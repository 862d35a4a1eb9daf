"""MeanFlow: learn the average velocity u_{t,r} through the identity u = v − (t − r) du/dt.

    L = ‖u_θ(x_t, t, r) − sg u_tgt‖²/(‖·‖² + c)^p,   u_tgt = ṽ − (t − r)(ṽ·∇_x u_θ + ∂_t u_θ)
    ṽ = ω v + κ u_{t,t}(c) + (1 − ω − κ) u_{t,t}(∅)

| symbol in the paper | field |
|---|---|
| z_t = (1 − t) x + t ε | `path` Linear |
| u_θ(z, r, t), told (t, t − r) | `parameterization` AverageVelocity, `conditioning` StartAndGap |
| (t, r) ~ lognorm(−0.4, 1.0), sorted; share with r ≠ t | `objective.times` Sorted(law, ratio=0.25) |
| u_tgt = v − (t − r)(v ∂_z u + ∂_t u) | `objective.target` Tangent |
| ω, κ, the window of t | `objective.target.velocity` Guided(omega, kappa, window) |
| ‖Δ‖²/sg(‖Δ‖² + c)^p | `objective.metric` SquaredError(sum), `objective.weighting` Adaptive(power=p, c) |

Published settings (ω, κ, window): B/4 (1, 0.5, [0, 1]) or (2, 0, [0, 1]); B/2 (1, 0.5, [0, 1]); M and L (0.2, 0.92, [0,
0.8]); XL (0.2, 0.92, [0, 0.75]).

Published settings for pixels (`meanflow/pixels`): t ~ LN(−0.6, 1.6), r ~ LN(−4, 1.6) drawn independently, r = t on one
quarter of the rows, p = 0.75, no guidance. The first version drew both from LN(−2, 2), sorted.

Where published code differs, and what is done here:
- the ImageNet code has c = 0.01, the paper 1e-3; here 1e-3;
- it hides the class on the first rows of the batch, which are all flow-matching rows; here on random rows;
- naming: `ratio` is P(r ≠ t) here and in the PyTorch code, `data_proportion` = 1 − ratio in the JAX code;
- hiding no class (probability 0) must still tell the network the class: ports pass none.

Sampling: one jump, or jumps on any grid.

Expected: ImageNet-256 FID in one step 6.17 (B/2), 5.01 (M/2), 3.84 (L/2), 3.43 (XL/2); 2.93 in two; CIFAR-10 2.92.
"""

from typing import Literal

from shortflow.errors import ConfigError
from shortflow.flowmap import AverageVelocity, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Tangent
from shortflow.times import Independent, LogitNormal, Sorted
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{geng2025meanflow,
  title     = {Mean Flows for One-step Generative Modeling},
  author    = {Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025}
}"""


def meanflow(
    setting: Literal["latents", "pixels"] = "latents",
    omega: float = 1.0,
    kappa: float = 0.5,
    window: tuple[float, float] = (0.0, 1.0),
    ratio: float = 0.25,
) -> Recipe:
    """MeanFlow with guidance in training (the published B/2 setting), or with the published CIFAR-10 settings.

    The arguments after `setting` are for latents.
    """
    if setting == "pixels":
        objective = Objective(
            times=Independent(start=LogitNormal(mu=-0.6, sigma=1.6), end=LogitNormal(mu=-4.0, sigma=1.6), ratio=0.75),
            target=Tangent(velocity=Conditional()),
            metric=SquaredError(reduce="sum"),
            weighting=Adaptive(power=0.75, c=1e-3),
            label_dropout=0.0,
        )
        optimizer = Optimizer(algorithm="adam", lr=6e-4, betas=(0.9, 0.999), clip=None, warmup=1 / 80, ema=0.9999)
        published = Published(batch=1024, steps=800_000, dropout=0.2, network="DDPM++, CIFAR-10")
    elif setting == "latents":
        objective = Objective(
            times=Sorted(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=ratio),
            target=Tangent(velocity=Guided(base=Conditional(), omega=omega, kappa=kappa, window=window)),
            metric=SquaredError(reduce="sum"),
            weighting=Adaptive(power=1.0, c=1e-3),
            label_dropout=0.1,
        )
        optimizer = Optimizer(algorithm="adam", lr=1e-4, betas=(0.9, 0.95), clip=None, ema=0.9999)
        published = Published(batch=256, steps=1_200_000, dropout=0.0, network="SiT-B/2 to XL/2, ImageNet-256 latents")
    else:
        raise ConfigError(f"meanflow has the settings 'latents' and 'pixels', not {setting!r}")
    return Recipe(
        name="meanflow",
        title="Mean Flows for One-step Generative Modeling",
        year=2025,
        arxiv="2505.13447",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap(),
        objective=objective,
        optimizer=optimizer,
        published=published,
    )
