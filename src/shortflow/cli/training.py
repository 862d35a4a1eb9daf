"""`shortflow train`."""

from collections import deque
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shortflow.cli.common import Imports, Settings, count, optional_value, say, size, table
from shortflow.cli.progress import clock, progress
from shortflow.cli.resuming import check_same, check_settings
from shortflow.errors import ConfigError

__all__ = ["Train", "train", "trained"]

GIVEN = "given"  # what --resume without a value stands for
Train = optional_value("--resume", GIVEN, lambda word: word == "auto")
RECENT = 50  # steps over which the speed is taken


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
            help="Images: a folder, in which sub-folders are classes, a .zip, .npz or .tar file, shards such as "
            "'shards/{000..009}.tar', .parquet tables, hf:NAME on the Hugging Face hub; digits (built in), mnist, "
            "fashion-mnist, cifar10; a toy (such as mixture or moons); or latents (`shortflow encode`). By default "
            "digits, or what the run file says."
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Make squares of this side of images, in pixels, as --set data.crop=NAME says.")
    ] = None,
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
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Divide weights, gradients and moments among the processes of a launcher (FSDP2), instead of holding "
            "all in each.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, say what would be trained and what it needs; nothing is written to --out.",
        ),
    ] = False,
) -> None:
    """Train a recipe on data. The run directory holds the model, the log, previews and the state to resume from."""
    from shortflow import runs
    from shortflow.report.commands import score_command

    if resume not in (None, GIVEN, "auto"):
        raise ConfigError(f"--resume {resume}: give --resume, or --resume auto")
    chosen: dict[str, Any] = {"teacher": teacher, "weak": weak, "init_from": init_from}
    going_on = resume == GIVEN or (resume == "auto" and (out / "run.yaml").is_file())
    with progress("images", title="decoding images") as decoding:
        if going_on:
            if settings and resume == GIVEN:
                raise ConfigError(
                    "--resume goes on with the settings of the run; leave out --set, or start a new run in another "
                    "--out"
                )
            run, dataset = runs.open_run(out, decoding, say)
            check_same(out, run, recipe, data, resolution, teacher, weak, init_from)
            if settings and recipe is not None:
                asked, _ = runs.configure(recipe, data, resolution=resolution, settings=settings, **chosen)
                check_settings(out, run, asked)
        elif recipe is None:
            raise ConfigError(
                "which recipe? For example: shortflow train esc --data digits --out out/esc "
                "(`shortflow recipes` lists them; --resume goes on with a run)"
            )
        else:
            run, dataset = runs.configure(
                recipe, data, resolution=resolution, settings=settings or (), report=decoding, say=say, **chosen
            )
    how = "auto" if resume == "auto" else going_on
    if dry_run:
        _show_plan(run, dataset, out, how)
        return
    trained(run, dataset, out, how, sharded=shard)
    say(f"Samples: shortflow sample {out} --out samples.png")
    say(f"Scores:  {score_command(out, dataset, run.data.source)}")


def _introduced(run: Any, dataset: Any, out: Path) -> str:
    """What is trained on what, in a line."""
    from shortflow.typing import condition_words

    kind = count(dataset.num_classes, "class", "classes") if dataset.num_classes else "unconditional"
    if dataset.conditions is not None:
        kind = f"told {condition_words(dataset.conditions.shape)}"
    return (
        f"{run.recipe.name} on {dataset.name} ({len(dataset):,} samples, {kind}): "
        f"{count(run.train.steps, 'step')} of {run.train.batch} → {out}"
    )


def _show_plan(run: Any, dataset: Any, out: Path, resume: bool | Literal["auto"]) -> None:
    """Say what would be trained."""
    from shortflow import runs
    from shortflow.config import in_words
    from shortflow.data import DataSpec

    found, settings = runs.plan(run, dataset, out, resume=resume), run.train
    pace = runs.pace(run, DataSpec.fit(dataset, run.recipe.sigma_data), found, out)
    parts = f"in {count(found.parts, 'part')} of {count(found.rows, 'row')}" if found.parts > 1 else "in one part"
    kept = f"the newest {settings.keep} kept" + (
        f", and the best in {settings.keep_best}" if settings.keep_best else ""
    )
    needs, half = found.estimate, settings.precision == "bf16"
    kept_for = f"about {size(needs.kept // (2 if half else 1))} of activations for each of {count(found.rows, 'row')}"
    rows = [
        ("network", f"{in_words(run.network)}: {found.parameters:,} parameters"),
        ("data", f"{dataset.name}, {len(dataset):,} of shape {'×'.join(map(str, dataset.shape))}"),
        (
            "budget",
            f"{settings.images:,} images, {settings.steps / (len(dataset) / settings.batch):,.1f} times the data",
        ),
        ("batch", f"{settings.batch} {parts}, {settings.precision}"),
        ("processes", f"{found.processes}, the first on {found.device}"),
        (
            "memory",
            f"about {size(found.memory)}: {size(needs.held)} for weights, gradient, moments and averages; {kept_for}",
        ),
        ("work", f"{needs.step:.2f} F a step, {_big(needs.forward)}FLOP an image in F: {_big(needs.operations)}FLOP"),
        ("time", f"about {_time(pace.hours)}, {_seconds(pace.seconds)} s a step: {pace.how}"),
        ("states", f"{size(found.state)} each, every {count(settings.save_every, 'step')}, {kept}"),
        ("disk", f"up to {size(found.disk)} for states and models; {size(found.free)} are free"),
    ]
    if run.pairs is not None:
        rows.insert(2, ("pairs", f"{run.pairs.count:,} in {count(run.pairs.steps, 'step')} of {run.teacher}"))
    if found.begun:
        rows.insert(0, ("goes on", f"after step {found.begun:,}"))
    say(_introduced(run, dataset, out))
    table(rows)
    say("The method, resolved (shortflow show prints every setting):")
    table([("", name, text) for name, text in _method(run).items()])
    for note in found.notes:
        say(f"note: {note}")
    say("Nothing was trained, and nothing written: this was --dry-run.")


def _method(run: Any) -> dict[str, str]:
    """What is done in training, part by part, where it says more than that nothing is done."""
    from shortflow.config.words import described

    found = {
        name: text[0].upper() + text[1:]
        for name, text in described(run.recipe).items()
        if text not in ("has one head", "leaves data as they are", "mixes independent pairs of data and noise")
    }
    found["mirrors"] = "Mirrors half of the images" if run.data.flip else "Mirrors no image"
    if run.data.latent is not None:
        found["latents"] = f"Is for latents {run.data.latent.in_words()}"
    return found


def _time(hours: float) -> str:
    """A time in the unit that fits it."""
    for unit, length in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.0f} {unit}" if hours >= 10 * length else f"{hours / length:.1f} {unit}"
    return f"{3600 * hours:.3g} seconds"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _big(number: float) -> str:
    """A number of three digits with the prefix of its thousands."""
    power = max(0, min(7, (len(f"{number:.0f}") - 1) // 3))
    return f"{number / 1000**power:.3g} {' kMGTPEZ'[power].strip()}"


def trained(run: Any, dataset: Any, out: Path, resume: bool | Literal["auto"], *, sharded: bool = False) -> None:
    """Train to the end, and say how it goes."""
    from shortflow import runs
    from shortflow.status import read_status
    from shortflow.train import Interrupted

    total, again, done = run.train.steps, f"shortflow train --resume --out {out}", 0
    with (
        progress("pairs of the teacher", title="pairs of the teacher") as pairs,
        progress("step", title="training", patience=0.0, stays=True) as shown,
    ):
        records = runs.training(run, dataset, out, resume=resume, report=pairs, sharded=sharded)
        say(_introduced(run, dataset, out))
        for note in runs.notes(run, dataset):
            say(f"note: {note}")
        figures = _Figures()
        try:
            for record in records:
                shown(record.step, total, figures.of(record))
                done = record.step
        except Interrupted as stopped:
            end = (
                f"Stopped after step {stopped.step:,} of {stopped.total:,}; everything is saved. Go on with:\n  {again}"
            )
        except KeyboardInterrupt:
            end = f"Stopped at once, without saving. Go on from the last saved state with:\n  {again}"
        else:
            end = None
    if end is not None:
        say(f"\n{end}")
        raise typer.Exit(130)
    say(f"Done: {out / 'model.safetensors'}" if done else f"This run is complete: all {count(total, 'step')} are done.")
    for remark in read_status(out).remarks:
        say(f"note: {remark}")


class _Figures:
    """Loss, speed and velocity error of the newest step whose numbers are there: nobody waits for the device."""

    def __init__(self) -> None:
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.figures = ("", "")

    def of(self, record: Any) -> tuple[str, str, str]:
        self.recent.append((clock(), record.images))
        (began, before), (now, images) = self.recent[0], self.recent[-1]
        speed = (images - before) / (now - began) if now > began else record.batch / max(record.seconds, 1e-9)
        if record.known:
            # The velocity error falls to its floor also where the loss sits at 1.
            error = record.logs.get("diagonal_error", record.logs.get("velocity_error"))
            loss = "skipped" if record.skipped else f"loss {record.loss:.4f}"
            self.figures = loss, "" if error is None else f"velocity error {error:.4f}"
        return self.figures[0], f"{speed:,.0f} images/s", self.figures[1]
