"""What the commands share: options, and how they speak."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from shortflow.errors import ConfigError
from shortflow.memory import keep_memory

__all__ = [
    "Bf16",
    "Command",
    "Compile",
    "CropName",
    "Encoder",
    "Guidance",
    "Imports",
    "RunPath",
    "Settings",
    "Window",
    "aligned",
    "count",
    "duration",
    "import_files",
    "numbers",
    "optional_value",
    "rank",
    "say",
    "say_error",
    "size",
    "table",
    "window_of",
]

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
Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        callback=lambda paths: import_files(paths),
        help="Execute a Python file of yours first, which registers parts (docs/how-to); repeat for more.",
    ),
]
Guidance = Annotated[
    float, typer.Option(help="Sampling guidance scale; 1 is none. Refused where guidance is already in the weights.")
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="LO,HI",
        help="The times that guidance acts at, for networks that are told them, such as 0.4,0.65 (imf).",
        show_default=False,
    ),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Run the network in bfloat16, times in float32.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER",
        help="For models of latents: the autoencoder that decodes them; by default the one that the run names.",
        show_default=False,
    ),
]
CropName = Annotated[
    Literal["centre", "resize", "pad"] | None,
    typer.Option(
        "--crop",
        metavar="centre|resize|pad",
        help="How images become squares of --resolution: their centre, as in ADM; stretched; or whole on white. By "
        "default centre, and beside a run as it has it.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first (torch.compile); worth it for many samples."),
]


def import_files(paths: list[Path] | None) -> list[Path] | None:
    """Execute Python files, in order, which register parts of their own. Only ever what a user names, here and now.

    Run files and models hold values only: neither names a file to execute, so that opening one is safe. Each file is
    the module of its stem, unless there is one already.

    Raises:
        ConfigError: if a file is not there, is no Python file, or fails.
    """
    for path in paths or ():
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"--import {path}: there is no such Python file; give the path of a file ending in .py")
        name = path.stem
        found = sys.modules.get(name)
        if found is not None and getattr(found, "__file__", None) == str(path.resolve()):
            continue  # parts are registered once
        if found is not None or importlib.util.find_spec(name) is not None:
            raise ConfigError(f"--import {path}: there is a module called {name} already; rename the file")
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"--import {path} failed: {_failure(error, path)}") from error
    return paths


def _failure(error: Exception, path: Path) -> str:
    """What went wrong in a file, with its line."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + ("" if line is None else f" (line {line})")


def rank() -> int:
    """The number of this process among those that a launcher has started; 0 where there is none."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdigit() else 0


def say_error(message: str) -> None:
    """An error on standard error, whole also on a narrow terminal."""
    head = "error:" if rank() == 0 else f"error in process {rank()}:"
    typer.echo(typer.style(head, fg="red", bold=True) + f" {message}", err=True)


def say(message: str = "") -> None:
    """A line on standard output, by the first of several processes."""
    if rank() == 0:
        typer.echo(message)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(rows: Sequence[Sequence[str]]) -> None:
    """Say rows as aligned columns, never cut: a narrow terminal breaks the lines, a pipe gets them whole."""
    for line in aligned(rows):
        say(line)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """The number with its noun: 1 step, 2 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time as 0:35, 1:02:03, or 2 d 03:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count < 2**20:
        return f"{count / 2**10:,.0f} KiB"
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


class Command(TyperCommand):
    """A command that names the value that it cannot take, which typer does not for numbers, and keeps its memory."""

    def invoke(self, ctx: Any) -> Any:
        keep_memory()
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            options = getattr(getattr(error, "param", None), "opts", [])
            given = _value_of(options, words)
            if type(error).__name__ == "BadParameter" and given is not None and repr(given) not in str(error):
                error.message = f"{error.message}, got {given!r}"  # type: ignore[attr-defined]
            raise


def _value_of(options: Sequence[str], words: Sequence[str]) -> str | None:
    """The last value that an option has among the words of a command line."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        name, separator, value = word.partition("=")
        if name in options:
            found = value if separator else following
    return found


def optional_value(option: str, absent: str, fits: Callable[[str], bool]) -> type[TyperCommand]:
    """The class of a command in which `option` may stand without a value, and then means `absent`.

    What comes after it is its value where it `fits`, and something of its own otherwise.
    """

    class Optional(Command):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            for i, word in enumerate(args):
                if word == option and not any(map(fits, args[i + 1 : i + 2])):
                    args[i] = f"{option}={absent}"
            return super().parse_args(ctx, args)

    return Optional


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


def window_of(text: str | None) -> tuple[float, float] | None:
    """The window in a text such as "0.4,0.65"; None where there is none.

    Raises:
        ConfigError: if it is not two numbers.
    """
    if text is None:
        return None
    ends = numbers(text, "--window", float)
    if len(ends) != 2:
        raise ConfigError(f"--window: expected the first and the last time, such as 0.4,0.65, got {text!r}")
    return ends[0], ends[1]
