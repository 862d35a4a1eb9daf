"""How long a study will take: from speeds that its cells have had, or one measurement for each size of network and what
the other variants cost."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shortflow import runs
from shortflow.studies.cells import Cell, look, record_of
from shortflow.studies.planning import StudyPlan
from shortflow.studies.reusing import check_sources, same_run
from shortflow.studies.speed import images_per_second, threads_set
from shortflow.studies.variants import DEFAULTS, Planned

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study needs.

    Attributes:
        cells: how they are.
        seconds: of training and sampling of one cell of a variant, in one process.
        measured: the variants whose speed is known from their cells; the others' is that of one with a network of
            their size, divided by what their steps cost.
        copied: the names of cells that will be copied from other studies.
        left: seconds that are missing, in one process.
        forwards: F × images that are missing.
    """

    cells: Sequence[Cell]
    seconds: dict[str, float]
    measured: tuple[str, ...]
    copied: tuple[str, ...]
    left: float
    forwards: float


def forecast(plan: StudyPlan, out: Path, sources: Sequence[Path] = ()) -> Forecast:
    """The forecast of what is missing. Trains for a few steps in a place of its own where nothing is known yet.

    Cells that the studies in `sources` have made count as scoring only.

    Raises:
        ConfigError: if a source holds no study.
    """
    check_sources(sources)
    cells = look(plan, out)
    known = _known(plan, out)
    missing = [cell for cell in cells if cell.phase != "done"]
    rates = _rates(plan, known, [plan.named(cell.variant) for cell in missing])
    seconds, scoring, copied = {}, {}, []
    for variant in plan.variants:
        speed = known.get(variant.name)
        rate = _of_size(rates, variant.forward)
        training = variant.images * (variant.cost * rate if speed is None else 1 / speed)
        scoring[variant.name] = rate * plan.sampled(variant)
        seconds[variant.name] = training + scoring[variant.name]
    left = forwards = 0.0
    for cell in missing:
        variant = plan.named(cell.variant)
        if cell.step == 0 and same_run(plan, variant, cell.seed, out, sources) is not None:
            copied.append(cell.name)
            left += scoring[cell.variant]
            continue
        share = 1 - cell.step / cell.steps
        left += seconds[variant.name] * share
        forwards += variant.images * variant.cost * share
    return Forecast(
        cells=cells,
        seconds=seconds,
        measured=tuple(known),
        copied=tuple(copied),
        left=left,
        forwards=forwards,
    )


def _known(plan: StudyPlan, out: Path) -> dict[str, float]:
    """Images a second of the variants that have cells."""
    found: dict[str, list[float]] = {}
    for cell in look(plan, out):
        record = record_of(cell.directory)
        if record is not None and record.get("training_seconds", 0) > 0:
            found.setdefault(cell.variant, []).append(record["images"] / record["training_seconds"])
    return {name: sum(values) / len(values) for name, values in found.items()}


def _rates(plan: StudyPlan, known: dict[str, float], missing: list[Planned]) -> dict[float, float]:
    """Seconds of a pass over one image, by its operations: the mean of the variants that are known, or one that is
    measured for each size of network; networks that always follow others are left out where there is any other."""
    found: dict[float, list[float]] = {}
    for variant in plan.variants:
        if variant.name in known:
            found.setdefault(variant.forward, []).append(1 / (known[variant.name] * variant.cost))
    rates = {forward: sum(values) / len(values) for forward, values in found.items()}
    for variant in missing:
        alone = variant.teacher is None and variant.start is None and variant.weak is None
        if alone and variant.forward not in rates:  # those that it would need are not there yet
            rates[variant.forward] = _measured(plan, variant)
    if not rates and missing:
        variant = Planned(name="flow-matching", recipe="flow-matching", cost=3.0)
        rates[missing[0].forward] = _measured(plan, variant)
    return rates


def _of_size(rates: dict[float, float], forward: float) -> float:
    """That of the network nearest in size, in proportion to the operations; 0 where nobody needs to know."""
    if not rates:
        return 0.0
    nearest = min(rates, key=lambda other: abs(math.log(max(other, 1.0) / max(forward, 1.0))))
    return rates[nearest] * (forward / nearest if nearest > 0 < forward else 1.0)


def _measured(plan: StudyPlan, variant: Planned) -> float:
    """The same by training for a few steps."""
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
