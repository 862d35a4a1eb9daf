"""`shortflow train` and `shortflow demo`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from shortflow.cli.common import Imports, Settings, count, rank, say
from shortflow.errors import ConfigError

__all__ = ["Train", "demo", "train"]

GIVEN = "given"  # what --resume without a value stands for


class Train(TyperCommand):
    """The command line of `train`, in which `--resume` may have a value, "auto", and takes nothing else for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i, word in enumerate(args):
            if word == "--resume" and args[i + 1 : i + 2] != ["auto"]:
                args[i] = f"--resume={GIVEN}"
        return super().parse_args(ctx, args)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Name of a recipe (see `shortflow recipes`) or a run file ending in .yaml.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of the run; made if it is not there.")] = Path("out/run"),
    data: Annotated[
        str | None,
        typer.Option(
            help="digits (built in), mnist, fashion-mnist, cifar10, a toy (such as mixture or moons), a folder of "
            "images, in which sub-folders are classes, or latents (`shortflow encode`). By default digits, or what "
            "the run file says."
        ),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Crop and resize images to this side, in pixels.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="RUN", help="The model that a recipe distils, or that makes its pairs.")
    ] = None,
    weak: Annotated[
        str | None, typer.Option(metavar="RUN", help="A weaker model of the same data, for autoguidance.")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Start from the weights of this model, such as flow matching; its network is used."
        ),
    ] = None,
    settings: Settings = None,
    imports: Imports = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[auto]",
            help="Go on with the run in --out, exactly where it stopped; `--resume auto` begins where there is none.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a recipe on data. The run directory holds the model, the log, previews and the state to resume from."""
    from shortflow import runs

    if resume not in (None, GIVEN, "auto"):
        raise ConfigError(f"--resume {resume}: give --resume, or --resume auto")
    chosen = {"teacher": teacher, "weak": weak, "init_from": init_from}
    going_on = resume == GIVEN or (resume == "auto" and (out / "run.yaml").is_file())
    if going_on:
        if settings and resume == GIVEN:
            raise ConfigError(
                "--resume goes on with the settings of the run; leave out --set, or start a new run in another --out"
            )
        run, dataset = runs.open_run(out)
        _check_same(out, run, recipe, data, resolution, teacher, weak, init_from)
        if settings and recipe is not None:
            _check_settings(
                out, run, runs.configure(recipe, data, resolution=resolution, settings=settings, **chosen)[0]
            )
    elif recipe is None:
        raise ConfigError(
            "which recipe? For example: shortflow train esc --data digits --out out/esc "
            "(`shortflow recipes` lists them; --resume goes on with a run)"
        )
    else:
        run, dataset = runs.configure(
            recipe,
            data,
            resolution=resolution,
            settings=settings or (),
            **chosen,
        )
    _train(run, dataset, out, "auto" if resume == "auto" else going_on)
    say(f"Samples: shortflow sample {out} --out samples.png")
    say(f"Scores:  shortflow evaluate {out}")


def _check_same(
    out: Path,
    run: Any,
    recipe: str | None,
    data: str | None = None,
    resolution: int | None = None,
    teacher: str | None = None,
    weak: str | None = None,
    init_from: str | None = None,
) -> None:
    """Raise `ConfigError` if what is asked for is not what the run to resume is."""
    asked = {"recipe": recipe, "--data": data, "--resolution": resolution}
    asked |= {"--teacher": teacher, "--weak": weak, "--init-from": init_from}
    found = {"recipe": run.recipe.name, "--data": run.data.source, "--resolution": run.data.resolution}
    found |= {"--teacher": run.teacher, "--weak": run.weak, "--init-from": run.init_from}
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        asked["recipe"] = None  # the run directory has its own copy
    wrong = [f"{name} {found[name]}, not {value}" for name, value in asked.items() if value not in (None, found[name])]
    if wrong:
        raise ConfigError(
            f"{out} is a run with {'; '.join(wrong)}. To go on with it: shortflow train --resume --out {out}"
        )


def _check_settings(out: Path, run: Any, asked: Any) -> None:
    """Raise `ConfigError` if the run to go on with is not the run that is asked for."""
    from shortflow.config import difference

    changed = [f"{path} is {has}, not {wants}" for path, has, wants in difference(run, asked)]
    if changed:
        raise ConfigError(
            f"{out} is a run with other settings ({'; '.join(changed)}); leave out --set to go on with it, or start a "
            "new run in another --out"
        )


def _train(run: Any, dataset: Any, out: Path, resume: bool | Literal["auto"]) -> None:
    from shortflow import runs
    from shortflow.train import Interrupted

    def report(done: int, count: int) -> None:
        say(f"pairs of the teacher: {done:,} of {count:,}")

    records = runs.training(run, dataset, out, resume=resume, report=report)
    kind = count(dataset.num_classes, "class", "classes") if dataset.num_classes else "unconditional"
    total = run.train.steps
    say(
        f"{run.recipe.name} on {dataset.name} ({len(dataset):,} samples, {kind}): "
        f"{count(total, 'step')} of {run.train.batch} → {out}"
    )
    for note in runs.notes(run, dataset):
        say(f"note: {note}")
    again = f"shortflow train --resume --out {out}"
    done = 0
    try:
        with _progress(total) as update:
            for record in records:
                update(record)
                done = record.step
    except Interrupted as stopped:
        say(f"\nStopped after step {stopped.step:,} of {stopped.total:,}; everything is saved. Go on with:\n  {again}")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        say(f"\nStopped at once, without saving. Go on from the last saved state with:\n  {again}")
        raise typer.Exit(130) from None
    say(f"Done: {out / 'model.safetensors'}" if done else f"This run is complete: all {count(total, 'step')} are done.")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Any], None]]:
    """A progress bar with loss, velocity error, speed and time left; on a plain log, a line now and then."""
    from rich.console import Console

    console = Console()
    if rank() > 0:
        yield lambda record: None
        return
    yield from _bar(console, total) if console.is_terminal else _lines(total)


def _lines(total: int) -> Iterator[Callable[[Any], None]]:
    marks = {max(1, round(total * i / 10)) for i in range(1, 11)}

    spent = steps = 0.0

    def line(record: Any) -> None:
        nonlocal spent, steps
        spent, steps = spent + record.seconds, steps + 1
        if record.step in marks:
            speed = record.batch * steps / max(spent, 1e-9)
            left = round((total - record.step) * spent / steps)
            parts = (f"step {record.step:>7,}/{total:,}", f"loss {record.loss:.4f}", _error(record))
            say(
                "  ".join(
                    [*(part for part in parts if part), f"{speed:,.0f} images/s", f"left {left // 60}:{left % 60:02d}"]
                )
            )

    yield line


def _bar(console: Any, total: int) -> Iterator[Callable[[Any], None]]:
    from rich import progress

    said = progress.TextColumn("{task.fields[said]}")
    left = (progress.TextColumn("left"), progress.TimeRemainingColumn())
    columns: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(), said, *left)
    wide = console.width >= 110
    if wide:
        columns = (
            progress.TextColumn("training"),
            progress.BarColumn(),
            *columns[:2],
            progress.TimeElapsedColumn(),
            *left,
        )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, said="")
        speed = 0.0

        def update(record: Any) -> None:
            nonlocal speed
            now = record.images / record.step / max(record.seconds, 1e-9)
            speed = now if speed == 0 else 0.95 * speed + 0.05 * now
            if record.known:  # the bar does not wait for the device
                parts = (f"loss {record.loss:.4f}", _error(record) if wide else "", f"{speed:,.0f} images/s")
                bar.update(task, said="  ".join(part for part in parts if part))
            bar.update(task, completed=record.step)

        yield update


def _error(record: Any) -> str:
    """The velocity error, which falls to its floor also where the loss sits at 1."""
    error = record.logs.get("diagonal_error", record.logs.get("velocity_error"))
    return "" if error is None else f"velocity error {error:.4f}"


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the demo.")] = Path("out/demo"),
    recipe: Annotated[str, typer.Option(help="Recipe to train.")] = "esc",
    settings: Settings = None,
) -> None:
    """Train one-step digits in minutes and show them.

    Beside them stand samples in 2, 4, 8 and 128 steps and held-out digits, with their figures.

    Given again, it goes on where it was stopped.
    """
    from shortflow import hub, runs
    from shortflow.evaluate import write_record
    from shortflow.times import Dyadic
    from shortflow.train.state import latest_state

    resume = (out / "run.yaml").is_file() and latest_state(out / "state") is not None
    if resume:
        run, dataset = runs.open_run(out)
        _check_same(out, run, recipe)
        say(f"{out} holds this demo already; going on with it as it was started.")
    else:
        run, dataset = runs.configure(recipe, "digits", settings=settings or ())
    _train(run, dataset, out, resume)
    model = hub.load(out)
    law = run.recipe.objective.times
    steps = [1, 2, 4, 8, law.steps if isinstance(law, Dyadic) else 128]  # shortcut models know no smaller step
    say("\nScoring 1,000 samples per number of steps …")
    record = runs.score(model, steps)
    write_record(out / "evaluation.json", record)
    runs.comparison_picture(model, steps, out / "samples.png")
    say(runs.score_table(record))
    for line in runs.verdict(record):
        say(line)
    say(f"\nThe picture: {out / 'samples.png'}\nThe record:  {out / 'evaluation.json'}")
    say(f"More:        shortflow sample {out} --steps 1 --class 3 --out threes.png")
