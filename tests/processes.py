"""One of the processes of a run; `test_processes.py` starts them as a launcher does.

    python tests/processes.py OUT STOP RECIPE [RECIPE ...]

Trains the recipes one after the other into OUT/RECIPE, up to step STOP and then on from there, or all at once with 0.
"""

import sys
from pathlib import Path

import torch

from shortflow import runs

SETTINGS = (
    "train.images=1280",
    "train.batch=128",
    "train.parts=2",
    "train.log_every=4",
    "train.save_every=5",
    "train.preview_every=0",
    "network.width=16",
)


def trained(recipe: str, out: Path, stop: int) -> None:
    """Train up to step `stop`, or to the end, from where there is a state."""
    resume = (out / "state").exists()
    run, dataset = runs.open_run(out) if resume else runs.configure(recipe, "mixture", settings=SETTINGS)
    records = runs.training(run, dataset, out, resume=resume)
    for record in records:
        if record.step == stop:
            records.close()  # type: ignore[attr-defined]
            return


def main(out: Path, stop: int, recipes: list[str]) -> None:
    torch.set_num_threads(1)
    for recipe in recipes:
        trained(recipe, out / recipe, stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
