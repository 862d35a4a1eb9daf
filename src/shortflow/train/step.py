"""The module that a training engine wraps: network, derivative and loss inside one forward pass.

Wrapping the network alone would let the derivative bypass gradient synchronisation, silently.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortflow.flowmap import FlowMap
from shortflow.objective import Objective, Online
from shortflow.streams import Streams
from shortflow.train.ema import Average
from shortflow.typing import Batch, LossTerms, Progress

__all__ = ["TrainStep"]


class TrainStep(nn.Module):
    """(batch, streams, progress) → (mean loss, per-sample terms, times).

    Args:
        flow: the flow map that is trained.
        objective: what is minimised.
        bf16: run the networks under autocast; times, derivatives and the loss stay in fp32.

    Attributes:
        teacher: the average that targets are computed with, outside the module's parameters; None if it is the flow
            map itself.
    """

    def __init__(self, flow: FlowMap, objective: Objective, *, bf16: bool = False) -> None:
        super().__init__()
        self.flow, self.objective, self.bf16 = flow, objective, bf16
        self.teacher = None if isinstance(objective.teacher, Online) else Average(flow)

    def forward(
        self, x: Float[Tensor, "b ..."], label: Int[Tensor, "b"] | None, streams: Streams, progress: Progress
    ) -> tuple[Float[Tensor, ""], LossTerms, Float[Tensor, "b"]]:
        draw = self.objective.draw(Batch(x=x, label=label), self.flow.path, streams, progress, self.flow.null_label)
        teacher = self.flow if self.teacher is None else self.teacher.module
        teacher.train(self.flow.training)  # a target has the dropout masks of its prediction
        # Without the cache of cast weights: filled by a pass without gradient, older versions of torch would hand it
        # to the pass with gradient, which then has none.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            terms = self.objective.evaluate(self.flow, teacher, draw)
        return terms.loss.float().mean(), terms, draw.times.t

    def update_teacher(self, progress: Progress) -> None:
        """Move the teacher towards the new weights; `progress` is that after the step."""
        if self.teacher is not None:
            self.teacher.follow(self.flow, self.objective.teacher.decay(progress))
