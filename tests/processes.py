"""One of the processes of a run; `test_processes.py` starts them as a launcher does.

    python tests/processes.py OUT STOP SETTINGS RECIPE [RECIPE ...]

Trains the recipes one after the other into OUT/RECIPE, up to step STOP and then on from there, or all at once with 0.
SETTINGS is a JSON list, of what differs from the shared ones; "broken" among them makes some points not finite.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from shortflow import runs
from shortflow.data import Batches
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


def trained(recipe: str, out: Path, stop: int, settings: Sequence[str]) -> None:
    """Train up to step `stop`, or to the end, from where there is a state."""
    resume = (out / "run.yaml").is_file()
    run, dataset = runs.open_run(out) if resume else runs.configure(recipe, "mixture", settings=[*SETTINGS, *settings])
    records = runs.training(run, dataset, out, resume="auto")
    for record in records:
        if record.step == stop:
            records.close()  # type: ignore[attr-defined]
            return


def break_some() -> None:
    """Have the second part of the third and the sixth batch of ten not finite."""
    whole = Batches.__call__

    def broken(self: Batches, step: int) -> Batch:
        batch = whole(self, step)
        if self.order.rank == 1 and step in (2, 5):
            batch.x[3] = math.nan
        return batch

    Batches.__call__ = broken  # type: ignore[method-assign]


def main(out: Path, stop: int, recipes: list[str], settings: Sequence[str] = ()) -> None:
    torch.set_num_threads(1)
    if "broken" in settings:
        break_some()
    for recipe in recipes:
        trained(recipe, out / recipe, stop, [each for each in settings if each != "broken"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:], json.loads(sys.argv[3]))
