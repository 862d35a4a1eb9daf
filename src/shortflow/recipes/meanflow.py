"""MeanFlow: learn the average velocity u_{t,r} through the identity u = v − (t − r) du/dt.

| symbol in the paper | field |
|---|---|
| z_t = (1 − t) x + t ε | `path` Linear |
| u_θ(z, r, t), told (t, t − r) | `parameterization` AverageVelocity, `conditioning` StartAndGap |
| (t, r) ~ lognorm(−0.4, 1.0), sorted; share with r ≠ t | `objective.times` Sorted(law, ratio=0.25) |
| u_tgt = v − (t − r)(v ∂_z u + ∂_t u) | `objective.target` Tangent |
| ω, κ, the window of t | `objective.target.velocity` Guided(omega, kappa, window) |
| ‖Δ‖²/sg(‖Δ‖² + c)^p | `objective.metric` SquaredError(sum), `objective.weighting` Adaptive(power=p, c) |

Published settings (ω, κ, window): B/4 (1, 0.5, [0, 1]) or (2, 0, [0, 1]); B/2 (1, 0.5, [0, 1]);
M and L (0.2, 0.92, [0, 0.8]); XL (0.2, 0.92, [0, 0.75]).

Where published code differs, and what is done here:
- the ImageNet code has c = 0.01, the paper 1e-3; here 1e-3;
- it hides the class on the first rows of the batch, which are all flow-matching rows; here on random rows;
- naming: `ratio` is P(r ≠ t) here and in the PyTorch code, `data_proportion` = 1 − ratio in the JAX code;
- hiding no class (probability 0) must still tell the network the class: ports pass none.
"""

from shortflow.flowmap import AverageVelocity, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Recipe
from shortflow.targets import Tangent
from shortflow.times import LogitNormal, Sorted
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{geng2025meanflow,
  title     = {Mean Flows for One-step Generative Modeling},
  author    = {Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025}
}"""


def meanflow(
    omega: float = 1.0, kappa: float = 0.5, window: tuple[float, float] = (0.0, 1.0), ratio: float = 0.25
) -> Recipe:
    """MeanFlow with guidance in training (the published B/2 setting)."""
    return Recipe(
        name="meanflow",
        title="Mean Flows for One-step Generative Modeling",
        year=2025,
        arxiv="2505.13447",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap(),
        objective=Objective(
            times=Sorted(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=ratio),
            target=Tangent(velocity=Guided(base=Conditional(), omega=omega, kappa=kappa, window=window)),
            metric=SquaredError(reduce="sum"),
            weighting=Adaptive(power=1.0, c=1e-3),
            label_dropout=0.1,
        ),
        optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.95), clip=None, ema=0.9999),
    )
