"""Improved MeanFlow (iMF): the derivative runs along the network's own velocity, and guidance is an input.

    V = û + (t − r) sg(D_t û),  D_t along v̂_c;   L = adp(‖V − v_g‖²) + adp(‖v̂ − v_g‖²)
    v_g = v + (1 − 1/ω)(v̂_c − v̂_∅)

| symbol in the paper | field |
|---|---|
| û(x, h, ω, Ω), told h = t − r only | `conditioning` GapOnly |
| auxiliary head v̂ | `objective.velocity_head`, `network.head_depth` for its own blocks |
| the tangent v̂_c | `objective.target.direction` Own(head=True) |
| v_g | `objective.target.velocity` GuidanceAsInput |
| ω = 8^U, interval Ω = [U(0, ½), U(½, 1)] | `objective.guidance` PowerGuidance(highest=8, power=β) |
| ½ of the batch has r = t, (t, r) sorted logit-normals | `objective.times` Sorted(ratio=0.5) |
| adp, c = 0.01 | `objective.weighting` Adaptive |
| 10 % of the classes hidden, among the rows with r = t | `objective.label_dropout` 0.2 of those, `dropped_rows` "diagonal" |

‖V − sg v_g‖² has the value and the gradient of ‖û − sg(v_g − (t − r) D_t û)‖², which is what is computed here.

Where the authors' code differs: on rows with a hidden class it still differentiates along the conditional velocity,
which is multiplied by t − r = 0 there. Their transformer takes guidance, time and class as tokens, has rotary positions
and no adaptive normalisation; here all of them are added to the conditioning vector of a SiT.

Sampling: one jump, or jumps on any grid. The network is told its guidance and when it acts, at no cost:
`--guidance 8 --window 0.4,0.65`, or `shortflow.guide(model.flow, 8, (0.4, 0.65))`. Published: B 8 on [0.4, 0.65]; M and
L 10.5 on [0.4, 0.6]; XL 8 on [0.42, 0.62]; in two steps 4 on [0.36, 0.64].

Expected: ImageNet-256 FID in one step 3.39 (B), 2.27 (M), 1.86 (L), 1.72 (XL); 1.54 in two (XL).
"""

from shortflow.flowmap import AverageVelocity, GapOnly
from shortflow.guidance import GuidanceAsInput, PowerGuidance
from shortflow.losses import Adaptive, SquaredError
from shortflow.objective import Objective
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipe import Published, Recipe
from shortflow.targets import Tangent
from shortflow.times import LogitNormal, Sorted
from shortflow.velocity import Conditional, Own

BIBTEX = """@article{geng2025improved,
  title   = {Improved Mean Flows: On the Challenges of Fastforward Generative Models},
  author  = {Geng, Zhengyang and Lu, Yiyang and Wu, Zongze and Shechtman, Eli and Kolter, J. Zico and He, Kaiming},
  journal = {arXiv preprint arXiv:2512.02012},
  year    = {2025}
}"""


def imf(highest: float = 8.0, power: float = 1.0, ratio: float = 0.5) -> Recipe:
    """Improved MeanFlow with guidance as an input and the auxiliary velocity head."""
    return Recipe(
        name="imf",
        title="Improved Mean Flows: On the Challenges of Fastforward Generative Models",
        year=2025,
        arxiv="2512.02012",
        path=Linear(),
        parameterization=AverageVelocity(),
        conditioning=GapOnly(),
        objective=Objective(
            times=Sorted(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=ratio, count="exact"),
            target=Tangent(velocity=GuidanceAsInput(base=Conditional()), direction=Own(head=True)),
            metric=SquaredError(reduce="sum"),
            weighting=Adaptive(power=1.0, c=0.01),
            label_dropout=0.2,
            dropped_rows="diagonal",
            guidance=PowerGuidance(highest=highest, power=power),
            velocity_head=True,
        ),
        optimizer=Optimizer(algorithm="adam", lr=1e-4, betas=(0.9, 0.95), clip=None, warmup=1 / 64, ema=0.9999),
        published=Published(
            batch=1024, steps=800_000, dropout=0.0, network="12 × 768 transformer, ImageNet-256 latents"
        ),
    )
