"""JSON values whose types are looked at before anything is made of them: a sum does not say who has written a file."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["entries", "listed", "mapped", "number", "or_none", "text", "whole"]

T = TypeVar("T")


def whole(value: Any, least: int = 0) -> int:
    """A whole number of at least `least`, and less than 2⁶³. Like all of these, `ValueError` for anything else."""
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{value!r:.80} is no whole number from {least}")
    return value


def number(value: Any) -> float:
    """A number, which need not be finite."""
    try:
        if type(value) in (int, float):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{value!r:.80} is no number")


def text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.80} is no text")
    return value


def or_none(read: Callable[[Any], T], value: Any) -> T | None:
    """What `read` makes of a value that may be null."""
    return None if value is None else read(value)


def listed(read: Callable[[Any], T], values: Any, length: int | None = None) -> list[T]:
    """What `read` makes of every entry of a list, of a certain length where one is given."""
    if not isinstance(values, list | tuple) or length not in (None, len(values)):
        raise ValueError(f"{values!r:.80} is no list" + ("" if length is None else f" of {length}"))
    return [read(value) for value in values]


def mapped(read: Callable[[Any], T], values: Any) -> dict[str, T]:
    """What `read` makes of every value of an object."""
    if not isinstance(values, dict):
        raise ValueError(f"{values!r:.80} is no object")
    return {text(name): read(value) for name, value in values.items()}


def entries(values: Any, **kinds: Callable[[Any], Any]) -> dict[str, Any]:
    """What the kinds make of the entries of an object, which has exactly these."""
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError(f"{values!r:.80} has not the entries {', '.join(kinds)}")
    return {name: read(values[name]) for name, read in kinds.items()}
