"""Curves of training, and maps over time: what stats.jsonl holds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from shortflow.report.blocks import Block, Chart, Notes, Row, Section, Sentences
from shortflow.report.charts import Series, lines
from shortflow.report.files import Run
from shortflow.report.maps import cells
from shortflow.report.metrics import measured

__all__ = ["CURVES", "curve", "curves_side_by_side", "training_section"]

# What a line holds, what it is called, and how to read it.
CURVES = {
    "velocity_error": ("velocity error", "of the average velocity on the rows of a batch: the curve to look at"),
    "diagonal_error": ("error at r = t", "of the instantaneous velocity"),
    "loss": ("loss", "with adaptive weights it stays near a constant, whatever is learned"),
    "error": ("squared error", "before the weighting"),
    "grad_norm": ("norm of the gradient", "before clipping"),
    "tangent": ("size of du/dt", "root mean square of the derivative along the path"),
    "lr": ("learning rate", ""),
    "images_per_second": ("images a second", ""),
}
_COLUMNS = 24  # of the map of the error over training
_LAST = 0.25  # share of the run that maps over (t, r) are means over


def curve(run: Run, quantity: str, name: str, main: bool = False) -> Chart | None:
    """A quantity over the images seen; None where it is not recorded. `main`: the figure of the summary."""
    return curves_side_by_side([(run.name, run)], quantity, name, main)


def curves_side_by_side(runs: Sequence[tuple[str, Run]], quantity: str, name: str, main: bool = False) -> Chart | None:
    """A quantity of several runs over the images that each has seen."""
    label, reading = CURVES.get(quantity, (quantity.replace("_", " "), ""))
    series = []
    for place, (of, run) in enumerate(runs):
        found = [(line["images"], value) for line in run.lines if (value := measured(line.get(quantity))) is not None]
        if len(found) > 1:
            series.append(Series(name=of, x=[a for a, _ in found], y=[b for _, b in found], place=place))
    if not series:
        return None
    caption = f"{reading[0].upper()}{reading[1:]}." if reading else ""
    title = f"{label[0].upper()}{label[1:]}"
    return lines(
        name, title, series, x="images seen", y=label, caption=caption, marked=False, table=not main, small=not main
    )


def training_section(run: Run, name: str) -> Section:
    """The curves of a run, and its maps."""
    if not run.lines:
        return Section(title="Training")
    known = [quantity for quantity in CURVES if any(measured(line.get(quantity)) is not None for line in run.lines)]
    others = sorted(
        {key for line in run.lines for key, value in line.items() if measured(value) is not None}
        - {*CURVES, "step", "images", "skipped"}
    )
    drawn = [chart for k, key in enumerate([*known, *others]) if (chart := curve(run, key, f"{name}-t{k}"))]
    blocks: list[Block] = [Row(blocks=drawn, narrow=True)] if drawn else []
    if len(run.lines) < 2:
        blocks.append(Sentences(texts=["The record has one line so far; curves begin with the second."]))
    maps = [
        chart
        for chart in (
            _error_by_time(run.lines, f"{name}-e"),
            _error_by_cell(run.lines, f"{name}-c"),
            _derivative(run.lines, f"{name}-d"),
        )
        if chart
    ]
    if maps:
        blocks.append(Row(blocks=maps))
    notes = list(_odd(run.lines))
    if notes:
        blocks.append(Notes(texts=notes))
    return Section(title="Training", blocks=blocks)


def _odd(record: Sequence[Mapping[str, Any]]) -> list[str]:
    """Skipped steps and derivatives that grew."""
    found = []
    skipped = sum(int(value) for line in record if (value := measured(line.get("skipped"))))
    if skipped:
        found.append(f"{skipped} steps were skipped, because loss or gradient was not finite.")
    spikes = [line["step"] for line in record if line.get("spikes")]
    if spikes:
        some = ", ".join(f"{step:,}" for step in spikes[:8]) + (" …" if len(spikes) > 8 else "")
        found.append(f"du/dt grew to ten times its usual size in a cell of (t, r) before step {some}.")
    return found


def _error_by_time(record: Sequence[Mapping[str, Any]], name: str) -> Chart | None:
    """The error by t (rows) over the run (columns), means over as many lines."""
    kept = [line for line in record if _is_list(line.get("error_by_time"))]
    if len(kept) < 2:
        return None
    bins = len(kept[0]["error_by_time"])
    kept = [line for line in kept if len(line["error_by_time"]) == bins]
    count = min(_COLUMNS, len(kept))
    cuts = [round(k * len(kept) / count) for k in range(count + 1)]
    groups = [kept[a:b] for a, b in itertools.pairwise(cuts)]
    values = [[_mean([line["error_by_time"][b] for line in group]) for b in range(bins)] for group in groups]
    edges = [0.0, *(float(group[-1]["images"]) for group in groups)]
    if any(b <= a for a, b in itertools.pairwise(edges)):
        return None
    return cells(
        name,
        "Error by time",
        values,
        x="images seen",
        y="t (0 data, 1 noise)",
        edges_x=edges,
        edges_y=[k / bins for k in range(bins + 1)],
        unit="squared error",
        caption="Squared error of the rows by their time t, over the run.",
        log=True,
    )


def _error_by_cell(record: Sequence[Mapping[str, Any]], name: str) -> Chart | None:
    """Mean error by cell of (t, r), over the last quarter of the run."""
    return _last_by_cell(
        record,
        "error_by_cell",
        name,
        "Error by (t, r)",
        "squared error",
        "Squared error of the rows, before the weighting, in cells of (t, r), over the last quarter of the run: where "
        "the loss comes from. Cells on the diagonal have the rows with r = t, too. Empty: no row of that kind.",
        log=True,
    )


def _derivative(record: Sequence[Mapping[str, Any]], name: str) -> Chart | None:
    """Mean size of du/dt by cell of (t, r), over the last quarter of the run."""
    return _last_by_cell(
        record,
        "tangent_mean",
        name,
        "Size of du/dt by (t, r)",
        "‖du/dt‖",
        "Root mean square of du/dt, the derivative along the path that the target takes, in cells of (t, r), over the "
        "last quarter of the run. Empty: no row of that kind.",
    )


def _last_by_cell(
    record: Sequence[Mapping[str, Any]],
    quantity: str,
    name: str,
    title: str,
    unit: str,
    caption: str,
    log: bool = False,
) -> Chart | None:
    """A quantity by cell of (t, r), the mean over the last quarter of the lines that have it."""
    kept = [line[quantity] for line in record if _is_list(line.get(quantity))]
    kept = kept[-max(1, round(_LAST * len(kept))) :]
    if not kept or not all(_is_list(row) for grid in kept for row in grid):
        return None
    size = max(map(len, kept))
    values = [
        [_mean([grid[i][j] for grid in kept if i < len(grid) and j < len(grid[i])]) for j in range(size)]
        for i in range(size)
    ]
    if all(value is None for row in values for value in row):
        return None
    edges = [k / size for k in range(size + 1)]
    return cells(name, title, values, x="t", y="r", edges_x=edges, edges_y=edges, unit=unit, caption=caption, log=log)


def _mean(values: Sequence[Any]) -> float | None:
    found = [value for each in values if (value := measured(each)) is not None]
    return sum(found) / len(found) if found else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)
