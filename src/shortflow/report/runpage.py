"""The page of one run: summary and quality here; samples, training, method and cost in modules of their own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shortflow.evaluate.record import verdict
from shortflow.report.blocks import (
    Block,
    Chart,
    Facts,
    Notes,
    Row,
    Section,
    Sentences,
    Table,
    number,
    share,
)
from shortflow.report.charts import Series, lines
from shortflow.report.commands import unscored
from shortflow.report.files import Run
from shortflow.report.metrics import (
    METRICS,
    by_steps,
    floor_of,
    label_of,
    made_of,
    main_metric,
    measured,
    metric_of,
    steps_of,
)
from shortflow.report.recipes import method_section
from shortflow.report.runcost import (
    cost_section,
    duration,
    made_again_section,
    settings_section,
    step_cost_of,
    trained_seconds,
)
from shortflow.report.samples import samples_section
from shortflow.report.training import curve, training_section

__all__ = ["quality_chart", "run_sections", "summary_facts"]


def run_sections(run: Run, name: str = "run") -> list[Section]:
    """Everything about a run; `name` is unique in the page."""
    from shortflow.report.diagnosispage import diagnosis_parts

    found = [
        _summary(run, name),
        _quality(run, name),
        samples_section(run.pictures, run.previews, name, _drawn_before(run)),
        training_section(run, name),
        cost_section(run),
        method_section(run.config),
        settings_section(run),
        made_again_section(run),
    ]
    if run.diagnosis is not None:
        title = "Where the error is made" if run.diagnosis.record.get("kind") == "run" else "Diagnosis of the data"
        found.insert(4, Section(title=title, blocks=diagnosis_parts(run.diagnosis, f"{name}-d")))
    return [section for section in found if section]


# ------------------------------------------------------------------------------------------------------------- summary


def _summary(run: Run, name: str) -> Section:
    blocks: list[Block] = [Sentences(texts=_sentences(run), lead=True)]
    if run.faults:
        blocks.append(Notes(texts=[f"{fault.rstrip('.')}." for fault in run.faults]))
    main = quality_chart([(run.name, run.rows)], f"{name}-main")
    if main is None:
        main = curve(run, "velocity_error", f"{name}-main", True) or curve(run, "loss", f"{name}-main", True)
    facts = summary_facts(run)
    blocks.append(Row(blocks=[each for each in (main, facts) if each is not None]))
    return Section(title="Summary", blocks=blocks)


def _sentences(run: Run) -> list[str]:
    """What the run is and how good, in words."""
    said = []
    if run.status is not None:
        state = run.status
        done = {"finished": "is finished", "running": "is still going on", "stopped": "was stopped"}[state.phase]
        said.append(
            f"{state.recipe} on {state.data}: the run {done}, {state.images:,} of {state.total:,} images seen "
            f"({share(state.share)})."
        )
    elif run.config is not None:
        said.append(f"{run.config.recipe.name} on {run.config.data.source}.")
    imported = run.header and run.header.description.get("imported")
    if isinstance(imported, Mapping):
        said.append(f"The weights were imported from {imported.get('file')} of {imported.get('project')}.")
    said += _scored(run.rows)
    if run.evaluation is None:
        described = run.header and run.header.description
        said.append(unscored(run.directory, described, run.config and run.config.data.source))
    else:
        late = _seen_before(run)
        said += [late] if late else []
    return said


def _scored(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures of the fewest steps and of the best number of steps, beside real data."""
    metric = main_metric(rows)
    if metric is None:
        return []
    values = by_steps(rows, metric.key)
    fewest, best = min(values), min(values, key=lambda steps: values[steps])
    floor = floor_of(rows, metric.key)
    text = f"{metric.label[0].upper()}{metric.label[1:]} in {_steps(fewest)}: {number(values[fewest])}"
    if best != fewest:
        text += f"; at best {number(values[best])}, in {_steps(best)}"
    said = [text + (f". {floor[0][0].upper()}{floor[0][1:]}: {number(floor[1])}." if floor else ".")]
    with suppress(KeyError, TypeError):  # of a record that is not ours
        said += verdict({"rows": rows})
    return said


def _seen_before(run: Run) -> str | None:
    """A sentence if the scores are of an earlier state of the model than the one that is there."""
    now = run.header and run.header.description.get("images")
    for record in run.evaluations.values():
        seen = made_of(record).get("images_seen")
        if isinstance(seen, int) and isinstance(now, int) and seen != now:
            return f"The scores are of the model after {seen:,} images; the model that is there has seen {now:,}."
    return None


def _drawn_before(run: Run) -> str | None:
    """A sentence if the pictures are of another model than the one that is there."""
    drawn = run.pictures and run.pictures.index.get("model")
    now = next((total for file, _, total in run.sums if file == "model.safetensors"), None)
    if isinstance(drawn, Mapping) and drawn.get("sha256") != now:
        return (
            f"The pictures were drawn by the model as it was after {number(drawn.get('images'))} images. Draw them "
            f"again: shortflow report {run.directory} --draw."
        )
    return None


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def summary_facts(run: Run) -> Facts:
    """The figures of a run that one looks for first."""
    rows: list[tuple[str, str, str]] = []
    metric = main_metric(run.rows)
    if metric is not None:
        values, floor = by_steps(run.rows, metric.key), floor_of(run.rows, metric.key)
        fewest = min(values)
        remark = f"{metric.label}, {metric.better}" + (f"; {floor[0]}: {number(floor[1], 3)}" if floor else "")
        rows.append((_steps(fewest), number(values[fewest], 3), remark))
    if run.status is not None:
        rows.append(("images seen", f"{run.status.images:,}", f"of {run.status.total:,}, {run.status.phase}"))
    seconds = trained_seconds(run)
    if seconds is not None:
        rows.append(("time", duration(seconds), f"{run.lines[-1]['images'] / seconds:,.0f} images a second"))
    if run.header is not None:
        rows.append(("parameters", _short_count(run.header.parameters), f"{run.header.parameters:,}"))
    per_step = step_cost_of(run)
    if per_step is not None:
        rows.append(("a training step", f"{per_step:.2f} F", "F: one pass of the network; flow matching has 3"))
    return Facts(rows=rows)


def _short_count(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


# ------------------------------------------------------------------------------------------------------------- quality


def quality_chart(
    runs: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], name: str, key: str | None = None
) -> Chart | None:
    """Quality against the number of steps, a line a run; None where nothing is scored.

    Args:
        key: of the metric; None: the main one of the first run that has one.
    """
    metric = metric_of(key) if key else next((found for _, rows in runs if (found := main_metric(rows))), None)
    if metric is None:
        return None
    series = []
    for place, (label, rows) in enumerate(runs):
        values = by_steps(rows, metric.key)
        if values:
            error = None
            if metric.key == "inception_score":
                error = [measured(rows[_row(rows, steps)].get("inception_score_std")) for steps in values]
            series.append(Series(name=label, x=list(values), y=list(values.values()), error=error, place=place))
    if not series:
        return None
    floor = next((found for _, rows in runs if (found := floor_of(rows, metric.key))), None)
    title = f"{metric.label[0].upper()}{metric.label[1:]} against steps"
    caption = "; ".join(part for part in (metric.better, metric.reading) if part)
    return lines(
        name,
        title,
        series,
        x="steps of sampling",
        y=metric.label,
        caption=f"{caption[0].upper()}{caption[1:]}." if caption else "",
        log_x=True,
        floor=floor,
        table=key is not None or len(runs) > 1,
        small=key is not None,
    )


def _row(rows: Mapping[str, Any], steps: int) -> str:
    return next(name for name in rows if steps_of(name) == steps)


def _quality(run: Run, name: str) -> Section:
    if not run.evaluations:
        return Section(title="Quality")
    several, blocks, drawn = len(run.evaluations) > 1, [], []
    for place, record in enumerate(run.evaluations.values()):
        rows, main = record["rows"], main_metric(record["rows"])
        keys = [metric for metric in METRICS if any(measured(row.get(metric.key)) is not None for row in rows.values())]
        labels = [main.label if main and metric.key == main.key else label_of(metric, rows) for metric in keys]
        table = Table(
            caption="Scores by number of steps" + (f", {_features(record, run)}" if several else ""),
            head=["", *labels, "N"],
            rows=[
                [label, *(number(measured(row.get(metric.key))) for metric in keys), number(row.get("n"))]
                for label, row in rows.items()
            ],
            note=_made(record),
        )
        blocks.append(table)
        if place == 0:
            others = [metric for metric in keys if main and metric.key in _BESIDE and metric.key != main.key]
            drawn = [quality_chart([(run.name, rows)], f"{name}-q{k}", each.key) for k, each in enumerate(others)]
    one_seed = "One run with one seed has no error bars; `shortflow compare` measures them over several seeds."
    blocks.append(Sentences(texts=[one_seed]))
    charts = [chart for chart in drawn if chart is not None]
    if charts:
        blocks.append(Row(blocks=charts, narrow=True))
    return Section(title="Quality", blocks=blocks)


def _features(record: Mapping[str, Any], run: Run) -> str:
    """What the features of a record are of, for the caption of its table; and what it compares with, where other
    records of the run have these features too."""
    name = _name_of(record)
    if sum(_name_of(each) == name for each in run.evaluations.values()) == 1:
        return f"features of {name}"
    reference = record.get("reference")
    source = reference.get("source") if isinstance(reference, Mapping) else "unknown images"
    return f"features of {name}, against {source}"


def _name_of(record: Mapping[str, Any]) -> str:
    features = record.get("features")
    return str(features.get("name")) if isinstance(features, Mapping) else "the shipped classifier"


_BESIDE = ("recall", "coverage", "conditional_accuracy", "kid", "sliced_w2", "spatial_distance")


def _made(record: Mapping[str, Any]) -> str:
    """Every choice that the scores depend on."""
    made, parts = made_of(record), []
    for key, label in (
        ("images_seen", "model after images"),
        ("seed", "seed"),
        ("guidance", "guidance"),
        ("window", "window"),
        ("grid", "grid"),
        ("middle", "middle time"),
        ("precision", "precision"),
    ):
        if made.get(key) is not None:
            parts.append(f"{label} {number(made[key])}")
    sampler = made.get("sampler")
    if isinstance(sampler, Mapping):
        parts.append(f"sampler {sampler.get('kind')}")
    rows = [row for row in record["rows"].values() if isinstance(row.get("classifier"), Mapping)]
    if rows:
        known = rows[0]["classifier"]
        parts.append(f"features of the classifier {known.get('name')}, SHA-256 {str(known.get('sha256'))[:16]}…")
    features = record.get("features")
    if isinstance(features, Mapping):
        parts.append(f"features {features.get('name')}, weights {str(features.get('weights'))[:16]}…")
    reference = record.get("reference")
    if isinstance(reference, Mapping):
        count = f", {number(reference['n'])} images" if reference.get("n") else ""
        parts.append(f"reference {reference.get('source')}{count}, SHA-256 {str(reference.get('sha256'))[:16]}…")
    return "; ".join(parts)
