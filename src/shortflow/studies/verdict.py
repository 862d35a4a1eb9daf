"""What the results of a study allow to say, in sentences, and what they do not."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shortflow.studies.metrics import METRICS
from shortflow.studies.statistics import student_quantile

__all__ = ["figure", "listed", "primary_rows", "probability", "steps_in_words", "thousands", "verdict"]

NAMED = 6  # differences that are written out in a sentence


def verdict(results: Mapping[str, Any]) -> list[str]:
    """The sentences: what is best, whether that is significant and by how much, at what cost, in other numbers of
    steps; which figure was to decide; what has broken down or is missing."""
    of_all = (*_cost(results), *_elsewhere(results), *_broken(results), *_incomplete(results))
    return [*_best(results), *_significance(results), *of_all]


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
    return ranked_rows(results, results["study"]["metric_steps"])


def ranked_rows(results: Mapping[str, Any], steps: int) -> list[Mapping[str, Any]]:
    """The rows of the metric that decides in so many steps, the best first."""
    study = results["study"]
    rows = [row for row in results["rows"] if (row["metric"], row["steps"]) == (study["metric"], steps)]
    return sorted(rows, key=lambda row: row["mean"] if study["smaller_is_better"] else -row["mean"])


def _best(results: Mapping[str, Any]) -> Iterator[str]:
    study, rows = results["study"], primary_rows(results)
    metric = METRICS[study["metric"]]
    if not rows:
        yield "No cell is done yet, so nothing can be said."
        return
    best, seeds = rows[0], len({row["n"] for row in rows}) == 1
    count = _count(best["n"], "seed")
    others = f" of {len(rows)}" if len(rows) > 1 else ""
    most = max(row["n"] for row in rows)
    each = "" if seeds else f"; others have {most}" if most > best["n"] else "; others have fewer"
    value = figure(study["metric"], best["mean"], best["standard_error"])
    yield (
        f"Best{others} in {steps_in_words(study['metric_steps'])}: {best['variant']}, {study['metric']} {value} "
        f"({metric.words}; {metric.better}; mean of {count}{each})."
    )


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
    rule = f"paired t-tests, p adjusted by Holm's rule over {_count(len(tested), 'comparison')}, α = {study['alpha']:g}"
    claims = [row for row in tested if row["significant"]]
    if not claims:
        yield f"With {seeds} no difference is significant ({rule}).{_power(tested, study)}"
    elif study["against"] is not None:
        yield from _beside(study["against"], tested, study)
    else:
        yield from _before(primary_rows(results)[0]["variant"], tested, study)
    if claims or study["against"] is not None:
        yield from _untested(study["against"] or primary_rows(results)[0]["variant"], family)
    if claims:
        are = "is" if len(claims) == 1 else "are"
        yield f"{len(claims)} of {_count(len(tested), 'difference')} {are} significant ({seeds}; {rule})."
    yield from _changed(study)


def _power(tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> str:
    """How large a difference must be to show, at the spread that was found and the strictest level."""
    errors = [row["standard_error"] for row in tested if row["standard_error"]]
    if not errors:
        return ""
    t = student_quantile(study["alpha"] / len(tested), min(row["n"] for row in tested) - 1)
    size = t * statistics.median(errors)
    return f" At the spread that was found, one of about {size:{METRICS[study['metric']].form}} would be."


def _changed(study: Mapping[str, Any]) -> Iterator[str]:
    """What was said beforehand, if it was something else: figures that were chosen after a look prove less."""
    first = study.get("declared")
    if first is None:
        return
    names = ("metric", "metric_steps", "against", "alpha")
    if any(first[name] != study[name] for name in names):
        was = f"{first['metric']} in {steps_in_words(first['metric_steps'])}"
        was += f" against {first['against']}" if first["against"] else ", all pairs"
        yield (
            f"Not said beforehand: when the first cells were scored, {was}, α = {first['alpha']:g}, was to decide. "
            "What is chosen after a look at the figures proves less than its p-value says."
        )
    if first["seeds"] < len(study["seeds"]):
        yield (
            f"There were {_count(first['seeds'], 'seed')} when the first cells were scored, and more later: where "
            "seeds are added until a difference shows, p is too small."
        )


def _beside(base: str, tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> Iterator[str]:
    """Each variant beside the one that all are set against."""
    sign = 1 if study["smaller_is_better"] else -1
    better = [row for row in tested if row["significant"] and sign * row["difference"] < 0]
    worse = [row for row in tested if row["significant"] and sign * row["difference"] > 0]
    same = [row for row in tested if not row["significant"]]
    for word, rows in (("better", better), ("worse", worse)):
        if rows:
            yield f"Significantly {word} than {base}: {_names(rows, base, study, 'by ')}."
    if same:
        yield f"No significant difference to {base}: {_names(same, base, study)}."


def _before(best: str, tested: Sequence[Mapping[str, Any]], study: Mapping[str, Any]) -> Iterator[str]:
    """The best variant beside the others."""
    rows = [row for row in tested if best in (row["a"], row["b"])]
    behind = [row for row in rows if row["significant"]]
    level = [row for row in rows if not row["significant"]]
    if behind:
        rest = f"; not than {_names(level, best, study)}" if level else ""
        yield f"{best} is significantly better than {_names(behind, best, study, 'by ')}{rest}."
    else:
        yield f"That {best} is the best is not significant: it differs significantly from none of the others."


def _untested(base: str, family: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Who has one seed in common with the one that others are set beside."""
    rows = [row for row in family if row["p_adjusted"] is None and base in (row["a"], row["b"])]
    if rows:
        names = listed([row["b"] if row["a"] == base else row["a"] for row in rows])
        yield f"Not tested beside {base}, with one seed in common: {names}."


def _names(rows: Sequence[Mapping[str, Any]], base: str, study: Mapping[str, Any], by: str = "") -> str:
    """The others of comparisons with `base`, each with its difference as long as they are few."""

    def one(row: Mapping[str, Any]) -> str:
        other = row["b"] if row["a"] == base else row["a"]
        return other if len(rows) > NAMED else f"{other} ({by}{_difference(row, study)})"

    return listed([one(row) for row in rows])


def _difference(row: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    value = figure(study["metric"], abs(row["difference"]), row["standard_error"])
    return f"{value}, {probability(row['p_adjusted'])}"


def probability(p: float) -> str:
    """A p-value as it is written."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _fewer(rows: Sequence[Mapping[str, Any]]) -> str:
    """That the first has fewer seeds than another: it may lead because the others had harder ones, too."""
    most = max(row["n"] for row in rows)
    return f" ({_count(rows[0]['n'], 'seed')} of {most})" if rows[0]["n"] < most else ""


def _cost(results: Mapping[str, Any]) -> Iterator[str]:
    """What the best variant costs, and the others."""
    order = [row["variant"] for row in primary_rows(results)]
    if not order:
        return
    spent = {v["name"]: v["images"] * v["cost_F"] for v in results["variants"]}
    best, others = order[0], [spent[name] for name in order[1:]]
    a_step = next(v["cost_F"] for v in results["variants"] if v["name"] == best)
    beside = ""
    if others:
        low, high = thousands(min(others)), thousands(max(others))
        beside = f"; the others {low}" + ("" if low == high else f" to {high}")
    yield f"A run of {best} costs {thousands(spent[best])} F × images ({a_step:.3g} F a step){beside}."


def _elsewhere(results: Mapping[str, Any]) -> Iterator[str]:
    """What is best in the other numbers of steps, which are tested each by itself, and of all."""
    study, said, leaders = results["study"], [], []
    sign = 1 if study["smaller_is_better"] else -1
    for steps in study["steps"]:
        rows = ranked_rows(results, steps)
        if len(rows) < 2:
            continue
        leaders.append(rows)
        name = rows[0]["variant"]
        ahead = sum(
            row["steps"] == steps and name in (row["a"], row["b"]) and row["significant"]
            for row in results["comparisons"]
        )
        value = figure(study["metric"], rows[0]["mean"], rows[0]["standard_error"]) + _fewer(rows)
        if steps != study["metric_steps"]:
            of = f"{ahead or 'none'} of {_count(len(rows) - 1, 'other')}" if study["against"] is None else ""
            said.append(
                f"{name} in {steps_in_words(steps)}, {value}" + (f" (significantly better than {of})" * bool(of))
            )
    if said:
        yield f"Best in other numbers of steps: {'; '.join(said)}."
        rows = min(leaders, key=lambda rows: sign * rows[0]["mean"])
        first, value = rows[0], figure(study["metric"], rows[0]["mean"], rows[0]["standard_error"]) + _fewer(rows)
        yield f"Best cell of all: {first['variant']} in {steps_in_words(first['steps'])}, {value}."


def _broken(results: Mapping[str, Any]) -> Iterator[str]:
    cells = [cell for cell in results["cells"] if cell["status"] == "done" and cell.get("breakdown")]
    said = [f"{cell['variant']} seed {cell['seed']} ({cell['breakdown']['words']})" for cell in cells]
    if said:
        is_one = len(said) == 1
        yield (
            f"{_count(len(said), 'run')} may have broken down and {'is' if is_one else 'are'} among the figures: "
            f"{listed(said)}."
        )


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


def thousands(number: float) -> str:
    """A large number with the prefix of its thousands."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return f"{number:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
