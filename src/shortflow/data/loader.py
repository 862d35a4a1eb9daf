"""Batches of a data set as a function of the step, and a thread that prepares the next ones while a step runs."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shortflow.data.dataset import Dataset, DataSpec
from shortflow.data.samplers import ClassConsistent, Shuffled, coins
from shortflow.typing import Batch

__all__ = ["Batches", "prefetched"]

AHEAD = 2  # batches that are prepared while one is used


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batch of a step in network units: a pure function of (order, step), whatever was asked for before.

    Samples are gathered from where they lie, in memory or in a memory-mapped file.

    Attributes:
        dataset, spec: the samples and their map to network units.
        order: the rows of a step.
        flip: mirror each image, left to right, with probability ½; the coins are functions of (seed, step, row).
    """

    dataset: Dataset
    spec: DataSpec
    order: Shuffled | ClassConsistent
    flip: bool = False

    def __call__(self, step: int) -> Batch:
        rows = self.order.indices(step)
        picked = np.take(np.asarray(self.dataset.samples), rows, axis=0)
        if self.flip:
            share = slice(self.order.rank * len(rows), (self.order.rank + 1) * len(rows))
            turned = coins(self.order.batch_size, self.order.seed, step)[share]
            picked[turned] = picked[turned, ..., ::-1]
        labels = self.dataset.labels
        return Batch(x=self.spec.encode(picked), label=None if labels is None else torch.from_numpy(labels[rows]))


def prefetched(
    batch_of: Callable[[int], Batch], steps: range, *, ahead: int = AHEAD, pin: bool = False
) -> Generator[Batch, None, None]:
    """The batches of `steps` in their order, prepared by one background thread up to `ahead` steps before their turn.

    One thread, so `batch_of` need not be safe to call from several. It ends with the iterator: when this is used up,
    closed, or left by an error; an error of `batch_of` is raised where its batch would have been.

    Args:
        pin: put the batches into page-locked memory, from which a GPU copies them while it computes.
    """

    def prepared(step: int) -> Batch:
        batch = batch_of(step)
        return _pinned(batch) if pin else batch

    worker = ThreadPoolExecutor(1, thread_name_prefix="shortflow-batches")
    try:
        todo = iter(steps)
        waiting: deque[Future[Batch]] = deque(worker.submit(prepared, step) for step in islice(todo, ahead))
        while waiting:
            future = waiting.popleft()
            waiting.extend(worker.submit(prepared, step) for step in islice(todo, 1))
            yield future.result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)


def _pinned(batch: Batch) -> Batch:
    def pinned(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.pin_memory()

    return replace(batch, x=batch.x.pin_memory(), label=pinned(batch.label), eps=pinned(batch.eps))
