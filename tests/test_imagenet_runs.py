"""The published runs: their files are what the recipes say, and what they take is what the papers say."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shortflow.config import RunConfig, load_run
from shortflow.data import DataSpec
from shortflow.estimate import estimate
from shortflow.nn.configs import SiTConfig
from shortflow.objective import Online
from shortflow.recipes import esc, progressive_distillation, shortcut
from shortflow.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
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
        _, network, batch, images, cost, hours, memory, figure = row
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
        path, found = ROOT / "examples" / "imagenet-256" / f"{name}.yaml", estimate(published.run, LATENTS)
        assert path.read_text() == SCRIPT["text"](name, published, found), name
        rows.append(SCRIPT["row"](name, published, found))
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](rows)
