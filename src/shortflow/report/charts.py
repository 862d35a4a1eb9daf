"""The kinds of figures with error bars: lines, and a ranking. Maps and fields are in `maps`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from shortflow.report.blocks import Chart, Table, number, with_error
from shortflow.report.svg import DASHES, INK, MARKERS, MUTED, SERIES, colour, figure, to_svg

__all__ = ["Number", "Series", "lines", "ranking", "set_axis", "tick"]

Number = float | int

WIDE, SMALL = (5.0, 3.2), (4.0, 2.75)  # inches of a figure, in a wide and in a narrow column
_POINTS = 400  # of a curve that are drawn
_DECADES = 1e12  # from the top of a logarithmic axis to its bottom, at most


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: y at x, with standard errors where they are known.

    Attributes:
        place: in the palette; None: in the background, grey.
        error: a standard error of each y, None where it is not known.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    error: Sequence[Number | None] | None = None
    place: int | None = 0


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    caption: str = "",
    marked: bool = True,
    log_x: bool = False,
    log_y: bool | None = None,
    floor: tuple[str, Number] | None = None,
    table: bool = True,
    small: bool = False,
) -> Chart:
    """Lines over a common axis.

    Args:
        x, y: what the axes are.
        marked: whether points are marked: few measurements, not a curve of thousands.
        log_y: None: where all values are positive and the largest is eight times the smallest.
        floor: (name, value) of a level to compare with, such as that of real data.
        table: whether the numbers stand below the figure.
        small: for a narrow column.
    """
    series = [_finite(one) for one in series]
    values = [value for one in series for value in one.y]
    drawn_floor = floor if floor is not None and (len(series) < 2 or _near(floor[1], values)) else None
    values += [drawn_floor[1]] if drawn_floor else []
    positive = bool(values) and min(values) > 0
    log_y = positive and max(values) > 8 * min(values) if log_y is None else log_y and positive
    log_x = log_x and all(value > 0 for one in series for value in one.x)
    with figure(*(SMALL if small else WIDE)) as made:
        axes = made.add_subplot()
        for one in series:
            _line(axes, one, marked)
        if drawn_floor is not None:
            axes.axhline(drawn_floor[1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            _label_floor(axes, drawn_floor, series)
        elif floor is not None:
            axes.margins(y=0.14)
            _beyond(axes, floor, series)
        counts = sorted({value for one in series for value in one.x})
        whole = marked and log_x and all(float(value).is_integer() for value in counts)
        set_axis(axes, "x", log_x, counts if whole else None)
        set_axis(axes, "y", log_y)
        if log_y and max(values) > _DECADES * min(values):
            axes.set_ylim(bottom=max(values) / _DECADES)
            set_axis(axes, "y", log_y)
            caption = f"{caption} Values below the axis stand in the numbers only.".strip()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y")
        svg = to_svg(made, name, title, _described(series, x, y, floor))
    drawn = [one for one in series if one.place is not None]
    return Chart(
        title=title,
        svg=svg,
        caption=caption,
        legend=[(one.name, one.place or 0) for one in drawn] if len(series) > 1 else (),
        numbers=_numbers(f"{title}: the numbers", series, x, floor) if table and series else None,
        marked=marked,
    )


def _near(level: Number, values: Sequence[Number]) -> bool:
    """Whether a level can be drawn beside values that still are told from each other: they keep a third of the axis."""
    low, high = min(values, default=level), max(values, default=level)
    ends = (min(low, level), max(high, level))
    if ends[0] > 0 and ends[1] > 8 * ends[0]:  # as the axis will be
        return math.log(high / low) >= math.log(ends[1] / ends[0]) / 3
    return high - low >= (ends[1] - ends[0]) / 3


def _label_floor(axes: Axes, floor: tuple[str, Number], series: Sequence[Series]) -> None:
    """The name of a level, above its line."""
    x, shift, side = _free_side(floor[1], series)
    where = {"ha": side, "va": "bottom", "fontsize": 10.5, "color": INK}
    axes.annotate(floor[0], (x, floor[1]), (shift, 2), axes.get_yaxis_transform(), "offset points", **where)


def _beyond(axes: Axes, floor: tuple[str, Number], series: Sequence[Series]) -> None:
    """That a level lies outside of the axis, and where."""
    below = all(floor[1] < value for one in series for value in one.y)
    x, shift, side = _free_side(floor[1], series)
    said = f"{floor[0]}: {number(floor[1], 3)} {'↓' if below else '↑'}"
    where = {"ha": side, "va": "bottom" if below else "top", "fontsize": 10.5, "color": INK}
    axes.annotate(said, (x, 0 if below else 1), (shift, 3 if below else -3), "axes fraction", "offset points", **where)


def _free_side(level: Number, series: Sequence[Series]) -> tuple[int, int, str]:
    """Where the lines are farther from a level: (the end of the axis, a shift into the figure, its name)."""

    def gap(at: int) -> float:
        return min((abs(one.y[at] - level) - (_bar(one, at) or 0) for one in series if one.y), default=0.0)

    return (0, 4, "left") if gap(0) > gap(-1) else (1, -2, "right")


def _bar(one: Series, at: int) -> Number | None:
    return one.error[at] if one.error else None


def _finite(one: Series) -> Series:
    """Without the points that are no numbers, and with few enough points to be drawn."""
    keep = [k for k, (x, y) in enumerate(zip(one.x, one.y, strict=True)) if math.isfinite(x) and math.isfinite(y)]
    errors = one.error
    if len(keep) > _POINTS:  # means of as many neighbours: what a line of that width shows of them anyway
        parts = np.array_split(np.array(keep), _POINTS)
        means = [(float(np.mean([v[k] for k in part])) for part in parts) for v in (one.x, one.y)]
        return Series(name=one.name, x=list(means[0]), y=list(means[1]), place=one.place)
    return Series(
        name=one.name,
        x=[one.x[k] for k in keep],
        y=[one.y[k] for k in keep],
        error=None if errors is None else [_error(errors[k]) for k in keep],
        place=one.place,
    )


def _error(value: Number | None) -> Number | None:
    """An error that can be one: not negative, and finite."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _line(axes: Axes, one: Series, marked: bool) -> None:
    grey = one.place is None
    place = one.place or 0
    hue, dashes = (MUTED, "-") if grey else (colour(place), DASHES[place % len(DASHES)])
    style: dict[str, Any] = {"color": hue, "linestyle": dashes, "linewidth": 1.8}
    if grey:
        style |= {"linewidth": 1.0, "alpha": 0.45}
    if marked and not grey:
        style |= {"marker": MARKERS[place % SERIES]}
    if one.error is not None and any(error for error in one.error) and not grey:
        bars = [error or 0.0 for error in one.error]
        axes.errorbar(one.x, one.y, yerr=bars, capsize=3, elinewidth=1.2, **style)
    else:
        axes.plot(one.x, one.y, **style)


def set_axis(axes: Axes, which: str, log: bool, places: Sequence[Number] | None = None) -> None:
    """Plain numbers at few places."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_minor_locator(NullLocator())
        if places is not None:
            axis.set_ticks([place for k, place in enumerate(places) if len(places) <= 9 or k % 2 == 0])
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(value))))


def tick(value: Number) -> str:
    """A number at an axis, as short as it can be told from its neighbours."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size and (size > 1e3 or abs(value) >= 1e4):
            return f"{value / size:.5g} {unit}".replace("-", "−")
    return f"{value:.5g}".replace("-", "−")


def _described(series: Sequence[Series], x: str, y: str, floor: tuple[str, Number] | None) -> str:
    """What a figure shows, in words."""
    said = [f"{y} against {x}."]
    for one in series[:12]:
        if one.x:
            ends = f"{number(one.y[0], 3)} at {number(one.x[0], 3)}, {number(one.y[-1], 3)} at {number(one.x[-1], 3)}"
            said.append(f"{one.name}: {ends}.")
    if len(series) > 12:
        said.append(f"And {len(series) - 12} more lines.")
    if floor is not None:
        said.append(f"{floor[0]}: {number(floor[1], 3)}.")
    return " ".join(said)


def _numbers(caption: str, series: Sequence[Series], x: str, floor: tuple[str, Number] | None) -> Table:
    """The numbers of a figure, at most a dozen places of each line."""
    places = sorted({value for one in series for value in one.x})
    if len(places) > 12:
        places = [places[round(k * (len(places) - 1) / 11)] for k in range(12)]
    rows = []
    for place in places:
        row = [_place(place)]
        for one in series:
            at = next((k for k, value in enumerate(one.x) if value == place), None)
            row.append("–" if at is None else with_error(one.y[at], one.error[at] if one.error else None))
        rows.append(row)
    if floor is not None:
        rows.append([floor[0], *(number(floor[1]) for _ in series)])
    return Table(caption=caption, head=[x, *(one.name for one in series)], rows=rows)


def _place(value: Number) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else number(float(value))


def ranking(
    name: str,
    title: str,
    rows: Sequence[tuple[str, Number, Number | None]],
    *,
    x: str,
    caption: str = "",
    floor: tuple[str, Number] | None = None,
    best: int = 1,
) -> Chart:
    """Values in their order, the first on top, with error bars; the `best` first ones in colour.

    Args:
        rows: (name, value, standard error or None).
    """
    rows = [row for row in rows if math.isfinite(row[1])]
    values = [row[1] for row in rows] + ([floor[1]] if floor else [])
    log = min(values) > 0 and max(values) > 8 * min(values)
    with figure(5.0, 0.9 + 0.27 * max(len(rows), 3)) as made:
        axes = made.add_subplot()
        for k, (_, value, error) in enumerate(rows):
            hue = colour(0) if k < best else MUTED
            style: dict[str, Any] = {
                "color": hue,
                "marker": "o" if k < best else "s",
                "markersize": 6 if k < best else 5,
            }
            axes.errorbar([value], [k], xerr=[_error(error) or 0.0], capsize=3, elinewidth=1.4, **style)
        if floor is not None:
            axes.axvline(floor[1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            where = {"ha": "left", "va": "bottom", "fontsize": 10.5, "color": INK}
            axes.annotate(floor[0], (floor[1], 1), (3, 1), axes.get_xaxis_transform(), "offset points", **where)
        set_axis(axes, "x", log)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x)
        axes.grid(axis="both")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        said = "; ".join(f"{row[0]} {with_error(row[1], row[2])}" for row in rows[:15])
        svg = to_svg(made, name, title, f"{x}, in order: {said}.")
    table = [[row[0], with_error(row[1], row[2])] for row in rows]
    if floor is not None:
        table.append([floor[0], number(floor[1])])
    return Chart(
        title=title, svg=svg, caption=caption, numbers=Table(caption=f"{title}: the numbers", head=["", x], rows=table)
    )
