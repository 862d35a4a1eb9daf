"""The kinds of figures: lines with error bars, a ranking, cells of a map, arrows of a field."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from shortflow.report.blocks import Chart, Table, number, with_error
from shortflow.report.svg import DASHES, INK, MARKERS, MUTED, SERIES, colour, figure, to_svg

__all__ = ["Series", "arrows", "cells", "lines", "ranking"]

Number = float | int

WIDE, SMALL = (5.0, 3.2), (4.0, 2.75)  # inches of a figure, in a wide and in a narrow column
_POINTS = 400  # of a curve that are drawn
_MAP = "cividis"  # readable in grey, and by the colour-blind


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
    values = [value for one in series for value in one.y] + ([floor[1]] if floor else [])
    positive = bool(values) and min(values) > 0
    log_y = positive and max(values) > 8 * min(values) if log_y is None else log_y and positive
    log_x = log_x and all(value > 0 for one in series for value in one.x)
    with figure(*(SMALL if small else WIDE)) as made:
        axes = made.add_subplot()
        for one in series:
            _line(axes, one, marked)
        if floor is not None:
            axes.axhline(floor[1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            where = {"ha": "right", "va": "bottom", "fontsize": 10.5, "color": INK}
            axes.annotate(floor[0], (1, floor[1]), (-2, 2), axes.get_yaxis_transform(), "offset points", **where)
        counts = sorted({value for one in series for value in one.x})
        whole = marked and log_x and all(float(value).is_integer() for value in counts)
        _axis(axes, "x", log_x, counts if whole else None)
        _axis(axes, "y", log_y)
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


def _axis(axes: Axes, which: str, log: bool, places: Sequence[Number] | None = None) -> None:
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
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(value))))


def _tick(value: Number) -> str:
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
        _axis(axes, "x", log)
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


def cells(
    name: str,
    title: str,
    values: Sequence[Sequence[Number | None]],
    *,
    x: str,
    y: str,
    edges_x: Sequence[Number],
    edges_y: Sequence[Number],
    unit: str,
    caption: str = "",
    log: bool = False,
    named: bool = False,
) -> Chart:
    """A map: the value [i][j] in the cell from edges_x[i] to edges_x[i + 1] and from edges_y[j] to edges_y[j + 1].

    Few cells have their numbers in them, many have a scale beside. With `named` the values are those at places, as many
    as there are rows and columns: `edges_x` and `edges_y` are the places, which stand below cells of one size.
    """
    places = (edges_x, edges_y)
    if named:
        edges_x, edges_y = range(len(edges_x) + 1), range(len(edges_y) + 1)
    found = {(i, j): v for i, row in enumerate(values) for j, v in enumerate(row) if v is not None and math.isfinite(v)}
    log = log and bool(found) and min(found.values()) > 0
    level = (lambda v: math.log10(v)) if log else (lambda v: v)
    low, high = (min(map(level, found.values())), max(map(level, found.values()))) if found else (0.0, 1.0)
    few = len(edges_x) <= 7 and len(edges_y) <= 7
    shades = colormaps[_MAP]

    def shade(value: Number) -> Any:
        return shades(0.5 if high == low else (value - low) / (high - low))

    with figure(5.0, 3.6) as made:
        axes = made.add_subplot()
        for (i, j), value in found.items():
            corner, size = (edges_x[i], edges_y[j]), (edges_x[i + 1] - edges_x[i], edges_y[j + 1] - edges_y[j])
            hue = shade(level(value))
            axes.add_patch(Rectangle(corner, *size, facecolor=to_hex(hue), edgecolor=to_hex(hue), linewidth=0.4))
            if few:
                middle = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
                axes.text(*middle, number(value, 3), ha="center", va="center", color=_readable(hue))
        axes.set_xlim(edges_x[0], edges_x[-1])
        axes.set_ylim(edges_y[0], edges_y[-1])
        if named:
            for set_ticks, at in ((axes.set_xticks, places[0]), (axes.set_yticks, places[1])):
                every = math.ceil(len(at) / 8)
                set_ticks([k + 0.5 for k in range(0, len(at), every)], [number(float(one), 2) for one in at[::every]])
            axes.tick_params(length=0)
        elif few:
            axes.set_xticks(list(edges_x), [f"{edge:g}" for edge in edges_x])
            axes.set_yticks(list(edges_y), [f"{edge:g}" for edge in edges_y])
        if not few:
            if not named:
                _axis(axes, "x", False)
                _axis(axes, "y", False)
            _scale(made, axes, shade, (low, high), log)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        ends = f"from {number(min(found.values()), 3)} to {number(max(found.values()), 3)}" if found else "empty"
        svg = to_svg(made, name, title, f"{unit} over {x} and {y}, {ends}.")
    return Chart(title=title, svg=svg, caption=caption, numbers=_cell_numbers(title, found, x, y, places, named))


def _cell_numbers(
    title: str,
    found: dict[Any, Number],
    x: str,
    y: str,
    places: tuple[Sequence[Number], Sequence[Number]],
    named: bool,
) -> Table | None:
    if len(found) > 64:
        return None

    def names(of: Sequence[Number]) -> list[str]:
        said = [number(float(one), 3) for one in of]
        return said if named else [f"{a} to {b}" for a, b in itertools.pairwise(said)]

    columns, lines_ = names(places[0]), names(places[1])
    rows = [[name, *(number(found.get((i, j))) for i in range(len(columns)))] for j, name in enumerate(lines_)]
    return Table(caption=f"{title}: the numbers", head=[f"{y} \\ {x}", *columns], rows=rows)


def _scale(made: Any, axes: Axes, shade: Any, ends: tuple[float, float], log: bool) -> None:
    """Which colour is which value."""
    low, high = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[1] + 0.5)
    beside = axes.inset_axes((1.04, 0.0, 0.05, 1.0))
    steps = np.linspace(low, high, 33)
    for a, b in itertools.pairwise(steps):
        hue = to_hex(shade((a + b) / 2))
        beside.add_patch(Rectangle((0, a), 1, b - a, facecolor=hue, edgecolor=hue, linewidth=0.4))
    beside.set_xlim(0, 1)
    beside.set_ylim(low, high)
    beside.set_xticks([])
    beside.yaxis.tick_right()
    if log:
        subs = (1, 2, 5) if high - low < 2.5 else (1,)
        places = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in subs]
        places = [place for place in places if low <= math.log10(place) <= high]
        beside.set_yticks([math.log10(place) for place in places], [_tick(place) for place in places])
    else:
        beside.yaxis.set_major_locator(MaxNLocator(5))
        beside.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(value))))


def _readable(hue: tuple[float, ...]) -> str:
    """Black or white, which has the higher contrast against a colour (WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in hue[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def arrows(name: str, title: str, panels: Sequence[tuple[str, np.ndarray]], at: np.ndarray, caption: str = "") -> Chart:
    """Fields of arrows in the plane beside each other, each scaled to its own longest arrow."""
    with figure(5.0, 0.3 + 4.7 / len(panels)) as made:
        for k, (heading, field) in enumerate(panels):
            axes = made.add_subplot(1, len(panels), k + 1)
            longest = max(float(np.linalg.norm(field, axis=-1).max()), 1e-12)
            side = math.sqrt(len(at))
            gap = (at[:, 0].max() - at[:, 0].min()) / max(side - 1, 1)
            drawn = field / longest * gap * 1.4
            axes.quiver(
                at[:, 0],
                at[:, 1],
                drawn[:, 0],
                drawn[:, 1],
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.012,
                color=colour(0),
            )
            axes.set_aspect("equal")
            axes.set_title(heading)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
        lengths = [(heading, float(np.linalg.norm(field, axis=-1).max())) for heading, field in panels]
        said = ", ".join(f"{number(length, 3)} at {heading}" for heading, length in lengths)
        longest_said = f"The longest arrow: {said}."
        svg = to_svg(made, name, title, f"Arrows on a grid of points in the plane. {longest_said}")
    return Chart(title=title, svg=svg, caption=f"{caption} {longest_said}".strip())
