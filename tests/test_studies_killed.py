"""Workers and schedulers of a study that are killed, and two schedulers side by side: the figures are the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("studied.py")
CELLS = 4


def content(study: Path) -> dict[str, Any]:
    """Every tensor of every cell, bit by bit, and the figures without the time that they took."""
    found: dict[str, Any] = {}
    for path in sorted((study / "cells").rglob("*.safetensors")):
        for name, value in load_file(str(path)).items():
            found[f"{path.relative_to(study)}:{name}"] = value.numpy().tobytes()
    for path in sorted((study / "cells").rglob("evaluation.json")):
        record = json.loads(path.read_text())
        own = ("training_seconds", "model")
        found[str(path.relative_to(study))] = {name: value for name, value in record.items() if name not in own}
    return found


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    directory = tmp_path_factory.mktemp("studied")
    done = subprocess.run([sys.executable, str(SCRIPT), str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout.splitlines()[-1])


def test_processes_were_killed_while_they_trained(studied: tuple[Path, dict[str, int]]) -> None:
    assert studied[1] == {"workers": 3, "scheduler": 2, "beside": 0}


@pytest.mark.parametrize("name", ["workers", "scheduler", "beside"])
def test_a_study_that_is_disturbed_is_the_study_left_alone(studied: tuple[Path, dict[str, int]], name: str) -> None:
    whole = content(studied[0] / "whole")
    assert sum(path.endswith("evaluation.json") for path in whole) == CELLS
    assert any("model-step-00000030" in path for path in whole)
    found = content(studied[0] / name)
    assert found.keys() == whole.keys()
    assert all(found[path] == whole[path] for path in whole)


def test_two_schedulers_make_no_cell_twice(studied: tuple[Path, dict[str, int]]) -> None:
    logs = [path.read_text() for path in sorted((studied[0] / "beside" / "cells").rglob("log.txt"))]
    assert [log.count(" in process ") for log in logs] == [1] * CELLS
    makers = {log.split(" in process ")[1].split(" ")[0] for log in logs}
    assert len(makers) == 2  # each had a share


def test_results_are_those_of_whoever_came_last(studied: tuple[Path, dict[str, int]]) -> None:
    for name in ("workers", "scheduler", "beside"):
        results = json.loads((studied[0] / name / "results.json").read_text())
        assert {cell["status"] for cell in results["cells"]} == {"done"}
        assert not any("preliminary" in sentence for sentence in results["verdict"])
