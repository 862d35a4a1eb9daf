"""Runs that are killed at random moments end as the run that is left alone: bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLED = Path(__file__).with_name("killed.py")


def run(directory: Path, kills: int, seed: int) -> tuple[int, int, int]:
    """(kills, those in the middle of writing, states damaged by them)"""
    command = [sys.executable, str(KILLED), str(directory), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed, writing, damaged = map(int, done.stdout.split())
    return killed, writing, damaged


def record(directory: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the speed."""
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def content(directory: Path) -> dict[str, bytes]:
    """Every file but the log: states with their networks, averages, teachers and optimisers, and the models."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != "stats.jsonl")
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def compare(tmp_path: Path, kills: int, runs: int) -> None:
    run(tmp_path / "whole", 0, 0)
    want, log, count, writing = content(tmp_path / "whole"), record(tmp_path / "whole"), 0, 0
    assert {"model.safetensors", "model-best.safetensors", "model-ema-0.9.safetensors"} < set(want)
    assert sum(name.endswith("optimizer.safetensors") for name in want) == 3  # the newest two, and the best
    assert len(log) == 40
    for seed in range(runs):
        killed, during, damaged = run(tmp_path / str(seed), kills, seed)
        assert damaged == 0
        count, writing = count + killed, writing + during
        got = content(tmp_path / str(seed))
        assert got.keys() == want.keys()  # nothing is left behind, nothing is missing
        assert all(got[name] == want[name] for name in want)
        assert record(tmp_path / str(seed)) == log
    assert count == runs * kills
    print(f"{count} kills, {writing} of them in the middle of writing")


def test_a_run_that_is_killed_is_the_run_uninterrupted(tmp_path: Path) -> None:
    compare(tmp_path, kills=3, runs=1)


@pytest.mark.slow
def test_runs_that_are_killed_again_and_again_are_the_run_uninterrupted(tmp_path: Path) -> None:
    compare(tmp_path, kills=20, runs=3)
