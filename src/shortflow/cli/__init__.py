"""The command line: train, encode, sample, evaluate, reference, status, report, import, recipes, show, cost, demo.

A thin shell around `shortflow.runs`.
torch and everything that needs it is imported inside the commands, so that --help answers at once.
Exit codes: 0 done, 2 something that the user can mend (said on standard error), 130 interrupted.
"""

import sys
import warnings
from collections.abc import Sequence

import typer

from shortflow.cli.common import say_error
from shortflow.cli.demo import demo
from shortflow.cli.encoding import encode
from shortflow.cli.evaluating import evaluate, reference
from shortflow.cli.importing import import_weights
from shortflow.cli.reporting import report
from shortflow.cli.sampling import sample
from shortflow.cli.showing import cost, recipes, show
from shortflow.cli.training import Train, train
from shortflow.cli.watching import Status, status
from shortflow.errors import ShortflowError

__all__ = ["app", "main"]

app = typer.Typer(
    name="shortflow",
    help="One-step generative models trained from scratch: shortcut models and flow maps.\n\n"
    "Start with `shortflow demo`; then `shortflow train RECIPE --data FOLDER --out RUN` and `shortflow sample RUN`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: twice as fast, and never cut
)
for _command in (train, encode, sample, evaluate, reference, status, report, recipes, show, cost, demo):
    app.command(cls={train: Train, status: Status}.get(_command))(_command)
app.command("import")(import_weights)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that a user can mend are printed without a traceback, and end with exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app(args=arguments, prog_name="shortflow")
    except ShortflowError as error:
        say_error(str(error))
    except OSError as error:  # no space, no permission, a file where a directory should be
        say_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(2)
