"""Settings of the form "field.path=value", as the command line has them.

A path is walked down the declared types, so that a part that an earlier setting put there has its own settings at once.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from shortflow.config.differences import flatten
from shortflow.config.parts import WHOLES, RunConfig, defaults, fields_of, is_part, is_registered, part_named, to_plain
from shortflow.config.reading import nearest, read
from shortflow.errors import ConfigError
from shortflow.yamlfile import parse_yaml

__all__ = ["concerning", "override"]

_PREFIXES = ("recipe", "train", "network", "data")


def override(run: RunConfig, settings: Sequence[str]) -> RunConfig:
    """The run with settings of the form "field.path=value" replaced, in order.

    A value is read as YAML. The prefixes recipe., train., network. and data. may be left out, entries of a list are
    counted from 0 (`objective.weighting.parts.0.c=1e-2`), and the name of a part replaces the whole part by that one
    with its defaults (`objective.metric=PseudoHuber`).

    Raises:
        ConfigError: listing everything that is wrong.
    """
    plain, errors = to_plain(run), []
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.strip().replace("[", ".").replace("]", "")
        if not separator or not key:
            errors.append(f"{setting!r}: expected field.path=value, such as train.batch=64")
            continue
        try:
            _set(plain, key, parse_yaml(text, f"{key}: {text!r}"))
        except ConfigError as error:
            errors.append(str(error))
    value, wrong = read(RunConfig, plain)
    if errors or wrong:
        raise ConfigError("\n".join([*errors, *wrong]))
    return value


def concerning(run: RunConfig, settings: Sequence[str], group: str) -> list[str]:
    """Those of the settings that change something in a group of the run, such as "data"."""
    plain, found = to_plain(run), []
    for setting in settings:
        try:
            path = _full(plain, setting.partition("=")[0].strip())
        except ConfigError:
            continue  # which `override` says
        if path.split(".")[0] == group:
            found.append(setting)
    return found


def _set(plain: dict[str, Any], key: str, value: Any) -> None:
    names = _full(plain, key).split(".")
    place: Any = plain
    part: type | None = RunConfig
    for i, name in enumerate(names[:-1]):
        place, part = _child(place, part, name, ".".join(names[: i + 1]))
        if isinstance(place, dict) and part is None:
            return  # settings of an unknown kind: reading reports the kind
    last = names[-1]
    if isinstance(place, list):
        parts = any(isinstance(item, dict) for item in place)
        place[_index(place, last, key)] = _expanded(value) if parts else value
    elif last == "kind" and part not in WHOLES:
        place.clear()
        place.update(_expanded(value) if isinstance(value, str) else {"kind": value})
    else:
        hints = fields_of(part) if part else {}
        if last not in hints:
            raise ConfigError(f"{key}: no such setting, {nearest(last, hints) if hints else 'there are none here'}")
        options = (hints[last], *get_args(hints[last]))
        place[last] = _expanded(value) if any(is_part(o) and o not in WHOLES for o in options) else value


def _child(place: Any, part: type | None, name: str, path: str) -> tuple[Any, type | None]:
    """The group of settings called `name`, and the class it describes."""
    if isinstance(place, list):
        child, hint = place[_index(place, name, path)], None
    else:
        hints = fields_of(part) if part else {}
        if name not in hints:
            raise ConfigError(f"{path}: no such setting, {nearest(name, hints) if hints else 'there are none here'}")
        child, hint = place.get(name), hints[name]
        whole = next((option for option in get_args(hint) if option in WHOLES), None)
        if whole is not None:  # settings that may be left out altogether come into being with the first of them
            child, hint = place.setdefault(name, None) or defaults(whole), whole
            place[name] = child
    if isinstance(child, list):
        return child, None
    if not isinstance(child, dict):
        raise ConfigError(f"{path} is {child!r}, a single value without settings of its own")
    if "kind" in child:
        return child, part_named(child["kind"])
    return child, hint if hint in WHOLES or is_registered(hint) else None


def _index(place: list[Any], name: str, path: str) -> int:
    if not name.isdecimal() or int(name) >= len(place):
        raise ConfigError(f"{path}: no such entry, there are {', '.join(map(str, range(len(place)))) or 'none'}")
    return int(name)


def _expanded(value: Any) -> Any:
    """The name of a part as that part with its defaults."""
    part = part_named(value)
    if part is not None:
        return {"kind": value, **defaults(part)}
    return {"kind": value} if isinstance(value, str) else value


def _full(plain: Mapping[str, Any], key: str) -> str:
    """The path from the top, with the prefix that was left out."""
    first = key.split(".")[0]
    if first in plain:
        return key
    for prefix in _PREFIXES:
        if isinstance(plain[prefix], dict) and first in plain[prefix]:
            return f"{prefix}.{key}"
    known = [path.removeprefix("recipe.").removeprefix("train.") for path, _ in flatten(plain)]
    ends: dict[str, list[str]] = {}
    for path in known:
        ends.setdefault(path.split(".")[-1], []).append(path)
    close = difflib.get_close_matches(key.split(".")[-1], list(ends), 1, 0.6)
    meant = " or ".join(repr(path) for path in ends[close[0]][:3]) if close else None
    raise ConfigError(
        f"{key}: no such setting, " + (f"did you mean {meant}?" if meant else "`shortflow show RECIPE` lists them")
    )
