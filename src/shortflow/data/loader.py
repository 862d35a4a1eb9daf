"""Batches of a data set as a function of the step."""

from dataclasses import dataclass, replace

from torch import Tensor

from shortflow.data.dataset import Dataset, DataSpec
from shortflow.data.samplers import ClassConsistent, Shuffled, coins, normals
from shortflow.typing import Batch

__all__ = ["Batches", "pinned"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batch of a step in network units: a pure function of (order, step), whatever was asked for before.

    Samples are gathered from where they lie, in memory or in a memory-mapped file.

    Attributes:
        dataset, spec: the samples and their map to network units.
        order: the rows of a step.
        flip: mirror each image, left to right, with probability ½; the coins are functions of (seed, step, row), as is
            the noise with which latents are drawn from their Gaussians.
    """

    dataset: Dataset
    spec: DataSpec
    order: Shuffled | ClassConsistent
    flip: bool = False

    def __call__(self, step: int) -> Batch:
        rows = self.order.indices(step)
        share = range(self.order.rank * len(rows), (self.order.rank + 1) * len(rows))
        turned = coins(self.order.batch_size, self.order.seed, step)[share.start : share.stop] if self.flip else None
        picked = self.dataset.take(rows, turned, lambda size: normals(share, size, self.order.seed, step))
        return Batch(x=self.spec.encode(picked), label=self.dataset.told(rows))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies it while this thread goes on."""

    def moved(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.pin_memory()

    return replace(batch, x=batch.x.pin_memory(), label=moved(batch.label), eps=moved(batch.eps))
