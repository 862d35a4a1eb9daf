"""The runs that papers published on ImageNet-256: method, network, latents, batch and steps, each with its figure.

`RUNS` has all of them by name; `imagenet_runs` writes them down.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shortflow.config import DataConfig, RunConfig
from shortflow.data.latentspec import LatentSpec
from shortflow.flowmap import StartAndEnd
from shortflow.hub.interop.kinds import KINDS
from shortflow.laws import GridLaw
from shortflow.losses import Product, Variational
from shortflow.nn.configs import SiTConfig
from shortflow.optimizer import Optimizer
from shortflow.recipe import Published as Record
from shortflow.recipe import Recipe
from shortflow.recipes import (
    alphaflow,
    cd_linear,
    ct_linear,
    esc,
    esc_plus,
    flow_matching,
    ict,
    imf,
    imm,
    live_reflow,
    meanflow,
    progressive_distillation,
    reflow,
    sct_linear,
    shortcut,
    soflow,
    tvm,
)
from shortflow.times import Diagonal, Gradual, LogitNormal
from shortflow.train.settings import TrainSettings
from shortflow.velocity import Mixture

ESC, FRANS, MEANFLOW = "arXiv 2512.11831", "arXiv 2410.12557", "arXiv 2505.13447"
RECALLED = f"{FRANS}, table 1, recalled and not re-read; DiT-B/2"


def latents(encoder: str, scale: tuple[float, ...] = (0.18215,), shift: tuple[float, ...] = (0.0,)) -> LatentSpec:
    """Latents of images of side 256; one number stands for all four channels."""
    each = 4 // len(scale)
    return LatentSpec(encoder=encoder, sha256=None, pixels=(3, 256, 256), shift=shift * each, scale=scale * each)


# Deviation 1 by channel: the mean and the deviation that the code of IMM, iMF and TVM has (IMM then takes half of it,
# its sigma_data).
MEAN, STD = (0.86488, -0.27787343, 0.21616915, 0.3738409), (4.85503674, 5.31922414, 3.93725398, 3.9870003)
BY_CHANNEL = {"scale": tuple(float(f"{1 / std:.8g}") for std in STD), "shift": MEAN}
OF_ESC = latents("sd-vae-ft-ema", (0.18125,))  # a slip of two digits, which its weights have learned
OF_EMA, OF_MSE = latents("sd-vae-ft-ema"), latents("sd-vae-ft-mse")
EMA_BY_CHANNEL, MSE_BY_CHANNEL = latents("sd-vae-ft-ema", **BY_CHANNEL), latents("sd-vae-ft-mse", **BY_CHANNEL)

# The optimiser of the shortcut-models paper, for all of its rows.
ADAMW = Optimizer(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, clip=None, ema=0.999)
GUIDED_AT_128 = "128 steps are sampled with --guidance 1.5, fewer without"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run as it was published.

    Attributes:
        figure: FID-50k with its source, or why there is none.
        latents: that it was trained on.
        batch, steps: None: those of the recipe.
        guessed: those of the two that are not established.
        backbone: what the authors trained; None: a SiT of that size.
    """

    recipe: Recipe
    size: str
    figure: str
    latents: LatentSpec
    batch: int | None = None
    steps: int | None = None
    patch: int = 2
    network: dict[str, Any] | None = None
    teacher: str | None = None
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    backbone: str | None = None

    @property
    def store(self) -> str:
        """The folder of the latents, as `shortflow encode` makes it; it is the same for all scales."""
        return f"./imagenet-256-{self.latents.encoder}"

    @property
    def run(self) -> RunConfig:
        published = self.recipe.published
        assert published is not None
        batch, steps = self.batch or published.batch, self.steps or published.steps
        assert batch is not None
        assert steps is not None
        record = replace(
            published,
            batch=None if "batch" in self.guessed else batch,
            steps=None if "steps" in self.guessed else steps,
            network=f"{self.backbone or f'SiT-{self.size}/{self.patch}'}, ImageNet-256 latents",
        )
        return RunConfig(
            recipe=replace(self.recipe, published=record),
            network=SiTConfig(size=self.size, patch=self.patch, **(self.network or {})),
            data=DataConfig(
                source=self.store,
                flip=self.teacher is None or "pairs" not in self.recipe.objective.needs,
                latent=self.latents,
            ),
            train=TrainSettings(
                images=batch * steps,
                batch=batch,
                precision="bf16",
                log_every=100,
                preview_every=10_000,
                save_every=10_000,
            ),
            teacher=self.teacher,
        )


def ablation(gradual: bool = False, plug_in: float = 0.0, together: bool = False, variational: bool = False) -> Recipe:
    """MeanFlow with guidance and some of the parts of ESC, in ESC's B/2 setting."""
    whole, recipe = esc(), meanflow()
    objective: Any = recipe.objective
    if gradual:
        objective = replace(objective, times=Gradual(law=LogitNormal(mu=-0.4, sigma=1.0), ratio=0.25, ramp=1 / 30))
    if plug_in:
        velocity = replace(objective.target.velocity, base=Mixture(probability=plug_in))
        objective = replace(objective, target=replace(objective.target, velocity=velocity))
    if variational:
        objective = replace(objective, weighting=Product(parts=(objective.weighting, Variational())))
    batches = "class-consistent" if together else "shuffled"
    return replace(recipe, objective=objective, optimizer=whole.optimizer, batches=batches, published=whole.published)


def guided(make: Callable[..., Recipe], stop: float, **others: Any) -> Recipe:
    """With the guidance of sizes M to XL: ω 0.2 and κ 0.92 in [0, stop]."""
    return make(omega=0.2, kappa=0.92, window=(0.0, stop), **others)


def of_frans(recipe: Recipe, figure: str, size: str = "B", teacher: bool = False, **others: Any) -> Published:
    """A row of the table of the shortcut-models paper."""
    return Published(
        recipe=recipe,
        size=size,
        figure=figure,
        latents=OF_MSE,
        backbone=f"DiT-{size}/2",
        teacher="out/flow-matching-b2" if teacher else None,
        **others,
    )


def velocity_of_frans() -> Recipe:
    """Flow matching as that paper trains it: on the grid of its 128 steps, with its optimiser."""
    recipe = flow_matching()
    objective = replace(recipe.objective, times=Diagonal(law=GridLaw(n=128)))
    return replace(recipe, objective=objective, optimizer=ADAMW)


def diffusion_of_frans() -> Recipe:
    """The noise prediction of DiT with that paper's optimiser."""
    recipe = KINDS["dit"].recipe(768)
    published = Record(batch=256, steps=810_000, dropout=0.0)
    return replace(recipe, name="diffusion", optimizer=ADAMW, published=published)


def of_meanflow(size: str, recipe: Recipe, figure: str, **others: Any) -> Published:
    return Published(recipe=recipe, size=size, figure=f"{figure}, {MEANFLOW}", latents=OF_MSE, **others)


def of_esc(recipe: Recipe, figure: str, size: str = "B", **others: Any) -> Published:
    return Published(recipe=recipe, size=size, figure=figure, latents=OF_ESC, **others)


def of_imm(power: float, figure: str) -> Published:
    """IMM with a = 1, told both times, or with a = 2, told the first and the stride."""
    recipe = imm(power=power)
    if power == 1:
        recipe = replace(recipe, conditioning=StartAndEnd(scale=1000.0))
    notes = (
        "that its autoencoder is sd-vae-ft-ema is known from code that follows it, as its training is not public",
        "sampled with --guidance 1.5, which doubles the passes",
    )
    return Published(
        recipe=recipe,
        size="XL",
        figure=f"{figure}; arXiv 2503.07565, a = {power:g}",
        latents=EMA_BY_CHANNEL,
        backbone="DiT-XL/2",
        notes=notes,
    )


def of_soflow(size: str, figure: str) -> Published:
    note = "the guidance of this size is not established: here that of B/2"
    return Published(
        recipe=soflow(),
        size=size,
        figure=f"{figure}; arXiv 2512.15657",
        latents=OF_MSE,
        backbone=f"DiT-{size}/2",
        notes=() if size == "B" else (note,),
    )


def of_alphaflow(size: str, recipe: Recipe, figure: str) -> Published:
    note = "of its scale no number is established: here that of Stable Diffusion"
    return Published(
        recipe=recipe,
        size=size,
        figure=f"{figure}; arXiv 2510.20771",
        latents=OF_EMA,
        backbone=f"DiT-{size}/2",
        notes=(note,),
    )


def of_imf(size: str, depth: int, width: int, figure: str, sampled: str) -> Published:
    """Improved MeanFlow, with blocks, width and own blocks of the velocity head as published, in a SiT."""
    return Published(
        recipe=imf(),
        size="B",
        network={"depth": depth, "width": width, "heads": width // 64, "head_depth": 8},
        figure=f"{figure}; arXiv 2512.02012, {size}, with a transformer of another kind",
        latents=MSE_BY_CHANNEL,
        backbone=f"{depth} × {width} transformer",
        notes=(
            f"sampled with {sampled}; the range of guidance in training is that of B, [1, 8]",
            "the velocity head's own blocks are among the parameters, and neither in F nor in the hours",
        ),
    )


RUNS: dict[str, Published] = {
    # the shortcut-models paper
    "flow-matching-b2": of_frans(
        velocity_of_frans(), f"17.3 (128 steps, guidance 1.5); {RECALLED}", steps=810_000, notes=(GUIDED_AT_128,)
    ),
    "diffusion-b2": of_frans(
        diffusion_of_frans(),
        f"39.7 (128 steps), 464.5 (4), 467.2 (1); {RECALLED}",
        notes=(
            "which diffusion is not established: here DiT's noise prediction on the linear levels of DDPM",
            GUIDED_AT_128,
        ),
    ),
    "shortcut-b2": of_frans(
        shortcut(), f"40.3 (1 step), 28.3 (4), 15.5 (128); {FRANS}, DiT-B/2", notes=(GUIDED_AT_128,)
    ),
    "shortcut-xl2": of_frans(
        shortcut(), f"10.6 (1 step), 7.8 (4), 3.8 (128); {FRANS}, DiT-XL/2", size="XL", notes=(GUIDED_AT_128,)
    ),
    "ct-linear-b2": of_frans(ct_linear(), f"69.7 (1 step), 43.0 (4), 42.8 (128); {RECALLED}"),
    "cd-linear-b2": of_frans(cd_linear(), f"136.5 (1 step), 98.0 (4), 132.8 (128); {RECALLED}", teacher=True),
    "progressive-distillation-b2": of_frans(
        progressive_distillation(), f"35.6 (1 step), 142.5 (4), 201.9 (128); {RECALLED}", teacher=True
    ),
    "reflow-b2": of_frans(reflow(), f"44.8 (1 step), 32.8 (4), 16.9 (128); {RECALLED}", teacher=True),
    "live-reflow-b2": of_frans(live_reflow(), f"58.1 (1 step), 95.8 (4), 46.3 (128); {RECALLED}"),
    # MeanFlow
    "meanflow-b2": of_meanflow("B", meanflow(), "6.17 (1 step)"),
    "meanflow-m2": of_meanflow("M", guided(meanflow, 0.8), "5.01 (1 step)"),
    "meanflow-l2": of_meanflow("L", guided(meanflow, 0.8), "3.84 (1 step)"),
    "meanflow-xl2": of_meanflow("XL", guided(meanflow, 0.75), "3.43 (1 step), 2.93 (2)"),
    "meanflow-plus-xl2": of_meanflow("XL", guided(meanflow, 0.75), "2.20 (2 steps)", steps=5_000_000),
    # ESC
    "esc-b2": of_esc(esc(), f"5.77 (1 step), {ESC}"),
    "esc-xl2": of_esc(
        guided(esc, 0.75, probability=0.2, ramp=1 / 60),
        f"2.85 (1 step), {ESC}",
        size="XL",
        batch=256,
        steps=1_200_000,
    ),
    "esc-plus-xl2": of_esc(esc_plus(), f"2.53 (1 step), {ESC}", size="XL"),
    "sct-linear-b2": of_esc(sct_linear(), f"none is published for this size ({ESC} has CIFAR-10)"),
    "esc-ablation-meanflow-b2": of_esc(ablation(), f"6.09 (1 step), {ESC}, ablation"),
    "esc-ablation-a1-b2": of_esc(
        ablation(plug_in=1.0), f"6.01 (1 step), {ESC}, ablation: plug-in velocity on every row"
    ),
    "esc-ablation-a2-b2": of_esc(
        ablation(plug_in=0.5), f"5.98 (1 step), {ESC}, ablation: plug-in velocity on half of the rows"
    ),
    "esc-ablation-b2-b2": of_esc(
        ablation(plug_in=0.5, together=True), f"5.96 (1 step), {ESC}, ablation: and class-consistent batches"
    ),
    "esc-ablation-c-b2": of_esc(ablation(gradual=True), f"5.99 (1 step), {ESC}, ablation: gradual times alone"),
    "esc-ablation-d-b2": of_esc(
        ablation(variational=True), f"5.95 (1 step), {ESC}, ablation: variational weight alone"
    ),
    # beside them in the tables
    "ict-xl2": Published(
        recipe=ict(),
        size="XL",
        figure=f"34.24 (1 step), {ESC}, table",
        latents=EMA_BY_CHANNEL,
        guessed=("batch", "steps"),
        notes=("no setting on ImageNet-256 is established: these are those for CIFAR-10, on the latents of IMM",),
    ),
    "imm-a1-xl2": of_imm(1.0, "7.77 (1 step), 5.33 (2), 3.66 (4), 2.77 (8)"),
    "imm-xl2": of_imm(2.0, "8.05 (1 step), 3.99 (2), 2.51 (4), 1.99 (8)"),
    "alphaflow-b2": of_alphaflow("B", alphaflow(), "5.40 (1 step), 5.01 (2)"),
    "alphaflow-xl2": of_alphaflow(
        "XL",
        guided(alphaflow, 0.75, start_share=600 / 1200, end_share=1000 / 1200, ratio=0.5),
        "2.95 (1 step), 2.34 (2)",
    ),
    "soflow-b2": of_soflow("B", "4.85 (1 step), 4.24 (2)"),
    "soflow-m2": of_soflow("M", "3.73 (1 step), 3.42 (2)"),
    "soflow-l2": of_soflow("L", "3.20 (1 step), 2.90 (2)"),
    "soflow-xl2": of_soflow("XL", "2.96 (1 step), 2.66 (2)"),
    "imf-b2": of_imf("B", 12, 768, "3.39 (1 step)", "--guidance 8 --window 0.4,0.65"),
    "imf-m2": of_imf("M", 24, 768, "2.27 (1 step)", "--guidance 10.5 --window 0.4,0.6"),
    "imf-l2": of_imf("L", 32, 1024, "1.86 (1 step)", "--guidance 10.5 --window 0.4,0.6"),
    "imf-xl2": of_imf(
        "XL", 48, 1024, "1.72 (1 step), 1.54 (2)", "--guidance 8 --window 0.42,0.62, in 2 steps 4 and 0.36,0.64"
    ),
    "tvm-xl2": Published(
        recipe=tvm(),
        size="XL",
        steps=300_000,
        guessed=("steps",),
        network={"qk_norm": True, "modulation_norm": True},
        figure="3.29 (1 step), 1.99 (4); arXiv 2511.19797",
        latents=EMA_BY_CHANNEL,
        backbone="DiT-XL/2",
        notes=("the number of steps is not established: 300,000 is a guess", "four steps have another w, 1.75"),
    ),
}
