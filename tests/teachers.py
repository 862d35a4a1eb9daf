"""What a run from a recipe's name needs beside its data: a teacher, a start or pairs, made by runs of a few steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortflow import runs
from shortflow.config import recipe_named

FROM = {"tcm": "ect", "cd": "edm"}
"""The recipe of the model that another one follows or starts from, where it is not flow matching."""


def settings_of(recipe: str) -> tuple[str, ...]:
    """A few pairs in few steps, for recipes that learn from pairs."""
    return ("pairs={count: 64, steps: 2}",) if "pairs" in recipe_named(recipe).objective.needs else ()


class Teachers:
    """Trains each teacher once and keeps it, under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def trained(self, recipe: str, data: str, settings: Sequence[str]) -> str:
        """The directory of a run of the recipe on the data."""
        directory = self.root / f"{recipe}-{Path(data).name}"
        if not directory.exists():
            list(runs.training(*runs.configure(recipe, data, settings=settings), directory))
        return str(directory)

    def given(self, recipe: str, data: str, settings: Sequence[str]) -> dict[str, Any]:
        """What `runs.configure` must be given for the recipe, with models trained with `settings`."""
        needs = recipe_named(recipe).objective.needs
        if not needs:
            return {}
        model = self.trained(FROM.get(recipe, "flow-matching"), data, settings)
        return {"init_from" if "init" in needs else "teacher": model}
