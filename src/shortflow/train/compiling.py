"""Compiled steps: the loss as one graph where the layout of rows is fixed, the networks alone where it is not.

As compiled networks do (`shortflow.nn.compiling`), a compiled loss proves itself: steps 1, 2, 4, … 64 are compared with
the plain ones, gradients of the weights too. Where compiling fails or gives other numbers, the run goes on without, and
says so.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import Backend, compile_network, disagreement, gradients, moving_masks, to_prove
from shortflow.train.step import Evaluate, TrainStep
from shortflow.typing import LossTerms

__all__ = ["compile_step"]


def compile_step(step: TrainStep, *, backend: Backend = "inductor") -> None:
    """Compile in place what the step computes.

    With `Objective.layout` "fixed" that is the whole loss, in one graph that all draws share; else every network that
    it asks, with a graph for each kind of call.

    Args:
        backend: of `torch.compile`.

    With several processes and a plug-in velocity over all of them, a process that gives the compiled loss up asks more
    often than the others, which then wait for ever: leave the compiler out there.
    """
    if step.objective.layout == "fixed":
        step.evaluate = _CompiledLoss(step, backend)
        return
    for model in (step.flow, *step.frozen, *(average.module for average in step.averages.values())):
        compile_network(model.network, backend=backend)


class _CompiledLoss:
    """What stands in for `Objective.evaluate`."""

    def __init__(self, step: TrainStep, backend: Backend) -> None:
        self.plain: Evaluate = step.evaluate
        self.run: Callable[..., LossTerms] = torch.compile(self.plain, backend=backend, fullgraph=True)
        self.failed, self.calls = False, 0

    def __call__(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> LossTerms:
        if self.failed:
            return self.plain(flow, teacher, draw)
        draw = replace(draw, dropout_seed=torch.as_tensor(draw.dropout_seed))  # a number would be compiled in
        try:
            with moving_masks():
                self.calls += 1
                if to_prove(self.calls):
                    self._prove(flow, teacher, draw)
                    if self.failed:
                        return self.plain(flow, teacher, draw)
                return self.run(flow, teacher, draw)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
            return self.plain(flow, teacher, draw)

    def _prove(self, flow: FlowMap, teacher: FlowMap, draw: Draw) -> None:
        """Compare losses and gradients with the plain ones, tensor by tensor."""
        device = draw.x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else draw.x.dtype
        found, true = (_probe(each, flow, teacher, draw) for each in (self.run, self.plain))
        if worst := disagreement(found, true, dtype):
            self._give_up(f"its {worst[0]} differs from the plain one's by {worst[1]:.1e} of its size")

    def _give_up(self, why: str) -> None:
        self.failed = True
        warnings.warn(
            f"the step runs uncompiled, because the compiled one failed ({why}); leave out train.compile to save the "
            "attempt, or set objective.layout to counted to compile the network alone",
            stacklevel=3,
        )


def _probe(
    evaluate: Evaluate, flow: FlowMap, teacher: FlowMap, draw: Draw
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(losses, gradients of their mean), by name."""
    loss: Any = evaluate(flow, teacher, draw).loss
    weights = {name: weight for name, weight in flow.named_parameters() if weight.requires_grad}
    mean = loss.float().mean()
    return {"loss": loss.detach()}, gradients([mean], [torch.ones_like(mean)], weights)
