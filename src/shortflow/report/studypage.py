"""The sections of a study: verdict, quality by steps with errors, what is significant, training, cost, cells."""

import json
from collections.abc import Mapping

from shortflow.report.blocks import Block, Chart, Code, Facts, Notes, Row, Section, Sentences, Table, number, with_error
from shortflow.report.charts import Series, lines, ranking
from shortflow.report.files import Study
from shortflow.report.metrics import measured, metric_of
from shortflow.report.reading import listed
from shortflow.report.recipes import plain_value
from shortflow.report.runpage import duration, sums_table
from shortflow.report.samples import sample_pictures
from shortflow.report.seen import COLOURED, MANY, Seen

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
        _over_training(seen, name),
        _cost(seen, name),
        _samples(seen, name),
        _variants(seen),
        _cells(seen),
        _made_again(seen),
    ]
    return [section for section in found if section]


def _by_steps(seen: Seen, key: str, name: str, small: bool = False) -> Chart | None:
    series = seen.series(key)
    if not series:
        return None
    metric = seen.metric if key == seen.metric.key else metric_of(key)
    behind = sum(one.place is None for one in series)
    caption = [f"{metric.better[:1].upper()}{metric.better[1:]}." if metric.better else "", _bars(seen)]
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


def _bars(seen: Seen) -> str:
    seeds = sorted({n for _, _, n in seen.values.values()})
    if seeds[-1:] == [1] or not any(error is not None for _, error, _ in seen.values.values()):
        return "One seed each: there are no error bars."
    said = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"Bars: one standard error over {said} seeds."


def _mean(value: tuple[float, float | None, int] | None) -> str:
    if value is None:
        return "–"
    return with_error(value[0], value[1])


def _words(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


# ------------------------------------------------------------------------------------------------------------- summary


def _summary(seen: Seen, name: str) -> Section:
    results = seen.study.results
    verdict = [str(text) for text in listed(results.get("verdict"))]
    about = " ".join(str(seen.settings.get("about") or "").split())
    blocks: list[Block] = [Sentences(texts=verdict or ["The study says nothing yet."], lead=True)]
    if about:
        blocks.append(Sentences(texts=[about]))
    notes = [*_unfinished(seen), *(f"{fault.rstrip('.')}." for fault in seen.study.faults)]
    if notes:
        blocks.append(Notes(texts=notes))
    main: Chart | None = _ranked(seen, f"{name}-main") if len(seen.order) > MANY else None
    main = main or _by_steps(seen, seen.metric.key, f"{name}-main")
    blocks.append(Row(blocks=[each for each in (main, _facts(seen)) if each is not None]))
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
    label = f"{seen.metric.label} in {_words(seen.steps)}"
    title = f"{label[0].upper()}{label[1:]}"
    caption = f"{seen.metric.better[:1].upper()}{seen.metric.better[1:]}. {_bars(seen)}"
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
        rows.append((f"best in {_words(seen.steps)}", _mean(best), remark))
    cells = seen.study.rows("cells")
    done = sum(cell.get("status") == "done" for cell in cells)
    seeds = seen.settings.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else len({cell.get("seed") for cell in cells})
    rows.append(("runs", f"{done} of {len(cells)}", f"{len(seen.study.rows('variants'))} variants, {count} seeds"))
    budget = seen.settings.get("budget")
    if isinstance(budget, Mapping) and measured(budget.get("amount")) is not None:
        rows.append(("budget", number(budget["amount"]), f"{budget.get('kind')}, the same for all"))
    seconds = [value for cell in cells if (value := measured(cell.get("seconds"))) is not None]
    if seconds:
        rows.append(("time", duration(sum(seconds)), "of training in all"))
    if seen.settings.get("data"):
        rows.append(("data", str(seen.settings["data"]), f"{number(seen.settings.get('n'))} samples scored"))
    return Facts(rows=rows)


# --------------------------------------------------------------------------------------------- quality, significance


def _quality(seen: Seen, name: str) -> Section:
    counts = seen.of_metric(seen.metric.key)
    if not counts:
        return Section(title="Quality")
    rows = [
        [variant, *(_mean(seen.values.get((variant, steps, seen.metric.key))) for steps in counts)]
        for variant in seen.order
    ]
    if seen.floor is not None:
        rows.append([seen.floor[0], number(seen.floor[1]), *[""] * (len(counts) - 1)])
    blocks: list[Block] = []
    if len(seen.order) > MANY and (chart := _by_steps(seen, seen.metric.key, f"{name}-q")):
        blocks.append(chart)
    label = f"{seen.metric.label[0].upper()}{seen.metric.label[1:]}"
    blocks.append(
        Table(
            caption=f"{label} by number of steps, mean ± standard error over seeds",
            head=["", *map(_words, counts)],
            rows=rows,
            note="; ".join(part for part in (seen.metric.better, seen.metric.reading) if part),
        )
    )
    others = list(dict.fromkeys(key for _, steps, key in seen.values if key != seen.metric.key and steps == seen.steps))
    if others:
        shown = [
            [variant, *(_mean(seen.values.get((variant, seen.steps, key))) for key in others)] for variant in seen.order
        ]
        blocks.append(
            Table(
                caption=f"Other figures in {_words(seen.steps)}",
                head=["", *(metric_of(key).label for key in others)],
                rows=shown,
                note="Not tested for significance; nothing here decides.",
            )
        )
    charts = [
        chart
        for k, key in enumerate(key for key in _BESIDE if key in others and len(seen.of_metric(key)) > 1)
        if (chart := _by_steps(seen, key, f"{name}-o{k}", small=True))
    ][:4]
    if charts:
        blocks.append(Row(blocks=charts, narrow=True))
    return Section(title="Quality by steps", blocks=blocks)


def _significance(seen: Seen) -> Section:
    pairs = [row for row in seen.study.rows("comparisons") if row.get("metric") == seen.metric.key]
    primary = [row for row in pairs if row.get("steps") == seen.steps]
    if not primary:
        return Section(title="What is significant")
    against = seen.settings.get("against") or (seen.order[0] if seen.order else None)
    shown = [row for row in primary if against in (row.get("a"), row.get("b"))] if len(primary) > _PAIRS else primary
    adjusted = any("p_adjusted" in row for row in shown)
    rows = []
    for row in shown[:_PAIRS]:
        difference = (measured(row.get("difference")), measured(row.get("standard_error")))
        said = "–" if difference[0] is None else _mean((difference[0], difference[1], 1))
        values = [number(measured(row.get(key)), 2) for key in ("p_value", *(["p_adjusted"] if adjusted else []))]
        claim = {True: "yes", False: "no"}.get(row.get("significant"), "–")  # type: ignore[arg-type]
        rows.append([f"{row.get('a')} − {row.get('b')}", said, *values, claim])
    left = len(primary) - len(rows)
    note = [str(seen.settings.get("test") or ""), f"{left} more pairs are in results.json" if left else ""]
    table = Table(
        caption=f"Differences in {_words(seen.steps)}, {seen.metric.label}",
        head=["", "difference ± standard error", "p", *(["p, adjusted"] if adjusted else []), "significant"],
        rows=rows,
        note="; ".join(part for part in note if part),
    )
    return Section(title="What is significant", blocks=[table])


# ---------------------------------------------------------------------------------------------------- training, cost


def _over_training(seen: Seen, name: str) -> Section:
    charts = []
    for k, (key, label) in enumerate((("images", "images seen"), ("forwards", "training cost (F × images)"))):
        series = []
        for curve in seen.study.rows("curves"):
            variant = str(curve.get("variant"))
            found = curve.get("points")
            points = [
                (x, y, measured(point.get("standard_error")))
                for point in (found if isinstance(found, list) else ())
                if isinstance(point, Mapping)
                and (x := measured(point.get(key))) is not None
                and (y := measured(point.get("mean"))) is not None
            ]
            if points and variant in seen.order:
                place = seen.order.index(variant)
                coloured = place < COLOURED or len(seen.order) <= MANY
                x, y, error = zip(*points, strict=True)
                series.append(Series(name=variant, x=x, y=y, error=error, place=place if coloured else None))
        if series:
            of = f"{seen.metric.label[0].upper()}{seen.metric.label[1:]} in {_words(seen.steps)}"
            title = f"{of} over {label.partition(' (')[0]}"
            ordered = sorted(series, key=lambda one: seen.order.index(one.name))
            caption = _bars(seen)
            charts.append(
                lines(f"{name}-c{k}", title, ordered, x=label, y=seen.metric.label, caption=caption, floor=seen.floor)
            )
    return Section(title="Quality over training", blocks=[Row(blocks=charts)] if charts else [])


def _cost(seen: Seen, name: str) -> Section:
    variants = {str(each.get("name")): each for each in seen.study.rows("variants")}
    rows, series = [], []
    for place, variant in enumerate(seen.order):
        each = variants.get(variant, {})
        cells = [cell for cell in seen.study.rows("cells") if cell.get("variant") == variant]
        seconds = [value for cell in cells if (value := measured(cell.get("seconds"))) is not None]
        images = measured(each.get("images")) or next(
            (value for cell in cells if (value := measured(cell.get("images"))) is not None), None
        )
        cost = measured(each.get("cost_F"))
        spent = cost * images if cost is not None and images is not None else None
        mean = sum(seconds) / len(seconds) if seconds else None
        value = seen.values.get((variant, seen.steps, seen.metric.key))
        rows.append(
            [
                variant,
                number(cost, 3),
                number(int(images)) if images else "–",
                number(spent, 3),
                "–" if mean is None else duration(mean),
                _mean(value),
            ]
        )
        if spent is not None and value is not None and len(seen.order) <= MANY:
            series.append(Series(name=variant, x=[spent], y=[value[0]], error=[value[1]], place=place))
    if not rows:
        return Section(title="Cost")
    table = Table(
        caption="What the variants cost",
        head=["", "F a step", "images", "F × images", "time a run", f"{seen.metric.label}, {_words(seen.steps)}"],
        rows=rows,
        note="F: one pass of the network over the batch without gradient; a step of flow matching costs 3 F. Times are "
        "those of the machines that the cells were made on.",
    )
    blocks: list[Block] = [table]
    if len(series) > 1:
        blocks.append(
            lines(
                f"{name}-cost",
                "Quality against cost",
                series,
                x="training cost (F × images)",
                y=seen.metric.label,
                caption=f"In {_words(seen.steps)}. {_bars(seen)}",
                table=False,
                floor=seen.floor,
            )
        )
    return Section(title="Cost", blocks=blocks)


# ------------------------------------------------------------------------------------- samples, variants, cells, again


def _samples(seen: Seen, name: str) -> Section:
    parts = [
        Section(title=f"Samples of {variant}", blocks=blocks)
        for k, variant in enumerate(seen.order)
        if variant in seen.study.pictures
        and (blocks := sample_pictures(seen.study.pictures[variant], f"{name}-s{k}", most=3))
    ]
    return Section(title="Samples", parts=parts)


def _variants(seen: Seen) -> Section:
    rows = []
    for each in seen.study.rows("variants"):
        settings = each.get("settings")
        said = (
            "; ".join(f"{path} = {plain_value(value)}" for path, value in settings.items())
            if isinstance(settings, Mapping)
            else ""
        )
        recipe = each.get("recipe")
        rows.append(
            [
                str(each.get("name")),
                recipe if isinstance(recipe, str) else "–",
                said or "–",
                str(each.get("difference") or "–"),
            ]
        )
    table = Table(
        caption="What was compared",
        head=["", "recipe", "settings", "difference to the first"],
        rows=rows,
        words=frozenset({1, 2, 3}),
    )
    return Section(title="Variants", blocks=[table] if rows else [])


def _cells(seen: Seen) -> Section:
    key = "1 step" if seen.steps == 1 else f"{seen.steps} steps"
    rows = []
    for cell in seen.study.rows("cells"):
        record = cell.get("record")
        scores = record.get("rows") if isinstance(record, Mapping) else None
        row = scores.get(key) if isinstance(scores, Mapping) else None
        value = measured(row.get(seen.metric.key)) if isinstance(row, Mapping) else None
        seconds = measured(cell.get("seconds"))
        error = str(cell.get("error") or "").strip().splitlines()
        rows.append(
            [
                f"{cell.get('variant')}, seed {cell.get('seed')}",
                str(cell.get("status")),
                number(value),
                number(cell.get("images")) if cell.get("images") else "–",
                "–" if seconds is None else duration(seconds),
                error[-1] if error else str(cell.get("path") or ""),
            ]
        )
    table = Table(
        caption="Every run",
        head=["", "status", f"{seen.metric.label}, {key}", "images", "time", "folder, or what went wrong"],
        rows=rows,
        words=frozenset({1, 5}),
    )
    return Section(title="Runs", blocks=[table] if rows else [])


def _made_again(seen: Seen) -> Section:
    directory = seen.study.directory
    commands = [f"shortflow compare --out {directory}", f"shortflow report {directory} --out page.html"]
    blocks: list[Block] = [
        Sentences(texts=["The first command makes the cells that are missing, if there are any."]),
        Code(text="\n".join(commands) + "\n", label="Commands"),
        Code(
            text=json.dumps(seen.settings, indent=2, ensure_ascii=False) + "\n",
            label="Settings of the study",
            folded=True,
        ),
        sums_table(seen.study.sums),
    ]
    return Section(title="Make it again", blocks=blocks)
