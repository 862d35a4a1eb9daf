"""Several runs, studies or diagnoses beside each other."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from shortflow.report.blocks import Block, Notes, Row, Section, Sentences, Table, number
from shortflow.report.files import Run
from shortflow.report.metrics import by_steps, comparable, main_metric, measured
from shortflow.report.recipes import settings_side_by_side
from shortflow.report.runcost import duration, step_cost_of, trained_seconds
from shortflow.report.runpage import quality_chart
from shortflow.report.samples import sample_pictures
from shortflow.report.training import curves_side_by_side

__all__ = ["side_by_side"]


def side_by_side(found: Sequence[tuple[str, Any]], sections_of: Callable[[Any, str], list[Section]]) -> list[Section]:
    """The runs compared, and after that everything about each object."""
    runs = _alike([(name, one) for name, one in found if isinstance(one, Run)])
    compared = [_summary(runs), _samples(runs), _training(runs), _settings(runs)] if len(runs) > 1 else []
    each = [Section(title=name, parts=sections_of(one, f"p{k}")) for k, (name, one) in enumerate(found)]
    return [section for section in [*compared, *each] if section]


def _alike(runs: list[tuple[str, Run]]) -> list[tuple[str, Run]]:
    """The runs with the first record that all of them have which are scored, where there is one."""
    files = [list(run.evaluations) for _, run in runs if run.evaluations]
    shared = next((file for file in files[0] if all(file in each for each in files)), None) if files else None
    if shared is None:
        return runs
    chosen = [{file: record for file, record in run.evaluations.items() if file == shared} for _, run in runs]
    return [(name, replace(run, evaluations=records)) for (name, run), records in zip(runs, chosen, strict=True)]


def _summary(runs: Sequence[tuple[str, Run]]) -> Section:
    blocks: list[Block] = []
    scored = [(name, run) for name, run in runs if run.evaluation is not None]
    reasons = comparable([(name, run.evaluation or {}) for name, run in scored])
    chart = quality_chart([(name, run.rows) for name, run in runs], "all-quality")
    blocks.append(Sentences(texts=_sentences(runs), lead=True))
    if reasons:
        blocks.append(Notes(texts=reasons))
    left_out = [name for name, run in runs if run.evaluation is None]
    if left_out and scored:
        blocks.append(Notes(texts=[f"Not scored yet: {', '.join(left_out)}."]))
    if chart is not None:
        blocks.append(chart)
    blocks.append(_table(runs))
    others = [
        found
        for k, key in enumerate(("recall", "coverage", "conditional_accuracy"))
        if (found := quality_chart([(name, run.rows) for name, run in runs], f"all-q{k}", key)) is not None
    ]
    if others:
        blocks.append(Row(blocks=others, narrow=True))
    return Section(title="Side by side", blocks=blocks)


def _sentences(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Which is the best in the fewest steps: one seed each, so it is no proof."""
    metric = next((found for _, run in runs if (found := main_metric(run.rows))), None)
    if metric is None:
        return ["None of the runs is scored: shortflow evaluate RUN."]
    values = {name: by_steps(run.rows, metric.key) for name, run in runs}
    shared = set.intersection(*(set(each) for each in values.values() if each))
    if not shared:
        return [f"The runs were scored in different numbers of steps ({metric.label})."]
    fewest = min(shared)
    order = sorted((each[fewest], name) for name, each in values.items() if each)
    steps = "1 step" if fewest == 1 else f"{fewest} steps"
    said = "; ".join(f"{name} {number(value)}" for value, name in order)
    return [
        f"In {steps}, {metric.label}, {metric.better}: {said}.",
        "One run of each has no error bars: a difference may be one of seeds. `shortflow compare` measures it.",
    ]


def _table(runs: Sequence[tuple[str, Run]]) -> Table:
    metric = next((found for _, run in runs if (found := main_metric(run.rows))), None)
    heads = ["", "recipe", "data", "images seen", "parameters", "time", "F a step"]
    rows = []
    steps = sorted({each for _, run in runs for each in (by_steps(run.rows, metric.key) if metric else ())})
    for name, run in runs:
        seconds, config = trained_seconds(run), run.config
        row = [
            name,
            config.recipe.name if config else "–",
            config.data.source if config else "–",
            number(run.status.images if run.status else None),
            number(run.header.parameters if run.header else None),
            duration(seconds) if seconds else "–",
            number(step_cost_of(run), 3),
        ]
        values = by_steps(run.rows, metric.key) if metric else {}
        rows.append([*row, *(number(measured(values.get(each))) for each in steps)])
    heads += [f"{each} step{'s' * (each > 1)}" for each in steps]
    label = f"The runs; on the right {metric.label} by number of steps" if metric else "The runs"
    return Table(caption=label, head=heads, rows=rows, words=frozenset({1, 2}))


def _samples(runs: Sequence[tuple[str, Run]]) -> Section:
    parts = [
        Section(title=f"Samples of {name}", blocks=blocks)
        for k, (name, run) in enumerate(runs)
        if run.pictures is not None and (blocks := sample_pictures(run.pictures, f"all-s{k}", most=2))
    ]
    return Section(title="Samples side by side", parts=parts)


def _training(runs: Sequence[tuple[str, Run]]) -> Section:
    names = ("velocity_error", "diagonal_error", "grad_norm", "images_per_second")
    charts = [chart for k, key in enumerate(names) if (chart := curves_side_by_side(runs, key, f"all-t{k}"))]
    return Section(title="Training side by side", blocks=[Row(blocks=charts, narrow=True)] if charts else [])


def _settings(runs: Sequence[tuple[str, Run]]) -> Section:
    known = [(name, run.config) for name, run in runs if run.config is not None]
    table = settings_side_by_side(known) if len(known) > 1 else None
    if table is None:
        return Section(title="Differences", blocks=[Sentences(texts=["The runs have the same settings."])])
    return Section(title="Differences", blocks=[table])
