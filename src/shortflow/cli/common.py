"""What the commands share: options, and how they speak."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.errors import ConfigError

__all__ = ["Guidance", "RunPath", "Settings", "count", "numbers", "say", "say_error", "table"]

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD.PATH=VALUE",
        help="Change one setting, such as train.batch=64; repeat for more. `shortflow show RECIPE --data DATA` lists "
        "them all.",
    ),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or a model.safetensors file.", show_default=False)
]
Guidance = Annotated[
    float, typer.Option(help="Sampling guidance scale; 1 is none. Refused where guidance is already in the weights.")
]


def say_error(message: str) -> None:
    """An error on standard error, whole also on a narrow terminal."""
    typer.echo(typer.style("error:", fg="red", bold=True) + f" {message}", err=True)


def say(message: str = "") -> None:
    """A line on standard output."""
    typer.echo(message)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows as aligned columns, never cut: a narrow terminal breaks the lines, a pipe gets them whole."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def count(number: int, noun: str, plural: str | None = None) -> str:
    """The number with its noun: 1 step, 2 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def numbers(text: str, what: str, kind: type = int) -> list[Any]:
    """The numbers in a text such as "1,2,4".

    Raises:
        ConfigError: if there are none, or something else.
    """
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"{what}: expected numbers with commas between them, got {text!r}")
    return found
