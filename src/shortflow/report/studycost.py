"""Sections of a study: quality over training, by images and by cost, and curves of training; what variants cost."""

import math
from collections.abc import Mapping

from shortflow.report.blocks import Block, Chart, Row, Section, Sentences, Table, number
from shortflow.report.charts import Series, lines
from shortflow.report.metrics import measured
from shortflow.report.runcost import duration
from shortflow.report.seen import COLOURED, MANY, Seen, bars, mean, words
from shortflow.report.training import CURVES

__all__ = ["cost_section", "spent", "training_section"]


def training_section(seen: Seen, name: str) -> Section:
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
            title = f"{seen.label} in {words(seen.steps)} over {label.partition(' (')[0]}"
            ordered = sorted(series, key=lambda one: seen.order.index(one.name))
            caption = bars(seen)
            charts.append(
                lines(f"{name}-c{k}", title, ordered, x=label, y=seen.metric.label, caption=caption, floor=seen.floor)
            )
    blocks: list[Block] = [Row(blocks=charts)] if charts else []
    if not charts and seen.values:
        text = (
            "Quality was looked at when training had ended. With `--at 0.25,0.5,1`, said before the cells are made, it "
            "is looked at on the way, too."
        )
        blocks.append(Sentences(texts=[text]))
    if curves := [chart for k, key in enumerate(_CURVES) if (chart := _curve(seen, key, f"{name}-t{k}"))]:
        blocks.append(Row(blocks=curves))
    return Section(title="Training", blocks=blocks)


_CURVES = ("velocity_error", "loss")


def _curve(seen: Seen, quantity: str, name: str) -> Chart | None:
    """A quantity of the records of training over the images seen, the mean over the seeds that have come so far."""
    label, reading = CURVES[quantity]
    series = []
    for place, variant in enumerate(seen.order):
        found: dict[float, list[float]] = {}
        for record in seen.study.lines.get(variant, ()):
            for line in record:
                if (value := measured(line.get(quantity))) is not None:
                    found.setdefault(line["images"], []).append(value)
        if len(found) > 1:
            coloured = place < COLOURED or len(seen.order) <= MANY
            means = [math.fsum(found[images]) / len(found[images]) for images in sorted(found)]
            series.append(Series(name=variant, x=sorted(found), y=means, place=place if coloured else None))
    if not series:
        return None
    title = f"{label[0].upper()}{label[1:]} over images seen"
    caption = f"{reading[0].upper()}{reading[1:]}. Mean over seeds. Methods that draw their times by other laws have "
    caption += "other rows in it: no comparison between them."
    return lines(name, title, series, x="images seen", y=label, caption=caption, marked=False)


def spent(seen: Seen, variant: str) -> float | None:
    """What a run of a variant costs, in passes of the network over single images."""
    each = next((each for each in seen.study.rows("variants") if str(each.get("name")) == variant), {})
    images, cost = _images(seen, variant), measured(each.get("cost_F"))
    return None if images is None or cost is None else cost * images


def _images(seen: Seen, variant: str) -> float | None:
    """What a run of a variant sees, as planned or as its cells say."""
    rows = [each for each in seen.study.rows("variants") if str(each.get("name")) == variant]
    rows += [cell for cell in seen.study.rows("cells") if cell.get("variant") == variant]
    return next((value for each in rows if (value := measured(each.get("images"))) is not None), None)


def cost_section(seen: Seen, name: str) -> Section:
    variants = {str(each.get("name")): each for each in seen.study.rows("variants")}
    rows, series = [], []
    for place, variant in enumerate(seen.order):
        each = variants.get(variant, {})
        cells = [cell for cell in seen.study.rows("cells") if cell.get("variant") == variant]
        seconds = [value for cell in cells if (value := measured(cell.get("seconds"))) is not None]
        images, cost, total = _images(seen, variant), measured(each.get("cost_F")), spent(seen, variant)
        time = sum(seconds) / len(seconds) if seconds else None
        value = seen.values.get((variant, seen.steps, seen.metric.key))
        rows.append(
            [
                variant,
                number(cost, 3),
                number(int(images)) if images else "–",
                number(total, 3),
                "–" if time is None else duration(time),
                mean(value),
            ]
        )
        if total is not None and value is not None and len(seen.order) <= MANY:
            series.append(Series(name=variant, x=[total], y=[value[0]], error=[value[1]], place=place))
    if not rows:
        return Section(title="Cost")
    table = Table(
        caption="What the variants cost",
        head=["", "F a step", "images", "F × images", "time a run", f"{seen.metric.label}, {words(seen.steps)}"],
        rows=rows,
        note="F: one pass of the network over the batch without gradient; a step of flow matching costs 3 F. Times are "
        "those of the machines that the cells were made on.",
    )
    blocks: list[Block] = [table]
    places = {one.x[0] for one in series}
    if len(places) > 1 and not seen.study.rows("curves"):  # which show it already
        blocks.append(
            lines(
                f"{name}-cost",
                "Quality against cost",
                series,
                x="training cost (F × images)",
                y=seen.metric.label,
                caption=f"In {words(seen.steps)}. {bars(seen)}",
                table=False,
                floor=seen.floor,
            )
        )
    return Section(title="Cost", blocks=blocks)
