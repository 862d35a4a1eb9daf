"""The module that a training engine wraps: network, derivative and loss inside one forward pass.

Several processes exchange their gradients through what wraps this module, so the loss must come from a call of the
wrapper (`DistributedDataParallel(step)(draw)`, or `step(draw)` after `fully_shard(step)`). A loss from
`ddp.module(draw)`, or from the network inside, has the gradient of one process alone, and PyTorch does not say so.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shortflow.draw import Draw, References
from shortflow.errors import IncompatibleParts
from shortflow.flowmap import FlowMap
from shortflow.objective import Objective, Online, Snapshot
from shortflow.streams import Streams
from shortflow.train.ema import Average
from shortflow.train.shards import sharded_inside
from shortflow.typing import Batch, LossTerms, Progress

__all__ = ["Evaluate", "TrainStep"]

Evaluate = Callable[[FlowMap, FlowMap, Draw], LossTerms]
"""`Objective.evaluate`: (flow map, teacher, draw) → terms of every row."""


class TrainStep(nn.Module):
    """draw → (mean loss, terms of every row); the draw of a step is made by `draw`, outside what is wrapped.

        step = TrainStep(flow, objective)
        wrapped = DistributedDataParallel(step)        # or, where a process cannot hold all weights, fully_shard(step)
        loss, terms = wrapped(step.draw(batch, Streams(seed=seed, images=images, rank=rank), progress))
        loss.backward()

    The mean over processes of their gradients is the gradient of one process on the joined rows, as far as rows do not
    see each other; a plug-in velocity sees the rows of its process, unless it joins them. Blocks may be sharded one by
    one (`fully_shard(block)` before `fully_shard(step)`) where every process makes the same passes in every step,
    because each pass gathers them: with `layout="fixed"` (`Objective`), where no pass depends on what is drawn.

    Args:
        flow: the flow map that is trained.
        objective: what is minimised.
        references: frozen models that targets follow. They are frozen here, and are no part of the module: neither of
            its parameters nor of its state.
        bf16: run the networks under autocast; times, derivatives and the loss stay in fp32.

    Attributes:
        teacher: the average that targets are computed with, outside the module's parameters; None if it is the flow
            map itself.
        running: the average that the teacher is copied from at the end of a stage; None where there are no stages.
    """

    def __init__(
        self, flow: FlowMap, objective: Objective, references: References = References(), *, bf16: bool = False
    ) -> None:
        super().__init__()
        self.flow, self.objective, self.bf16 = flow, objective, bf16
        self.evaluate: Evaluate = objective.evaluate  # or what is compiled of it
        self.references = references  # in a dataclass, where torch does not look for modules
        for model in self.frozen:
            model.requires_grad_(False).eval()
        self.teacher = None if isinstance(objective.teacher, Online) else Average(flow)
        self.running = Average(flow) if isinstance(objective.teacher, Snapshot) else None

    @property
    def frozen(self) -> tuple[FlowMap, ...]:
        """The references that there are."""
        return tuple(model for model in (self.references.teacher, self.references.weak) if model is not None)

    def draw(self, batch: Batch, streams: Streams, progress: Progress) -> Draw:
        """Every random number of one step on the batch."""
        return self.objective.draw(batch, self.flow.path, streams, progress, self.flow.null_label, self.references)

    def forward(self, draw: Draw) -> tuple[Float[Tensor, ""], LossTerms]:
        """(mean loss, terms of every row).

        Raises:
            IncompatibleParts: if blocks are sharded one by one, and processes may make other passes than each other.
        """
        if self.objective.layout == "counted" and sharded_inside(self.flow):
            raise IncompatibleParts(
                "parts of the network are sharded one by one, so that every pass waits for all processes, but with "
                "layout='counted' a process makes the passes that its own rows need: one with more of them would wait "
                "for ever. Build the objective with layout='fixed', or shard the step in one piece, fully_shard(step)"
            )
        teacher = self.flow if self.teacher is None else self.teacher.module
        if teacher is not self.flow:
            teacher.train(self.flow.training)  # a target has the dropout masks of its prediction
        # Without the cache of cast weights: filled by a pass without gradient, older versions of torch would hand it
        # to the pass with gradient, which then has none.
        with torch.autocast(draw.x.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            terms = self.evaluate(self.flow, teacher, draw)
        # The loss stands in a tuple, where wrappers look for what has a gradient; they do not look into terms.
        return terms.loss.float().mean(), terms

    @property
    def averages(self) -> dict[str, Average]:
        """The averages that the objective needs, by name: a part of the state of training."""
        found = {"teacher": self.teacher, "running": self.running}
        return {name: average for name, average in found.items() if average is not None}

    def update_teacher(self, progress: Progress) -> None:
        """Move the teacher towards the new weights; `progress` is that after the step."""
        rule = self.objective.teacher
        if self.teacher is None:
            return
        if not isinstance(rule, Snapshot):
            self.teacher.follow(self.flow, rule.decay(progress))
            return
        assert self.running is not None
        self.running.follow(self.flow, rule.decay(progress))
        before = replace(progress, images=progress.images - progress.batch)
        if rule.stage(progress) != rule.stage(before):
            self.teacher.follow(self.running.module, 0.0)
