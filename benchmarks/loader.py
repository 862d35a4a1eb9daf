"""How many images a second are delivered, and how many a training step consumes: python -m benchmarks.loader

For each data set, with the preset of a recipe for it, in turn: batches prepared with nothing else to do, training steps
whose batches are at hand, and training steps as they are. Figures are medians, ratios those of the same round.

    --data digits,mnist,FOLDER    named sets are looked for as everywhere; --resolution is that of folders
"""

import argparse
import statistics
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, timed, write
from shortflow import runs
from shortflow.config import RunConfig
from shortflow.data import Dataset, DataSpec, names
from shortflow.hub import build_flow
from shortflow.prefetch import prefetched
from shortflow.runs.running import batches
from shortflow.train import StepRecord, TrainStep, train
from shortflow.typing import Batch

FILE = RESULTS / "loader-cpu.json"
DELIVERED = 16  # batches are delivered so many times as often as steps are taken, which take so much longer


def training(run: RunConfig, spec: DataSpec, batch_of: Callable[[int], Batch]) -> Generator[StepRecord, None, None]:
    torch.manual_seed(0)
    module = TrainStep(build_flow(run, spec), run.recipe.objective, bf16=run.train.precision == "bf16")
    yield from train(module, run.train, run.recipe.optimizer, batch_of)


def measured(run: RunConfig, dataset: Dataset, rounds: int, steps: int) -> dict[str, Any]:
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    batch_of, size = batches(run, dataset, spec, None), run.train.batch
    held = [batch_of(step) for step in range(4)]
    ready, real = training(run, spec, lambda step: held[step % len(held)]), training(run, spec, batch_of)

    def deliver() -> None:
        for _ in prefetched(batch_of, range(DELIVERED * steps)):
            pass

    found = timed(
        {
            "deliver": deliver,
            "consume": lambda: list(islice(ready, steps)),
            "train": lambda: list(islice(real, steps)),
        },
        rounds,
    )
    ready.close()
    real.close()
    delivered = [DELIVERED * steps * size / seconds for seconds in found["deliver"]]
    consumed, trained = ([steps * size / seconds for seconds in found[name]] for name in ("consume", "train"))
    return {
        "samples": len(dataset),
        "shape": list(dataset.shape),
        "memory_mapped": isinstance(dataset.samples, np.memmap),
        "recipe": run.recipe.name,
        "batch": size,
        "delivered": statistics.median(delivered),
        "consumed": statistics.median(consumed),
        "trained": statistics.median(trained),
        "delivered_over_consumed": statistics.median(a / b for a, b in zip(delivered, consumed, strict=True)),
        "trained_over_consumed": statistics.median(a / b for a, b in zip(trained, consumed, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--recipe", default="esc")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD.PATH=VALUE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="training steps a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = about("python -m benchmarks.loader")
    records = {}
    for source in options.data.split(","):
        side = None if source in names() else options.resolution
        run, dataset = runs.configure(options.recipe, source, resolution=side, settings=options.set)
        records[Path(source).name] = measured(run, dataset, options.rounds, options.steps)
    record = {"rounds": options.rounds, "data": records}
    write(options.out or FILE, record, head)
    print(tables.loader({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
