"""Run files: YAML that holds values only. Nothing in a file is executed, and its size and nesting are bounded.

Aliases, with which a short file can stand for a huge one, tags and repeated keys are errors.
"""

from pathlib import Path
from typing import Any

import yaml

from shortflow.config.parts import RunConfig, to_plain
from shortflow.config.reading import from_plain, nearest
from shortflow.errors import ConfigError
from shortflow.files import write_atomic
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, SETTINGS

__all__ = ["dump", "load_run", "parse_yaml", "recipe_named", "to_yaml"]

_LARGEST = 200_000  # characters; a resolved run has about 3,000
_DEEPEST = 40


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, f"aliases (*{event.anchor}) are not allowed; write the value out", event.start_mark
            )
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested deeper than {_DEEPEST} levels", event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, what: str) -> Any:
    """The plain value that a YAML text describes.

    Raises:
        ConfigError: naming `what`, the line and the fault.
    """
    if len(text) > _LARGEST:
        raise ConfigError(f"{what} is no run file: it has {len(text):,} characters, at most {_LARGEST:,} are read")
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ConfigError(f"{what} is not YAML that can be read: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, OverflowError) as error:  # dates and numbers that look right and are not
        raise ConfigError(f"{what} holds a value that is none: {error}") from error


def load_run(path: Path) -> RunConfig:
    """The run that a YAML file describes. The recipe may be a name, or a mapping as written by `dump`.

    Raises:
        ConfigError: if the file cannot be read, or listing everything that is wrong in it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(4 * _LARGEST + 1)  # not all of it: it may be as long as a disk
        if len(content) > 4 * _LARGEST:
            raise ConfigError(f"{path} is no run file: it has more than {4 * _LARGEST:,} bytes")
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file (UTF-8): {error.reason} at byte {error.start}") from error
    plain = parse_yaml(text, str(path))
    if not isinstance(plain, dict):
        raise ConfigError(
            f"{path} must hold the settings recipe, network, data and train, got {type(plain).__name__}; "
            "`shortflow show RECIPE --data DATA` prints such a file"
        )
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
