"""Distances of prediction and target, one number a row, in single precision at least."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shortflow.draw import Draw
from shortflow.errors import ShortflowError
from shortflow.flowmap import FlowMap

__all__ = ["Metric", "PseudoHuber", "SquaredError", "at_least_single"]

Rows = Float[Tensor, "b"]
State = Float[Tensor, "b ..."]
Space = Literal["output", "state"]


def at_least_single(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values in float32, or in float64 if they are: sums of squares overflow in half precision."""
    return values if values.dtype == torch.float64 else values.float()


class Metric(ABC):
    """(prediction, target) → error of each row. `space` says whether it compares outputs F or states X."""

    space: Space
    group: int = 1

    @abstractmethod
    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        """One non-negative number a row."""


def _difference(prediction: State, target: State) -> Float[Tensor, "b d"]:
    return (at_least_single(prediction) - at_least_single(target)).flatten(1)


@dataclass(frozen=True, kw_only=True)
class SquaredError(Metric):
    """‖e‖² ("sum" over the D coordinates) or ‖e‖²/D ("mean"), in squared units of what is compared."""

    reduce: Literal["sum", "mean"] = "mean"
    space: Space = "output"

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        square = _difference(prediction, target).square()
        return square.sum(1) if self.reduce == "sum" else square.mean(1)


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Metric):
    """√(‖e‖² + c²) − c, with ‖e‖² the sum over the D coordinates, so that c and the error are in units of ‖e‖.

    c = 0.00054 √D if not given (improved consistency training, arXiv 2310.14189). c = 0 is the plain norm ‖e‖ (the
    default of easy consistency tuning, arXiv 2406.14548), whose gradient e/‖e‖ is taken to be 0 at e = 0.
    """

    c: float | None = None
    space: Space = "state"

    def __post_init__(self) -> None:
        if self.c is not None and not (self.c >= 0 and math.isfinite(self.c)):
            raise ShortflowError(f"PseudoHuber: c must be a finite number, not negative, or null, got {self.c}")

    def __call__(self, prediction: State, target: State, flow: FlowMap, draw: Draw) -> Rows:
        error = _difference(prediction, target)
        c = 0.00054 * math.sqrt(error.shape[1]) if self.c is None else self.c
        if c == 0:
            return torch.linalg.vector_norm(error, dim=1)
        total = error.square().sum(1)
        # total/(√(total + c²) + c) is the same number without the cancellation of √(total + c²) − c
        return total / (torch.sqrt(total + c * c) + c)
