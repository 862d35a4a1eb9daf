"""α-Flow: a curriculum from trajectory flow matching (α = 1) to MeanFlow (α → 0).

    s = α r + (1 − α) t,   û = α ṽ + (1 − α) sg u_θ(x_t − (t − s) ṽ, s, r),   L = α/(‖u_θ − û‖²/D + c) · ‖u_θ − û‖²/D

| symbol in the paper | field |
|---|---|
| s, α_k: 1 up to k_0, a sigmoid, 0 from k_1 on, γ = 25, clamp η = 0.005 | `objective.times.at` SigmoidDecay(start_share, end_share) |
| (t, r), 1 − ratio of the rows with r = t | `objective.times.base` Sorted |
| û for α > 0, bounded by ±4 | `objective.target.bootstrap` TwoStep(solver="euler", clip=4, clip_states=False) |
| α = 0: ṽ − (t − r) D_t u | `objective.target.limit` Tangent |
| ṽ, with ω, κ in a window of t | Guided, the same in all three |
| α/(L + c), and 1/(L + c) on rows with α = 0 or r = t | `objective.weighting` Product(Adaptive, ByTime("share")) |

Published schedules: B/2 from 0 to the end of the run; XL/2 from one half to five sixths of it (600k to 1M of 1.2M).

Where the authors' code differs: classes are hidden inside the guidance window only, so that the null class is not
trained outside it; targets of rows with α = 0 and others are put together in another order than the predictions, which
is right only while flow-matching rows come first. Here every row keeps its place. The window is open there, closed
here.

Sampling: one jump, or jumps on any grid; the paper also reports new noise in between (`--sampler re-noise`).

Expected: ImageNet-256 FID in one and two steps 40.2, 37.1 (B/2, unguided), 5.40, 5.01 (B/2, guided), 2.95, 2.34 (XL/2),
2.58, 2.15 (XL/2+).
"""

from shortflow.flowmap import AverageVelocity, StartAndGap
from shortflow.guidance import Guided
from shortflow.losses import Adaptive, ByTime, Product, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Direct, Split, Tangent, TwoStep
from shortflow.times import Between, LogitNormal, SigmoidDecay, Sorted
from shortflow.velocity import Conditional

BIBTEX = """@inproceedings{zhang2026alphaflow,
  title     = {AlphaFlow: Understanding and Improving MeanFlow Models},
  author    = {Zhang, Huijie and Siarohin, Aliaksandr and Menapace, Willi and Vasilkovsky, Michael and Tulyakov, Sergey
               and Qu, Qing and Skorokhodov, Ivan},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}"""


def alphaflow(
    start_share: float = 0.0,
    end_share: float = 1.0,
    ratio: float = 0.75,
    omega: float = 1.0,
    kappa: float = 0.5,
    window: tuple[float, float] = (0.0, 1.0),
) -> Recipe:
    """α-Flow with the published guided B/2 setting."""
    velocity = Guided(base=Conditional(), omega=omega, kappa=kappa, window=window)
    return Recipe(
        name="alphaflow",
        title="AlphaFlow: Understanding and Improving MeanFlow Models",
        year=2025,
        arxiv="2510.20771",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=StartAndGap(),
        objective=Objective(
            times=Between(
                base=Sorted(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=ratio, count="exact"),
                at=SigmoidDecay(start_share=start_share, end_share=end_share, gamma=25.0, clamp=0.005),
            ),
            target=Split(
                direct=Direct(velocity=velocity),
                bootstrap=TwoStep(first=velocity, solver="euler", clip=4.0, clip_states=False),
                limit=Tangent(velocity=velocity),
            ),
            metric=SquaredError(reduce="mean"),
            weighting=Product(parts=(Adaptive(power=1.0, c=1e-3), ByTime(rule="share"))),
            label_dropout=0.1,
        ),
        optimizer=Optimizer(algorithm="adam", lr=1e-4, betas=(0.9, 0.95), clip=None, ema=0.9999),
        published=Published(batch=256, steps=1_200_000, dropout=0.0, network="DiT-B/2 to XL/2, ImageNet-256 latents"),
    )
