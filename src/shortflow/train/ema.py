"""Exponential moving averages of weights: θ̄ ← d θ̄ + (1 − d) θ in one fused call."""

import copy

import torch
from torch import Tensor

from shortflow.flowmap import FlowMap

__all__ = ["Average"]


class Average:
    """A copy of a flow map whose weights follow it. Buffers are copied, not averaged.

    Args:
        module: where it starts.
        decay: d.
        warm: the decay of step k (from 0) is min(decay, (1 + k)/(10 + k)), so that a short run does not average over
            its random start.

    Attributes:
        module: the average, a flow map in evaluation mode without gradients.
    """

    def __init__(self, module: FlowMap, decay: float = 0.0, warm: bool = False) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay, self.warm = decay, warm

    def rate(self, step: int) -> float:
        """The decay used after step `step`."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay

    def update(self, module: FlowMap, step: int) -> None:
        """Move towards `module` after step `step`, with the average's own decay."""
        self.follow(module, self.rate(step))

    @torch.no_grad()
    def follow(self, module: FlowMap, decay: float) -> None:
        """θ̄ ← decay · θ̄ + (1 − decay) · θ."""
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for buffer, source in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)
