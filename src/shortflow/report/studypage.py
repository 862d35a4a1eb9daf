"""The page of a study: verdict, quality by steps with errors, what is significant; the rest in modules of its own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shortflow.report.blocks import Block, Chart, Facts, Notes, Row, Section, Sentences, Table, number, probability
from shortflow.report.charts import lines, ranking
from shortflow.report.files import Study
from shortflow.report.metrics import Metric, measured, metric_of
from shortflow.report.reading import listed
from shortflow.report.runcost import duration
from shortflow.report.seen import COLOURED, MANY, Seen, bars, mean, words
from shortflow.report.studycost import cost_section, spent, training_section
from shortflow.report.studyvariants import again_section, cells_section, samples_section, variants_section

__all__ = ["study_sections"]

_PAIRS = 30  # comparisons in the table
_BESIDE = ("recall", "coverage", "conditional_accuracy", "kid", "sliced_w2", "precision")


def study_sections(study: Study, name: str) -> list[Section]:
    """Everything about a study; `name` is unique in the page."""
    seen = Seen.of(study)
    found = [
        _summary(seen, name),
        _quality(seen, name),
        _significance(seen),
        training_section(seen, name),
        cost_section(seen, name),
        samples_section(seen, name),
        variants_section(seen),
        cells_section(seen),
        again_section(seen),
    ]
    return [section for section in found if section]


def _by_steps(seen: Seen, key: str, name: str, small: bool = False) -> Chart | None:
    series = seen.series(key)
    if not series:
        return None
    metric = seen.metric if key == seen.metric.key else metric_of(key)
    behind = sum(one.place is None for one in series)
    caption = [f"{metric.better[:1].upper()}{metric.better[1:]}." if metric.better else "", bars(seen)]
    if behind:
        caption.append(f"The {COLOURED} best in colour, the other {behind} in grey.")
    chart = lines(
        name,
        f"{metric.label[0].upper()}{metric.label[1:]} against steps",
        series,
        x="steps of sampling",
        y=metric.label,
        caption=" ".join(part for part in caption if part),
        log_x=True,
        floor=seen.floor if key == seen.metric.key else None,
        table=False,
        small=small,
    )
    legend = sorted(chart.legend, key=lambda each: each[1])
    return Chart(title=chart.title, svg=chart.svg, caption=chart.caption, legend=legend)


# ------------------------------------------------------------------------------------------------------------- summary


def _summary(seen: Seen, name: str) -> Section:
    verdict = [str(text) for text in listed(seen.study.results.get("verdict"))]
    warnings = [text for text in verdict if re.match(r"\d+ of \d+ cells? ", text)]  # failed, or not made yet
    said = [text for text in verdict if text not in warnings]
    about = " ".join(str(seen.settings.get("about") or "").split())
    blocks: list[Block] = [Sentences(texts=[about])] if about else []
    blocks.append(Sentences(texts=said[:2] or ["The study says nothing yet."], lead=True))
    notes = [*(warnings or _unfinished(seen)), *(f"{fault.rstrip('.')}." for fault in seen.study.faults)]
    if notes:
        blocks.append(Notes(texts=notes))
    main: Chart | None = _ranked(seen, f"{name}-main") if len(seen.order) > MANY else None
    main = main or _by_steps(seen, seen.metric.key, f"{name}-main")
    blocks.append(Row(blocks=[each for each in (main, _facts(seen)) if each is not None]))
    if said[2:]:
        blocks.append(Sentences(texts=said[2:], points=True))
    return Section(title="Summary", blocks=blocks)


def _ranked(seen: Seen, name: str) -> Chart | None:
    """All variants in the number of steps that decides."""
    rows = [
        (variant, *seen.values[variant, seen.steps, seen.metric.key][:2])
        for variant in seen.order
        if (variant, seen.steps, seen.metric.key) in seen.values
    ]
    if not rows:
        return None
    label = f"{seen.metric.label} in {words(seen.steps)}"
    title = f"{label[0].upper()}{label[1:]}"
    caption = f"{seen.metric.better[:1].upper()}{seen.metric.better[1:]}. {bars(seen)}"
    return ranking(name, title, rows, x=label, caption=caption, floor=seen.floor)


def _unfinished(seen: Seen) -> list[str]:
    cells = seen.study.rows("cells")
    counts = {
        status: sum(cell.get("status") == status for cell in cells) for status in ("running", "missing", "failed")
    }
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    return [f"Of {len(cells)} cells {', '.join(parts)}: the figures are those of the cells that are done."] * bool(
        parts
    )


def _facts(seen: Seen) -> Facts:
    rows = []
    if seen.order and (best := seen.values.get((seen.order[0], seen.steps, seen.metric.key))) is not None:
        remark = f"{seen.order[0]}; {seen.metric.label}, {seen.metric.better}"
        rows.append((f"best in {words(seen.steps)}", mean(best), remark))
        rows += _ahead(seen, seen.order[0])
        rows += _price(seen)
    cells = seen.study.rows("cells")
    done = sum(cell.get("status") == "done" for cell in cells)
    seeds = seen.settings.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else len({cell.get("seed") for cell in cells})
    compared = sum(not each.get("support") for each in seen.study.rows("variants"))
    rows.append(("runs", f"{done} of {len(cells)}", f"{_plural(compared, 'variant')}, {_plural(count, 'seed')}"))
    budget = seen.settings.get("budget")
    if isinstance(budget, Mapping) and measured(budget.get("amount")) is not None:
        rows.append(("budget", number(budget["amount"]), f"{budget.get('kind')}, the same for all"))
    seconds = [value for cell in cells if (value := measured(cell.get("seconds"))) is not None]
    if seconds:
        rows.append(("time", duration(sum(seconds)), "of training in all"))
    if seen.settings.get("data"):
        rows.append(("data", str(seen.settings["data"]), f"{number(seen.settings.get('n'))} samples scored"))
    return Facts(rows=rows)


def _ahead(seen: Seen, best: str) -> list[tuple[str, str, str]]:
    """Whether the best one is the best by more than chance."""
    tested = [row for row in _decisive(seen) if best in (row.get("a"), row.get("b"))]
    tested = [row for row in tested if measured(row.get("p_value")) is not None]
    if not tested:
        return []
    ahead = sum(row.get("significant") is True for row in tested)
    return [("significant", f"{ahead} of {len(tested)}", f"others differ significantly from {best}")]


def _price(seen: Seen) -> list[tuple[str, str, str]]:
    """What a run of the best one costs, beside the others."""
    costs = [value for name in seen.order if (value := spent(seen, name)) is not None]
    if len(costs) != len(seen.order):
        return []
    beside = f"; the others {number(min(costs[1:]), 3)} to {number(max(costs[1:]), 3)}" if len(costs) > 1 else ""
    return [("cost", number(costs[0], 3), f"F × images of a run of {seen.order[0]}{beside}")]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# --------------------------------------------------------------------------------------------- quality, significance


def _quality(seen: Seen, name: str) -> Section:
    counts = seen.of_metric(seen.metric.key)
    if not counts:
        return Section(title="Quality")
    blocks: list[Block] = []
    if len(seen.order) > MANY and (chart := _by_steps(seen, seen.metric.key, f"{name}-q")):
        blocks.append(chart)
    blocks.append(_figures(seen, counts))
    others = list(dict.fromkeys(key for _, steps, key in seen.values if key != seen.metric.key and steps == seen.steps))
    if others:
        blocks.append(_others(seen, others))
    charts = [
        chart
        for k, key in enumerate(key for key in _BESIDE if key in others and len(seen.of_metric(key)) > 1)
        if (chart := _by_steps(seen, key, f"{name}-o{k}", small=True))
    ][:4]
    if charts:
        blocks.append(Row(blocks=charts, narrow=True))
    return Section(title="Quality by steps", blocks=blocks)


def _figures(seen: Seen, counts: Sequence[int]) -> Table:
    """What decides, in all numbers of steps: the best of each in bold, and a sign at what differs from it."""
    key, against = seen.metric.key, seen.settings.get("against")
    leaders = {count: seen.leader(count) for count in counts}
    differ = {
        (row.get("steps"), frozenset((str(row.get("a")), str(row.get("b")))))
        for row in seen.study.rows("comparisons")
        if row.get("significant") is True and row.get("metric") == key
    }
    rows, strong, marked = [], set(), False
    for i, variant in enumerate(seen.order):
        cells = []
        for j, count in enumerate(counts):
            other = against or leaders[count]
            sign = variant != other and (count, frozenset((variant, str(other)))) in differ
            marked = marked or sign
            cells.append(mean(seen.values.get((variant, count, key))) + " †" * sign)
            if variant == leaders[count] and len(seen.order) > 1:
                strong.add((i, j + 1))
        rows.append([variant, *cells])
    if seen.floor is not None:
        rows.append([seen.floor[0], number(seen.floor[1]), *[""] * (len(counts) - 1)])
    note = [seen.metric.better, seen.metric.reading]
    if len(seen.order) > 1:
        note.append("bold: the best of its column")
    if marked:
        note.append(f"†: differs significantly from {against or 'the best of its column'}")
    return Table(
        caption=f"{seen.label} by number of steps, mean ± standard error over seeds",
        head=["", *map(words, counts)],
        rows=rows,
        strong=frozenset(strong),
        note="; ".join(part for part in note if part),
    )


def _others(seen: Seen, keys: Sequence[str]) -> Table:
    """The other figures: a line each where variants are few, else a column each."""
    metrics = [metric_of(key) for key in keys]
    cells = [[mean(seen.values.get((variant, seen.steps, key))) for variant in seen.order] for key in keys]
    caption, note = f"Other figures in {words(seen.steps)}", "Not tested for significance; nothing here decides."
    names = list(seen.order)
    if seen.real is not None:
        names.append(seen.real[0])
        cells = [[*line, number(measured(seen.real[1].get(key)))] for key, line in zip(keys, cells, strict=True)]
    if len(seen.order) <= MANY:
        rows = [[_told(metric), *line] for metric, line in zip(metrics, cells, strict=True)]
        return Table(caption=caption, head=["", *names], rows=rows, note=note)
    rows = [[name, *column] for name, column in zip(names, zip(*cells, strict=True), strict=True)]
    return Table(caption=caption, head=["", *(metric.label for metric in metrics)], rows=rows, note=note)


def _told(metric: Metric) -> str:
    return f"{metric.label}, {metric.better}" if metric.better else metric.label


def _decisive(seen: Seen) -> list[Mapping[str, Any]]:
    """The comparisons of the figure that decides."""
    rows = seen.study.rows("comparisons")
    return [row for row in rows if row.get("metric") == seen.metric.key and row.get("steps") == seen.steps]


def _significance(seen: Seen) -> Section:
    primary = _decisive(seen)
    if not primary:
        return Section(title="What is significant")
    against = seen.settings.get("against") or (seen.order[0] if seen.order else None)
    shown = [row for row in primary if against in (row.get("a"), row.get("b"))] if len(primary) > _PAIRS else primary
    pairs = [_ordered(seen, row) for row in shown[:_PAIRS]]
    place = {name: k for k, name in enumerate(seen.order)}
    pairs.sort(key=lambda pair: [place.get(name, len(place)) for name in pair[:2]])
    rows = []
    for better, worse, difference, row in pairs:
        said = "–" if difference is None else mean((difference, measured(row.get("standard_error")), 1))
        values = [probability(measured(row.get(key))) for key in ("p_value", "p_adjusted")]
        claim = {True: "yes", False: "no"}.get(row.get("significant"), "–")  # type: ignore[arg-type]
        rows.append([better, worse, said, number(row.get("n")), *values, claim])
    left = len(primary) - len(rows)
    table = Table(
        caption=f"Differences in {words(seen.steps)}, {seen.metric.label}",
        head=["better in the mean", "than", "by, ± standard error", "seeds", "p", "p, adjusted", "significant"],
        rows=rows,
        words=frozenset({1}),
        note=f"{left} more pairs are in results.json" if left else "",
    )
    return Section(title="What is significant", blocks=[Sentences(texts=_explained(seen)), table])


def _ordered(seen: Seen, row: Mapping[str, Any]) -> tuple[str, str, float | None, Mapping[str, Any]]:
    """A comparison as (the better one, the worse one, by how much)."""
    a, b, difference = str(row.get("a")), str(row.get("b")), measured(row.get("difference"))
    if difference is None:
        return a, b, None, row
    worse = difference < 0 if seen.metric.lower is False else difference > 0
    return (b, a, abs(difference), row) if worse else (a, b, abs(difference), row)


def _explained(seen: Seen) -> list[str]:
    """How the table is read."""
    alpha = measured(seen.settings.get("alpha")) or 0.05
    return [
        "Two variants are compared seed by seed, because a seed gives both the same weights at the start, data and "
        "noise. p is how often a difference as large as this, or larger, would come about by chance if there were none "
        f"(paired t-test, two-sided). Of many pairs some have a small p by chance: of 20, one below {alpha:g}. The "
        "adjusted p allows for all pairs of the table (Holm's rule), and "
        "significant means that it is below "
        f"{alpha:g}. Not significant does not mean equal: it means that so few seeds cannot tell."
    ]
