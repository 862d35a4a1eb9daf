"""`shortflow recipes`, `shortflow show` and `shortflow cost`."""

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import Imports, Settings, count, say, table
from shortflow.errors import ConfigError

__all__ = ["cost", "recipes", "show"]

WIDTH = 80  # of sentences; tables are as wide as they need to be


def recipes(
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Say what differs between two recipes, in words and setting by setting."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, for programs.")] = False,
    imports: Imports = None,
) -> None:
    """List the recipes, or explain the difference between two."""
    if diff is None:
        _list_recipes(as_json)
    else:
        _explain(diff, as_json)


def _list_recipes(as_json: bool) -> None:
    from shortflow.recipes import RECIPES, SETTINGS

    groups: dict[str, list[dict[str, Any]]] = {"many steps": [], "one step, from scratch": [], "from another model": []}
    for name in RECIPES:
        group, facts = _facts(name)
        groups[group].append(facts)
    if as_json:
        everything = [{**facts, "group": group} for group, rows in groups.items() for facts in rows]
        say(json.dumps(everything, indent=2, ensure_ascii=False))
        return
    head = ("recipe", "year", "arXiv", "time", "cost", "sampling", "needs")
    rows: list[tuple[str, ...]] = []
    for group, members in groups.items():
        rows += [(group.upper(), *("",) * 6)] if members else []
        for facts in members:
            cost = "–" if facts["cost"] is None else f"{facts['cost']:.1f} F"
            needs = ", ".join(facts["needs"]) or "–"
            year = str(facts["year"]) if facts["year"] else "–"
            rows.append((facts["name"], year, facts["arxiv"] or "–", facts["time"], cost, facts["sampling"], needs))
    table([head, *rows])
    several = "; ".join(", ".join(f"{name}/{one}" for one in settings) for name, settings in SETTINGS.items())
    say()
    _sentence(f"Published settings of their own (the first is the default): {several}.")
    _sentence(
        "time: whether the first step s → t is a limit (continuous) or finite (discrete). cost: arithmetic of a "
        "training step; F is one pass of the network without gradient, a plain step 3 F. needs: a frozen teacher "
        "(--teacher RUN), pairs that it makes, or a model to start from (init: --init-from RUN)."
    )
    say("\nMore: shortflow show RECIPE, shortflow recipes --diff A B")


def _facts(name: str) -> tuple[str, dict[str, Any]]:
    """The group of a recipe, and what the list says about it."""
    from shortflow.config import recipe_named
    from shortflow.cost import known_costs
    from shortflow.recipes import SETTINGS

    recipe = recipe_named(name)
    o = recipe.objective
    jumps = {True: "continuous", False: "discrete", None: "–"}[o.target.continuous]
    needs = sorted(o.needs)
    group = "from another model" if needs else "many steps" if o.ends == "diagonal" else "one step, from scratch"
    return group, {
        "name": name,
        "title": recipe.title,
        "year": recipe.year,
        "arxiv": recipe.arxiv,
        "time": "both" if o.times.limit else jumps,
        "cost": known_costs().get(name),
        "sampling": {"diagonal": "ODE steps", "zero": "re-noise", "any": "jumps", "dyadic": "jumps of 2⁻ʲ"}[o.ends],
        "needs": needs,
        "settings": [f"{name}/{one}" for one in SETTINGS.get(name, ())],
    }


def _explain(names: tuple[str, str], as_json: bool) -> None:
    from shortflow.config import difference, difference_in_words, recipe_named

    a, b = (recipe_named(name) for name in names)
    # What a method is called is no difference between methods.
    rows = [row for row in difference(a, b) if row[0] not in ("name", "title", "year", "arxiv")]
    sentences = difference_in_words(a, b, names)
    if as_json:
        settings = [{"setting": path, "a": left, "b": right} for path, left, right in rows]
        say(json.dumps({"a": names[0], "b": names[1], "words": sentences, "settings": settings}, ensure_ascii=False))
        return
    if not rows:
        say(f"{names[0]} and {names[1]} do not differ.")
        return
    for sentence in sentences:
        _sentence(sentence)
    say()
    table([("setting", *names), *((path, _value(left), _value(right)) for path, left, right in rows)])


def _sentence(text: str) -> None:
    """Text broken into lines, those after the first indented."""
    say(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


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
    imports: Imports = None,
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
    if resolution is not None:
        raise ConfigError(f"--resolution {resolution} is that of --data; give both, or leave it out")
    try:
        recipe = recipe_named(what)
    except ConfigError as error:
        raise ConfigError(f"{error} (nor is there a run, a model or a run file of that name)") from error
    module = sys.modules[RECIPES[recipe.name].__module__]
    say((module.__doc__ or "").strip() + "\n")
    say(to_yaml(recipe))
    say(getattr(module, "BIBTEX", "").rstrip())


def cost(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The name of a recipe.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="Count the run on these data, with its network and batch; default: a small network."),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="With --data: crop and resize images to this side.")] = None,
    settings: Settings = None,
    imports: Imports = None,
) -> None:
    """Say what a training step of a recipe costs.

    The passes of networks that it makes, and the arithmetic and memory that are measured.

    The unit F is one pass of the network over the batch without gradient; flow matching costs 3 F.
    """
    from shortflow import runs
    from shortflow.config import override, recipe_named
    from shortflow.cost import UNITS, whole_cost
    from shortflow.data import DataSpec

    if data is None:
        chosen = recipe_named(recipe)
        if settings:
            run, _ = runs.configure(recipe, "digits")
            chosen = override(replace(run, recipe=chosen), settings).recipe
        found = whole_cost(chosen, memory=True)
        say(f"{recipe} with the published settings, on a small network:\n")
    else:
        run, dataset = runs.configure(recipe, data, resolution=resolution, settings=settings or ())
        spec = DataSpec.fit(dataset, run.recipe.sigma_data)
        found = whole_cost(run.recipe, run.network, spec, run.train.batch, memory=True)
        say(f"{recipe} on {data}, batch {run.train.batch}:\n")
    rows = [(KINDS[one.kind], f"{one.rows:.2f}", f"{UNITS[one.kind]:g} F", f"{one.cost:.2f} F") for one in found.passes]
    table([("passes", "batches", "each", "cost"), *rows, ("sum", "", "", f"{found.predicted:.2f} F")])
    say(
        f"\nMeasured: {found.measured:.2f} F of arithmetic; at most {found.memory / 2**20:.0f} MiB of activations, "
        "temporaries and gradients."
    )


KINDS = {
    "prediction": "with gradient",
    "plain": "without gradient",
    "dual": "with its derivative, without gradient",
    "dual, kept": "with gradient, its derivative without",
    "differentiated": "with its derivative, both with gradient",
    "transformed": "with its derivative, by torch.func",
}


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
    if model.imported is not None:
        _show_imported(model)
        return
    say(
        f"# {model.path}: {model.run.recipe.name}, {parameter_count(model.flow.network):,} parameters, "
        f"step {model.step:,} of {model.run.train.steps:,}, {model.images:,} images seen"
    )
    say(to_yaml(model.run).rstrip())


def _show_imported(model: Any) -> None:
    """Where weights of others are from, and what they are taken for. How long they were trained is not known."""
    from shortflow.config import to_yaml
    from shortflow.nn.configs import parameter_count

    origin, spec = model.imported, model.spec
    which = {"ema": "averaged weights", "model": "trained weights"}.get(origin.get("weights"), "weights")
    known = [f"{parameter_count(model.flow.network):,} parameters", *([f"step {model.step:,}"] if model.step else [])]
    say(f"# {model.path}: imported from {origin.get('file')} ({origin.get('kind')}, {which}), {', '.join(known)}")
    say(f"# file: SHA-256 {origin.get('sha256')}, of {origin.get('project')}")
    seen = "images in [−1, 1]" if spec.latent is None else f"latents {spec.latent.in_words()}"
    say(f"# data: {spec.name}, {'×'.join(map(str, spec.shape))}, {seen}; {count(spec.num_classes, 'class', 'classes')}")
    for note in origin.get("notes", ()):
        say(f"# note: {note}")
    for name in ("network", "recipe"):
        say(f"{name}:\n{textwrap.indent(to_yaml(getattr(model.run, name)).rstrip(), '  ')}")
