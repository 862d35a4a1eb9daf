"""Runs that are killed at random moments end as the run that is left alone: bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLED = Path(__file__).with_name("killed.py")


def record(directory: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the speed."""
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def content(directory: Path) -> dict[str, bytes]:
    """Every file but the log: states with their networks, averages, teachers and optimisers, and the models."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != "stats.jsonl")
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def compare(directory: Path, steps: int, kills: int, runs: int) -> None:
    command = [sys.executable, str(KILLED), *map(str, (directory, steps, kills, runs))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()][1:]
    assert [(killed, damaged) for killed, _, damaged in counts] == [(kills, 0)] * runs
    want, log = content(directory / "whole"), record(directory / "whole")
    assert {"model.safetensors", "model-best.safetensors", "model-ema-0.9.safetensors"} < set(want)
    assert sum(name.endswith("optimizer.safetensors") for name in want) in (2, 3)  # the newest two, and the best
    assert len(log) == steps // 3
    for seed in range(runs):
        got = content(directory / str(seed))
        assert got.keys() == want.keys()  # nothing is left behind, nothing is missing
        assert all(got[name] == want[name] for name in want)
        assert record(directory / str(seed)) == log
    print(f"{runs * kills} kills, {sum(writing for _, writing, _ in counts)} of them in the middle of writing")


def test_a_run_that_is_killed_is_the_run_uninterrupted(tmp_path: Path) -> None:
    compare(tmp_path, steps=36, kills=2, runs=1)


@pytest.mark.slow
def test_runs_that_are_killed_again_and_again_are_the_run_uninterrupted(tmp_path: Path) -> None:
    compare(tmp_path, steps=120, kills=20, runs=3)
