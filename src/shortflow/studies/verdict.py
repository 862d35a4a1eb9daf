"""What the results of a study allow to say, in sentences, and what they do not."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shortflow.studies.metrics import METRICS
from shortflow.studies.statistics import student_quantile

__all__ = ["figure", "listed", "steps_in_words", "verdict"]


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The sentences: what is best by the metric that was said beforehand, what is significant, what is missing."""
    return [*_best(results), *_significance(results), *_incomplete(results)]


def figure(metric: str, mean: float, error: float | None) -> str:
    """A mean with its standard error."""
    form = METRICS[metric].form
    return f"{mean:{form}}" if error is None else f"{mean:{form}} ± {error:{form}}"


def listed(names: Sequence[str]) -> str:
    """Names as "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def steps_in_words(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def primary_rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of the figure that decides, the best first."""
    study = results["study"]
    rows = [row for row in results["rows"] if (row["metric"], row["steps"]) == (study["metric"], study["metric_steps"])]
    return sorted(rows, key=lambda row: row["mean"] if study["smaller_is_better"] else -row["mean"])


def _best(results: Mapping[str, Any]) -> Iterator[str]:
    study, rows = results["study"], primary_rows(results)
    metric = METRICS[study["metric"]]
    if not rows:
        yield "No cell is done yet, so nothing can be said."
        return
    yield (
        f"What decides, as said beforehand: {study['metric']} in {steps_in_words(study['metric_steps'])} "
        f"({metric.words}; {metric.better})."
    )
    best, seeds = rows[0], len({row["n"] for row in rows}) == 1
    count = f"{best['n']} seeds" if best["n"] > 1 else "1 seed"
    others = f" of {len(rows)}" if len(rows) > 1 else ""
    each = "" if seeds else "; others have other numbers of seeds"
    value = figure(study["metric"], best["mean"], best["standard_error"])
    yield f"Best{others} in the mean: {best['variant']}, {value} ({count}{each})."


def _significance(results: Mapping[str, Any]) -> Iterator[str]:
    study = results["study"]
    family = [row for row in results["comparisons"] if row["primary"]]
    tested = [row for row in family if row["p_adjusted"] is not None]
    if not family:
        return
    if not tested:
        yield "One seed has no error: which differences are more than chance cannot be said. Give more seeds."
        return
    least, most = min(row["n"] for row in tested), max(row["n"] for row in tested)
    seeds = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    rule = f"paired t-tests, Holm's rule over {_count(len(tested), 'comparison')}, α = {study['alpha']:g}"
    claims = [row for row in tested if row["significant"]]
    if not claims:
        yield f"With {seeds} no difference is significant ({rule}).{_power(tested, study)}"
        return
    are = "is" if len(claims) == 1 else "are"
    yield f"{len(claims)} of {_count(len(tested), 'difference')} {are} significant ({seeds}; {rule})."
    if study["against"] is not None:
        yield from _beside(study["against"], tested, study)
    else:
        yield from _before(primary_rows(results)[0]["variant"], tested, study)


def _power(tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> str:
    """How large a difference must be to show, at the spread that was found and the strictest level."""
    errors = [row["standard_error"] for row in tested if row["standard_error"]]
    if not errors:
        return ""
    t = student_quantile(study["alpha"] / len(tested), min(row["n"] for row in tested) - 1)
    size = t * statistics.median(errors)
    return f" At the spread that was found, one of about {size:{METRICS[study['metric']].form}} would be."


def _beside(base: str, tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> Iterator[str]:
    """Each variant beside the one that all are set against."""
    sign = 1 if study["smaller_is_better"] else -1
    better = [row for row in tested if row["significant"] and sign * row["difference"] < 0]
    worse = [row for row in tested if row["significant"] and sign * row["difference"] > 0]
    same = [row["a"] for row in tested if not row["significant"]]
    for word, rows in (("better", better), ("worse", worse)):
        if rows:
            said = [f"{row['a']} (by {_difference(row, study)})" for row in rows]
            yield f"Significantly {word} than {base}: {listed(said)}."
    if same:
        yield f"No significant difference to {base}: {listed(same)}."


def _before(best: str, tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> Iterator[str]:
    """The best variant beside the others."""
    rows = [row for row in tested if best in (row["a"], row["b"])]

    def other(row: Mapping[str, Any]) -> str:
        return row["b"] if row["a"] == best else row["a"]

    behind = [other(row) for row in rows if row["significant"]]
    level = [other(row) for row in rows if not row["significant"]]
    if behind:
        yield f"{best} is significantly better than {listed(behind)}{f'; not than {listed(level)}' if level else ''}."
    else:
        yield f"That {best} is the best is not significant: it differs significantly from none of the others."


def _difference(row: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    value = figure(study["metric"], abs(row["difference"]), row["standard_error"])
    return f"{value}, p = {row['p_adjusted']:.2g}"


def _incomplete(results: Mapping[str, Any]) -> Iterator[str]:
    cells = results["cells"]
    failed = [f"{cell['variant']} seed {cell['seed']}" for cell in cells if cell["status"] == "failed"]
    missing = [cell for cell in cells if cell["status"] in ("missing", "running")]
    if failed:
        left = "is left out" if len(failed) == 1 else "are left out"
        yield f"{len(failed)} of {_count(len(cells), 'cell')} failed and {left}: {listed(failed)}."
    if missing:
        yield f"{len(missing)} of {_count(len(cells), 'cell')} are not made yet: all of this is preliminary."
    lacking: dict[str, list[str]] = {}
    for cell in cells:
        for steps in (cell["record"] or {}).get("impossible", {}):
            if cell["variant"] not in lacking.setdefault(steps, []):
                lacking[steps].append(cell["variant"])
    for steps, names in lacking.items():
        yield f"{listed(names)} cannot be sampled in {steps}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
