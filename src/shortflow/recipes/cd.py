"""Consistency distillation (CD): the second point lies one solver step of a frozen teacher further down.

    L = d(f_θ(x_t, σ_t), sg f_θ̄(x̂_s, σ_s)),   x̂_s = one Heun step of the teacher from σ_t to σ_s

| symbol in the paper | field |
|---|---|
| φ, the pre-trained diffusion model | `--teacher RUN` (recipe `edm`; models on other paths are converted) |
| Φ, Heun's solver | `objective.target` TwoStep(first=Reference, solver="heun") |
| t_n on the Karras grid with N points | `objective.times` GridPairs(grid, count=ConstantCount(N)) |
| f_θ = c_skip x + c_out F_θ, f(x, ε) = x | `parameterization` EDMSkip |
| μ, decay of the target network | `objective.teacher` (0 on CIFAR-10: Online; 0.95 on ImageNet-64: Ema) |
| ω, classifier-free guidance of the teacher | `objective.target.first.guidance` |
| d(·, ·) | `objective.metric`; the paper's best is LPIPS (`Perceptual`) |

Where the authors' code differs: dropout of student and target share the CPU random state only; here masks are functions
of step and row. The teacher is asked for its velocity σ_max (x − D)/σ, which is the paper's (x − D)/σ in our time.

Sampling: one jump, or several with new noise in between. The network knows no end other than σ_min.

Expected: CIFAR-10 FID 3.55 in one step, 2.93 in two, with LPIPS (batch 512, 800k steps); ImageNet-64 6.20 and 4.70.
"""

from shortflow.flowmap import EDMSkip, LogSigma
from shortflow.losses import SquaredError
from shortflow.objective import Ema, Objective, Online
from shortflow.optimizer import Optimizer
from shortflow.paths import VarianceExploding
from shortflow.recipe import Published, Recipe
from shortflow.targets import TwoStep
from shortflow.times import ConstantCount, GridPairs, KarrasGrid
from shortflow.velocity import Reference

BIBTEX = """@inproceedings{song2023consistency,
  title     = {Consistency Models},
  author    = {Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}"""


def consistency_distillation(
    levels: int = 18, decay: float = 0.0, guidance: float = 1.0, sigma_max: float = 80.0
) -> Recipe:
    """Consistency distillation with the published CIFAR-10 settings."""
    return Recipe(
        name="cd",
        title="Consistency distillation",
        year=2023,
        arxiv="2303.01469",
        path=VarianceExploding(sigma_max=sigma_max),
        parameterization=EDMSkip(),
        conditioning=LogSigma(),
        sigma_data=0.5,
        objective=Objective(
            times=GridPairs(grid=KarrasGrid(sigma_max=sigma_max), count=ConstantCount(n=levels)),
            target=TwoStep(first=Reference(guidance=guidance), solver="heun"),
            metric=SquaredError(reduce="mean", space="state"),
            label_dropout=0.0,
            teacher=Online() if decay == 0 else Ema(rate=decay),
        ),
        optimizer=Optimizer(algorithm="radam", lr=4e-4, betas=(0.9, 0.999), clip=None, ema=0.9999),
        published=Published(batch=512, steps=800_000, dropout=0.0, network="NCSN++, CIFAR-10"),
    )
