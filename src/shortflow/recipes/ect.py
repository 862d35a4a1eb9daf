"""Easy consistency tuning (ECT): from denoising to consistency, by bringing the second noise level closer and closer.

    L = ‖f_θ(x_t, σ_t) − sg f_θ(x_s, σ_s)‖/(σ_t − σ_s),   σ_s = σ_t · max(0, 1 − q^{−(stage+1)} (1 + k sigmoid(−b σ_t)))

| symbol in the paper | field |
|---|---|
| x + t ε, t ~ exp(N(P_mean, P_std²)) | `path` VarianceExploding, `objective.times.base` ToData(LogNormalNoise) |
| r = t (1 − q^{−a} n(t)), n(t) = 1 + k sigmoid(−b t), a = stage + 1 | `objective.times.at` Tightening(q, k, b, stages) |
| f(x, t) with EDM's c_skip, c_out, c_in, c_noise | `parameterization` EDM, `conditioning` LogSigma |
| f(x_0, 0) = x_0: where r = 0 the target is the image | the identity of the parameterisation at σ = 0 |
| ‖·‖ (c = 0), or pseudo-Huber | `objective.metric` PseudoHuber(c=0) |
| w(t) = 1/(t − r) | `objective.weighting` ByTime("inverse-step") |

Our s is their r; jumps end at r = 0. In the first stage most second levels are 0, which is denoising: start from a
diffusion model with `--init-from RUN` (recipe `edm`), as published, or from scratch. A stage has 25k steps of batch
128: 200k steps make 8 stages, 400k steps 16 (`stages=16` of `objective.times.at`).

Where the authors' code differs: it samples with σ_min between 0.002 and 0.003, where training has 0; it shares dropout
through the random state of CUDA, here masks are functions of step and row. σ is drawn here from the log-normal law cut
at σ_max.

Sampling: one jump, or two with σ = 0.821 and new noise in between (`--steps 2 --middle 0.0103`).

Expected: CIFAR-10 FID 4.54, 3.86, 3.60 in one step after 100k, 200k, 400k steps of batch 128; 2.20, 2.15, 2.11 in two.
"""

from shortflow.flowmap import EDM, LogSigma
from shortflow.losses import ByTime, PseudoHuber
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import VarianceExploding
from shortflow.recipe import Published, Recipe
from shortflow.targets import TwoStep
from shortflow.times import Between, LogNormalNoise, Tightening, ToData
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{geng2025consistency,
  title     = {Consistency Models Made Easy},
  author    = {Geng, Zhengyang and Pokle, Ashwini and Luo, William and Lin, Justin and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""


def ect(
    q: float = 2.0, k: float = 8.0, b: float = 1.0, stages: int = 8, c: float = 0.0, sigma_max: float = 80.0
) -> Recipe:
    """Easy consistency tuning with the published CIFAR-10 settings (200k steps make 8 stages)."""
    return Recipe(
        name="ect",
        title="Consistency Models Made Easy",
        year=2024,
        arxiv="2406.14548",
        path=VarianceExploding(sigma_max=sigma_max),
        parameterization=EDM(),
        conditioning=LogSigma(),
        sigma_data=0.5,
        objective=Objective(
            times=Between(
                base=ToData(law=LogNormalNoise(mean=-1.1, std=2.0, sigma_max=sigma_max)),
                at=Tightening(q=q, k=k, b=b, stages=stages, sigma_max=sigma_max),
            ),
            target=TwoStep(first=Conditional()),
            metric=PseudoHuber(c=c, space="state"),
            weighting=ByTime(rule="inverse-step"),
            label_dropout=0.0,
        ),
        optimizer=Optimizer(algorithm="radam", lr=1e-4, betas=(0.9, 0.99), clip=None, ema=0.9999),
        published=Published(batch=128, steps=200_000, dropout=0.2, network="DDPM++ of EDM, CIFAR-10"),
    )
