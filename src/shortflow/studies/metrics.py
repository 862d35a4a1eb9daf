"""The figures that studies compare: which way is better, and what they are called."""

from dataclasses import dataclass

__all__ = ["METRICS", "Metric", "default_metric"]


@dataclass(frozen=True)
class Metric:
    """A figure of a record's rows: whether smaller is better, its name in words, and how it is written."""

    smaller: bool
    words: str
    form: str = ".3f"

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
    "density": Metric(False, "density"),
    "coverage": Metric(False, "coverage"),
    "energy_distance": Metric(True, "energy distance", ".4f"),
    "sliced_w2": Metric(True, "sliced Wasserstein distance", ".4f"),
}


def default_metric(kind: str, features: str) -> str:
    """What decides where nothing else was said: for images or points, in the shipped or other features."""
    if kind == "points":
        return "energy_distance"
    return "fd_percent" if features == "auto" else "distance"
