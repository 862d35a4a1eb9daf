"""Figures of the plane: cells of a map, arrows of a field."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shortflow.report.blocks import Chart, Table, number
from shortflow.report.charts import Number, set_axis, tick
from shortflow.report.svg import colour, figure, to_svg

__all__ = ["arrows", "cells"]

_MAP = "cividis"  # readable in grey, and by the colour-blind


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
                set_axis(axes, "x", False)
                set_axis(axes, "y", False)
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
        beside.set_yticks([math.log10(place) for place in places], [tick(place) for place in places])
    else:
        beside.yaxis.set_major_locator(MaxNLocator(5))
        beside.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(value))))


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
