"""Run files: YAML that holds values only (see `shortflow.yamlfile`), and recipes by name."""

from pathlib import Path
from typing import Any

import yaml

from shortflow.config.parts import RunConfig, to_plain
from shortflow.config.reading import from_plain, nearest
from shortflow.errors import ConfigError
from shortflow.files import write_atomic
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, SETTINGS
from shortflow.yamlfile import read_yaml

__all__ = ["dump", "load_run", "recipe_named", "to_yaml"]


def load_run(path: Path) -> RunConfig:
    """The run that a YAML file describes. The recipe may be a name, or a mapping as written by `dump`.

    Raises:
        ConfigError: if the file cannot be read, or listing everything that is wrong in it.
    """
    plain = read_yaml(path)
    try:
        if isinstance(plain.get("recipe"), str):
            plain["recipe"] = to_plain(recipe_named(plain["recipe"]))
        return from_plain(RunConfig, plain)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from error


def dump(run: RunConfig, path: Path) -> None:
    """Write the resolved run as YAML, atomically."""
    write_atomic(path, to_yaml(run))


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper with lists of numbers on one line."""

    def represent_list(self, data: Any) -> Any:
        short = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)


_Dumper.add_representer(list, _Dumper.represent_list)


def to_yaml(value: Any) -> str:
    """An object as the text of a YAML file."""
    return yaml.dump(to_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`, with its published settings; "method/setting" where it has several.

    Raises:
        ConfigError: naming the nearest recipe, or the settings there are.
    """
    method, _, setting = name.partition("/")
    if method not in RECIPES:
        raise ConfigError(f"there is no recipe called {method!r}, {nearest(method, RECIPES)}")
    if not setting:
        return RECIPES[method]()
    known = SETTINGS.get(method, ())
    if setting not in known:
        choice = f"there are {', '.join(f'{method}/{one}' for one in known)}" if known else "it has one setting only"
        raise ConfigError(f"{method} has no setting called {setting!r}; {choice}")
    return RECIPES[method](setting=setting)
