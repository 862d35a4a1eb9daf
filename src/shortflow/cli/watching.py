"""`shortflow status`."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortflow.cli.common import aligned, count, duration, optional_value, say, size
from shortflow.errors import ConfigError, ShortflowError

if TYPE_CHECKING:
    from shortflow.status import RunStatus

__all__ = ["Status", "status"]

EVERY = "5"  # seconds between two looks
SCORES = {
    "distance": ("", ".2f"),  # which has a name
    "inception_score": ("IS", ".1f"),
    "conditional_accuracy": ("accuracy", ".3f"),
    "coverage": ("coverage", ".3f"),
    "recall": ("recall", ".3f"),
    "precision": ("precision", ".3f"),
    "fd_percent": ("FD %", ".2f"),
    "energy_distance": ("energy distance", ".5f"),
    "sliced_w2": ("sliced W2", ".4f"),
}


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


Status = optional_value("--watch", EVERY, _is_number)


def status(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run directories, or folders of such.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object for each run, each in a line.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="[SECONDS]",
            help=f"Look again every so many seconds (by default {EVERY}), until no run goes on any more or Ctrl-C.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say how runs are, while they go on or later.

    Progress, speed, time left, the last figures, states, disk; a folder of runs becomes a table. Nothing is touched.
    """
    if watch is not None and watch <= 0:
        raise ConfigError(f"--watch {watch:g}: give a number of seconds above 0")
    if watch is None:
        for line in _told(_look(directories), as_json):
            say(line)
        return
    try:
        _watch(directories, as_json, watch)
    except KeyboardInterrupt:
        say()


@dataclass
class _Found:
    """What an argument has led to: a run, or those of a folder, and what cannot be read there."""

    folder: bool
    runs: "list[RunStatus]" = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def _look(directories: Sequence[Path]) -> list[_Found]:
    from shortflow.status import read_status, runs_below

    looked = []
    for path in directories:
        below = [] if (path / "run.yaml").is_file() else runs_below(path)
        found = _Found(folder=bool(below))
        for run in below or [path]:
            try:
                found.runs.append(read_status(run))
            except ShortflowError as error:
                if not below:
                    raise
                found.unread.append(str(error).replace("\n", " "))
        looked.append(found)
    return looked


def _watch(directories: Sequence[Path], as_json: bool, seconds: float) -> None:
    """Show the runs until none is going on: in the same place on a terminal, else in lines below each other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    screen = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    with screen or nullcontext():
        while True:
            found = _look(directories)
            if screen is not None:
                screen.update(Text("\n".join(_told(found, False))), refresh=True)
            else:
                for line in _told(found, True) if as_json else [_line(run) for each in found for run in each.runs]:
                    say(line)
            if not any(run.phase == "running" for each in found for run in each.runs):
                return
            time.sleep(seconds)


# ------------------------------------------------------------------------------------------------------------- in words


def _told(found: Sequence[_Found], as_json: bool) -> list[str]:
    """Everything about every run, or a table where an argument is a folder of runs."""
    if as_json:
        return [json.dumps(run.as_json(), ensure_ascii=False) for each in found for run in each.runs]
    lines: list[str] = []
    for each in found:
        lines += [""] * bool(lines)
        lines += _table(each.runs) if each.folder else _details(each.runs[0])
        lines += [f"note: {remark}" for remark in each.unread]
    return lines


def _details(run: "RunStatus") -> list[str]:
    """One run, a line each for what there is."""
    rows = [("progress", _progress(run))]
    if run.figures:
        rows.append(("figures", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in _figures(run))))
    rows.append(("states", _states(run)))
    kinds = ", ".join(f"{kind} {size(count)}" for kind, count in run.disk.items() if count)
    rows.append(("disk", f"{size(sum(run.disk.values()))} ({kinds}); {size(run.free)} are free"))
    if run.preview is not None:
        rows.append(("preview", str(run.preview)))
    for name, scores in run.scores.items():
        words = {"distance": str(scores.get("name", "distance"))}
        said = (f"{words.get(key, word)} {scores[key]:{form}}" for key, (word, form) in SCORES.items() if key in scores)
        rows.append((name, ", ".join(said)))
    rows += [("note", remark) for remark in run.remarks]
    width = max(len(name) for name, _ in rows)
    return [f"{run.directory}: {_phase(run)}", *(f"  {name:{width}}  {said}" for name, said in rows)]


def _phase(run: "RunStatus") -> str:
    holder = run.holder
    who = "" if holder is None else " in a process that has not said its name"
    if holder:
        who = f" in process {holder['pid']} on {holder['host']}, since {holder['since']}"
    return f"{run.recipe} on {run.data}, {run.phase}{who}"


def _progress(run: "RunStatus") -> str:
    parts = [f"step {run.step:,} of {run.steps:,} ({run.share:.1%}), {count(run.images, 'image')}"]
    if run.speed is not None:
        parts.append(f"{run.speed:,.0f} images/s")
        if run.phase != "finished":
            parts.append(f"{duration(run.left or 0.0)} {'left' if run.phase == 'running' else 'would be left'}")
    if run.since is not None:
        parts.append(f"last line {duration(run.since)} ago")
    return "; ".join(parts)


def _figures(run: "RunStatus") -> list[tuple[str, float]]:
    """What a glance wants: loss, errors, gradient, learning rate, steps that were skipped; the rest is for --json."""
    first = ("loss", "velocity_error", "diagonal_error", "error", "grad_norm", "lr", "skipped")
    return [(name, run.figures[name]) for name in first if name in run.figures]


def _states(run: "RunStatus") -> str:
    if run.newest is None:
        return "none yet"
    newest = f"step {run.newest.step:,}, {duration(run.newest.age)} old"
    return newest if run.best is None else f"{newest}; best {run.best[0]} {run.best[1]:.4g} at step {run.best[2]:,}"


def _line(run: "RunStatus") -> str:
    """One run in a line, for logs."""
    figures = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in _figures(run)[:2])
    return "  ".join([time.strftime("%H:%M:%S"), f"{run.directory}: {run.phase}", _progress(run), *figures])


def _table(runs: "Sequence[RunStatus]") -> list[str]:
    """Many runs, a line each."""
    heads = ("run", "recipe", "data", "", "step", "", "images/s", "left", "loss", "disk")
    rows: list[tuple[str, ...]] = [heads]
    for run in runs:
        left = "–" if run.left is None or run.phase != "running" else duration(run.left)
        speed = "–" if run.speed is None else f"{run.speed:,.0f}"
        loss = f"{run.figures['loss']:.4f}" if "loss" in run.figures else "–"
        steps = f"{run.step:,}/{run.steps:,}"
        used = size(sum(run.disk.values()))
        rows.append(
            (run.directory.name, run.recipe, run.data, run.phase, steps, f"{run.share:.0%}", speed, left, loss, used)
        )
    return [*aligned(rows), *(f"note: {run.directory.name}: {remark}" for run in runs for remark in run.remarks)]
