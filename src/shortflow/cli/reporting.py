"""`shortflow report`."""

from pathlib import Path
from typing import Annotated

import typer

from shortflow.cli.common import Imports, say, size
from shortflow.cli.progress import progress

__all__ = ["report"]


def report(
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|STUDY...",
            help="Run directories, directories of studies, or JSON files of diagnoses; several stand side by side.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page, one HTML file.")] = Path("page.html"),
    draw: Annotated[
        bool | None,
        typer.Option(
            "--draw/--no-draw",
            help="Draw samples, neighbours and ways with the model first, into RUN/pictures; by default for runs that "
            "have ended, and one run of every variant of a study that has ended, if they are at most 8.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The heading of the page.", show_default=False)] = None,
    imports: Imports = None,
) -> None:
    """Make a page of runs and studies: one HTML file.

    It has the summary, figures with their errors, samples, curves of training, cost, every setting, the difference to
    the published recipe, hashes, and the commands that make it again. A run that is still going on can be reported.
    """
    from shortflow.report import check_installed, check_places, write_report

    check_installed()
    check_places(what, out)
    for directory in _to_draw(what, draw):
        from shortflow import runs

        with progress("kinds of pictures", title=f"pictures of {directory.name}") as shown:
            runs.illustrate(directory, report=shown)
    page = write_report(what, out, title)
    say(f"→ {page} ({size(page.stat().st_size)})")


def _to_draw(what: list[Path], draw: bool | None) -> list[Path]:
    """The runs whose pictures are to be drawn."""
    from shortflow.report.drawable import lacks_pictures, run_directories

    if draw is False:
        return []
    found = [directory for path in what for directory in run_directories(path, cells=draw)]
    return [directory for directory in found if lacks_pictures(directory, ended=draw is None)]
