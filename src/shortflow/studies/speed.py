"""How fast runs are, measured over a few of their steps in a place of their own."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from shortflow import runs
from shortflow.config import RunConfig
from shortflow.data import Dataset
from shortflow.studies.variants import Planned, Resolved

__all__ = ["images_per_second", "speeds_of", "threads_set"]

STEPS, FIRST = 12, 3  # that are trained, and those of them that are left out: the first are slower


def speeds_of(variants: Sequence[Planned], resolved: Resolved, threads: int) -> dict[str, float]:
    """Images a second of every variant, each trained for a few steps, in a place of their own."""
    speeds, names = {}, [variant.name for variant in variants]
    with tempfile.TemporaryDirectory() as folder, threads_set(threads):
        for variant in variants:
            run, dataset = resolved[variant.name]

            def there(other: str | None, folder: str = folder) -> str | None:
                return str(Path(folder) / other) if other in names and other is not None else other

            run = replace(run, teacher=there(variant.teacher), weak=there(variant.weak), init_from=there(variant.start))
            speeds[variant.name] = images_per_second(run, dataset, Path(folder) / variant.name)
    return speeds


def images_per_second(run: RunConfig, dataset: Dataset, directory: Path) -> float:
    """The speed of a run, measured over a few of its steps; its directory then holds a model."""
    batch, times = run.train.batch, []
    short = replace(run.train, images=batch * STEPS, log_every=1, save_every=STEPS, preview_every=0, keep_best=None)
    pairs = None if run.pairs is None else replace(run.pairs, count=max(batch, 256), steps=1)
    began = 0.0
    for record in runs.training(replace(run, train=short, pairs=pairs), dataset, directory):
        _ = record.loss  # which waits for the device
        now = time.perf_counter()
        times.append(now - began)
        began = now
    return batch / statistics.median(times[FIRST:])


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
