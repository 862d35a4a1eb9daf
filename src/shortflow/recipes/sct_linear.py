"""sCT on the linear path: MeanFlow whose every jump ends at the data.

    u_target = v − t D_t u_{t,0},   X_{t,0}(x) = x − t u_{t,0}(x);   rows with r = t are flow matching

| symbol in the paper | field |
|---|---|
| x_t = (1 − t) x + t ε | `path` Linear |
| t, the larger of two logit-normal draws | `objective.times` WithDiagonal(ToData(Largest(LogitNormal)), ratio) |
| r = 0, or r = t on 1 − ratio of the rows | the same |
| v_{t\\|0}, mixed with the network's own velocities (ω, κ) | `objective.target.velocity` Guided |
| gradient warm-up of the tangent, normalisation | `objective.target.warmup`, `objective.target.normalize` |
| adaptive and variational weights | `objective.weighting` |

With every jump ending at 0 and without normalisation this has the target and the gradient of `meanflow` at r = 0. The
consistency function is that of `sct` on the cosine path, up to the change of time; the loss is another one.

Where the authors' code differs: it divides by a warm-up length of 0; its adaptive weight squares the loss before it
divides (a fourth power of the error); its log-variance has the shape (B, 1) and becomes one global number; a batch
without a guided row fails. All of it works here as the paper says.

Sampling: one jump, or several with new noise in between.

Expected: no figures of this form are at hand; `sct` is its counterpart on the cosine path.
"""

from shortflow.flowmap import AverageVelocity, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import SquaredError, Variational
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Tangent
from shortflow.times import Largest, LogitNormal, ToData, WithDiagonal
from shortflow.velocity import Conditional

BIBTEX = """@article{lin2025design,
  title   = {On the Design of One-step Diffusion via Shortcutting Flow Paths},
  author  = {Lin, Haitao and Hu, Peiyan and Ren, Minsi and Gao, Zhifeng and Ma, Zhi-Ming and Ke, Guolin
             and Wu, Tailin and Li, Stan Z.},
  journal = {arXiv preprint arXiv:2512.11831},
  year    = {2025}
}"""


def sct_linear(
    mu: float = -1.0,
    sigma: float = 1.4,
    ratio: float = 0.25,
    omega: float = 1.0,
    kappa: float = 0.5,
    warmup: float = 0.0,
    normalize: float | None = None,
) -> Recipe:
    """Continuous-time consistency training on the linear path, as the ESC paper's baseline."""
    law = Largest(law=LogitNormal(mu=mu, sigma=sigma))
    return Recipe(
        name="sct-linear",
        title="Continuous-time consistency training on the linear path",
        year=2025,
        arxiv="2512.11831",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap(),
        objective=Objective(
            times=WithDiagonal(jumps=ToData(law=law), law=law, ratio=ratio),
            target=Tangent(
                velocity=Guided(base=Conditional(), omega=omega, kappa=kappa), warmup=warmup, normalize=normalize
            ),
            metric=SquaredError(reduce="mean"),
            weighting=Variational(),
            label_dropout=0.1,
        ),
        optimizer=Optimizer(algorithm="adam", lr=1e-4, betas=(0.9, 0.95), clip=1.0, ema=0.9999),
        published=Published(batch=512, steps=600_000, dropout=0.0, network="SiT-B/2, ImageNet-256 latents"),
    )
