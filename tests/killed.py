"""Runs that are killed again and again, by a parent that has never trained: killed.py DIRECTORY STEPS KILLS RUNS.

DIRECTORY/whole is left alone; of every other run the parent forks a child for each attempt, which goes on with it, and
kills it after a random time; the last one may finish. A line for each run has the number of kills, of kills in the
middle of writing, and of states damaged by them.
"""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import tiny
from shortflow.optimizer import Optimizer
from shortflow.recipes import shortcut
from shortflow.train import fit

OPTIMIZER = Optimizer(lr=5e-3, clip=1.0, warmup=0.3, ema=0.95, extra_ema=(0.9,))


def train(directory: Path, steps: int) -> None:
    """The whole run, or what is left of it: averages, a teacher, the best state, a log that is not in step with it."""
    recipe = shortcut()
    records = fit(
        directory,
        tiny.flow_map(recipe, 0.3),
        recipe.objective,
        tiny.batches(recipe),
        settings=tiny.settings(steps, log_every=3, save_every=3, keep_best="loss"),
        optimizer=OPTIMIZER,
        metadata={"recipe": recipe.name},
        resume="auto",
    )
    for _ in records:
        pass


def attempt(directory: Path, steps: int) -> int:
    """The process of a child that trains; it ends with 0 when the run is complete."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("error", UserWarning)  # a kill must not damage anything
            train(directory, steps)
            code = 0
        finally:
            os._exit(code)
    return child


def survive(directory: Path, steps: int, kills: int, seed: int, patience: float = 0.0) -> float:
    """Train with so many kills, each after `patience` seconds at most; how long it took."""
    rng, done, writing, began = random.Random(seed), 0, 0, time.monotonic()
    while True:
        before = set(directory.rglob(".writing-*"))
        child = attempt(directory, steps)
        if done < kills:
            time.sleep(rng.uniform(0.0, patience))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            writing += bool(set(directory.rglob(".writing-*")) - before)
        elif os.WEXITSTATUS(status) == 0:
            break
        else:
            sys.exit(f"an attempt after {done} kills failed")
    print(done, writing, len(list(directory.rglob("*.damaged*"))))
    return time.monotonic() - began


def main(directory: Path, steps: int, kills: int, runs: int) -> None:
    whole = survive(directory / "whole", steps, 0, 0)
    for seed in range(runs):
        survive(directory / str(seed), steps, kills, seed, patience=whole / kills)  # so that none ends before its kills


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
