"""What a run spends on trusting itself: python -m benchmarks.checks

Of a recipe on data with its preset: the checks at the start (weights, derivative, gradients); what every step spends on
its numbers (is it finite, means, derivatives by cell, the line of the log); and a training state, with the sums of all
files and waiting for the disk. Each beside the median of the steps themselves, and as a share of the whole run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, tables
from benchmarks.measure import RESULTS, about, write
from shortflow import runs
from shortflow.data import DataSpec
from shortflow.hub import build_flow
from shortflow.runs.running import batches
from shortflow.streams import Streams
from shortflow.train import Average, StepRecord, TrainStep
from shortflow.train.checks import check_gradients, check_slopes, check_weights
from shortflow.train.engine import Engine
from shortflow.train.log import StatsLog
from shortflow.train.loop import build_optimizer
from shortflow.train.record import Measured
from shortflow.train.state import save_state
from shortflow.typing import Progress

__all__ = ["measured"]

FILE = RESULTS / "checks-cpu.json"


def measured(recipe: str, data: str, rounds: int, settings: list[str]) -> dict[str, Any]:
    """Seconds of each, medians over the rounds, which go through all of them in turn."""
    run, dataset = runs.configure(recipe, data, settings=settings)
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    batch_of, size = batches(run, dataset, spec, None), run.train.batch
    torch.manual_seed(0)
    module, engine = TrainStep(build_flow(run, spec), run.recipe.objective), Engine()
    adamw, average = build_optimizer(module, run.recipe.optimizer), Average(module.flow, 0.999)
    numbers, target = count(), run.recipe.objective.target

    def draw_of(k: int) -> Any:
        return module.draw(batch_of(k), Streams(images=k * size), Progress(images=k * size, total=run.train.images))

    def step() -> None:
        loss, _ = module(draw_of(next(numbers)))
        loss.backward()
        engine.clip(module.flow.parameters(), run.recipe.optimizer.clip)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        average.update(module.flow, 100)

    step(), step()
    draw = draw_of(0)
    with torch.no_grad():
        loss, terms = module(draw)
    (module(draw)[0]).backward()

    def start() -> None:
        check_weights(engine, module)
        check_slopes(module.flow, target.slopes(), draw)
        check_gradients(engine, module)

    with tempfile.TemporaryDirectory() as folder:
        log, lines = StatsLog(Path(folder) / "stats.jsonl", run.train.log_every), count(1)

        def note() -> None:
            k, t = next(lines), draw.times
            found = Measured.of(k, loss, loss, terms.logs, t.t, t.r)
            record = StepRecord(step=k, images=k, batch=size, lr=1.0, seconds=1.0, measured=found.numbers)
            log.add(record)

        def save() -> None:
            parts = {"network": module.flow, "average": average.module}
            save_state(Path(folder) / "state", next(lines), parts, adamw, {"pending": []}, keep=2)

        found = _timed({"start": start, "note": note, "save": save, "step": step}, rounds)
    whole = run.train.steps * found["step"]
    spent = {
        "start": found["start"],
        "note": run.train.steps * found["note"],
        "save": run.train.steps // run.train.save_every * found["save"],
    }
    return {
        "recipe": recipe,
        "data": data,
        "steps": run.train.steps,
        "save_every": run.train.save_every,
        "seconds": found,
        "shares": {name: value / whole for name, value in spent.items()},
    }


def _timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, each in runs.items():
            began = time.perf_counter()
            each()
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="esc:digits,shortcut:digits", help="RECIPE:DATA, ...")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD.PATH=VALUE")
    parser.add_argument("--out", type=Path, help=f"default: benchmarks/results/{FILE.name}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    head = about("python -m benchmarks.checks")
    pairs = [each.split(":") for each in options.runs.split(",")]
    record = {
        "rounds": options.rounds,
        "runs": [measured(recipe, data, options.rounds, options.set) for recipe, data in pairs],
    }
    write(options.out or FILE, record, head)
    print(tables.checks({**head, **record}))
    if options.out is None:
        report.rewrite()


if __name__ == "__main__":
    main()
