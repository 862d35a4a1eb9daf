"""A trained model with the exact law of its data: what all measurements of a run share."""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortflow.config import to_plain
from shortflow.data import Dataset
from shortflow.diagnose.known import Known
from shortflow.diagnose.maps import as_map
from shortflow.diagnose.ofdata import Looking
from shortflow.errors import ConfigError
from shortflow.flowmap import FlowMap
from shortflow.hub import Model
from shortflow.theory import FiniteData
from shortflow.theory.nodes import level_of
from shortflow.typing import Condition, condition_words

__all__ = ["CELLS", "Subject", "without_classes"]

SMALL = 4_000_000  # weights up to which a network is asked in double precision
CELLS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Values of σ/(α + σ) of the starts of cells; the ends are these and the data end."""


class Subject:
    """A model, the law of its data, and numbers that all measurements share.

    Attributes:
        k: the law.
        flow, map: the network in the precision of the data, and the jumps that its samples take.
        low, high: the times that it knows.
        collapse: the time below which one data point explains x_t; 0 of a density.
        generator: of everything random.
    """

    def __init__(self, model: Model, training: Dataset, looking: Looking) -> None:
        self.model, self.training, self.looking = model, training, looking
        _check_told(model.flow)
        size = sum(weight.numel() for weight in model.flow.parameters())
        classes = training.labels is not None and model.flow.num_classes > 0
        k = looking.known(training, model.spec, model.flow.path, classes)
        if size > SMALL and k.x.dtype == torch.float64:
            k = _single(k)
        self.k: Known = k
        self.flow: FlowMap = copy.deepcopy(model.flow).to(k.x.device, k.x.dtype).eval()
        self.map = as_map(self.flow)
        self.low, self.high = self.flow.span
        self.generator = torch.Generator().manual_seed(looking.seed)
        self.collapse = self._collapse()

    def settings(self) -> dict[str, Any]:
        model, k = self.model, self.k
        return {
            "model": str(model.path),
            "images_seen": model.images,
            "recipe": model.run.recipe.name,
            "data": self.training.name,
            "law": k.words,
            "closed": k.closed,
            "shape": list(model.spec.shape),
            "classes": self.flow.num_classes,
            "path": to_plain(self.flow.path),
            "ends": self.flow.ends,
            "span": [self.low, self.high],
            "guided": self.flow.guided,
            "points": self.looking.points,
            "flow_points": self.looking.flow_points,
            "rows": k.rows(self.looking.rows, flows=True),
            "flow_rows": k.rows(self.looking.flow_rows, flows=True),
            "seed": self.looking.seed,
            "precision": str(k.x.dtype).removeprefix("torch."),
        }

    def told(self, label: Int[Tensor, "n"] | None, n: int) -> Condition | None:
        """What the network is told: the class, or that there is none, nor another condition."""
        if self.flow.condition_shape is not None:
            return torch.full((n, *self.flow.condition_shape), math.nan, device=self.k.x.device)
        if self.flow.num_classes == 0:
            return None
        if label is None and self.flow.null_label is not None:
            return torch.full((n,), self.flow.null_label, device=self.k.x.device)
        return label

    def full(self, n: int, time: float) -> Float[Tensor, "n"]:
        return torch.full((n,), time, dtype=self.k.x.dtype, device=self.k.x.device)

    def times(self, shares: tuple[float, ...]) -> list[float]:
        """The times of noise levels that the network knows."""
        top = float(level_of(self.flow.path, torch.tensor([self.high], dtype=torch.float64)))
        known = [share for share in shares if share / (1 - share) < top]
        low = max(self.low, self.flow.lowest)
        return [t for t in self.k.times(torch.tensor(known, dtype=torch.float64)).tolist() if t > low]

    def _collapse(self) -> float:
        law, n = self.k.law, 64
        if not isinstance(law, FiniteData):
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            x_t, _, _, label = self.k.noisy(self.full(n, middle), torch.Generator().manual_seed(self.looking.seed))
            weight = float(law.responsibilities(x_t, self.full(n, middle), label).max(1).values.mean())
            low, high = (middle, high) if weight > 0.5 else (low, middle)
        return high


def _check_told(flow: FlowMap) -> None:
    """Raise `ConfigError` if the network can only be asked for samples with a vector or a sequence: the exact law of
    those that share one is known for classes only."""
    if flow.condition_shape is not None and flow.null_label is None:
        raise ConfigError(
            f"this model is told {condition_words(flow.condition_shape)} for each sample and was trained without label "
            "dropout: it has no law of all data that an exact one could be compared with. Train it with "
            "--set objective.label_dropout=0.1, for instance"
        )


def without_classes(law: Any) -> Any:
    """The law of all data, of whichever class."""
    return replace(law, labels=None) if getattr(law, "labels", None) is not None else law


def _single(k: Known) -> Known:
    """The same in single precision."""

    def law_of(law: Any) -> Any:
        return replace(law, points=law.points.float()) if isinstance(law, FiniteData) else law

    return Known(law=law_of(k.law), flows=law_of(k.flows), x=k.x.float(), label=k.label, closed=k.closed, words=k.words)
