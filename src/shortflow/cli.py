"""The command line: train · sample · evaluate · recipes · show · demo. A thin shell around `shortflow.runs`.

torch and everything that needs it is imported inside the commands, so that --help answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app", "main"]

app = typer.Typer(
    name="shortflow",
    help="One-step generative models trained from scratch: shortcut models and flow maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD.PATH=VALUE",
        help="Change one setting; repeat for more. `shortflow show` lists the paths.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a model.safetensors file.")]
Guidance = Annotated[
    float, typer.Option(help="Sampling guidance scale; 1 is none. Refused where guidance is already in the weights.")
]


def main() -> None:
    """Entry point: errors that a user can mend are printed without a traceback."""
    from shortflow.errors import ShortflowError

    try:
        app()
    except ShortflowError as error:
        _say_error(str(error))
        sys.exit(2)


def _say_error(message: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)


def _say(message: str = "") -> None:
    typer.echo(message)


# ---------------------------------------------------------------------------------------------------------------- train


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="Name of a recipe (see `shortflow recipes`) or a run file ending in .yaml."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("out/run"),
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, cifar10, a toy (such as mixture, moons), or a folder of images."
        ),
    ] = "digits",
    resolution: Annotated[int | None, typer.Option(help="Crop and resize images to this side.")] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, exactly where it stopped.")
    ] = False,
) -> None:
    """Train a recipe on data. The run directory holds the model, the log, previews and the state to resume from."""
    from shortflow import runs
    from shortflow.errors import ConfigError

    if resume:
        if settings:
            raise ConfigError(
                "--resume goes on with the settings of the run; start a new run to change them (leave out --set)"
            )
        run, dataset = runs.open_run(out)
    elif recipe is None:
        raise ConfigError("which recipe? For example: shortflow train esc --data digits --out out/esc")
    else:
        run, dataset = runs.configure(recipe, data, resolution=resolution, settings=settings or ())
    _train(run, dataset, out, resume)


def _train(run: Any, dataset: Any, out: Path, resume: bool) -> None:
    from shortflow import runs
    from shortflow.train import Interrupted

    kind = f"{dataset.num_classes} classes" if dataset.num_classes else "unconditional"
    records = runs.training(run, dataset, out, resume=resume)
    _say(
        f"{run.recipe.name} on {dataset.name} ({len(dataset):,} samples, {kind}); {run.train.steps:,} steps of {run.train.batch} → {out}"
    )
    for note in run.recipe.notes():
        _say(f"note: {note}")
    try:
        with _progress(run.train.steps) as update:
            for record in records:
                update(record)
    except Interrupted as stopped:
        _say(
            f"\nStopped after step {stopped.step:,} of {stopped.total:,}; everything is saved. Go on with:\n  shortflow train --resume --out {out}"
        )
        raise typer.Exit(130) from None
    _say(f"Done. Samples: shortflow sample {out} --steps 1 --out samples.png")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar with loss, velocity error, speed and time left; on a plain log, a line now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console()
    if not console.is_terminal:
        marks = {round(total * i / 10) for i in range(1, 11)}

        def line(record: Any) -> None:
            if record.step in marks:
                speed = record.images / record.step / max(record.seconds, 1e-9)
                console.print(
                    f"step {record.step:>7,}/{total:,}  loss {record.loss:.4f}  {_velocity(record)}  {speed:,.0f} images/s",
                    highlight=False,
                )

        yield line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[error]}  {task.fields[speed]:,.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, loss=float("nan"), error="", speed=0.0)
        speed = 0.0

        def update(record: Any) -> None:
            nonlocal speed
            now = record.images / record.step / max(record.seconds, 1e-9)
            speed = now if speed == 0 else 0.95 * speed + 0.05 * now
            bar.update(task, completed=record.step, loss=record.loss, error=_velocity(record), speed=speed)

        yield update


def _velocity(record: Any) -> str:
    error = record.logs.get("diagonal_error", record.logs.get("velocity_error"))
    return "" if error is None else f"velocity error {error:.4f}"


# --------------------------------------------------------------------------------------------------------------- sample


def _numbers(text: str, what: str, kind: type = int) -> list[Any]:
    from shortflow.errors import ConfigError

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{what} must be numbers with commas between them, got {text!r}") from None


@app.command()
def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    steps: Annotated[int, typer.Option(help="Jumps from noise to data.")] = 1,
    times: Annotated[
        str | None, typer.Option(help="The grid itself instead of --steps, decreasing: 1,0.7,0.3,0.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--class", help="Class indices or names, with commas; by default all in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Image k is a function of (seed, k).")] = 0,
    guidance: Guidance = 1.0,
    sampler: Annotated[str, typer.Option(help="auto, push-forward or re-noise.")] = "auto",
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Rows that go from one noise to another, one class a row.")
    ] = False,
    single: Annotated[bool, typer.Option("--single", help="One PNG file a sample, into the folder --out.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file (or folder with --single).")] = Path("samples.png"),
) -> None:
    """Draw samples from a trained model into a PNG grid or single files."""
    from shortflow import hub, runs
    from shortflow.pictures import save_png

    model = hub.load(run)
    chosen = _classes(classes, model.spec.classes)
    if interpolate:
        pixels, columns = runs.interpolation(
            model, rows=max(1, n // 8), points=8, steps=steps, classes=chosen, seed=seed
        )
        save_png(runs.picture(pixels, columns), out)
        _say(f"{len(pixels) // columns} interpolations of {columns} images, {steps} step(s) → {out}")
        return
    grid = None if times is None else tuple(_numbers(times, "--times", float))
    pixels, labels = runs.generate(
        model.flow,
        model.spec,
        n,
        steps=steps,
        times=grid,
        sampler=runs.sampler_named(sampler),
        classes=chosen,
        seed=seed,
        guidance=guidance,
    )
    if single and model.spec.image:
        for k, image in enumerate(pixels):
            name = f"{k:06d}.png" if labels is None else f"{k:06d}-{model.spec.classes[labels[k]]}.png"
            save_png(image, out / name)
        _say(f"{n} files → {out}/")
        return
    save_png(runs.picture(pixels), out)
    _say(f"{n} samples, {len(grid) - 1 if grid else steps} step(s) → {out}")


def _classes(text: str | None, names: tuple[str, ...]) -> list[int] | None:
    from shortflow.config import nearest
    from shortflow.errors import ConfigError

    if text is None:
        return None
    if not names:
        raise ConfigError(f"--class {text}: this model is unconditional, it has no classes")
    chosen = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        if part in names:
            chosen.append(names.index(part))
        elif part.isdigit() and int(part) < len(names):
            chosen.append(int(part))
        else:
            raise ConfigError(f"there is no class {part!r}, {nearest(part, names)}")
    return chosen


# ------------------------------------------------------------------------------------------------------------- evaluate


@app.command()
def evaluate(
    run: RunPath,
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "1,2,4,8",
    n: Annotated[
        int, typer.Option("--n", "-n", help="Samples per number of steps. Scores are only comparable at equal n.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    guidance: Guidance = 1.0,
    out: Annotated[Path | None, typer.Option(help="JSON file; by default evaluation.json beside the model.")] = None,
) -> None:
    """Score a model by number of steps, next to held-out real data, and write evaluation.json."""
    from shortflow import hub, runs
    from shortflow.evaluate import write_record

    model = hub.load(run)
    record = runs.score(model, _numbers(steps, "--steps"), n=n, seed=seed, guidance=guidance)
    path = out or model.path.parent / "evaluation.json"
    write_record(path, record)
    _say(runs.score_table(record))
    _say(f"→ {path}")


# ----------------------------------------------------------------------------------------------------- recipes and show


@app.command()
def recipes(
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Print what differs between two recipes.")
    ] = None,
) -> None:
    """List the recipes, or explain the difference between two."""
    from rich.console import Console
    from rich.table import Table

    from shortflow.config import difference, recipe_named
    from shortflow.recipes import RECIPES

    console = Console()
    if diff is None:
        table = Table("recipe", "year", "arXiv", "path", "times", "target", "sampling", box=None, pad_edge=False)
        for name, make in RECIPES.items():
            recipe = make()
            o = recipe.objective
            ends = {"diagonal": "Euler", "zero": "re-noise", "any": "jumps", "dyadic": "dyadic jumps"}[o.times.ends]
            parts = (recipe.path, o.times, o.target)
            table.add_row(name, str(recipe.year), recipe.arxiv, *(type(p).__name__ for p in parts), ends)
        console.print(table)
        return
    a, b = (recipe_named(name) for name in diff)
    rows = [row for row in difference(a, b) if row[0] not in ("name", "title", "year", "arxiv")]
    table = Table("setting", diff[0], diff[1], box=None, pad_edge=False)
    for path, left, right in rows:
        table.add_row(path, str(left), str(right))
    console.print(table)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", help="A run directory, a model file, or the name of a recipe.")
    ],
    data: Annotated[str | None, typer.Option(help="For a recipe: the resolved run on these data.")] = None,
) -> None:
    """Show a recipe (its formula, table and settings) or a run (its resolved settings and how far it is)."""
    import yaml

    from shortflow import hub, runs
    from shortflow.config import recipe_named, to_plain
    from shortflow.nn.configs import parameter_count
    from shortflow.recipes import RECIPES

    if Path(what).exists():
        model = hub.load(Path(what))
        _say(
            f"{model.path}: {model.run.recipe.name}, {parameter_count(model.flow.network):,} parameters, "
            f"{model.step:,} steps, {model.images:,} images seen"
        )
        _say(yaml.safe_dump(to_plain(model.run), sort_keys=False, allow_unicode=True))
        return
    recipe = recipe_named(what)
    module = sys.modules[RECIPES[what].__module__]
    _say((module.__doc__ or "").strip() + "\n")
    run = to_plain(recipe) if data is None else to_plain(runs.configure(what, data)[0])
    _say(yaml.safe_dump(run, sort_keys=False, allow_unicode=True))
    _say(module.BIBTEX)


# ----------------------------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the demo.")] = Path("out/demo"),
    recipe: Annotated[str, typer.Option(help="Recipe to train.")] = "esc",
    settings: Settings = None,
) -> None:
    """Train one-step digits in minutes, then show them beside 2, 4, 8 and 128 steps, with their figures."""
    from shortflow import hub, runs
    from shortflow.evaluate import write_record
    from shortflow.train.state import latest_state

    if (out / "run.yaml").is_file() and latest_state(out / "state") is not None:
        run, dataset = runs.open_run(out)
        resume = True
    else:
        run, dataset = runs.configure(recipe, "digits", settings=settings or ())
        resume = False
    _train(run, dataset, out, resume)
    model = hub.load(out)
    steps = [1, 2, 4, 8, 128]
    _say("\nScoring 1,000 samples per number of steps …")
    record = runs.score(model, steps)
    write_record(out / "evaluation.json", record)
    runs.comparison_picture(model, steps, out / "samples.png")
    _say(runs.score_table(record))
    for line in runs.verdict(record):
        _say(line)
    _say(f"\nThe picture: {out / 'samples.png'}\nThe record:  {out / 'evaluation.json'}")
    _say(f"More:        shortflow sample {out} --steps 1 --class 3 --out threes.png")
