"""Runs as data: a closed table of parts, plain values (YAML, JSON) ⇄ objects, overrides, presets.

A run is a recipe, a network, data and a budget. `to_plain` writes any of them as nested mappings in which `kind` names
the part; `from_plain` reads them back, checks every value against its declared type and collects all errors at once,
each with its path and, for a misspelled name, the nearest valid one. `register` adds a part of your own.
"""

import collections.abc
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from shortflow import flowmap, guidance, losses, objective, paths, tangent, targets, times, velocity
from shortflow.errors import ConfigError, ShortflowError
from shortflow.files import write_atomic
from shortflow.nn.configs import MLPConfig, NetworkConfig, SiTConfig
from shortflow.objective import Objective, Optimizer, Recipe
from shortflow.recipes import RECIPES
from shortflow.train.settings import TrainSettings

__all__ = [
    "DataConfig",
    "RunConfig",
    "dump",
    "from_plain",
    "kinds",
    "load_run",
    "override",
    "recipe_named",
    "register",
    "to_plain",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data come from: a built-in name or a folder of images, and the side to crop and resize images to."""

    source: str = "digits"
    resolution: int | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution < 1:
            raise ShortflowError(f"data.resolution must be positive, got {self.resolution}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    recipe: Recipe
    network: NetworkConfig = SiTConfig()
    data: DataConfig = DataConfig()
    train: TrainSettings = TrainSettings()


# ------------------------------------------------------------------------------------------------------ table of parts

_WHOLES: tuple[type, ...] = (RunConfig, Recipe, Objective, Optimizer, DataConfig, TrainSettings)
_KINDS: dict[str, type] = {}


def register(part: type) -> type:
    """Make a frozen dataclass of yours a part that run files can name by its class name. Usable as a decorator.

    Raises:
        ConfigError: if it is not a dataclass, or another part has its name.
    """
    if not dataclasses.is_dataclass(part):
        raise ConfigError(
            f"{part.__name__} must be a dataclass to stand in a run file; add @dataclass(frozen=True, kw_only=True)"
        )
    if _KINDS.get(part.__name__, part) is not part:
        raise ConfigError(f"there is already a part called {part.__name__}; choose another name")
    _KINDS[part.__name__] = part
    return part


for _module in (flowmap, guidance, losses, objective, paths, tangent, targets, times, velocity):
    for _name in _module.__all__:
        _part = getattr(_module, _name)
        if isinstance(_part, type) and dataclasses.is_dataclass(_part) and _part not in _WHOLES:
            register(_part)
register(SiTConfig)
register(MLPConfig)


def kinds(base: type) -> list[str]:
    """Names of the parts that are a `base`."""
    return sorted(name for name, part in _KINDS.items() if issubclass(part, base))


# --------------------------------------------------------------------------------------------------------- writing


def to_plain(value: Any) -> Any:
    """The value as mappings, lists, numbers and strings.

    Raises:
        ConfigError: for values that cannot be written down, such as functions.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return plain if type(value) in _WHOLES else {"kind": type(value).__name__, **plain}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{value!r} cannot be written to a run file; give your part as a frozen dataclass with plain fields and call register()"
    )


def dump(run: RunConfig, path: Path) -> None:
    """Write the resolved run as YAML, atomically."""
    write_atomic(path, yaml.safe_dump(to_plain(run), sort_keys=False, allow_unicode=True))


# --------------------------------------------------------------------------------------------------------- reading


def nearest(name: str, valid: Sequence[str]) -> str:
    """ ", did you mean …?" or the list of what there is."""
    close = difflib.get_close_matches(str(name), list(valid), 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(valid)}"


class _Reader:
    """Turns plain values into objects and collects what is wrong on the way."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def fail(self, path: str, message: str) -> None:
        self.errors.append(f"{path or 'run'}: {message}")

    def read(self, hint: Any, plain: Any, path: str) -> Any:
        """The object of type `hint` that `plain` describes; None after an error."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (typing.Union, types.UnionType):
            if plain is None and type(None) in arguments:
                return None
            options = [a for a in arguments if a is not type(None)]
            return self.read(options[0], plain, path) if len(options) == 1 else self._one_of(options, plain, path)
        if origin in (tuple, collections.abc.Sequence) and arguments and _is_part(arguments[0]):
            if not isinstance(plain, list | tuple):
                self.fail(path, f"expected a list, got {plain!r}")
                return None
            return tuple(self.read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(plain))
        if _is_part(hint):
            return self._part((hint,), plain, path)
        return self._leaf(hint, plain, path)

    def _one_of(self, options: list[Any], plain: Any, path: str) -> Any:
        if all(_is_part(option) for option in options):
            return self._part(tuple(options), plain, path)
        return self._leaf(typing.Union[tuple(options)], plain, path)  # noqa: UP007

    def _leaf(self, hint: Any, plain: Any, path: str) -> Any:
        if isinstance(plain, bool) and hint is not bool:
            self.fail(path, f"expected {_describe(hint)}, got {plain!r}")
            return None
        try:
            return TypeAdapter(hint).validate_python(plain)
        except ValidationError as error:
            reasons = "; ".join(dict.fromkeys(e["msg"] for e in error.errors()))
            self.fail(path, f"{reasons} (got {plain!r})")
            return None

    def _part(self, bases: tuple[type, ...], plain: Any, path: str) -> Any:
        names = sorted({name for base in bases for name in kinds(base)})
        if isinstance(plain, str):
            plain = {"kind": plain}
        if not isinstance(plain, Mapping):
            self.fail(path, f"expected settings, got {plain!r}")
            return None
        values = dict(plain)
        if bases[0] in _WHOLES:
            part: type | None = bases[0]
        elif "kind" not in values and len(names) == 1:
            part = _KINDS[names[0]]
        else:
            kind = values.pop("kind", None)
            part = _KINDS.get(kind) if kind in names else None
            if part is None:
                self.fail(
                    path,
                    f"'kind' is missing; there are: {', '.join(names)}"
                    if kind is None
                    else f"no such kind {kind!r}, {nearest(kind, names)}",
                )
                return None
        return self._fields(part, values, path)

    def _fields(self, part: type, values: dict[str, Any], path: str) -> Any:
        hints = get_type_hints(part)
        fields = {f.name: f for f in dataclasses.fields(part) if f.init}
        before = len(self.errors)
        for name in values:
            if name not in fields:
                self.fail(
                    f"{path}.{name}".lstrip("."),
                    f"no such setting of {part.__name__}, {nearest(name, list(fields))} (got {values[name]!r})",
                )
        read = {
            name: self.read(hints[name], value, f"{path}.{name}".lstrip("."))
            for name, value in values.items()
            if name in fields
        }
        for name, f in fields.items():
            if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                self.fail(path, f"{part.__name__} needs the setting {name!r}")
        if len(self.errors) > before:
            return None
        try:
            return part(**read)
        except ShortflowError as error:
            self.fail(path, str(error))
            return None


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and (
        hint in _WHOLES or dataclasses.is_dataclass(hint) or bool(kinds(hint)) and hint is not object
    )


def _describe(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))


def from_plain(hint: Any, plain: Any) -> Any:
    """The object of type `hint` that the plain value describes.

    Raises:
        ConfigError: listing every unknown name, wrong type and impossible value.
    """
    reader = _Reader()
    value = reader.read(hint, plain, "")
    if reader.errors:
        raise ConfigError("\n".join(reader.errors))
    return value


def load_run(path: Path) -> RunConfig:
    """The run that a YAML file describes. The recipe may be a name, or a mapping as written by `dump`."""
    try:
        plain = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} must hold settings (recipe, network, data, train), got {type(plain).__name__}")
    if isinstance(plain.get("recipe"), str):
        plain["recipe"] = to_plain(recipe_named(plain["recipe"]))
    return from_plain(RunConfig, plain)


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`, with its published settings.

    Raises:
        ConfigError: naming the nearest recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe called {name!r}, {nearest(name, list(RECIPES))}")
    return RECIPES[name]()


# -------------------------------------------------------------------------------------------------------- overrides


def override(run: RunConfig, settings: Sequence[str]) -> RunConfig:
    """The run with settings of the form "field.path=value" replaced. The prefixes recipe. and train. may be left out.

    A value is read as YAML. The name of a part replaces the whole part by that part with its defaults:
    `objective.metric=PseudoHuber`.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    plain, errors = to_plain(run), []
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            errors.append(f"{setting!r}: expected field.path=value")
            continue
        try:
            _set(plain, key.strip(), yaml.safe_load(text) if text.strip() else None)
        except yaml.YAMLError:
            errors.append(f"{key}: {text!r} is not a value")
        except ConfigError as error:
            errors.append(str(error))
    reader = _Reader()
    value = reader.read(RunConfig, plain, "")
    if errors or reader.errors:
        raise ConfigError("\n".join([*errors, *reader.errors]))
    return value


def _set(plain: dict[str, Any], key: str, value: Any) -> None:
    parts = key.split(".")
    if parts[0] not in plain:
        for prefix in ("recipe", "train", "network", "data"):
            if parts[0] in plain[prefix]:
                parts = [prefix, *parts]
                break
        else:
            valid = [*plain, *plain["recipe"], *plain["train"]]
            raise ConfigError(f"{key}: no such setting, {nearest(parts[0], valid)}")
    place: Any = plain
    for i, part in enumerate(parts[:-1]):
        place = _step_into(place, part, ".".join(parts[: i + 1]))
    last = parts[-1]
    if isinstance(place, list):
        _step_into(place, last, key)
        place[int(last)] = value
    elif last == "kind" and isinstance(place, dict):
        place.clear()
        place["kind"] = value
    elif not isinstance(place, dict) or last not in place:
        valid = [name for name in place if name != "kind"] if isinstance(place, dict) else []
        raise ConfigError(f"{key}: no such setting, {nearest(last, valid) if valid else 'it is a single value'}")
    else:
        place[last] = value


def _step_into(place: Any, part: str, path: str) -> Any:
    if isinstance(place, dict) and part in place and isinstance(place[part], dict | list):
        return place[part]
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    valid = (
        [name for name, v in place.items() if isinstance(v, dict | list)]
        if isinstance(place, dict)
        else [str(i) for i in range(len(place))]
    )
    raise ConfigError(f"{path}: no such group of settings, {nearest(part, valid)}")


# ------------------------------------------------------------------------------------------------------------- diffs


def flatten(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf of a plain value."""
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            yield from flatten(value, f"{path}.{name}".lstrip("."))
    elif isinstance(plain, list) and any(isinstance(item, Mapping) for item in plain):
        for i, value in enumerate(plain):
            yield from flatten(value, f"{path}.{i}")
    else:
        yield path, plain


def difference(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) where two objects differ; "—" stands for "has no such setting"."""
    left, right = dict(flatten(to_plain(a))), dict(flatten(to_plain(b)))
    paths_ = list(dict.fromkeys([*left, *right]))
    return [(p, left.get(p, "—"), right.get(p, "—")) for p in paths_ if left.get(p, "—") != right.get(p, "—")]
