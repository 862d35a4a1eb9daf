"""The command line: train, encode, sample, evaluate, reference, compare, diagnose, status, report, import, and what
tells about recipes: recipes, show, cost, demo.

A thin shell around `shortflow.runs` and `shortflow.studies`.
torch and everything that needs it is imported inside the commands, so that --help answers at once.
Exit codes: 0 done, 2 something that the user can mend (said on standard error), 130 interrupted.
"""

import errno
import sys
import warnings
from collections.abc import Sequence

import typer

from shortflow.cli.common import Command, say_error
from shortflow.cli.comparing import Compare, compare
from shortflow.cli.demo import demo
from shortflow.cli.diagnosing import diagnose
from shortflow.cli.encoding import encode
from shortflow.cli.evaluating import evaluate
from shortflow.cli.importing import import_weights
from shortflow.cli.referring import reference
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
for _command in (
    train,
    encode,
    sample,
    evaluate,
    reference,
    compare,
    diagnose,
    status,
    report,
    recipes,
    show,
    cost,
    demo,
):
    app.command(cls={train: Train, status: Status, compare: Compare}.get(_command, Command))(_command)
app.command("import", cls=Command)(import_weights)

_REMEDIES = {
    errno.ENOSPC: "make space, and give the same command again",
    errno.EDQUOT: "make space, and give the same command again",
    errno.EACCES: "give a place that you may write to",
    errno.EPERM: "give a place that you may write to",
    errno.EROFS: "give a place that can be written to",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that a user can mend are printed without a traceback, and end with exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of headers that are untidy: the pixels are there
    try:
        app(args=arguments, prog_name="shortflow")
    except ShortflowError as error:
        say_error(str(error))
    except OSError as error:  # no space, no permission, a file where a directory should be
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        say_error((f"{error.filename}: {error.strerror}" if error.filename else str(error)) + remedy)
    sys.exit(2)
