"""`shortflow recipes` and `shortflow show`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import Settings, say, table
from shortflow.errors import ConfigError

__all__ = ["recipes", "show"]


def recipes(
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Print what differs between two recipes.")
    ] = None,
) -> None:
    """List the recipes, or explain the difference between two."""
    from shortflow.config import difference, recipe_named
    from shortflow.recipes import RECIPES

    if diff is None:
        rows = [["recipe", "year", "arXiv", "path", "times", "target", "sampling"]]
        for name, make in RECIPES.items():
            recipe = make()
            o = recipe.objective
            ends = {"diagonal": "Euler", "zero": "re-noise", "any": "jumps", "dyadic": "dyadic jumps"}[o.times.ends]
            parts = [type(part).__name__ for part in (recipe.path, o.times, o.target)]
            rows.append([name, str(recipe.year), recipe.arxiv, *parts, ends])
        table(rows)
        say("\nMore: shortflow show RECIPE, shortflow recipes --diff A B")
        return
    a, b = (recipe_named(name) for name in diff)
    rows = [row for row in difference(a, b) if row[0] not in ("name", "title", "year", "arxiv")]
    if not rows:
        say(f"{diff[0]} and {diff[1]} do not differ.")
        return
    table([("setting", *diff), *((path, _value(left), _value(right)) for path, left, right in rows)])


def _value(value: Any) -> str:
    """A setting as it is written in a run file, numbers to six digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN",
            help="The name of a recipe, a run directory, a model file, or a run file ending in .yaml.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="For a recipe: print the resolved run on these data instead, as a run file for `shortflow train`."
        ),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="With --data: crop and resize images to this side.")] = None,
    settings: Settings = None,
) -> None:
    """Show a recipe, or a run and how far it is.

    A recipe has a table "symbol in the paper → field" and its published settings, a run its resolved settings.
    """
    from shortflow import runs
    from shortflow.config import load_run, recipe_named, to_yaml
    from shortflow.recipes import RECIPES

    path = Path(what)
    if what not in RECIPES and (path.exists() or path.suffix in (".yaml", ".yml", ".safetensors")):
        if data is not None or settings:
            raise ConfigError(f"{what} is a run, with its own data and settings; leave out --data and --set")
        if path.suffix in (".yaml", ".yml"):
            say(to_yaml(load_run(path)).rstrip())
        else:
            _show_run(path)
        return
    if data is not None or settings:
        say(to_yaml(runs.configure(what, data, resolution=resolution, settings=settings or ())[0]).rstrip())
        return
    recipe = recipe_named(what)
    module = sys.modules[RECIPES[what].__module__]
    say((module.__doc__ or "").strip() + "\n")
    say(to_yaml(recipe))
    say(module.BIBTEX)


def _show_run(path: Path) -> None:
    """How far a run is, and its settings."""
    from shortflow import hub
    from shortflow.config import load_run, to_yaml
    from shortflow.nn.configs import parameter_count

    if path.is_dir() and not (path / "model.safetensors").is_file() and (path / "run.yaml").is_file():
        say(f"# {path}: started, but no state is saved yet")
        say(to_yaml(load_run(path / "run.yaml")).rstrip())
        return
    model = hub.load(path)
    say(
        f"# {model.path}: {model.run.recipe.name}, {parameter_count(model.flow.network):,} parameters, "
        f"step {model.step:,} of {model.run.train.steps:,}, {model.images:,} images seen"
    )
    say(to_yaml(model.run).rstrip())
