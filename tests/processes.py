"""One of the processes of a run; `test_processes.py` starts them as a launcher does.

    python tests/processes.py OUT STOP SETTINGS RECIPE [RECIPE ...]

Trains the recipes one after the other into OUT/RECIPE, up to step STOP and then on from there, or all at once with 0.
SETTINGS is a JSON list, of what differs from the shared ones. Words among them:

    broken   some points are not finite
    torn     first the second process has a sample less than the others, and says what they are told
    signal   the last process gets a SIGTERM at step STOP, by which all stop; then the same processes go on
"""

import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shortflow import runs
from shortflow.data import Batches
from shortflow.errors import DataError
from shortflow.train import Interrupted
from shortflow.typing import Batch

SETTINGS = (
    "train.images=1280",
    "train.batch=128",
    "train.parts=2",
    "train.log_every=4",
    "train.save_every=5",
    "train.preview_every=0",
    "network.width=16",
)


WORDS = ("broken", "torn", "signal")
RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))


def trained(recipe: str, out: Path, stop: int, settings: Sequence[str], signalled: bool = False) -> None:
    """Train up to step `stop`, or to the end, from where there is a state."""
    resume = (out / "run.yaml").is_file()
    run, dataset = runs.open_run(out) if resume else runs.configure(recipe, "mixture", settings=[*SETTINGS, *settings])
    records = runs.training(run, dataset, out, resume="auto")
    for record in records:
        if record.step == stop and not signalled:
            records.close()  # type: ignore[attr-defined]
            return
        if record.step == stop and RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted(recipe: str, out: Path, stop: int, settings: Sequence[str]) -> None:
    """Train until the signal after step `stop`."""
    with pytest.raises(Interrupted) as stopped:
        trained(recipe, out, stop, settings, signalled=True)
    assert stopped.value.step == stop


def refused(recipe: str, out: Path) -> None:
    """Have the second process tell what it is told when it lacks a sample."""
    run, dataset = runs.configure(recipe, "mixture", settings=SETTINGS)
    if RANK == 1:
        assert dataset.labels is not None
        dataset = replace(dataset, samples=dataset.samples[:-1], labels=dataset.labels[:-1])
    try:
        runs.training(run, dataset, out)
    except DataError as error:
        if RANK == 1:
            print(error)


def break_some() -> None:
    """Have the second part of the first and the sixth batch of ten not finite: the checks wait for the next."""
    whole = Batches.__call__

    def broken(self: Batches, step: int) -> Batch:
        batch = whole(self, step)
        if self.order.rank == 1 and step in (0, 5):
            batch.x[0] = math.nan
        return batch

    Batches.__call__ = broken  # type: ignore[method-assign]


def main(out: Path, stop: int, recipes: list[str], settings: Sequence[str] = ()) -> None:
    torch.set_num_threads(1)
    if "broken" in settings:
        break_some()
    if "torn" in settings:
        refused(recipes[0], out / "torn")
    for recipe in recipes:
        values = [each for each in settings if each not in WORDS]
        if "signal" in settings:
            interrupted(recipe, out / recipe, stop, values)
        trained(recipe, out / recipe, 0 if "signal" in settings else stop, values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:], json.loads(sys.argv[3]))
