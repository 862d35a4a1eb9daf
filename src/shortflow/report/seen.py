"""A study as a page looks at it: what decides, the order of its variants, their figures by steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shortflow.report.charts import Series
from shortflow.report.files import Study
from shortflow.report.metrics import Metric, floor_of, main_metric, measured, metric_of

__all__ = ["COLOURED", "MANY", "Seen"]

COLOURED = 6  # lines in colour; all others stand behind them in grey
MANY = 8  # variants from which the main figure is a ranking


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A study with what decides it.

    Attributes:
        metric, steps: the figure that decides, and in how many steps.
        order: the variants that have it, the best first; others after them.
        values: (variant, steps, metric) → (mean, standard error or None, seeds).
    """

    study: Study
    metric: Metric
    steps: int
    order: tuple[str, ...]
    values: Mapping[tuple[str, int, str], tuple[float, float | None, int]]

    @staticmethod
    def of(study: Study) -> "Seen":
        values = {}
        for row in study.rows("rows"):
            mean, steps = measured(row.get("mean")), row.get("steps")
            if mean is not None and isinstance(steps, int):
                key = (str(row.get("variant")), steps, str(row.get("metric")))
                values[key] = (mean, measured(row.get("standard_error")), int(measured(row.get("n")) or 1))
        settings = study.results.get("study")
        settings = settings if isinstance(settings, Mapping) else {}
        fallback = main_metric({"1 step": dict.fromkeys((metric for _, _, metric in values), 1.0)})
        metric = metric_of(str(settings.get("metric") or (fallback.key if fallback else "")))
        if isinstance(settings.get("smaller_is_better"), bool):
            metric = Metric(
                key=metric.key, label=metric.label, lower=settings["smaller_is_better"], reading=metric.reading
            )
        known = sorted({steps for _, steps, key in values if key == metric.key})
        steps = settings.get("metric_steps")
        steps = steps if isinstance(steps, int) else (known[0] if known else 1)
        sign = -1 if metric.lower is False else 1
        names = [str(variant.get("name")) for variant in study.rows("variants")]
        decided = [name for name in names if (name, steps, metric.key) in values]
        decided.sort(key=lambda name: sign * values[name, steps, metric.key][0])
        others = [name for name in names if name not in decided and any(key[0] == name for key in values)]
        return Seen(study=study, metric=metric, steps=steps, order=(*decided, *others), values=values)

    @property
    def settings(self) -> Mapping[str, Any]:
        found = self.study.results.get("study")
        return found if isinstance(found, Mapping) else {}

    @property
    def floor(self) -> tuple[str, float] | None:
        """What real data have."""
        rows = self.study.results.get("reference")
        good = isinstance(rows, Mapping) and all(isinstance(row, Mapping) for row in rows.values())
        return floor_of(rows, self.metric.key) if good and rows else None

    def of_metric(self, key: str) -> list[int]:
        """The numbers of steps that a metric was taken in."""
        return sorted({steps for _, steps, metric in self.values if metric == key})

    def series(self, key: str) -> list[Series]:
        """The metric by number of steps, a line a variant, the best ones in colour."""
        found = []
        for place, name in enumerate(self.order):
            points = [
                (steps, *self.values[name, steps, key])
                for steps in self.of_metric(key)
                if (name, steps, key) in self.values
            ]
            if points:
                found.append(
                    Series(
                        name=name,
                        x=[point[0] for point in points],
                        y=[point[1] for point in points],
                        error=[point[2] for point in points],
                        place=place if place < COLOURED or len(self.order) <= MANY else None,
                    )
                )
        return found[::-1]  # the best one is drawn last, above the others
