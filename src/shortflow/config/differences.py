"""What differs between two runs, recipes or parts: setting by setting, and between two methods in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from shortflow.config.parts import to_plain
from shortflow.config.words import described
from shortflow.recipe import Recipe

__all__ = ["difference", "difference_in_words", "flatten"]


def flatten(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf of a plain value, in the form that `override` takes."""
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
    order = list(left)
    before = -1
    for path in right:  # a setting that only b has stands behind its neighbour in b
        if path not in left:
            order.insert(before + 1, path)
        before = order.index(path)
    rows = ((path, left.get(path, "—"), right.get(path, "—")) for path in order)
    return [row for row in rows if row[1] != row[2]]


def difference_in_words(a: Recipe, b: Recipe, names: tuple[str, str]) -> list[str]:
    """A sentence for each aspect in which two methods differ, called by `names`, and one on what they share.

    Settings that no phrase names (see `shortflow.config.words`) are left to `difference`.
    """
    left, right = described(a), described(b)
    sentences = [
        f"{names[0]} {left[aspect]}; {names[1]} {right[aspect]}." for aspect in left if left[aspect] != right[aspect]
    ]
    shared = [aspect for aspect in left if left[aspect] == right[aspect]]
    if sentences and shared:
        *others, last = shared
        sentences.append(f"The same in both: {', '.join(others)}{' and ' if others else ''}{last}.")
    return sentences
