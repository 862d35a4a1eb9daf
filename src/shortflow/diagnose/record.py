"""What a diagnosis found, as values that can be drawn, printed and kept: curves, maps, numbers, and advice.

The record is JSON:

    {"format": 1, "kind": "data" | "run", "settings": {…},
     "curves": {name: {"x": […], "y": […], "error": […] | null, "x_label", "label", "unit"}},
     "maps": {name: {"t": […], "r": […], "values": [[…], …], "label", "unit"}},
     "scalars": {name: {"value", "error", "label", "unit"}},
     "advice": [{"text", "evidence"}], "notes": [text]}

`values[i][j]` belongs to t[i] and r[j] and is null where r ≥ t. Errors are standard errors, null where there is none. A
number that is not finite is null. Names with a stroke, "removed/masked", are members of one group, drawn on common
axes.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shortflow.files import write_atomic
from shortflow.theory.estimates import Estimate

__all__ = ["FORMAT", "Diagnosis", "report_table"]

FORMAT = 1


@dataclass(kw_only=True)
class Diagnosis:
    """A record while it is made, see the module.

    Attributes:
        kind: what was looked at.
        settings: everything that a figure depends on.
    """

    kind: Literal["data", "run"]
    settings: dict[str, Any]
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    scalars: dict[str, dict[str, Any]] = field(default_factory=dict)
    advice: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def curve(
        self,
        name: str,
        x: Iterable[float],
        y: Sequence[Estimate | float],
        label: str,
        unit: str = "",
        x_label: str = "t",
    ) -> None:
        estimates = [each if isinstance(each, Estimate) else Estimate(float(each), math.nan) for each in y]
        errors = [_number(each.error) for each in estimates]
        self.curves[name] = {
            "x": [_number(each) for each in x],
            "y": [_number(each.value) for each in estimates],
            "error": None if all(error is None for error in errors) else errors,
            "x_label": x_label,
            "label": label,
            "unit": unit,
        }

    def map(
        self,
        name: str,
        t: Sequence[float],
        r: Sequence[float],
        values: Mapping[tuple[int, int], float],
        label: str,
        unit: str = "",
    ) -> None:
        """`values` by the places of t and r; cells that are not in it are null."""
        rows = [[_number(values.get((i, j), math.nan)) for j in range(len(r))] for i in range(len(t))]
        self.maps[name] = {"t": list(t), "r": list(r), "values": rows, "label": label, "unit": unit}

    def scalar(self, name: str, value: Estimate | float, label: str, unit: str = "") -> None:
        estimate = value if isinstance(value, Estimate) else Estimate(float(value), math.nan)
        self.scalars[name] = {
            "value": _number(estimate.value),
            "error": _number(estimate.error),
            "label": label,
            "unit": unit,
        }

    def advise(self, text: str, evidence: str) -> None:
        self.advice.append({"text": text, "evidence": evidence})

    def number(self, name: str) -> Estimate:
        """A scalar that was noted; NaN where there is none."""
        found = self.scalars.get(name, {})
        value, error = found.get("value"), found.get("error")
        return Estimate(math.nan if value is None else value, math.nan if error is None else error)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "settings": self.settings,
            "curves": self.curves,
            "maps": self.maps,
            "scalars": self.scalars,
            "advice": self.advice,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """The record as JSON: the old file or the new one, never a half of it."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------------- tables


def report_table(record: Mapping[str, Any], chosen: Collection[str] | None = None) -> list[str]:
    """A record as lines of text: its numbers, curves and maps as aligned columns.

    Args:
        chosen: names, or what stands before their stroke, of the curves and maps that are shown; None: all.
    """
    lines: list[str] = []
    if record["scalars"]:
        numbers = record["scalars"].values()
        rows = [(each["label"], _stated(each["value"], each["error"], each["unit"])) for each in numbers]
        lines += [*_aligned(rows), ""]
    curves, maps = (
        {name: each for name, each in record[kind].items() if chosen is None or _names(name) & set(chosen)}
        for kind in ("curves", "maps")
    )
    for group in _groups(curves):
        lines += [*_curves({name: curves[name] for name in group}), ""]
    for each in maps.values():
        lines += [*_map(each), ""]
    return lines[:-1] if lines else lines


def _names(name: str) -> set[str]:
    return {name, name.partition("/")[0]}


def _groups(curves: Mapping[str, Any]) -> list[list[str]]:
    """Names of curves that share a stem and their x."""
    found: dict[Any, list[str]] = {}
    for name, curve in curves.items():
        found.setdefault((name.partition("/")[0], tuple(curve["x"])), []).append(name)
    return list(found.values())


def _curves(curves: Mapping[str, Any]) -> list[str]:
    first = next(iter(curves.values()))
    unit = f" [{first['unit']}]" if first["unit"] else ""
    heads = [curve["label"] for curve in curves.values()]
    title = heads[0] if len(heads) == 1 else _common(heads)
    columns = [head[len(title) :].strip(" :,") or head for head in heads] if len(heads) > 1 else ["value"]
    rows = [(first["x_label"], *columns)]
    for i, x in enumerate(first["x"]):
        if _plain(x) == rows[-1][0]:  # nodes of a quadrature lie close at its ends
            continue
        cells = (_stated(curve["y"][i], curve["error"][i] if curve["error"] else None, "") for curve in curves.values())
        rows.append((_plain(x), *cells))
    return [f"{title.strip(' :,')}{unit}", *("  " + line for line in _aligned(rows, right=True))]


def _common(heads: Sequence[str]) -> str:
    """What labels begin with, up to a colon."""
    stem = heads[0].partition(":")[0]
    return stem + ":" if all(head.startswith(stem + ":") for head in heads) else ""


def _map(each: Mapping[str, Any]) -> list[str]:
    unit = f" [{each['unit']}]" if each["unit"] else ""
    rows = [("t \\ r", *(_plain(r) for r in each["r"]))]
    for t, values in zip(each["t"], each["values"], strict=True):
        rows.append((_plain(t), *("" if value is None else _plain(value) for value in values)))
    return [f"{each['label']}{unit}", *("  " + line for line in _aligned(rows, right=True))]


def _plain(value: float | None) -> str:
    """Three digits, and all of those before the point up to a million."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _stated(value: float | None, error: float | None, unit: str) -> str:
    if value is None:
        return "–"
    exact = not error or error < 1e-6 * abs(value)
    text = _plain(value) if exact else f"{_plain(value)} ± {_plain(float(f'{error:.1g}'))}"
    return f"{text} {unit}" if unit else text


def _aligned(rows: Sequence[Sequence[str]], right: bool = False) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    place = str.rjust if right else str.ljust
    return ["  ".join(place(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
