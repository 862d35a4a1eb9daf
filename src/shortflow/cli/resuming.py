"""Whether a run to go on with is the one that was asked for."""

from pathlib import Path
from typing import Any

from shortflow.errors import ConfigError

__all__ = ["check_same", "check_settings"]


def check_same(
    out: Path,
    run: Any,
    recipe: str | None,
    data: str | None = None,
    resolution: int | None = None,
    teacher: str | None = None,
    weak: str | None = None,
    init_from: str | None = None,
) -> None:
    """Raise `ConfigError` if what is asked for is not what the run to resume is."""
    asked = {"recipe": recipe, "--data": data, "--resolution": resolution}
    asked |= {"--teacher": teacher, "--weak": weak, "--init-from": init_from}
    found = {"recipe": run.recipe.name, "--data": run.data.source, "--resolution": run.data.resolution}
    found |= {"--teacher": run.teacher, "--weak": run.weak, "--init-from": run.init_from}
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        asked["recipe"] = None  # the run directory has its own copy
    wrong = [f"{name} {found[name]}, not {value}" for name, value in asked.items() if value not in (None, found[name])]
    if wrong:
        raise ConfigError(
            f"{out} is a run with {'; '.join(wrong)}. To go on with it: shortflow train --resume --out {out}"
        )


def check_settings(out: Path, run: Any, asked: Any) -> None:
    """Raise `ConfigError` if the run to go on with is not the run that is asked for."""
    from shortflow.config import difference

    changed = [f"{path} is {has}, not {wants}" for path, has, wants in difference(run, asked)]
    if changed:
        raise ConfigError(
            f"{out} is a run with other settings ({'; '.join(changed)}); leave out --set to go on with it, or start a "
            "new run in another --out"
        )
