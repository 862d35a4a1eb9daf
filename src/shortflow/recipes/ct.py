"""Consistency training (CT): the prediction at a noisier level is regressed onto that at the next cleaner one.

    L = d(f_θ(x + t_{n+1} z, t_{n+1}), sg f_θ⁻(x + t_n z, t_n)),   f_θ(x, t) = c_skip(t) x + c_out(t) F_θ(c_in(t) x, t)

| symbol in the paper | field |
|---|---|
| x + t z, t ∈ [ε, T] | `path` VarianceExploding(sigma_max=T); our t is t/T |
| t_n on the Karras grid with N(k) points | `objective.times` GridPairs(grid, count=SquareRootCount(s0, s1)) |
| f_θ = c_skip x + c_out F_θ, f(x, ε) = x | `parameterization` EDMSkip, `sigma_data` 0.5 |
| ¼ ln t | `conditioning` LogSigma |
| x + t_n z with the same z | `objective.target` TwoStep(first=Conditional) |
| d(·, ·) | `objective.metric` SquaredError(space="state"); the paper also uses LPIPS |
| θ⁻, μ(k) | `objective.teacher` ScheduledEma(mu0, count) |

Where the authors' code differs: it shares dropout between student and target through the CPU random state only, so that
on a GPU the masks differ; here masks are a function of the step and the row on every device. Their U-Net is told 250 ln
t (`conditioning.scale=250`).

Sampling: one jump, or several with new noise in between. The network knows no end other than σ_min.

Expected: CIFAR-10 FID 8.70 in one step, 5.83 in two (with LPIPS); ImageNet-64 13.0 and 11.1 (these two recalled, not
re-read).
"""

from shortflow.flowmap import EDMSkip, LogSigma
from shortflow.losses import SquaredError
from shortflow.objective import Objective, ScheduledEma
from shortflow.optimizer import Optimizer
from shortflow.paths import VarianceExploding
from shortflow.recipe import Published, Recipe
from shortflow.targets import TwoStep
from shortflow.times import GridPairs, KarrasGrid, SquareRootCount
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{song2023consistency,
  title     = {Consistency Models},
  author    = {Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}"""


def consistency_training(s0: int = 2, s1: int = 150, mu0: float = 0.9, sigma_max: float = 80.0) -> Recipe:
    """Consistency training with the published schedules of grid size and target decay (CIFAR-10 values)."""
    count = SquareRootCount(s0=s0, s1=s1)
    return Recipe(
        name="ct",
        title="Consistency training",
        year=2023,
        arxiv="2303.01469",
        path=VarianceExploding(sigma_max=sigma_max),
        parameterization=EDMSkip(),
        conditioning=LogSigma(),
        sigma_data=0.5,
        objective=Objective(
            times=GridPairs(grid=KarrasGrid(sigma_max=sigma_max), count=count),
            target=TwoStep(first=Conditional()),
            metric=SquaredError(reduce="mean", space="state"),
            label_dropout=0.0,
            teacher=ScheduledEma(mu0=mu0, count=count),
        ),
        optimizer=Optimizer(algorithm="radam", lr=2e-4, betas=(0.9, 0.999), clip=None, ema=0.9999),
        published=Published(batch=512, steps=800_000, dropout=0.0, network="NCSN++, CIFAR-10"),
    )
