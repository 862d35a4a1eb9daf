"""`shortflow diagnose`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import Imports, say
from shortflow.cli.progress import progress
from shortflow.errors import ConfigError

__all__ = ["diagnose"]

RECIPE, BATCH = "esc", 128  # of data, where nothing else is said
CHIEF = (
    *("velocity_variance", "removed", "removed_by_images", "dimension", "few_steps", "discrete_variance"),
    *(
        "continuous_variance",
        "error_rate",
        "boundary_share",
        "self_distance",
        "residual/semigroup",
        "residual/eulerian",
    ),
)
"""What is printed of the curves and maps; the record has all of them."""


def diagnose(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run directory, or a model.safetensors file; without one, --data.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="The data to look at: a name (digits, cifar10, moons, …), a folder of images, or latents. With RUN: "
            "what to compare it with, by default the data it was trained on.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Whose path, times and units are used, by default those of esc; a run has its own.",
            show_default=False,
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Crop and scale images to this.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images of a batch, for the plug-in velocity, by default 128; of --data without RUN.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(metavar="N", help="Data points that are looked at, at most: a random part of larger data.")
    ] = 50_000,
    flow_points: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The same where exact flows are solved, which takes a thousand times longer; by default as many as "
            "4 million numbers are.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", help="Points (x_t, t) for a figure, at most; errors shrink with √N.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where the record goes; by default diagnosis.json beside the model, or diagnosis-DATA.json.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every curve and map, not only the chief ones.")] = False,
    imports: Imports = None,
) -> None:
    """Say what will help on data, or where a run errs.

    Of data, before anything is trained: how noisy velocities are, what a plug-in velocity can do at your batch, targets
    in discrete and continuous time, paths, and dimensions. Of a run: a bound on the distance of one step to the exact
    law and where it comes from, residuals of the flow map, one step against many, guidance in the weights, memorised
    data. All of it beside the exact flow: of the law where it is known (the toys), else of the data set itself.
    docs/diagnose.md explains every figure.
    """
    from shortflow.diagnose import Looking, report_table

    if run is None and data is None:
        raise ConfigError("say what to diagnose: shortflow diagnose RUN, or shortflow diagnose --data NAME|FOLDER")
    _check(run, {"--recipe": recipe, "--batch": batch}, out)
    looking = Looking(points=points, flow_points=flow_points, rows=rows, flow_rows=max(2, rows * 3 // 16), seed=seed)
    if run is None:
        assert data is not None
        found, path = _of_data(data, recipe or RECIPE, resolution, BATCH if batch is None else batch, looking)
    else:
        found, path = _of_run(run, data, resolution, looking)
    record = found.to_dict()
    place = out or path
    found.write(place)
    for line in report_table(record, None if every else CHIEF):
        say(line)
    say()
    for advice in record["advice"]:
        say(f"• {advice['text']}")
        say(f"    {advice['evidence']}")
    for note in record["notes"]:
        say(f"Note: {note}")
    say(f"→ {place}")


def _check(run: Path | None, of_data: dict[str, Any], out: Path | None) -> None:
    """Raise `ConfigError` for options that would say nothing, or a record that could not be written, before the
    minutes that a diagnosis takes."""
    given = [name for name, value in of_data.items() if value is not None]
    if run is not None and given:
        raise ConfigError(
            f"{' and '.join(given)}: what is measured of a run knows no such choice; leave it out, or diagnose the "
            "data alone: shortflow diagnose --data NAME|FOLDER"
        )
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file, such as {out / 'diagnosis.json'}")


def _of_data(source: str, recipe: str, resolution: int | None, batch: int, looking: Any) -> tuple[Any, Path]:
    from shortflow.config import recipe_named
    from shortflow.data import load
    from shortflow.diagnose import diagnose_data

    chosen = recipe_named(recipe)
    with progress("images", title="decoding") as shown:
        dataset = load(source, "train", resolution=resolution, report=shown)
    shape = " × ".join(map(str, dataset.shape))
    say(f"{dataset.name}: {len(dataset):,} of {shape}, on the path and at the times of {chosen.name}")
    with progress("part", title="diagnosis") as shown:
        found = diagnose_data(dataset, chosen, batch=batch, looking=looking, report=shown)
    return found, Path(f"diagnosis-{dataset.name}.json")


def _of_run(run: Path, source: str | None, resolution: int | None, looking: Any) -> tuple[Any, Path]:
    from shortflow.cli.sampling import loaded
    from shortflow.diagnose import diagnose_run
    from shortflow.errors import DataError
    from shortflow.runs import training_data

    model = loaded(run, False, None)
    data = model.run.data
    if source is not None:  # whose fields are called otherwise
        data = replace(data, source=source, resolution=resolution, crop="centre", image=None, label=None)
    elif resolution is not None:
        data = replace(data, resolution=resolution)
    with progress("images", title="decoding") as shown:
        training = training_data(data, report=shown, say=say)
    try:
        held_out = training_data(data, "test", say=say)
    except DataError:
        held_out = None  # folders need not be divided
    say(f"{model.run.recipe.name} on {training.name}, {model.images:,} images seen")
    with progress("part", title="diagnosis") as shown:
        found = diagnose_run(model, training, held_out, looking=looking, report=shown)
    return found, model.path.parent / "diagnosis.json"
