"""The sections of a diagnosis: its advice with the evidence, its curves, its maps over (t, r), its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortflow.report.blocks import Block, Chart, Code, Notes, Row, Section, Sentences, Table, number, with_error
from shortflow.report.charts import Series, lines
from shortflow.report.files import Diagnosis
from shortflow.report.maps import cells
from shortflow.report.metrics import measured
from shortflow.report.recipes import plain_value

__all__ = ["diagnosis_parts", "diagnosis_sections"]


def diagnosis_sections(found: Diagnosis, name: str) -> list[Section]:
    """A page on a diagnosis alone."""
    sections = [
        Section(title="Advice", blocks=[*_advice(found.record), *_remarks(found.record)]),
        Section(title="Figures", blocks=_figures(found.record, name)),
        Section(title="Numbers", blocks=_scalars(found.record)),
        Section(title="Settings", blocks=_settings(found)),
    ]
    return [section for section in sections if section]


def diagnosis_parts(found: Diagnosis, name: str) -> list[Block]:
    """A diagnosis as a section of a run's page."""
    return [
        *_advice(found.record),
        *_remarks(found.record),
        *_figures(found.record, name),
        *_scalars(found.record),
    ]


def _advice(record: Mapping[str, Any]) -> list[Block]:
    rows = []
    found = record.get("advice")
    for each in found if isinstance(found, list) else ():
        if isinstance(each, Mapping) and each.get("text"):
            rows.append([str(each["text"]), _evidence(each.get("evidence"))])
    return [
        Table(caption="Advice, and what it rests on", head=["advice", "evidence"], rows=rows, words=frozenset({1}))
    ] * bool(rows)


def _remarks(record: Mapping[str, Any]) -> list[Block]:
    found = record.get("notes")
    texts = [str(text) for text in found] if isinstance(found, list) else []
    return [Notes(texts=texts)] * bool(texts)


def _evidence(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')} {_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return "–" if value is None else str(value)


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else plain_value(value)


def _figures(record: Mapping[str, Any], name: str) -> list[Block]:
    """Curves, members of a group ("removed/masked") on common axes, and maps."""
    charts: list[Block] = []
    left_out = []
    groups: dict[tuple[str, str], list[_Curve]] = {}
    for key, each in _items(record, "curves"):
        curve = _Curve.of(each)
        if curve is None:
            left_out.append(f"The curve {key} has no numbers that can be drawn.")
        else:
            groups.setdefault((key.partition("/")[0], curve.x_label), []).append(curve)
    charts += [_curves(stem, members, f"{name}-c{k}") for k, ((stem, _), members) in enumerate(groups.items())]
    for k, (key, each) in enumerate(_items(record, "maps")):
        chart = _map(key, each, f"{name}-m{k}")
        if chart is None:
            left_out.append(f"The map {key} has no numbers that can be drawn.")
        else:
            charts.append(chart)
    found: list[Block] = [Row(blocks=charts)] if charts else []
    if left_out:
        found.append(Notes(texts=left_out))
    return found


def _items(record: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    found = record.get(kind)
    if not isinstance(found, Mapping):
        return []
    return [(str(key), each if isinstance(each, Mapping) else {}) for key, each in found.items()]


def _numbers(values: Any) -> list[float | None]:
    return [measured(value) for value in values] if isinstance(values, list) else []


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """A curve that can be drawn."""

    label: str
    x_label: str
    unit: str
    points: Sequence[tuple[float, float, float | None]]

    @staticmethod
    def of(each: Mapping[str, Any]) -> "_Curve | None":
        x, y = _numbers(each.get("x")), _numbers(each.get("y"))
        error = _numbers(each.get("error")) or [None] * len(y)
        if not len(x) == len(y) == len(error):
            return None
        points = [(a, b, e) for a, b, e in zip(x, y, error, strict=True) if a is not None and b is not None]
        if not points:
            return None
        return _Curve(
            label=str(each.get("label") or ""),
            x_label=str(each.get("x_label") or "t"),
            unit=str(each.get("unit") or ""),
            points=points,
        )


def _curves(stem: str, members: Sequence[_Curve], name: str) -> Chart:
    """Curves of one group; what their labels share, up to a colon, is the title."""
    labels = [member.label or _title(stem) for member in members]
    shared = labels[0].partition(":")[0]
    if len(labels) > 1 and all(label.startswith(f"{shared}:") for label in labels):
        title, labels = shared, [label[len(shared) + 1 :].strip() for label in labels]
    else:
        title = labels[0] if len(labels) == 1 else _title(stem)
    series = [
        Series(
            name=label,
            x=[point[0] for point in member.points],
            y=[point[1] for point in member.points],
            error=[point[2] for point in member.points],
            place=place,
        )
        for place, (label, member) in enumerate(zip(labels, members, strict=True))
    ]
    x = [value for one in series for value in one.x]
    return lines(
        name,
        _capital(title),
        series,
        x=members[0].x_label,
        y=members[0].unit or _words(stem),
        log_x=members[0].x_label == "steps" or (members[0].x_label != "t" and min(x) > 0 and max(x) > 20 * min(x)),
        marked=len(series[0].x) <= 40,
        caption="Bars: one standard error." if any(error for one in series for error in one.error or ()) else "",
    )


def _map(key: str, each: Mapping[str, Any], name: str) -> Chart | None:
    t, r = _numbers(each.get("t")), _numbers(each.get("r"))
    values = each.get("values")
    if not isinstance(values, list) or not all(isinstance(row, list) for row in values):
        return None
    grid = [_numbers(row) for row in values]
    if not t or not r or None in (*t, *r) or len(grid) != len(t) or any(len(row) != len(r) for row in grid):
        return None
    known = [value for row in grid for value in row if value is not None]
    if not known:
        return None
    return cells(
        name,
        _capital(str(each.get("label") or _title(key))),
        grid,
        x="t",
        y="r",
        edges_x=[value for value in t if value is not None],
        edges_y=[value for value in r if value is not None],
        unit=str(each.get("unit") or _words(key)),
        caption=f"Unit: {each['unit']}." if each.get("unit") else "",
        log=min(known) > 0 and max(known) > 30 * min(known),
        named=True,
    )


def _scalars(record: Mapping[str, Any]) -> list[Block]:
    rows = []
    found = record.get("scalars")
    for key, value in found.items() if isinstance(found, Mapping) else ():
        label, said = _title(str(key)), _value(value)
        if isinstance(value, Mapping):
            mean, error = measured(value.get("value")), measured(value.get("error"))
            label = str(value.get("label") or label)
            said = "–" if mean is None else with_error(mean, error)
            said = f"{said} {value.get('unit') or ''}".strip()
        rows.append([_capital(label), said])
    return [Table(caption="Numbers", head=["", ""], rows=rows, words=frozenset({1}))] * bool(rows)


def _settings(found: Diagnosis) -> list[Block]:
    import json

    text = json.dumps(found.record.get("settings"), indent=2, ensure_ascii=False)
    said = Sentences(texts=["What the diagnosis was made with."])
    return [said, Code(text=f"{text}\n", label="settings", folded=False)]


def _title(key: str) -> str:
    return _capital(_words(key))


def _words(key: str) -> str:
    """The name of a figure as words: what it is called at an axis, where it has no unit."""
    return key.rpartition("residual/")[2].replace("_", " ").replace("/", ", ")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
