"""The figures that studies compare: which way is better, and what they are called."""

from dataclasses import dataclass

__all__ = ["METRICS", "Metric", "metrics_of"]


@dataclass(frozen=True)
class Metric:
    """A figure of a record's rows: whether smaller is better, its name in words, how it is written; and whether there
    is a best one at all."""

    smaller: bool
    words: str
    form: str = ".3f"
    ranked: bool = True

    @property
    def better(self) -> str:
        return "smaller is better" if self.smaller else "larger is better"


METRICS: dict[str, Metric] = {
    "fd_percent": Metric(True, "Fréchet distance in % of the data's variance"),
    "fd": Metric(True, "Fréchet distance"),
    "class_fd": Metric(True, "mean Fréchet distance within a class"),
    "kid": Metric(True, "kernel distance", ".4f"),
    "distance": Metric(True, "Fréchet distance of the features"),
    "spatial_distance": Metric(True, "Fréchet distance of spatial features"),
    "inception_score": Metric(False, "Inception score", ".2f"),
    "conditional_accuracy": Metric(False, "accuracy of the class asked for"),
    "precision": Metric(False, "precision"),
    "recall": Metric(False, "recall"),
    "density": Metric(False, "density", ranked=False),  # around 1 for sets of one law
    "coverage": Metric(False, "coverage"),
    "energy_distance": Metric(True, "energy distance", ".4f"),
    "sliced_w2": Metric(True, "sliced Wasserstein distance", ".4f"),
}


_POINTS = ("energy_distance", "sliced_w2")
_FEATURES = ("distance", "spatial_distance", "inception_score")  # of `shortflow.runs.compare`
_CLASSIFIER = ("fd_percent", "fd", "class_fd", "conditional_accuracy")  # of `shortflow.runs.score`


def metrics_of(kind: str, features: str) -> tuple[str, ...]:
    """The figures that there are for images or points, in the shipped ("auto") or other features; the first decides
    where nothing else was said."""
    if kind == "points":
        return _POINTS
    own, others = (_CLASSIFIER, _FEATURES) if features == "auto" else (_FEATURES, _CLASSIFIER)
    return (*own, *(name for name in METRICS if name not in (*own, *others, *_POINTS)))
