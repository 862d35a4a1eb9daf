"""The module that a training engine wraps: network, derivative and loss inside one forward pass.

Wrapping the network alone would let the derivative bypass gradient synchronisation, silently.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortflow.flowmap import FlowMap
from shortflow.objective import Objective
from shortflow.streams import Streams
from shortflow.train.ema import Average
from shortflow.typing import Batch, LossTerms, Progress

__all__ = ["TrainStep"]


class TrainStep(nn.Module):
    """(batch, streams, progress) → (mean loss, per-sample terms, times).

    The teacher, where the objective has one, is a copy of the flow map outside the module's parameters.
    """

    def __init__(self, flow: FlowMap, objective: Objective, *, bf16: bool = False) -> None:
        super().__init__()
        self.flow, self.objective, self.bf16 = flow, objective, bf16
        needs_copy = objective.teacher.decay(Progress()) > 0 or objective.teacher.decay(Progress(images=1, total=1)) > 0
        self._teacher = Average(flow) if needs_copy else None

    @property
    def teacher(self) -> Average | None:
        """The average that targets are computed with; None if it is the network itself."""
        return self._teacher

    def forward(
        self, x: Float[Tensor, "b ..."], label: Int[Tensor, "b"] | None, streams: Streams, progress: Progress
    ) -> tuple[Float[Tensor, ""], LossTerms, Float[Tensor, "b"]]:
        draw = self.objective.draw(Batch(x=x, label=label), self.flow.path, streams, progress, self.flow.null_label)
        teacher = self.flow if self._teacher is None else self._teacher.module
        teacher.train(self.flow.training)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            terms = self.objective.evaluate(self.flow, teacher, draw)
        return terms.loss.float().mean(), terms, draw.times.t

    def update_teacher(self, step: int, progress: Progress) -> None:
        """Move the teacher towards the new weights, after step `step`."""
        if self._teacher is not None:
            self._teacher.update(self.flow, step, self.objective.teacher.decay(progress))
