"""The sections of a diagnosis: its advice with the evidence, its curves, its maps over (t, r), its numbers."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from shortflow.report.blocks import Block, Chart, Code, Notes, Row, Section, Sentences, Table, number
from shortflow.report.charts import Series, cells, lines
from shortflow.report.files import Diagnosis
from shortflow.report.metrics import measured
from shortflow.report.recipes import plain_value

__all__ = ["diagnosis_parts", "diagnosis_sections"]


def diagnosis_sections(found: Diagnosis, name: str) -> list[Section]:
    """A page on a diagnosis alone."""
    sections = [
        Section(title="Advice", blocks=_advice(found.record)),
        Section(title="Figures", blocks=_figures(found.record, name)),
        Section(title="Numbers", blocks=_scalars(found.record)),
        Section(title="Settings", blocks=_settings(found)),
    ]
    return [section for section in sections if section]


def diagnosis_parts(found: Diagnosis, name: str) -> list[Block]:
    """A diagnosis as a section of a run's page."""
    return [*_advice(found.record), *_figures(found.record, name), *_scalars(found.record)]


def _advice(record: Mapping[str, Any]) -> list[Block]:
    rows = []
    for each in record.get("advice") or ():
        if isinstance(each, Mapping) and each.get("text"):
            rows.append([str(each["text"]), _evidence(each.get("evidence"))])
    return [
        Table(caption="Advice, and what it rests on", head=["advice", "evidence"], rows=rows, words=frozenset({1}))
    ] * bool(rows)


def _evidence(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')} {_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return "–" if value is None else str(value)


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else plain_value(value)


def _figures(record: Mapping[str, Any], name: str) -> list[Block]:
    found: list[Block] = []
    left_out = []
    charts: list[Block] = []
    for kind, draw in (("curves", _curve), ("maps", _map)):
        for k, (key, each) in enumerate((record.get(kind) or {}).items()):
            chart = None
            if isinstance(each, Mapping):
                chart = draw(str(key), each, f"{name}-{kind}{k}")
            if chart is None:
                left_out.append(f"The {kind[:-1]} {key} has no numbers that can be drawn.")
            else:
                charts.append(chart)
    if charts:
        found.append(Row(blocks=charts, narrow=False))
    if left_out:
        found.append(Notes(texts=left_out))
    return found


def _numbers(values: Any) -> list[float | None]:
    return [measured(value) for value in values] if isinstance(values, list) else []


def _curve(key: str, each: Mapping[str, Any], name: str) -> Chart | None:
    x, y = _numbers(each.get("x")), _numbers(each.get("y"))
    error = _numbers(each.get("error")) or [None] * len(y)
    points = [(a, b, e) for a, b, e in zip(x, y, error, strict=False) if a is not None and b is not None]
    if not points or len(x) != len(y):
        return None
    title = _title(key)
    label, unit = str(each.get("label") or title), str(each.get("unit") or "")
    known = [e for _, _, e in points]
    one = Series(name=title, x=[p[0] for p in points], y=[p[1] for p in points], error=known if any(known) else None)
    wide = min(one.x) > 0 and max(one.x) > 20 * min(one.x)
    return lines(
        name,
        title,
        [one],
        x=str(each.get("x_label") or _abscissa(one.x)),
        y=unit or label,
        caption=f"{label}.",
        log_x=wide,
        marked=len(points) <= 40,
    )


def _abscissa(x: Sequence[float]) -> str:
    return "t" if min(x) >= 0 and max(x) <= 1 else "x"


def _map(key: str, each: Mapping[str, Any], name: str) -> Chart | None:
    t, r = _numbers(each.get("t")), _numbers(each.get("r"))
    values = each.get("values")
    if not isinstance(values, list) or not all(isinstance(row, list) for row in values):
        return None
    grid = [_numbers(row) for row in values]
    edges_t, edges_r = _edges(t, len(grid)), _edges(r, max(map(len, grid), default=0))
    if edges_t is None or edges_r is None:
        return None
    unit = str(each.get("unit") or "value")
    return cells(
        name,
        _title(key),
        grid,
        x="t",
        y="r",
        edges_x=edges_t,
        edges_y=edges_r,
        unit=unit,
        caption=f"{each.get('label') or _title(key)}.",
        log=_spans(grid),
    )


def _spans(grid: Sequence[Sequence[float | None]]) -> bool:
    found = [value for row in grid for value in row if value is not None]
    return bool(found) and min(found) > 0 and max(found) > 30 * min(found)


def _edges(places: Sequence[float | None], count: int) -> list[float] | None:
    """The edges of cells that are given by them, or by their middles."""
    known = [place for place in places if place is not None]
    if len(known) != len(places) or count < 1 or len(known) not in (count, count + 1):
        return None
    if any(b <= a for a, b in itertools.pairwise(known)):
        return None
    if len(known) == count + 1:
        return known
    if count == 1:
        return [known[0] - 0.5, known[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(known)]
    return [2 * known[0] - middles[0], *middles, 2 * known[-1] - middles[-1]]


def _scalars(record: Mapping[str, Any]) -> list[Block]:
    rows = []
    for key, value in (record.get("scalars") or {}).items():
        if isinstance(value, Mapping):
            said = f"{number(value.get('value'))} {value.get('unit') or ''}".strip()
            rows.append([str(value.get("label") or _title(str(key))), said])
        else:
            rows.append([_title(str(key)), _value(value)])
    return [Table(caption="Numbers", head=["", ""], rows=rows, words=frozenset({1}))] * bool(rows)


def _settings(found: Diagnosis) -> list[Block]:
    import json

    text = json.dumps(found.record.get("settings"), indent=2, ensure_ascii=False)
    said = Sentences(texts=["What the diagnosis was made with."])
    return [said, Code(text=f"{text}\n", label="settings", folded=False)]


def _title(key: str) -> str:
    text = key.replace("_", " ")
    return f"{text[:1].upper()}{text[1:]}"
