"""A study as a page looks at it: what decides, the order of its variants, their figures by steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shortflow.report.blocks import with_error
from shortflow.report.charts import Series
from shortflow.report.files import Study
from shortflow.report.metrics import Metric, floor_of, main_metric, measured, metric_of

__all__ = ["COLOURED", "MANY", "Seen", "bars", "mean", "words"]

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
    def real(self) -> tuple[str, Mapping[str, Any]] | None:
        """The first row of real data: its name, and its figures."""
        rows = self.study.results.get("reference")
        found = rows.items() if isinstance(rows, Mapping) else ()
        return next(((str(name), row) for name, row in found if isinstance(row, Mapping)), None)

    @property
    def floor(self) -> tuple[str, float] | None:
        """What real data have."""
        rows = self.study.results.get("reference")
        good = isinstance(rows, Mapping) and all(isinstance(row, Mapping) for row in rows.values())
        return floor_of(rows, self.metric.key) if good and rows else None

    @property
    def label(self) -> str:
        """What the figure that decides is called, at the beginning of a sentence."""
        return f"{self.metric.label[:1].upper()}{self.metric.label[1:]}"

    def leader(self, steps: int) -> str | None:
        """The variant whose mean is the best in so many steps."""
        known = [name for name in self.order if (name, steps, self.metric.key) in self.values]
        sign = -1 if self.metric.lower is False else 1
        return min(known, key=lambda name: sign * self.values[name, steps, self.metric.key][0], default=None)

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


def bars(seen: Seen) -> str:
    """What the error bars of a figure are."""
    seeds = sorted({n for _, _, n in seen.values.values()})
    if seeds[-1:] == [1] or not any(error is not None for _, error, _ in seen.values.values()):
        return "One seed each: there are no error bars."
    several = [count for count in seeds if count > 1]
    said = f"{several[0]}" if len(several) == 1 else f"{several[0]} to {several[-1]}"
    alone = "; a variant with one seed has none" if several != seeds else ""
    return f"Bars: one standard error over {said} seeds{alone}."


def mean(value: tuple[float, float | None, int] | None) -> str:
    """A mean with its standard error."""
    return "–" if value is None else with_error(value[0], value[1])


def words(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
