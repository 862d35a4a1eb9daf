"""Runs of two processes are the runs of one, to the last bit: weights, averages, optimiser; the log to rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import processes
from shortflow.errors import ShortflowError
from shortflow.train.engine import Engine
from shortflow.train.record import Numbers

RECIPES = ["esc", "shortcut", "imm"]  # derivative and plug-in, two steps with an average for a teacher, groups


def launched(world: int, out: Path, *arguments: str, recipes: list[str] = RECIPES) -> str:
    """What `world` processes have said that a launcher started; the test fails where one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, processes.__file__, str(out), *arguments, *recipes]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n\n".join(text[-2000:] for text in said)
    return "".join(said)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    out = tmp_path_factory.mktemp("alone")
    processes.main(out, 0, RECIPES)
    return out


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All that is saved of a run."""
    files = [run / "model.safetensors", *sorted((run / "state" / "00000010").glob("*.safetensors"))]
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


def check_same(found: Path, expected: Path) -> None:
    for recipe in RECIPES:
        one, other = tensors(found / recipe), tensors(expected / recipe)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        for a, b in zip(lines(found / recipe), lines(expected / recipe), strict=True):
            assert a.keys() == b.keys()
            assert a.pop("error_by_time") == pytest.approx(b.pop("error_by_time"), rel=1e-5)
            assert a == pytest.approx(b, rel=1e-5)


def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    """A batch of two parts, one for each process, or both added up by one."""
    assert launched(2, tmp_path, "0") == ""  # and nobody complains
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """Two processes stop after step 7, having saved step 5; one goes on, and the log has its line of step 8."""
    launched(2, tmp_path, "7")
    processes.main(tmp_path, 0, RECIPES)
    check_same(tmp_path, alone)


def test_parts_are_shared_evenly_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    assert engine.parts(1, 128) == (range(1), 1)
    assert engine.parts(4, 128) == (range(4), 4)
    engine.rank, engine.world = 1, 2
    assert engine.parts(1, 128) == (range(1, 2), 2)
    assert engine.parts(4, 128) == (range(2, 4), 4)
    with pytest.raises(ShortflowError, match=r"train\.parts = 3 cannot be shared evenly by 2 processes; .* to 2 or 4"):
        engine.parts(3, 129)
    with pytest.raises(ShortflowError, match=r"train\.batch = 127 cannot be shared evenly.* to 126 or 128"):
        engine.parts(1, 127)


def test_numbers_of_processes_are_means_over_all_rows() -> None:
    shared: Any = {"loss": 1.0, "grad_norm": 2.0}
    one = Numbers(**shared, logs={"a": 3.0}, by_time=(1.0, None), rows={"a": 1}, rows_by_time=(2, 0))
    other = Numbers(**shared, logs={"a": 5.0, "b": 7.0}, by_time=(4.0, 5.0), rows={"a": 3, "b": 2}, rows_by_time=(1, 1))
    rows: Any = {"rows": {"a": 4, "b": 2}, "rows_by_time": (3, 1)}
    assert Numbers.merged([one, other]) == Numbers(**shared, logs={"a": 4.5, "b": 7.0}, by_time=(2.0, 5.0), **rows)
