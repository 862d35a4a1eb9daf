"""Compiled steps: the loss as one graph where the layout of rows is fixed, the networks alone where it is not.

As compiled networks do (`shortflow.nn.compiling`), a compiled loss proves itself: steps 1, 2, 4, … 64 are compared with
the plain ones, gradients too. Where compiling fails or gives other numbers, the run goes on without, and says so.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shortflow.draw import Draw
from shortflow.flowmap import FlowMap
from shortflow.nn.compiling import TOLERANCE, compile_network, moving_masks, to_prove
from shortflow.train.step import Evaluate, TrainStep
from shortflow.typing import LossTerms

__all__ = ["compile_step"]


def compile_step(step: TrainStep, *, backend: str = "inductor") -> None:
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

    def __init__(self, step: TrainStep, backend: str) -> None:
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
        """Compare losses and gradients with the plain ones, tensor by tensor.

        Differences are relative to the tensor's norm, and to a hundredth of that of the whole gradient where this is
        larger: of a tensor that small only rounding is left.
        """
        (found, own), (expected, true) = (_probe(each, flow, teacher, draw) for each in (self.run, self.plain))
        whole = float(torch.stack([gradient.norm() for gradient in true]).norm())
        far = [_apart(found, expected, 0.0), *(_apart(a, b, whole / 100) for a, b in zip(own, true, strict=True))]
        device = draw.x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else draw.x.dtype
        if not max(far) <= TOLERANCE.get(half, 1e-3):
            self._give_up(f"its loss or gradient differs from the plain one's by {max(far):.1e} of its size")

    def _give_up(self, why: str) -> None:
        self.failed = True
        warnings.warn(
            f"the step runs uncompiled, because the compiled one failed ({why}); leave out train.compile to save the "
            "attempt, or set objective.layout to counted to compile the network alone",
            stacklevel=3,
        )


def _apart(found: Tensor, expected: Tensor, floor: float) -> float:
    return float((found - expected).norm()) / max(float(expected.norm()), floor, 1e-30)


def _probe(evaluate: Evaluate, flow: FlowMap, teacher: FlowMap, draw: Draw) -> tuple[Tensor, list[Tensor]]:
    """(losses, gradients of their mean); nothing is added to the weights' own."""
    loss: Any = evaluate(flow, teacher, draw).loss
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss.float().mean(), weights, allow_unused=True)
    zeros = (torch.zeros_like(weight) if each is None else each for weight, each in zip(weights, found, strict=True))
    return loss.detach(), list(zeros)
