"""Compiled steps: the loss as one graph where the layout of rows is fixed, the networks alone where it is not.

As compiled networks do (`shortflow.nn.compiling`), a compiled loss proves itself: the first one is compared with the
plain one, its gradient too. Where compiling fails or gives other numbers, the run goes on without, and says so.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import TOLERANCE, compile_network, moving_masks
from shortflow.train.step import Evaluate, TrainStep
from shortflow.typing import LossTerms

__all__ = ["compile_step"]


def compile_step(step: TrainStep, *, backend: str = "inductor") -> None:
    """Compile in place what the step computes.

    With `Objective.layout` "fixed" that is the whole loss, in one graph that all draws share; else every network that
    it asks, with a graph for each kind of call.

    Args:
        backend: of `torch.compile`.
    """
    if step.objective.layout == "fixed":
        step.evaluate = _CompiledLoss(step, backend)
        return
    for model in (step.flow, *step.frozen, *(average.module for average in step.averages.values())):
        compile_network(model.network, backend=backend)


class _CompiledLoss:
    """What stands in for `Objective.evaluate`."""

    def __init__(self, step: TrainStep, backend: str) -> None:
        self.plain: Evaluate = step.evaluate
        self.run: Callable[..., LossTerms] = torch.compile(self.plain, backend=backend, fullgraph=True)
        self.failed = self.proved = False

    def __call__(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> LossTerms:
        if self.failed:
            return self.plain(flow, teacher, draw)
        draw = replace(draw, dropout_seed=torch.as_tensor(draw.dropout_seed))  # a number would be compiled in
        try:
            with moving_masks():
                if not self.proved:
                    self._prove(flow, teacher, draw)
                    if self.failed:
                        return self.plain(flow, teacher, draw)
                return self.run(flow, teacher, draw)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return self.plain(flow, teacher, draw)

    def _prove(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> None:
        """Compare losses and gradients with the plain ones; the largest difference counts, relative to the norm."""
        found, expected = (_probe(each, flow, teacher, draw) for each in (self.run, self.plain))
        apart = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, expected, strict=True))
        device = draw.x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else draw.x.dtype
        if not apart <= TOLERANCE.get(half, 1e-3):
            self._give_up(f"its loss or gradient differs from the plain one's by {apart:.1e} of its size")
        self.proved = True

    def _give_up(self, why: str) -> None:
        self.failed = True
        warnings.warn(
            f"the step runs uncompiled, because the compiled one failed ({why}); leave out train.compile to save the "
            "attempt, or set objective.layout to counted to compile the network alone",
            stacklevel=3,
        )


def _probe(evaluate: Evaluate, flow: FlowMap, teacher: FlowMap, draw: Draw) -> tuple[Tensor, Tensor]:
    """(losses, gradient of their mean as one vector) in double precision; nothing is added to the weights' own."""
    loss: Any = evaluate(flow, teacher, draw).loss
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss.float().mean(), weights, allow_unused=True)
    gradient = torch.cat(
        [torch.zeros(0), *(each.detach().double().flatten().cpu() for each in found if each is not None)]
    )
    return loss.detach().double().cpu(), gradient
