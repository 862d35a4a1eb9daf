"""A run that is killed every minute ends as the run left alone: python scripts/soak.py --minutes 60

Two runs of the same recipe on the same data, each in a process of one thread: one is left alone, the other is killed
(SIGKILL, at a random moment within every interval) and gone on with by `shortflow train … --resume auto`. Both
train on as many images as the first takes the minutes for. At the end every tensor of their newest states and of their
models must be equal to the bit, and so must be the lines of their logs but for the speed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shortflow.files import write_atomic

SPEED = 30.0  # seconds of a run that measures how many images a minute has


def command(out: Path, recipe: str, images: int) -> list[str]:
    asked = ("save_every=25", "log_every=25", "preview_every=0", "keep_best=velocity_error", f"images={images}")
    words = [word for each in asked for word in ("--set", f"train.{each}")]
    return [sys.executable, "-m", "shortflow", "train", recipe, "--out", str(out), "--resume", "auto", *words]


def start(out: Path, recipe: str, images: int) -> subprocess.Popen[bytes]:
    with open(out.with_suffix(".log"), "ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command(out, recipe, images), stdout=log, stderr=log, env=environment)


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "stats.jsonl"
    found = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


def budget(out: Path, recipe: str, minutes: float) -> int:
    """The images that one thread trains on in the minutes, beside another run."""
    pair = [out.with_name(f"{out.name}-speed-{i}") for i in range(2)]
    running = [start(run, recipe, 10**9) for run in pair]
    while not all(lines(run) for run in pair):
        time.sleep(1)
        assert all(each.poll() is None for each in running), "the run that measures the speed has failed; see its log"
    began, before = time.monotonic(), lines(pair[0])[-1]["images"]
    time.sleep(SPEED)
    images, spent = lines(pair[0])[-1]["images"] - before, time.monotonic() - began
    for each in running:
        each.kill()
        each.wait()
    return round(max(images, 1) / spent * 60 * minutes)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "state").glob("[0-9]" * 8))
    files = [*sorted(newest.glob("*.safetensors")), *sorted(run.glob("model*.safetensors"))]
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def survive(run: Path, recipe: str, images: int, every: float, rng: random.Random) -> tuple[int, int]:
    """(kills, kills in the middle of writing) until the run is complete."""
    kills = writing = 0
    while True:
        running = start(run, recipe, images)
        try:
            if running.wait(rng.uniform(0.5, 1.5) * every) == 0:
                return kills, writing
            raise SystemExit(f"the run that is killed has failed; see {run.with_suffix('.log')}")
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
            writing += any(run.rglob(".writing-*"))
            done = lines(run)
            print(f"kill {kills}, after step {done[-1]['step'] if done else 0:,}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    parser.add_argument("--recipe", default="esc")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills, on average")
    parser.add_argument("--images", type=int, help="the budget of both runs, instead of measuring one for the minutes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; give another --out")
    whole, killed = options.out / "whole", options.out / "killed"
    images = options.images or budget(options.out / "run", options.recipe, options.minutes)
    print(f"{options.recipe} on digits, {images:,} images", flush=True)
    began = time.monotonic()
    alone = start(whole, options.recipe, images)
    kills, writing = survive(killed, options.recipe, images, options.every, random.Random(0))
    took = time.monotonic() - began
    if alone.wait() != 0:
        raise SystemExit(f"the run left alone has failed; see {whole.with_suffix('.log')}")
    one, other = tensors(killed), tensors(whole)
    differing = sorted({*one} ^ {*other}) + [n for n in one if n in other and not torch.equal(one[n], other[n])]
    same_log = lines(killed) == lines(whole)
    found = {
        "recipe": options.recipe,
        "images": images,
        "minutes": round(took / 60, 1),
        "kills": kills,
        "kills_while_writing": writing,
        "tensors": len(one),
        "tensors_that_differ": differing,
        "logs_are_equal": same_log,
    }
    write_atomic(options.out / "soak.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    raise SystemExit(bool(differing) or not same_log)


if __name__ == "__main__":
    main()
