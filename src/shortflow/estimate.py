"""What a run will take, counted before it starts: parameters, arithmetic and memory, on tensors that hold no numbers.

Nothing is measured: operations are those of matrix products, hours follow from a share of a device's peak that has to
be assumed, and activations are what the prediction keeps for its gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from shortflow.config import RunConfig
from shortflow.cost import Counter, step_cost
from shortflow.data import DataSpec
from shortflow.hub import build_flow
from shortflow.objective import Online, Snapshot

__all__ = ["Estimate", "estimate"]

PEAK, SHARE = 989e12, 0.4  # FLOP/s of an H100 in bf16, and what a training step reaches of it: assumptions
FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take.

    Attributes:
        parameters: of the network.
        forward: floating-point operations of F, a pass without gradient, for one image.
        step: cost of a training step in F.
        images: that are trained on.
        held: bytes of weights, gradient, two moments and all averages, in float32.
        kept: bytes of activations for one image, in float32; about half in bf16.
    """

    parameters: int
    forward: float
    step: float
    images: int
    held: int
    kept: int

    @property
    def operations(self) -> float:
        """Of the whole run."""
        return self.forward * self.step * self.images

    def hours(self, peak: float = PEAK, share: float = SHARE) -> float:
        """GPU-hours at a share of a peak in operations a second."""
        return self.operations / (peak * share) / 3600


def estimate(run: RunConfig, spec: DataSpec, step: float | None = None) -> Estimate:
    """The estimate of a run on data of this spec.

    Args:
        step: cost of a step in F; None: it is counted, which takes a few seconds.

    Raises:
        ShortflowError: if the network does not fit the data.
    """
    with torch.device("meta"):
        flow = build_flow(run, spec)
        x, t = torch.empty(1, *spec.shape), torch.empty(1)
        label = spec.blank(1)
        with torch.no_grad(), Counter() as counter:
            flow.predict(x, t, t, label)
        kept: dict[Any, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {id(weight.untyped_storage()) for weight in flow.parameters()}
        with saved_tensors_hooks(note, lambda tensor: tensor):
            flow.predict(x, t, t, label)
    parameters = sum(weight.numel() for weight in flow.parameters())
    teacher = run.recipe.objective.teacher
    averages = 1 + len(run.recipe.optimizer.extra_ema)
    averages += 0 if isinstance(teacher, Online) else 2 if isinstance(teacher, Snapshot) else 1
    return Estimate(
        parameters=parameters,
        forward=float(counter.total),
        step=step_cost(run.recipe) if step is None else step,
        images=run.train.images,
        held=FLOAT * parameters * (4 + averages),
        kept=sum(size for key, size in kept.items() if key not in weights),
    )
