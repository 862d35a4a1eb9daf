"""The published runs on ImageNet-256 as run files: python scripts/imagenet_runs.py (--check: whether they are current)

examples/imagenet-256/NAME.yaml holds the whole run, resolved; a comment has the published figure with its source, and
what the run will take (`shortflow.estimate`). docs/imagenet.md has all of them in a table.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortflow.config import DataConfig, RunConfig
from shortflow.config.runfile import to_yaml
from shortflow.data import DataSpec
from shortflow.estimate import SHARE, Estimate, estimate
from shortflow.files import write_atomic
from shortflow.losses import Product, Variational
from shortflow.nn.configs import SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import (
    alphaflow,
    cd_linear,
    ct_linear,
    esc,
    esc_plus,
    flow_matching,
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
from shortflow.times import Gradual, LogitNormal
from shortflow.train.settings import TrainSettings
from shortflow.velocity import Mixture

FOLDER = Path(__file__).parents[1] / "examples" / "imagenet-256"
PAGE = Path(__file__).parents[1] / "docs" / "imagenet.md"
BEGIN, END = "<!-- python scripts/imagenet_runs.py -->", "<!-- end -->"
GPUS = 8  # that share a batch in the table
EPOCH = 1_281_167  # images
LATENTS = DataSpec(name="imagenet-256", shape=(4, 32, 32), classes=tuple(str(i) for i in range(1000)), image=False)
SOURCE = "./imagenet-256-latents"  # as `shortflow encode` makes it

ESC, FRANS, MEANFLOW = "arXiv 2512.11831", "arXiv 2410.12557", "arXiv 2505.13447"
RECALLED = f"{FRANS}, table 1, recalled and not re-read; DiT-B/2"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run as it was published.

    Attributes:
        figure: FID-50k with its source, or why there is none.
        batch, steps: None: those of the recipe.
    """

    recipe: Recipe
    size: str
    figure: str
    batch: int | None = None
    steps: int | None = None
    patch: int = 2
    network: dict[str, Any] | None = None
    teacher: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> RunConfig:
        published = self.recipe.published
        assert published is not None
        batch, steps = self.batch or published.batch, self.steps or published.steps
        assert batch is not None
        assert steps is not None
        return RunConfig(
            recipe=self.recipe,
            network=SiTConfig(size=self.size, patch=self.patch, **(self.network or {})),
            data=DataConfig(source=SOURCE, flip=self.teacher is None or "pairs" not in self.recipe.objective.needs),
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


RUNS: dict[str, Published] = {
    # the shortcut-models paper
    "flow-matching-b2": Published(
        recipe=flow_matching(), size="B", steps=810_000, figure=f"17.3 (128 steps), {RECALLED}"
    ),
    "shortcut-b2": Published(
        recipe=shortcut(), size="B", figure=f"40.3 (1 step), 28.3 (4), 15.5 (128); {FRANS}, DiT-B/2"
    ),
    "shortcut-xl2": Published(
        recipe=shortcut(), size="XL", figure=f"10.6 (1 step), 7.8 (4), 3.8 (128); {FRANS}, DiT-XL/2"
    ),
    "ct-linear-b2": Published(recipe=ct_linear(), size="B", figure=f"69.7 (1 step), 43.0 (4), 42.8 (128); {RECALLED}"),
    "cd-linear-b2": Published(
        recipe=cd_linear(),
        size="B",
        figure=f"136.5 (1 step), 98.0 (4), 132.8 (128); {RECALLED}",
        teacher="out/flow-matching-b2",
    ),
    "progressive-distillation-b2": Published(
        recipe=progressive_distillation(),
        size="B",
        figure=f"35.6 (1 step), 142.5 (4), 201.9 (128); {RECALLED}",
        teacher="out/flow-matching-b2",
    ),
    "reflow-b2": Published(
        recipe=reflow(),
        size="B",
        figure=f"44.8 (1 step), 32.8 (4), 16.9 (128); {RECALLED}",
        teacher="out/flow-matching-b2",
    ),
    "live-reflow-b2": Published(
        recipe=live_reflow(), size="B", figure=f"58.1 (1 step), 95.8 (4), 46.3 (128); {RECALLED}"
    ),
    # MeanFlow
    "meanflow-b2": Published(recipe=meanflow(), size="B", figure=f"6.17 (1 step), {MEANFLOW}"),
    "meanflow-m2": Published(recipe=guided(meanflow, 0.8), size="M", figure=f"5.01 (1 step), {MEANFLOW}"),
    "meanflow-l2": Published(recipe=guided(meanflow, 0.8), size="L", figure=f"3.84 (1 step), {MEANFLOW}"),
    "meanflow-xl2": Published(recipe=guided(meanflow, 0.75), size="XL", figure=f"3.43 (1 step), 2.93 (2); {MEANFLOW}"),
    # ESC
    "esc-b2": Published(recipe=esc(), size="B", figure=f"5.77 (1 step), {ESC}"),
    "esc-xl2": Published(
        recipe=guided(esc, 0.75, probability=0.2, ramp=1 / 60),
        size="XL",
        batch=256,
        steps=1_200_000,
        figure=f"2.85 (1 step), {ESC}",
    ),
    "esc-plus-xl2": Published(recipe=esc_plus(), size="XL", figure=f"2.53 (1 step), {ESC}"),
    "sct-linear-b2": Published(
        recipe=sct_linear(), size="B", figure=f"none is published for this size ({ESC} has CIFAR-10)"
    ),
    "esc-ablation-meanflow-b2": Published(recipe=ablation(), size="B", figure=f"6.09 (1 step), {ESC}, ablation"),
    "esc-ablation-a1-b2": Published(
        recipe=ablation(plug_in=1.0), size="B", figure=f"6.01 (1 step), {ESC}, ablation: plug-in velocity on every row"
    ),
    "esc-ablation-a2-b2": Published(
        recipe=ablation(plug_in=0.5),
        size="B",
        figure=f"5.98 (1 step), {ESC}, ablation: plug-in velocity on half of the rows",
    ),
    "esc-ablation-b2-b2": Published(
        recipe=ablation(plug_in=0.5, together=True),
        size="B",
        figure=f"5.96 (1 step), {ESC}, ablation: and class-consistent batches",
    ),
    "esc-ablation-c-b2": Published(
        recipe=ablation(gradual=True), size="B", figure=f"5.99 (1 step), {ESC}, ablation: gradual times alone"
    ),
    "esc-ablation-d-b2": Published(
        recipe=ablation(variational=True), size="B", figure=f"5.95 (1 step), {ESC}, ablation: variational weight alone"
    ),
    # beside them in the tables
    "imm-xl2": Published(
        recipe=imm(),
        size="XL",
        figure="7.77 (1 step, guidance doubles the passes), 5.33 (2), 3.66 (4), 2.77 (8); arXiv 2503.07565",
    ),
    "alphaflow-b2": Published(recipe=alphaflow(), size="B", figure="5.40 (1 step), 5.01 (2); arXiv 2510.20771"),
    "soflow-b2": Published(recipe=soflow(), size="B", figure="4.85 (1 step), 4.24 (2); arXiv 2512.15657"),
    "imf-b2": Published(
        recipe=imf(), size="B", figure="3.39 (1 step); arXiv 2512.02012, with a transformer of another kind"
    ),
    "tvm-xl2": Published(
        recipe=tvm(),
        size="XL",
        steps=300_000,
        network={"qk_norm": True, "modulation_norm": True},
        figure="3.29 (1 step), 1.99 (4); arXiv 2511.19797",
        notes=("the number of steps is not established: 300,000 is a guess",),
    ),
}


def text(name: str, published: Published, found: Estimate) -> str:
    """The run file."""
    run = published.run
    local = f"about {found.kept / 2 / 2**20:,.0f} MiB an image in bf16"
    heads = [
        f"{published.recipe.title}: {name}",
        f"Published FID-50k on ImageNet-256: {published.figure}.",
        *(f"Note: {note}." for note in published.notes),
        f"Takes (counted, not measured): {found.parameters / 1e6:,.0f}M parameters; {run.train.steps:,} steps of "
        f"{run.train.batch:,} = {run.train.images / EPOCH:,.0f} epochs;",
        f"{found.step:.2f} F a step, {found.forward / 1e9:,.1f} GFLOP an image in F; {found.hours():,.0f} H100-hours "
        f"at {SHARE:.0%} of the peak;",
        f"{found.held / 2**30:,.1f} GiB for weights, gradient, moments and averages, activations {local}.",
        f"Start: torchrun --nproc-per-node 8 -m shortflow train examples/imagenet-256/{name}.yaml --out out/{name}",
    ]
    return "".join(f"# {line}\n" for line in heads) + to_yaml(run)


def row(name: str, published: Published, found: Estimate) -> list[str]:
    """The run in the table."""
    run = published.run
    each = found.held + found.kept / 2 * run.train.batch / GPUS  # activations in bf16
    network = f"{published.size}/{published.patch}, {found.parameters / 1e6:,.0f}M"
    return [
        f"[`{name}`](../examples/imagenet-256/{name}.yaml)",
        network,
        f"{run.train.batch:,}",
        f"{run.train.images / 1e6:,.0f}M",
        f"{found.step:.2f}",
        f"{found.hours():,.0f}",
        f"{each / 2**30:,.0f} GiB",
        published.figure,
    ]


def table(rows: list[list[str]]) -> str:
    head = ["run file", "network", "batch", "images", "F a step", "H100-hours", "memory", "published FID-50k"]
    lines = [head, ["---", "---", *["---:"] * 5, "---"], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page(rows: list[list[str]]) -> str:
    """The page with these rows in its table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it would be")
    options = parser.parse_args()
    files, rows, stale = {}, [], []
    for name, published in RUNS.items():
        found = estimate(published.run, LATENTS)
        files[FOLDER / f"{name}.yaml"] = text(name, published, found)
        rows.append(row(name, published, found))
    files[PAGE] = page(rows)
    for path, content in files.items():
        if options.check:
            stale += [] if path.is_file() and path.read_text(encoding="utf-8") == content else [path.name]
        else:
            write_atomic(path, content)
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run python scripts/imagenet_runs.py")


if __name__ == "__main__":
    main()
