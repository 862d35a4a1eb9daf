"""What figures of an evaluation are called, which way is better, and when two records may be compared."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "METRICS",
    "Metric",
    "by_steps",
    "comparable",
    "floor_of",
    "is_fid",
    "label_of",
    "made_of",
    "main_metric",
    "measured",
    "metric_of",
    "steps_of",
]

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure: its key in the records, what it is called, whether less is better (None: neither), how to read it."""

    key: str
    label: str
    lower: bool | None = True
    reading: str = ""

    @property
    def better(self) -> str:
        return {True: "lower is better", False: "higher is better", None: ""}[self.lower]


# The first one that a record has is its main figure.
METRICS = (
    Metric(key="distance", label="Fréchet distance", reading="falls with N: compare at equal N only"),
    Metric(
        key="fd_percent",
        label="Fréchet distance (% of variance)",
        reading="of the features of a fixed classifier; falls with N, so compare at equal N only",
    ),
    Metric(key="energy_distance", label="energy distance", reading="of two clouds of points; 0 for the same law"),
    Metric(key="fd", label="Fréchet distance"),
    Metric(key="spatial_distance", label="spatial Fréchet distance"),
    Metric(key="kid", label="kernel distance", reading="unbiased: around 0 for real images"),
    Metric(key="class_fd", label="Fréchet distance within classes", reading="sees wrong labels"),
    Metric(key="sliced_w2", label="sliced Wasserstein distance"),
    Metric(key="inception_score", label="Inception score", lower=False),
    Metric(key="conditional_accuracy", label="accuracy", lower=False, reading="read it against real images, not 1"),
    Metric(key="recall", label="recall", lower=False, reading="share of real images near generated ones"),
    Metric(key="coverage", label="coverage", lower=False, reading="share of real neighbourhoods that are hit"),
    Metric(key="precision", label="precision", lower=False, reading="share of generated images near real ones"),
    Metric(key="density", label="density", lower=None, reading="around 1 for sets of one law"),
)
_KNOWN = {metric.key: metric for metric in METRICS}


def metric_of(key: str) -> Metric:
    """The metric of that key; of one that is not known, its key is its name."""
    return _KNOWN.get(key) or Metric(key=key, label=key.replace("_", " "), lower=None)


def measured(value: Any) -> float | None:
    """The number that a value is, None where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def steps_of(name: str) -> int | None:
    """The number of steps that a row is of: "1 step", "8 steps"; None for real data."""
    found = re.fullmatch(r"(\d{1,9}) steps?", name)
    return int(found[1]) if found else None


def by_steps(rows: Rows, key: str) -> dict[int, float]:
    """The metric by number of steps, fewest first."""
    found = {steps_of(name): measured(row.get(key)) for name, row in rows.items()}
    return {
        steps: value
        for steps, value in sorted(found.items(), key=lambda each: each[0] or 0)
        if steps and value is not None
    }


def floor_of(rows: Rows, key: str) -> tuple[str, float] | None:
    """The row of real data, and what it has."""
    for name, row in rows.items():
        value = measured(row.get(key))
        if name.startswith("real") and value is not None:
            return name, value
    return None


def main_metric(rows: Rows) -> Metric | None:
    """The figure to look at first; None where there is none."""
    for metric in METRICS:
        if by_steps(rows, metric.key):
            return replace(metric, label=label_of(metric, rows))
    return None


def label_of(metric: Metric, rows: Rows) -> str:
    """What the figure is called in these rows: a distance by what it may be called, such as FID-5k and sFID-5k."""
    key = {"distance": "name", "spatial_distance": "spatial_name"}.get(metric.key)
    names = {str(row[key]) for row in rows.values() if row.get(key)} if key else set()
    return names.pop() if len(names) == 1 else metric.label


def made_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the samples of a record were drawn: evaluation.json says it of itself, those of other features in a part."""
    made = record.get("made")
    return made if isinstance(made, Mapping) else record


def is_fid(record: Mapping[str, Any]) -> bool:
    """Whether the distances are of the published Inception features."""
    rows = record.get("rows")
    names = [row.get("name") for row in rows.values()] if isinstance(rows, Mapping) else []
    return any(str(name).startswith("FID") for name in names)


def comparable(records: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Why records (name, content of evaluation.json) should not be compared, in sentences; none if they may."""
    reasons = []
    for what, of in (
        ("data", lambda record: record.get("data")),
        ("numbers of samples", lambda record: sorted({str(row.get("n")) for row in _sampled(record)})),
        ("features", lambda record: _weights(record)),
        ("references", lambda record: _reference(record)),
        ("precisions", lambda record: made_of(record).get("precision")),
    ):
        values = {name: of(record) for name, record in records}
        if len({str(value) for value in values.values()}) > 1:
            said = "; ".join(f"{name}: {_short(value)}" for name, value in values.items())
            reasons.append(f"The records differ in {what} ({said}), so their figures are no comparison.")
    return reasons


def _sampled(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for name, row in record["rows"].items() if steps_of(name)]


def _weights(record: Mapping[str, Any]) -> Any:
    if isinstance(record.get("features"), Mapping):
        return record["features"].get("weights")
    return _of_rows(record, "classifier", "sha256")


def _reference(record: Mapping[str, Any]) -> Any:
    if isinstance(record.get("reference"), Mapping):
        return record["reference"].get("sha256")
    return _of_rows(record, "reference", "fingerprint")


def _of_rows(record: Mapping[str, Any], part: str, name: str) -> list[str]:
    """What the rows of samples say."""
    parts = [row.get(part) for row in _sampled(record)]
    return sorted({str(each.get(name)) for each in parts if isinstance(each, Mapping)})


def _short(value: Any) -> str:
    texts = value if isinstance(value, list) else [value]
    return ", ".join(str(text)[:12] for text in texts) or "none"
