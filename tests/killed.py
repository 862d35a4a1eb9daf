"""A run that is killed again and again, by a parent that has never trained: python killed.py DIRECTORY KILLS SEED.

The parent forks a child for every attempt, which goes on with the run in DIRECTORY, and kills it after a random time;
the last one may finish. It prints the number of kills, of kills in the middle of writing, and of states damaged by them.
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
from shortflow.train import engine, fit

STEPS = 120
OPTIMIZER = Optimizer(lr=5e-3, clip=1.0, warmup=0.3, ema=0.95, extra_ema=(0.9,))


def train(directory: Path) -> None:
    """The whole run, or what is left of it: averages, a teacher, the best state, a log that is not in step with it."""
    recipe = shortcut()
    records = fit(
        directory,
        tiny.flow_map(recipe, 0.3),
        recipe.objective,
        tiny.batches(recipe),
        settings=tiny.settings(STEPS, log_every=3, save_every=3, keep_best="loss"),
        optimizer=OPTIMIZER,
        metadata={"recipe": recipe.name},
        resume="auto",
    )
    for _ in records:
        pass


def attempt(directory: Path) -> int:
    """The process of a child that trains; it ends with 0 when the run is complete."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("error", UserWarning)  # a kill must not damage anything
            train(directory)
            code = 0
        finally:
            os._exit(code)
    return child


def main(directory: Path, kills: int, seed: int) -> None:
    engine.importlib.util.find_spec = lambda name, package=None: None  # no tracker
    rng, done, writing = random.Random(seed), 0, 0
    while True:
        before = set(directory.rglob(".writing-*"))
        child = attempt(directory)
        if done < kills:
            time.sleep(rng.uniform(0.0, 0.25))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            writing += bool(set(directory.rglob(".writing-*")) - before)
            continue
        if os.WEXITSTATUS(status) != 0:
            sys.exit(f"attempt after {done} kills failed")
        break
    print(done, writing, len(list(directory.rglob("*.damaged*"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
