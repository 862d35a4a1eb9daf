"""Plain values → objects: every value is checked against the declared type of its field, all errors are collected."""

import collections.abc
import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from shortflow.config.parts import WHOLES, fields_of, is_part, is_registered, kinds, part_named
from shortflow.errors import ConfigError

__all__ = ["from_plain", "nearest"]

_DEEPEST = 40  # nested parts; the deepest published recipe has 7 levels
_FINITE = ConfigDict(allow_inf_nan=False)


def nearest(name: Any, valid: Iterable[str]) -> str:
    """ "did you mean …?", or the list of what there is. Of equally near names it is the one of the same letters."""
    typed, by_lower = str(name).lower(), {each.lower(): each for each in valid}
    close = difflib.get_close_matches(typed, list(by_lower), 5, 0.5)
    if not close:
        return f"there are: {', '.join(by_lower.values())}"

    def likeness(each: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, each, typed).ratio(), sorted(each) == sorted(typed)

    return f"did you mean {by_lower[max(close, key=likeness)]!r}?"


def from_plain(hint: Any, plain: Any) -> Any:
    """The object of type `hint` that the plain value describes.

    Raises:
        ConfigError: listing every unknown name, wrong type and impossible value.
    """
    value, errors = read(hint, plain)
    if errors:
        raise ConfigError("\n".join(errors))
    return value


def read(hint: Any, plain: Any) -> tuple[Any, list[str]]:
    """The object, and everything that is wrong (then the object is None)."""
    reader = _Reader()
    value = reader.read(hint, plain, ())
    return (None if reader.errors else value), reader.errors


class _Reader:
    """Walks down the declared types and the plain value together. A path is the tuple of names on the way."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def fail(self, path: tuple[str, ...], message: str) -> None:
        # A part that names its setting in full ("optimizer.lr = …") needs only what stands before it.
        before = path[:-1] if path and message.startswith(f"{path[-1]}.") else path
        self.errors.append(
            ".".join((*before, message)) if before != path else f"{'.'.join(path)}: {message}".strip(": ")
        )

    def read(self, hint: Any, plain: Any, path: tuple[str, ...]) -> Any:
        """The object of type `hint` that `plain` describes; None after an error."""
        if len(path) > _DEEPEST:
            self.fail(path[:3], f"settings nested deeper than {_DEEPEST} levels")
            return None
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (typing.Union, types.UnionType):
            options = tuple(option for option in arguments if option is not type(None))
            if all(is_part(option) for option in options):
                return None if plain is None and len(options) < len(arguments) else self._part(options, plain, path)
        if origin in (tuple, collections.abc.Sequence) and is_part(arguments[0]):
            if not isinstance(plain, list | tuple):
                self.fail(path, f"expected a list, got {_shown(plain)}")
                return None
            return tuple(self.read(arguments[0], item, (*path, str(i))) for i, item in enumerate(plain))
        return self._part((hint,), plain, path) if is_part(hint) else self._leaf(hint, plain, path)

    def _leaf(self, hint: Any, plain: Any, path: tuple[str, ...]) -> Any:
        basic = _basic_types(hint)
        value = plain if str in basic else _number(plain)
        if basic == {str} and get_origin(hint) is tuple and isinstance(plain, str):
            value = [plain]  # one name without the brackets, which mean something to shells
        try:
            if not _of_basic_types(value, basic):
                raise TypeError
            return TypeAdapter(hint, config=_FINITE).validate_python(value)
        except (ValidationError, TypeError):
            choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
            meant = f", {nearest(plain, choices)}" if choices and len(choices) > 3 else ""
            quotes = "; put it in quotes" if basic == {str} and isinstance(plain, bool | int | float) else ""
            finite = (
                " that is finite" if isinstance(value, float) and not math.isfinite(value) and float in basic else ""
            )
            self.fail(path, f"expected {_describe(hint)}{finite}, got {_shown(plain)}{meant}{quotes}")
            return None

    def _part(self, bases: tuple[type, ...], plain: Any, path: tuple[str, ...]) -> Any:
        names = sorted({name for base in bases for name in kinds(base)})
        if isinstance(plain, str) and bases[0] not in WHOLES:
            plain = {"kind": plain}
        if not isinstance(plain, Mapping):
            what = "settings" if bases[0] in WHOLES else f"the name of a part ({', '.join(names)}) or its settings"
            self.fail(path, f"expected {what}, got {_shown(plain)}")
            return None
        values = dict(plain)
        if bases[0] in WHOLES:
            return self._fields(bases[0], values, path)
        # Where the type itself is a part, that is what settings without a kind are.
        kind = values.pop("kind", bases[0].__name__ if is_registered(bases[0]) else None)
        part = part_named(kind) if kind in names else None
        if part is None:
            own = " (a part of your own has to be registered first, with shortflow.register, or --import FILE)"
            missing = f"'kind' is missing; there are: {', '.join(names)}"
            self.fail(path, missing if kind is None else f"no such kind {_shown(kind)}, {nearest(kind, names)}{own}")
            return None
        return self._fields(part, values, path)

    def _fields(self, part: type, values: dict[Any, Any], path: tuple[str, ...]) -> Any:
        hints, before = fields_of(part), len(self.errors)
        for name, value in values.items():
            if name not in hints:
                valid = nearest(name, hints) if hints else "it has none"
                self.fail((*path, str(name)), f"no such setting of {part.__name__}, {valid} (got {_shown(value)})")
        given = {name: self.read(hints[name], value, (*path, name)) for name, value in values.items() if name in hints}
        for f in dataclasses.fields(part):
            needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if f.init and needed and f.name not in values:
                self.fail((*path, f.name), f"is missing; {part.__name__} needs it: {_describe(hints[f.name])}")
        if len(self.errors) > before:
            return None
        try:
            return part(**given)
        except ValueError as error:
            self.fail(path, str(error))
            return None


# ---------------------------------------------------------------------------------------------------- numbers and words


def _number(plain: Any) -> Any:
    """Texts that are numbers as numbers: YAML 1.1 reads 1e-4 and 1e6, without a point, as texts."""
    if isinstance(plain, list | tuple):
        return [_number(item) for item in plain]
    if isinstance(plain, str):
        for kind in (int, float):
            try:
                return kind(plain)
            except ValueError:
                continue
    return plain


def _basic_types(hint: Any) -> set[type]:
    """The types of which the values of a leaf consist, without None."""
    if get_origin(hint) is typing.Literal:
        return {type(choice) for choice in get_args(hint)}
    if get_args(hint):
        return set().union(*(_basic_types(each) for each in get_args(hint) if each not in (Ellipsis, type(None))))
    return {hint}


def _of_basic_types(value: Any, basic: set[type]) -> bool:
    """Whether no value would be converted silently (true to 1, 1 to true) or is too large for a tensor of integers."""
    if isinstance(value, list | tuple):
        return all(_of_basic_types(item, basic) for item in value)
    if isinstance(value, bool):
        return bool in basic
    if isinstance(value, int | float):
        return bool(basic & {int, float}) and (float in basic or abs(value) < 2**63)
    return value is None or (isinstance(value, str) and str in basic)


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _describe(each) for each in arguments)
    if origin in (tuple, collections.abc.Sequence):
        many = Ellipsis in arguments or origin is not tuple
        count = "" if many else f"{len(arguments)} "
        return f"a list of {count}{_describe(arguments[0]).removeprefix('a ').removeprefix('whole ')}s"
    if is_part(hint):
        return "settings" if hint in WHOLES else f"one of {', '.join(kinds(hint))}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))


def _shown(plain: Any) -> str:
    """A value as it was given, shortened."""
    return reprlib.repr(plain)
