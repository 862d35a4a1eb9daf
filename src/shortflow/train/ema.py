"""Moving averages of weights: θ̄ ← d θ̄ + (1 − d) θ in one fused call, with a decay d that may depend on the step."""

import copy

import numpy as np
import torch

from shortflow.flowmap import FlowMap
from shortflow.modules import Parts
from shortflow.optimizer import Optimizer
from shortflow.train.shards import whole

__all__ = ["Average", "averages_of"]


def power_of(length: float) -> float:
    """The exponent γ ≥ 0 of the profile p(τ) ∝ τ^γ on [0, 1] whose standard deviation is `length`.

    √((γ + 1)/((γ + 2)² (γ + 3))) = length, a cubic equation with one root from 0 on for lengths up to 1/√12.
    Golden: .05 ↔ 16.97, .1 ↔ 6.94 (EDM2, arXiv 2312.02696, section 3.1).
    """
    x = length**-2
    return max(0.0, float(np.roots([1, 7, 16 - x, 12 - x]).real.max()))


class Average:
    """A copy of a flow map whose weights follow it. Buffers are copied, not averaged.

    Args:
        module: where it starts.
        decay: d.
        warm: the decay of step k (from 0) is min(decay, (1 + k)/(10 + k)), so that a short run does not average over
            its random start.
        length: instead of both, the relative length of an average over the run so far with weights (j/n)^γ for step j
            of n: the decay of step k is (1 − 1/(k + 1))^{γ + 1}.

    Attributes:
        module: the average, a flow map in evaluation mode without gradients.
    """

    def __init__(self, module: FlowMap, decay: float = 0.0, warm: bool = False, length: float | None = None) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay, self.warm = decay, warm
        self.power = None if length is None else power_of(length)
        self._own = Parts(self.module)
        self._followed: tuple[FlowMap, Parts] | None = None

    def rate(self, step: int) -> float:
        """The decay used after step `step`."""
        if self.power is not None:
            return (1 - 1 / (step + 1)) ** (self.power + 1)
        return min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay

    def update(self, module: FlowMap, step: int) -> None:
        """Move towards `module` after step `step`, with the average's own decay."""
        self.follow(module, self.rate(step))

    @torch.no_grad()
    def follow(self, module: FlowMap, decay: float) -> None:
        """θ̄ ← decay · θ̄ + (1 − decay) · θ."""
        mine, theirs = self._own, self._parts(module)
        weights = [whole(weight) for weight in theirs.parameters]
        torch._foreach_lerp_(mine.parameters, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for buffer, source in zip(mine.buffers, theirs.buffers, strict=True):
            buffer.copy_(source)

    def _parts(self, module: FlowMap) -> Parts:
        """Those of the module that is followed, which is the same one in every step."""
        if self._followed is None or self._followed[0] is not module:
            self._followed = module, Parts(module)
        return self._followed[1]


def averages_of(flow: FlowMap, settings: Optimizer) -> dict[str, Average]:
    """The averages that a run keeps by name: "average", which is sampled and saved as the model, and the extra ones."""
    averages = {"average": Average(flow, settings.ema, warm=True, length=settings.ema_length)}
    return averages | {f"ema-{decay}": Average(flow, decay, warm=True) for decay in settings.extra_ema}
