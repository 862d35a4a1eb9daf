"""How many images a second are delivered, and how many a training step consumes: python -m benchmarks.loader

For each data set, with the preset of a recipe for it: the batches that the loader prepares in a second with nothing
else to do, the images that the preset's training step takes in a second with its batch at hand, and the share of a step
that is spent waiting for its batch in training as it is. Delivery and steps are measured in turn; ratios are medians.

    --data digits,mnist,FOLDER    named sets are looked for as everywhere, a folder of images with --resolution
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import synchronize, timed, write
from shortflow import runs
from shortflow.config import RunConfig
from shortflow.data import Dataset, DataSpec, prefetched
from shortflow.hub import build_flow
from shortflow.runs.running import batches
from shortflow.train import StepRecord, TrainStep, train
from shortflow.typing import Batch

HERE = Path(__file__).parent


def measured(run: RunConfig, dataset: Dataset, rounds: int, steps: int) -> dict[str, Any]:
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    batch_of, size = batches(run, dataset, spec, None), run.train.batch
    held = [batch_of(step) for step in range(8)]
    waits: list[float] = []

    def watched(step: int) -> Batch:
        return batch_of(step)

    def deliver() -> None:
        for _ in prefetched(batch_of, range(16 * steps)):
            pass

    training = steps_of(run, spec, lambda step: held[step % len(held)])
    as_it_is = steps_of(run, spec, watched)

    def consume() -> None:
        for _ in islice(training, steps):
            pass

    def train_as_it_is() -> None:
        for _ in islice(as_it_is, steps):
            pass

    found = timed({"deliver": deliver, "consume": consume, "train": train_as_it_is}, rounds)
    training.close()
    as_it_is.close()
    delivered = [16 * steps * size / seconds for seconds in found["deliver"]]
    consumed = [steps * size / seconds for seconds in found["consume"]]
    whole = [steps * size / seconds for seconds in found["train"]]
    return {
        "samples": len(dataset),
        "shape": list(dataset.shape),
        "memory_mapped": isinstance(dataset.samples, np.memmap),
        "recipe": run.recipe.name,
        "batch": size,
        "delivered": statistics.median(delivered),
        "consumed": statistics.median(consumed),
        "delivered_over_consumed": statistics.median(a / b for a, b in zip(delivered, consumed, strict=True)),
        "training_over_held_batches": statistics.median(a / b for a, b in zip(whole, consumed, strict=True)),
    }
