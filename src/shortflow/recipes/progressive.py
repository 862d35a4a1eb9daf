"""Progressive distillation: each stage halves the number of steps of the model of the stage before.

    target ū = (u_1 + u_2)/2 from two half steps of the frozen model of the last stage,   L = ‖u_θ(x_t, t, d) − ū‖²/D

| symbol in the paper | field |
|---|---|
| the model whose steps are halved first | `--init-from RUN` (recipe `flow-matching`) |
| stage j, d = 2^{−j}: 1/64 first, then 1/32, …, 1 | `objective.times` StagedDyadic(order="fine-to-coarse", jump="step") |
| teacher of a stage: the student at the end of the last one | `objective.teacher` Snapshot(stages) |
| two half steps of the teacher | `objective.target` TwoStep(first=None) |
| told log₂(1/d) | `conditioning` LogStep |
| CFG scale w, in the first stage only | `objective.target.guidance`, `guided_gap` 1/64 |
| clipping at ±4 (published code) | `objective.target.clip` |

This is the form of the shortcut-models paper: one network for all step lengths, told d, each trained in its own stage.
At the start the new input has no effect, so the teacher of the first stage is the old model to the last bit. Salimans
and Ho's original distils DDIM on a variance-preserving path with v-prediction and a truncated SNR weight, with a new
copy of the network for each stage.

Where the authors' code differs: at the very last step it computes a stage of step length 2; here the last stage stays.

Sampling: one step. All other step lengths fade while later stages are trained.

Expected: FID in 128, 4 and 1 steps: CelebA-HQ 302.9, 251.3, 14.8, ImageNet-256 201.9, 142.5, 35.6 (from the table of
the shortcut-models paper, recalled and not re-read).
"""

from shortflow.flowmap import AverageVelocity, LogStep
from shortflow.losses import SquaredError
from shortflow.objective import Objective, Snapshot
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import TwoStep
from shortflow.times import StagedDyadic

BIBTEX = """@inproceedings{salimans2022progressive,
  title     = {Progressive Distillation for Fast Sampling of Diffusion Models},
  author    = {Salimans, Tim and Ho, Jonathan},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""


def progressive_distillation(levels: int = 7, guidance: float = 1.5) -> Recipe:
    """Progressive distillation of a flow-matching model, in the form of the shortcut-models paper."""
    return Recipe(
        name="progressive-distillation",
        title="Progressive Distillation for Fast Sampling of Diffusion Models",
        year=2022,
        arxiv="2202.00512",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=LogStep(steps=2**levels),
        objective=Objective(
            times=StagedDyadic(levels=levels, order="fine-to-coarse", jump="step"),
            target=TwoStep(first=None, clip=4.0, guidance=guidance, guided_gap=2.0 ** (1 - levels)),
            metric=SquaredError(reduce="mean"),
            label_dropout=0.1 if guidance != 1 else 0.0,
            teacher=Snapshot(stages=levels, rate=0.999),
        ),
        optimizer=Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999),
        published=Published(batch=256, steps=810_000, dropout=0.0, network="DiT-B/2, ImageNet-256 latents"),
    )
