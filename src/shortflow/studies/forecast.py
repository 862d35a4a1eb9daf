"""How long a study will take: from speeds that its cells have had, or one measurement and the cost of the others."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shortflow import runs
from shortflow.studies.cells import Cell, look, record_of
from shortflow.studies.planning import StudyPlan
from shortflow.studies.speed import images_per_second, threads_set
from shortflow.studies.variants import DEFAULTS, Planned

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study needs.

    Attributes:
        cells: how they are.
        seconds: of training and sampling of one cell of a variant, in one process.
        measured: the variants whose speed is known from their cells; the others' is that of one that was measured,
            divided by what their steps cost.
        left: seconds that are missing, in one process.
        forwards: F × images that are missing.
    """

    cells: Sequence[Cell]
    seconds: dict[str, float]
    measured: tuple[str, ...]
    left: float
    forwards: float


def forecast(plan: StudyPlan, out: Path) -> Forecast:
    """The forecast of what is missing. Trains for a few steps in a place of its own where nothing is known yet."""
    cells = look(plan, out)
    known = _known(plan, out)
    missing = [cell for cell in cells if cell.phase != "done"]
    rate = _rate(plan, known, needed=any(cell.variant not in known for cell in missing))  # seconds for an F of an image
    seconds = {}
    for variant in plan.variants:
        speed = known.get(variant.name)
        training = variant.images * (variant.cost * rate if speed is None else 1 / speed)
        per_pass = rate or training / (variant.images * variant.cost)
        seconds[variant.name] = training + per_pass * plan.sampled(variant)
    left = forwards = 0.0
    for cell in missing:
        variant = plan.named(cell.variant)
        share = 1 - cell.step / cell.steps
        left += seconds[variant.name] * share
        forwards += variant.images * variant.cost * share
    return Forecast(cells=cells, seconds=seconds, measured=tuple(known), left=left, forwards=forwards)


def _known(plan: StudyPlan, out: Path) -> dict[str, float]:
    """Images a second of the variants that have cells."""
    found: dict[str, list[float]] = {}
    for cell in look(plan, out):
        record = record_of(cell.directory)
        if record is not None and record.get("training_seconds", 0) > 0:
            found.setdefault(cell.variant, []).append(record["images"] / record["training_seconds"])
    return {name: sum(values) / len(values) for name, values in found.items()}


def _rate(plan: StudyPlan, known: dict[str, float], needed: bool) -> float:
    """Seconds for one pass of one image; 0 where nobody needs to know."""
    if not needed:
        return 0.0
    for name, speed in known.items():
        return 1 / (speed * plan.named(name).cost)
    # Something without other models, which are not there yet; flow matching where there is nothing.
    alone = (each for each in plan.variants if each.teacher is None and each.start is None and each.weak is None)
    variant = next(alone, Planned(name="flow-matching", recipe="flow-matching", cost=3.0))
    study = plan.study
    run, dataset = runs.configure(
        variant.recipe,
        study.data,
        resolution=study.resolution,
        settings=[*DEFAULTS, *study.settings, *variant.settings],
    )
    with tempfile.TemporaryDirectory() as folder, threads_set(plan.threads):
        speed = images_per_second(run, dataset, Path(folder) / "run")
    return 1 / (speed * variant.cost)
