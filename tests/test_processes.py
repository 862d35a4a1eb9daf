"""Runs of two processes are the runs of one, to the last bit: weights, averages, optimiser; the log to rounding."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import processes
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.train.engine import Engine
from shortflow.train.record import Numbers
from shortflow.train.state import check_state

RECIPES = ["esc", "shortcut", "imm"]  # derivative and plug-in, two steps with an average for a teacher, groups


def started(
    world: int, out: Path, stop: int, settings: Sequence[str], recipes: Sequence[str], environment: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    """`world` processes, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **environment,
    }
    command = [sys.executable, processes.__file__, str(out), str(stop), json.dumps(settings), *recipes]
    return [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def launched(
    world: int,
    out: Path,
    stop: int = 0,
    settings: Sequence[str] = (),
    recipes: Sequence[str] = RECIPES,
    **environment: str,
) -> str:
    """What the processes have said; the test fails where one of them does."""
    running = started(world, out, stop, settings, recipes, environment)
    said = [process.communicate(timeout=240)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n\n".join(text[-2000:] for text in said)
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


def flat(line: Any, name: str = "") -> dict[str, Any]:
    """The numbers of a line by their place in it, without those that are null."""
    if not isinstance(line, dict | list):
        return {} if line is None else {name: line}
    items = line.items() if isinstance(line, dict) else enumerate(line)
    return {key: value for place, inside in items for key, value in flat(inside, f"{name}/{place}").items()}


def check_same(found: Path, expected: Path) -> None:
    for recipe in RECIPES:
        one, other = tensors(found / recipe), tensors(expected / recipe)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        for a, b in zip(lines(found / recipe), lines(expected / recipe), strict=True):
            assert a.keys() == b.keys()
            assert flat(a) == pytest.approx(flat(b), rel=1e-5)


def test_two_processes_train_what_one_does(alone: Path, tmp_path: Path) -> None:
    """A batch of two parts, one for each process, or both added up by one."""
    assert launched(2, tmp_path) == ""  # and nobody complains
    check_same(tmp_path, alone)
    for recipe in RECIPES:  # one of them has told the tracker
        files = list((tmp_path / recipe / "tensorboard").iterdir())
        assert len(files) == 1
        events = EventAccumulator(str(files[0]))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [4, 8, 10]


def test_sharded_parts_that_stop_at_a_signal_and_go_on_train_to_the_same_weights(tmp_path: Path) -> None:
    """FSDP2, two parts in each process, a SIGTERM to one of them; before that, one that lacks a sample is named."""
    parts, recipe = ["train.parts=4"], ["shortcut"]
    processes.main(tmp_path / "one", 0, recipe, parts)
    words = ["torn", "signal"]
    said = launched(2, tmp_path / "two", 7, [*parts, *words], recipe, ACCELERATE_USE_FSDP="true")
    assert re.fullmatch(
        r"mixture: process 1 on \S+ has 19,999 samples, process 0 on \S+ has 20,000; all processes .*\n", said
    ), said
    assert not (tmp_path / "two" / "torn" / "run.yaml").exists()
    assert (tmp_path / "two" / "shortcut" / "state" / "00000007").is_dir()
    check_near(tmp_path / "two", tmp_path / "one", recipe, bound=1e-6)
    for a, b in zip(lines(tmp_path / "two" / "shortcut"), lines(tmp_path / "one" / "shortcut"), strict=True):
        assert flat(a) == pytest.approx(flat(b), rel=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_one_whole_state(tmp_path: Path) -> None:
    """And both end, though the other has heard nothing; one process goes on from there."""
    running = started(2, tmp_path, 0, ["train.images=1280000", "train.save_every=5000"], ["esc"], {})
    run, until = tmp_path / "esc", time.monotonic() + 200
    while not ((run / "stats.jsonl").is_file() and lines(run)) and time.monotonic() < until:
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=200)[0] for process in running]
    assert all("stopped after step" in text for text in said), said
    (state,) = (run / "state").iterdir()
    step = check_state(state)["step"]
    assert int(state.name) == step
    assert not list(run.rglob(".writing-*"))
    assert not (run / ".lock").exists()
    assert lines(run)[-1]["step"] == step // 4 * 4
    processes.trained("esc", run, step + 4, [])
    assert lines(run)[-1]["step"] == (step + 4) // 4 * 4


@pytest.mark.slow
def test_two_processes_make_the_pairs_of_one(tmp_path: Path) -> None:
    """Each makes a part of what is missing; they train on the same pairs."""
    processes.main(tmp_path, 0, ["flow-matching"])
    settings = [f"teacher={tmp_path / 'flow-matching'}", "pairs={count: 5000, steps: 4}"]
    processes.main(tmp_path / "one", 0, ["reflow"], settings)
    launched(2, tmp_path / "two", 0, settings, ["reflow"])
    made = [sorted((tmp_path / name / "reflow" / "pairs").iterdir()) for name in ("one", "two")]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    assert len(made[0]) == 5
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*made, strict=True))
    check_near(tmp_path / "two", tmp_path / "one", ["reflow"])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """Two processes stop after step 7, having saved step 5; one goes on, and the log has its line of step 8."""
    launched(2, tmp_path, 7)
    processes.main(tmp_path, 0, RECIPES)
    check_same(tmp_path, alone)


def check_near(found: Path, expected: Path, recipes: Sequence[str] = RECIPES, bound: float = 1e-5) -> None:
    """Weights, averages and moments, each beside the largest of its kind."""
    for recipe in recipes:
        one, other = tensors(found / recipe), tensors(expected / recipe)
        assert one.keys() == other.keys()
        far = {
            name: float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-6)) for name in one
        }
        assert max(far.values()) < bound, max(far, key=far.__getitem__)


@pytest.mark.slow
def test_parts_are_added_up_in_each_process(alone: Path, tmp_path: Path) -> None:
    """Four parts: two in each of two processes, or all in one."""
    parts = ["train.parts=4"]
    processes.main(tmp_path / "one", 0, RECIPES, parts)
    launched(2, tmp_path / "two", settings=parts)
    check_near(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_sharded_weights_train_to_the_same_ones(alone: Path, tmp_path: Path) -> None:
    """FSDP2, and up to a state that one process goes on from without, or the other way round."""
    launched(2, tmp_path / "a", ACCELERATE_USE_FSDP="true")
    check_near(tmp_path / "a", alone)
    launched(2, tmp_path / "b", 7, ACCELERATE_USE_FSDP="true")
    processes.main(tmp_path / "b", 0, RECIPES)
    check_near(tmp_path / "b", alone)
    processes.main(tmp_path / "c", 7, RECIPES)
    launched(2, tmp_path / "c", ACCELERATE_USE_FSDP="true")
    check_near(tmp_path / "c", alone)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["false", "true"])
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(tmp_path: Path, sharded: str) -> None:
    broken = ["broken"]
    subprocess.run(
        [sys.executable, processes.__file__, str(tmp_path / "one"), "0", json.dumps(broken), *RECIPES], check=True
    )
    launched(2, tmp_path / "two", settings=broken, ACCELERATE_USE_FSDP=sharded)
    check_near(tmp_path / "two", tmp_path / "one")
    for recipe in RECIPES:
        assert [line.get("skipped", 0) for line in lines(tmp_path / "two" / recipe)] == [1, 1, 0]
    # Where they are too many, both go back and then end, and what each has failed on is kept.
    said = []
    for process in started(
        2, tmp_path / "bad", 0, [*broken, "train.skips=0"], ["esc"], {"ACCELERATE_USE_FSDP": sharded}
    ):
        said.append(process.communicate(timeout=240)[0])
        assert process.returncode != 0
    assert "There is no state to go back to yet" in said[0]
    folder = tmp_path / "bad" / "esc" / "failures" / "00000001"
    assert {path.name for path in folder.iterdir()} == {
        "failure.json", "network.safetensors", "draw-0.safetensors", "draw-1.safetensors"
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_survive_kills(alone: Path, tmp_path: Path) -> None:
    """Both are killed at random moments, again and again; what they end with is the run left alone, to the last bit."""
    rng, kills = random.Random(0), 0
    while True:
        running = started(2, tmp_path, 0, ["train.save_every=1"], RECIPES, {})
        if kills < 8:
            time.sleep(rng.uniform(4.0, 9.0))
        else:
            said = [process.communicate(timeout=240)[0] for process in running]
            assert all(process.returncode == 0 for process in running), "\n\n".join(said)
            break
        for process in running:
            process.kill()
            process.communicate()
        kills += 1
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_a_directory_that_two_processes_hold_is_refused_to_others(tmp_path: Path) -> None:
    running = started(2, tmp_path, 0, ["train.images=1280000"], ["esc"], {})
    lock = tmp_path / "esc" / ".lock"
    deadline = time.monotonic() + 60
    while not (tmp_path / "esc" / "stats.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert lock.is_file()
    with pytest.raises(CheckpointError, match="is in use: a run is going on there in process"):
        processes.main(tmp_path, 0, ["esc"])
    for process in running:
        process.kill()
        process.communicate()


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
