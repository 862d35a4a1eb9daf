"""A run's method beside the recipe that it is a variation of: in words, and setting by setting."""

from collections.abc import Sequence
from typing import Any

from shortflow.config import RunConfig, difference, difference_in_words, flatten, recipe_named, to_plain
from shortflow.config.words import described
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, SETTINGS
from shortflow.report.blocks import Block, Section, Sentences, Table, number

__all__ = ["NAMES", "base_of", "difference_table", "method_section", "plain_value"]

NAMES = ("name", "title", "year", "arxiv")  # what a method is called is no difference between methods


def base_of(recipe: Recipe) -> tuple[str, Recipe] | None:
    """The published recipe, or setting of it, from which a run's differs least; None for a method of one's own."""
    if recipe.name not in RECIPES:
        return None
    names = [recipe.name, *(f"{recipe.name}/{setting}" for setting in SETTINGS.get(recipe.name, ()))]
    found = [(name, recipe_named(name)) for name in names]
    return min(found, key=lambda each: len(difference(each[1], recipe)))


def method_section(config: RunConfig | None) -> Section:
    """The method of a run in words, and what it changes in the published recipe."""
    if config is None:
        return Section(title="Method")
    recipe = config.recipe
    source = f" ({recipe.year}, arXiv {recipe.arxiv})" if recipe.arxiv else ""
    blocks: list[Block] = []
    if recipe.title:
        blocks.append(Sentences(texts=[f"{recipe.name}: {recipe.title}{source}."]))
    rows = [[aspect, phrase] for aspect, phrase in described(recipe).items()]
    blocks.append(Table(caption="The method in words", head=["", recipe.name], rows=rows, words=frozenset({1})))
    base = base_of(recipe)
    if base is None:
        text = f"{recipe.name} is no recipe of the library, so there is none to compare it with."
        return Section(title="Method", blocks=[*blocks, Sentences(texts=[text])])
    name, published = base
    changed = [row for row in difference(published, recipe) if row[0] not in NAMES]
    if not changed:
        blocks.append(Sentences(texts=[f"Every setting of the method is that of the recipe {name}."]))
    else:
        sentences = difference_in_words(published, recipe, ("The recipe", "this run"))
        blocks += [Sentences(texts=sentences, points=True)] * bool(sentences)
        blocks.append(difference_table(f"Settings that differ from the recipe {name}", (name, "this run"), changed))
    return Section(title="Method", blocks=blocks)


def difference_table(caption: str, names: Sequence[str], rows: Sequence[tuple[str, Any, Any]]) -> Table:
    """Settings side by side."""
    cells = [[path, plain_value(left), plain_value(right)] for path, left, right in rows]
    return Table(caption=caption, head=["setting", *names], rows=cells, words=frozenset({1, 2}))


def settings_side_by_side(configs: Sequence[tuple[str, RunConfig]]) -> Table | None:
    """The settings in which runs differ, a column each; None where they do not."""
    plain = {name: dict(flatten(to_plain(config))) for name, config in configs}
    paths = dict.fromkeys(path for settings in plain.values() for path in settings)
    rows = []
    for path in paths:
        values = [plain_value(settings.get(path, "—")) for settings in plain.values()]
        if len(set(values)) > 1 and path.removeprefix("recipe.") not in NAMES[1:]:
            rows.append([path, *values])
    if not rows:
        return None
    words = frozenset(range(1, len(configs) + 1))
    return Table(caption="Settings that differ", head=["setting", *plain], rows=rows, words=words)


def plain_value(value: Any) -> str:
    """A setting as it is written in a run file."""
    if isinstance(value, list):
        return f"[{', '.join(map(plain_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return number(value, 6) if isinstance(value, float) else str(value)
