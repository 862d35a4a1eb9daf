"""The results of a study as one JSON file, from the records of its cells; the schema is in docs/compare.md.

format       1; fields are added under the same number, never changed or removed
study        what was asked, and what decides: data, budget, seeds, steps, metric, metric_steps, …
variants     [{name, recipe, settings, difference, cost_F, images, …}]
cells        [{variant, seed, path, status: done | running | missing | failed, images, seconds, record, breakdown, …}]
rows         [{variant, steps, metric, mean, standard_error, n, values}]
comparisons  [{metric, steps, a, b, difference, standard_error, p_value, p_adjusted, n, significant, primary}]
curves       [{variant, metric, steps, points: [{share, images, forwards, mean, standard_error, n}]}]
reference    rows of real data by name, as a record has them
verdict      [sentences]
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shortflow.config import to_plain
from shortflow.errors import ConfigError
from shortflow.evaluate import write_record
from shortflow.files import write_atomic
from shortflow.runs.sampling import steps_named
from shortflow.status import breakdown
from shortflow.studies.cells import Cell, look, record_of
from shortflow.studies.metrics import METRICS
from shortflow.studies.planning import StudyPlan
from shortflow.studies.statistics import holm, mean_and_error, paired
from shortflow.studies.tables import table
from shortflow.studies.variants import Planned
from shortflow.studies.verdict import verdict
from shortflow.yamlfile import parse_yaml

__all__ = ["FORMAT", "read_results", "results", "write_results"]

FORMAT = 1
TEST = "paired t-test by seed, two-sided; p-values adjusted by Holm's rule over the comparisons of a number of steps"

Records = Mapping[tuple[str, int], Mapping[str, Any]]


def write_results(plan: StudyPlan, out: Path, cells: Sequence[Cell] | None = None) -> dict[str, Any]:
    """Write OUT/results.json and OUT/table.md from what is there, and return the former."""
    found = results(plan, out, cells)
    write_record(out / "results.json", found)
    write_atomic(out / "table.md", table(found))
    return found


def read_results(out: Path) -> dict[str, Any]:
    """The results of a study.

    Raises:
        ConfigError: if there are none, or of another format.
    """
    file = Path(out) / "results.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}); `shortflow compare --out {out}` writes the results of a study"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{file} is not of format {FORMAT}, which this version of shortflow reads")
    return found


def results(plan: StudyPlan, out: Path, cells: Sequence[Cell] | None = None) -> dict[str, Any]:
    """Everything that the cells say so far, as JSON values."""
    cells = look(plan, out) if cells is None else cells
    records: dict[tuple[str, int], Mapping[str, Any]] = {}
    for cell in cells:
        record = record_of(cell.directory) if cell.phase == "done" else None
        if record is not None and not plan.named(cell.variant).support:
            records[cell.variant, cell.seed] = record
    found: dict[str, Any] = {
        "format": FORMAT,
        "study": _study(plan),
        "variants": [_variant(variant) for variant in plan.variants],
        "cells": [_cell(cell, out) for cell in cells],
        "rows": _rows(plan, records),
        "comparisons": _comparisons(plan, records),
        "curves": _curves(plan, records),
        "reference": _reference(records),
    }
    return {**found, "verdict": verdict(found)}


def _study(plan: StudyPlan) -> dict[str, Any]:
    study = plan.study
    plain = to_plain(study)
    for name in ("variants", "vary"):
        del plain[name]
    return plain | {
        "kind": plan.kind,
        "metric": plan.metric,
        "metric_steps": study.primary_steps,
        "smaller_is_better": METRICS[plan.metric].smaller,
        "n": plan.n,
        "threads": plan.threads,
        "declared": None if plan.declared is None else to_plain(plan.declared),
        "test": TEST,
        "settings": _settings(study.settings),
        "budget": None if study.budget is None else {"kind": study.budget.kind, "amount": study.budget.amount},
    }


def _variant(variant: Planned) -> dict[str, Any]:
    return {
        "name": variant.name,
        "recipe": variant.recipe,
        "settings": _settings(variant.settings),
        "difference": "; ".join(variant.difference),
        "differences": list(variant.difference),
        "cost_F": variant.cost,
        "flop_F": variant.forward,
        "images": variant.images,
        "batch": variant.batch,
        "teacher": variant.teacher,
        "start": variant.start,
        "weak": variant.weak,
        "support": variant.support,
    }


def _settings(settings: Sequence[str]) -> dict[str, Any]:
    return {path.strip(): parse_yaml(text, path) for path, _, text in (setting.partition("=") for setting in settings)}


def _cell(cell: Cell, out: Path) -> dict[str, Any]:
    record = record_of(cell.directory) if cell.phase == "done" else None
    log, broken = cell.directory / "log.txt", breakdown(cell.directory)
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "path": cell.directory.relative_to(out).as_posix(),
        "status": cell.phase,
        "step": cell.step,
        "steps": cell.steps,
        "images": None if record is None else record["images"],
        "seconds": None if record is None else record["training_seconds"],
        "record": record,
        "breakdown": None if broken is None else vars(broken) | {"words": str(broken)},
        "error": cell.error,
        "log": log.relative_to(out).as_posix() if log.is_file() else None,
    }


# ----------------------------------------------------------------------------------------------------------- aggregates


def _number(row: Mapping[str, Any] | None, metric: str) -> float | None:
    value = None if row is None else row.get(metric)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _values(plan: StudyPlan, records: Records, variant: str, steps: int, metric: str) -> dict[int, float]:
    """The figures of a variant by seed."""
    found = {}
    for seed in plan.study.seeds:
        record = records.get((variant, seed))
        value = None if record is None else _number(record["rows"].get(steps_named(steps)), metric)
        if value is not None:
            found[seed] = value
    return found


def _rows(plan: StudyPlan, records: Records) -> list[dict[str, Any]]:
    found = []
    for variant, steps, metric in itertools.product(plan.compared, plan.study.steps, METRICS):
        values = _values(plan, records, variant.name, steps, metric)
        if values:
            mean, error = mean_and_error(list(values.values()))
            row = {"variant": variant.name, "steps": steps, "metric": metric, "mean": mean, "standard_error": error}
            found.append({**row, "n": len(values), "values": {str(seed): value for seed, value in values.items()}})
    return found


def _comparisons(plan: StudyPlan, records: Records) -> list[dict[str, Any]]:
    """Of the metric that decides, at every number of steps: all pairs, or all with the one they are set against."""
    names, study = [variant.name for variant in plan.compared], plan.study
    pairs = list(itertools.combinations(names, 2))
    if study.against is not None:
        pairs = [(name, study.against) for name in names if name != study.against]
    found = []
    for steps in study.steps:
        family = []
        for a, b in pairs:
            left, right = (_values(plan, records, name, steps, plan.metric) for name in (a, b))
            seeds = [seed for seed in left if seed in right]
            if not seeds:
                continue
            test = paired([left[seed] for seed in seeds], [right[seed] for seed in seeds])
            family.append({"metric": plan.metric, "steps": steps, "a": a, "b": b, **vars(test)})
        tested = [row for row in family if row["p_value"] is not None]
        for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_adjusted"] = adjusted
        for row in family:
            adjusted = row.setdefault("p_adjusted", None)
            row["significant"] = adjusted is not None and adjusted < study.alpha
            row["primary"] = steps == study.primary_steps
        found += family
    return found


def _curves(plan: StudyPlan, records: Records) -> list[dict[str, Any]]:
    """The metric that decides at shares of the budget, which are images and forward passes."""
    found, steps = [], plan.study.primary_steps
    for variant in plan.compared:
        curves = [record.get("curve") or [] for (name, _), record in records.items() if name == variant.name]
        points = []
        for share in plan.study.at if len(plan.study.at) > 1 else ():
            rows = [point["row"] for curve in curves for point in curve if point["share"] == share]
            values = [value for row in rows if (value := _number(row, plan.metric)) is not None]
            if values:
                mean, error = mean_and_error(values)
                images = variant.step_at(share) * variant.batch
                cost = {"share": share, "images": images, "forwards": images * variant.cost}
                points.append({**cost, "mean": mean, "standard_error": error, "n": len(values)})
        if points:
            found.append({"variant": variant.name, "metric": plan.metric, "steps": steps, "points": points})
    return found


def _reference(records: Records) -> dict[str, Any]:
    """The rows of real data, which are the same in all cells."""
    record = next(iter(records.values()), None)
    if record is None:
        return {}
    return {name: row for name, row in record["rows"].items() if name.startswith("real")}
