"""Exponential moving averages of weights: θ̄ ← d θ̄ + (1 − d) θ in one fused call."""

import copy

import torch
from shortflow.flowmap import FlowMap

__all__ = ["Average"]


class Average:
    """A copy of a flow map whose weights follow it. Buffers are copied, not averaged.

    With `warm` the decay of step k (from 0) is min(decay, (1 + k)/(10 + k)), so that a short run does not average over
    its random start.
    """

    def __init__(self, module: FlowMap, decay: float = 0.0, warm: bool = False) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay, self.warm = decay, warm

    def rate(self, step: int) -> float:
        """The decay used after step `step`."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay

    @torch.no_grad()
    def update(self, module: FlowMap, step: int, decay: float | None = None) -> None:
        """Move towards `module` after step `step`, with the average's own decay or the one given."""
        d = self.rate(step) if decay is None else decay
        mine, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - d)  # pyright: ignore[reportPrivateImportUsage]
        for buffer, source in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)
