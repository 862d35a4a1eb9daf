"""The published runs: their files are what the recipes say, and what they take is what the papers say."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortflow.config import RunConfig, load_run, override
from shortflow.data import Dataset, DataSpec
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import ConfigError
from shortflow.estimate import estimate
from shortflow.nn.configs import SiTConfig
from shortflow.objective import Online
from shortflow.recipes import esc, progressive_distillation, shortcut
from shortflow.runs import configuring
from shortflow.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "scripts")  # as python scripts/imagenet_runs.py has it
    SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "imagenet_runs.py"))
LATENTS = DataSpec(name="latents", shape=(4, 32, 32), classes=tuple(map(str, range(1000))), image=False)


@pytest.mark.parametrize("name", SCRIPT["RUNS"])
def test_a_file_holds_the_run(name: str) -> None:
    """If this fails: python scripts/imagenet_runs.py."""
    path = ROOT / "examples" / "imagenet-256" / f"{name}.yaml"
    published = SCRIPT["RUNS"][name]
    assert load_run(path) == published.run
    head = path.read_text().split("recipe:")[0]
    assert published.figure in head
    assert f"examples/imagenet-256/{name}.yaml" in head


def test_there_are_no_other_files() -> None:
    assert {path.stem for path in (ROOT / "examples" / "imagenet-256").iterdir()} == set(SCRIPT["RUNS"])


def test_published_settings_of_esc() -> None:
    """Table and scripts of the paper: batch, steps, p, ω, κ, window, and the first 20k steps."""
    for name, batch, steps, p, guidance in (
        ("esc-b2", 512, 600_000, 0.5, (1.0, 0.5, (0.0, 1.0))),
        ("esc-xl2", 256, 1_200_000, 0.2, (0.2, 0.92, (0.0, 0.75))),
        ("esc-plus-xl2", 256, 2_400_000, 0.2, (0.2, 0.92, (0.0, 0.75))),
    ):
        run = SCRIPT["RUNS"][name].run
        objective: Any = run.recipe.objective
        velocity = objective.target.velocity
        assert (run.train.batch, run.train.steps) == (batch, steps)
        assert velocity.base.probability == p
        assert (velocity.omega, velocity.kappa, velocity.window) == guidance
        assert objective.times.ramp * steps == pytest.approx(20_000)
        assert isinstance(objective.teacher, Online)


# ------------------------------------------------------------------------------------- what the papers trained with


def of(latent: LatentSpec | None) -> Dataset:
    """A data set that is described as a store would be: two latents, in two classes."""
    return Dataset(
        name="imagenet",
        samples=np.zeros((2, 2, 2, 4, 32, 32), np.float16)
        if latent is not None
        else np.zeros((2, 3, 32, 32), np.uint8),
        labels=np.array([0, 1]),
        classes=("0", "1"),
        latent=latent,
        measured=None if latent is None else ((0.0,) * 4, (1.0,) * 4),
    )


def remarks(run: RunConfig, latent: LatentSpec) -> list[str]:
    words = ("was published with", "the scale of", "the shift of", "not verified")
    return [note for note in configuring.notes(run, of(latent)) if any(word in note for word in words)]


@pytest.mark.parametrize("name", SCRIPT["RUNS"])
def test_a_published_run_on_its_latents_is_told_nothing(name: str) -> None:
    run = SCRIPT["RUNS"][name].run
    configuring._check_data(run, of(run.data.latent))
    assert remarks(run, run.data.latent) == []


def test_what_departs_is_measured_by_what_was_published() -> None:
    run = SCRIPT["RUNS"]["esc-xl2"].run
    (said,) = remarks(override(run, ["train.batch=512"]), run.data.latent)
    assert said == (
        "esc was published with 256 for train.batch (512 here); figures that are told of it are those of that run of "
        "SiT-XL/2, ImageNet-256 latents"
    )
    budget = replace(run, recipe=esc(), train=TrainSettings(images=102_400_000, batch=256))
    (said,) = remarks(budget, run.data.latent)
    assert "512 for train.batch (256 here) and 307,200,000 for train.images (102,400,000 here)" in said
    assert remarks(override(run, ["recipe.published=null", "train.batch=512"]), run.data.latent) == []


@pytest.mark.parametrize(
    ("names", "encoder", "scale"),
    [
        (("esc-b2", "esc-xl2", "esc-plus-xl2"), "sd-vae-ft-ema", 0.18125),
        (("alphaflow-b2", "alphaflow-xl2"), "sd-vae-ft-ema", 0.18215),
        (("meanflow-b2", "shortcut-b2", "soflow-b2", "flow-matching-b2"), "sd-vae-ft-mse", 0.18215),
        (("imf-b2",), "sd-vae-ft-mse", None),
        (("imm-xl2", "tvm-xl2"), "sd-vae-ft-ema", None),
    ],
)
def test_the_latents_of_the_papers(names: tuple[str, ...], encoder: str, scale: float | None) -> None:
    """The autoencoder and scale of each project's code; by channel: (z − mean)/deviation of IMM's table."""
    for name in names:
        latent = SCRIPT["RUNS"][name].run.data.latent
        assert (latent.encoder, latent.pixels) == (encoder, (3, 256, 256))
        if scale is not None:
            assert (latent.scale, latent.shift) == ((scale,) * 4, (0.0,) * 4)
        else:
            assert latent.shift == (0.86488, -0.27787343, 0.21616915, 0.3738409)
            deviation = (4.85503674, 5.31922414, 3.93725398, 3.9870003)
            assert [1 / s for s in latent.scale] == pytest.approx(deviation, rel=1e-7)
        head = (ROOT / "examples" / "imagenet-256" / f"{name}.yaml").read_text().split("recipe:")[0]
        store = f"imagenet-256-{encoder}"
        encode = f"shortflow encode ./imagenet/train --encoder {encoder} --resolution 256 --out {store}\n"
        assert encode in head
        assert f"shortflow encode {store} {latent.options}\n" in head


def test_latents_of_another_autoencoder_are_refused() -> None:
    """The trap: ESC has sd-vae-ft-ema times 0.18125, MeanFlow sd-vae-ft-mse times 0.18215."""
    run = SCRIPT["RUNS"]["esc-b2"].run
    mine = run.data.latent
    mse = replace(mine, encoder="models--stabilityai--sd-vae-ft-mse/snapshots/31f2", sha256="ab" * 32)
    with pytest.raises(ConfigError) as caught:
        configuring._check_data(run, of(mse))
    said = str(caught.value)
    assert "this run is for latents of sd-vae-ft-ema, times 0.18125 (data.latent)" in said
    assert "holds latents of models--stabilityai--sd-vae-ft-mse/snapshots/31f2, times 0.18125: another" in said
    assert "--encoder sd-vae-ft-ema --resolution 256 --scale 0.18125 --shift 0.0 --out LATENTS makes them" in said
    for other, why in ((of(None), "and imagenet is images"), (of(replace(mine, pixels=(3, 512, 512))), "512, 512")):
        with pytest.raises(ConfigError, match=why):
            configuring._check_data(run, other)
    anything = override(run, ["data.latent=null"])
    for other in (of(mse), of(None)):
        configuring._check_data(anything, other)


def test_another_scale_is_said_with_the_command_that_changes_it() -> None:
    run = SCRIPT["RUNS"]["esc-b2"].run
    usual = replace(run.data.latent, scale=(0.18215,) * 4)
    configuring._check_data(run, of(usual))
    (said,) = remarks(run, usual)
    assert said.startswith("the scale of this run is 0.18125, that of imagenet is 0.18215. ")
    assert "shortflow encode ./imagenet-256-sd-vae-ft-ema --scale 0.18125 --shift 0.0 changes it" in said
    (said,) = remarks(run, replace(run.data.latent, encoder="./vae", sha256="ab" * 32))
    assert said.startswith("not verified: whether ./vae, which made these latents, is sd-vae-ft-ema")


def test_the_rows_of_the_shortcut_models_paper() -> None:
    """AdamW, weight decay 0.1, average 0.999, batch 256, 810k steps; flow matching on the grid of its 128 steps."""
    names = [name for name, each in SCRIPT["RUNS"].items() if "2410.12557" in each.figure]
    assert len(names) == 9
    for name in names:
        run = SCRIPT["RUNS"][name].run
        rule = run.recipe.optimizer
        assert (rule.algorithm, rule.lr, rule.betas) == ("adamw", 1e-4, (0.9, 0.999)), name
        assert (rule.weight_decay, rule.ema) == (0.1, 0.999), name
        assert (run.train.batch, run.train.steps) == (256, 810_000), name
    times: Any = SCRIPT["RUNS"]["flow-matching-b2"].run.recipe.objective.times
    assert times.law.n == 128


def test_the_two_settings_of_imm() -> None:
    """a = 1 is told both times, a = 2 the stride; the figures are of each."""
    for name, power, told, figures in (
        ("imm-a1-xl2", 1.0, "StartAndEnd", "7.77 (1 step), 5.33 (2), 3.66 (4), 2.77 (8)"),
        ("imm-xl2", 2.0, "StartAndGap", "8.05 (1 step), 3.99 (2), 2.51 (4), 1.99 (8)"),
    ):
        published = SCRIPT["RUNS"][name]
        assert published.recipe.objective.weighting.power == power
        assert type(published.recipe.conditioning).__name__ == told
        assert figures in published.figure


def test_sizes_beyond_the_base() -> None:
    """Blocks and widths of iMF with its heads of 8 blocks; the schedule and the guidance of α-Flow XL/2."""
    for name, depth, width in (("imf-m2", 24, 768), ("imf-l2", 32, 1024), ("imf-xl2", 48, 1024)):
        network = SCRIPT["RUNS"][name].run.network
        assert (network.dimensions.depth, network.dimensions.width, network.head_depth) == (depth, width, 8)
    run = SCRIPT["RUNS"]["alphaflow-xl2"].run
    at = run.recipe.objective.times.at
    assert (at.start_share * run.train.steps, at.end_share * run.train.steps) == pytest.approx((600_000, 1_000_000))
    assert run.recipe.objective.times.base.ratio == 0.5


# ------------------------------------------------------------------------------------------------- what they will take


@pytest.mark.parametrize(("size", "giga", "millions"), [("S", 6.06, 33), ("B", 23.01, 130), ("XL", 118.64, 675)])
def test_a_pass_has_the_operations_of_the_published_networks(size: str, giga: float, millions: int) -> None:
    """DiT, table 4 (arXiv 2212.09748): billions of multiplications of a pass at patch 2, millions of parameters."""
    found = estimate(RunConfig(recipe=shortcut(), network=SiTConfig(size=size, patch=2)), LATENTS, step=3.5)
    assert found.forward == pytest.approx(2e9 * giga, rel=0.01)
    assert found.parameters == pytest.approx(1e6 * millions, rel=0.02)


def test_hours_and_memory_by_hand() -> None:
    run = RunConfig(recipe=esc(), network=SiTConfig(size="tiny"), train=TrainSettings(images=1000, batch=10))
    found = estimate(run, LATENTS)
    assert found.images == 1000
    assert found.operations == found.forward * found.step * 1000
    assert found.hours(peak=1e9, share=0.5) == pytest.approx(found.operations / 0.5e9 / 3600)
    assert found.held == 4 * found.parameters * 5  # weights, gradient, two moments, the average
    teacher = estimate(replace(run, recipe=shortcut()), LATENTS, step=3.5)
    assert teacher.held == 4 * teacher.parameters * 6
    stages = estimate(replace(run, recipe=progressive_distillation()), LATENTS, step=5.5)
    assert stages.held == 4 * stages.parameters * 7


def test_what_is_kept_grows_with_depth_alone() -> None:
    def kept(depth: int) -> int:
        return estimate(RunConfig(recipe=esc(), network=SiTConfig(size="tiny", depth=depth)), LATENTS, step=4.4).kept

    two, four, six = kept(2), kept(4), kept(6)
    assert six - four == four - two > 0
    tokens, width = 16**2, 64
    assert (four - two) / 2 > 4 * 10 * tokens * width  # at least ten tensors of a block, the hidden layer among them


def test_the_table_says_what_the_files_say() -> None:
    """Every run, with the figures at the head of its file."""
    rows = [line.strip("| ").split(" | ") for line in SCRIPT["PAGE"].read_text().splitlines() if line.startswith("| [")]
    assert [re.match(r"\[`([\w-]+)`\]", row[0])[1] for row in rows] == list(SCRIPT["RUNS"])  # type: ignore[index]
    for (name, published), row in zip(SCRIPT["RUNS"].items(), rows, strict=True):
        head = (ROOT / "examples/imagenet-256" / f"{name}.yaml").read_text().split("recipe:")[0]
        _, network, batch, images, cost, hours, memory, latents, figure = row
        assert published.latents.encoder.endswith(latents.split(",")[0])
        assert f"{network.split(', ')[1]} parameters" in head
        assert f" steps of {batch} = " in head
        assert images == f"{published.run.train.images / 1e6:,.0f}M"
        assert f"# {cost} F a step" in head
        assert f"; {hours} H100-hours at 40% of the peak" in head
        assert f"FID-50k on ImageNet-256: {figure}." in head
        held, kept = re.search(r"([\d.]+) GiB for .* about ([\d,]+) MiB an image", head).groups()  # type: ignore[union-attr]
        each = float(held) + float(kept.replace(",", "")) / 1024 * published.run.train.batch / 8
        assert float(memory.removesuffix(" GiB").replace(",", "")) == pytest.approx(each, rel=0.01, abs=0.6)


@pytest.mark.slow
def test_what_the_files_say_is_current() -> None:
    """If this fails: python scripts/imagenet_runs.py."""
    rows = []
    for name, published in SCRIPT["RUNS"].items():
        path, found = ROOT / "examples" / "imagenet-256" / f"{name}.yaml", SCRIPT["estimated"](published)
        assert path.read_text() == SCRIPT["text"](name, published, found), name
        rows.append(SCRIPT["row"](name, published, found))
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](rows)
