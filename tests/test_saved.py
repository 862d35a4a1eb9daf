"""What a run keeps: falling back from damage, full disks, its lock, and the best state."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.recipes import flow_matching
from shortflow.train import Interrupted, saved, space
from shortflow.train.state import check_state, latest_state
from tinyruns import STEPS, described, files, lines, start, untouched

# -------------------------------------------------------------------------------------------- damage, full disks, locks


def test_where_the_newest_state_is_damaged_the_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    recipe, run = flow_matching(), tmp_path / "run"
    list(start(run, recipe, settings=tiny.settings(STEPS, save_every=8)))
    whole = files(run)
    (run / "state" / "00000012" / "network.safetensors").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"00000012 is damaged: network.* kept aside .*, and .* goes on from 00000008"):
        records = start(run, recipe, resume=True)
    assert [record.step for record in records] == [9, 10, 11, 12]
    assert files(run) == whole
    assert [line["step"] for line in lines(run)] == [4, 8, 12]
    assert sorted(path.name for path in (run / "state").iterdir()) == ["00000008", "00000012", "00000012.damaged"]


@pytest.mark.parametrize("resume", [True, "auto"])
def test_where_no_state_is_whole_nothing_is_begun_again(tmp_path: Path, resume: Any) -> None:
    list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, save_every=8)))
    for state in (tmp_path / "state").iterdir():
        (state / "state.json").unlink()
    before = untouched(tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)no training state in .* is whole:.*00000012 .*00000008 "):
        start(tmp_path, flow_matching(), resume=resume)
    assert untouched(tmp_path) == before


def test_auto_begins_where_there_is_nothing_and_goes_on_where_there_is(tmp_path: Path) -> None:
    settings = tiny.settings(STEPS, save_every=5)
    records = start(tmp_path / "run", flow_matching(), settings=settings, resume="auto")
    assert [next(records).step for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    del records
    rest = start(tmp_path / "run", flow_matching(), settings=settings, resume="auto")
    assert [record.step for record in rest] == list(range(6, STEPS + 1))
    assert list(start(tmp_path / "run", flow_matching(), settings=settings, resume="auto")) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="already holds a model"):
        start(tmp_path / "other", flow_matching(), resume="auto")


@pytest.mark.parametrize("when", ["never written", "of the state before"])
def test_a_run_that_was_killed_between_its_state_and_its_model_has_its_model_again(tmp_path: Path, when: str) -> None:
    recipe, settings = flow_matching(), tiny.settings(STEPS, save_every=4)
    records = start(tmp_path, recipe, settings=settings)
    for _ in range(4):
        next(records)
    old = (tmp_path / "model.safetensors").read_bytes()
    list(records)
    whole = files(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if when != "never written":
        (tmp_path / "model.safetensors").write_bytes(old)
    assert list(start(tmp_path, recipe, settings=settings, resume=True)) == []
    assert files(tmp_path) == whole


def test_what_a_killed_run_was_writing_goes_with_the_next(tmp_path: Path) -> None:
    list(start(tmp_path, flow_matching()))
    (tmp_path / "samples").mkdir()
    left = (".writing-0badf00d-model.safetensors", ".tmpAbC123", "samples/.writing-0badf00d-step.png")
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".tmp-of-mine").write_bytes(b"precious")
    list(start(tmp_path, flow_matching(), resume=True))
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / ".tmp-of-mine").exists()


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, settings = flow_matching(), tiny.settings(STEPS, save_every=4)
    whole, run = tmp_path / "whole", tmp_path / "run"
    list(start(whole, recipe, settings=settings))
    records = start(run, recipe, settings=settings)
    for _ in range(7):
        next(records)
    with monkeypatch.context() as full:
        full.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**19))
        with pytest.raises(CheckpointError, match=r"the state after step 8 needs 1.\d MiB in .*, and 0.5 MiB are free"):
            next(records)
    records = start(run, recipe, settings=settings, resume=True)
    assert [next(records).step for _ in range(7)] == [5, 6, 7, 8, 9, 10, 11]
    with monkeypatch.context() as full:  # which has space for the state, and not for the model
        full.setattr(saved, "bytes_of", lambda _: 2**60)
        with pytest.raises(CheckpointError, match=r"model.safetensors needs .*The training state of step 12 is whole"):
            next(records)
    assert latest_state(run / "state") == run / "state" / "00000012"
    assert described(run / "model.safetensors")["step"] == 8
    assert list(start(run, recipe, settings=settings, resume=True)) == []
    assert files(run) == files(whole)
    assert lines(run) == lines(whole)


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    records = start(tmp_path, flow_matching())
    next(records)
    for resume in (False, True, "auto"):
        with pytest.raises(
            CheckpointError, match=rf"in use: a run is going on there in process {os.getpid()} on .*Wait for it, or"
        ):
            start(tmp_path, flow_matching(), resume=resume)
    assert [record.step for record in records] == list(range(2, STEPS + 1))
    assert not (tmp_path / ".lock").exists()
    assert list(start(tmp_path, flow_matching(), resume=True)) == []


def test_a_call_that_fails_gives_the_directory_back(tmp_path: Path) -> None:
    list(start(tmp_path, flow_matching()))
    with pytest.raises(CheckpointError, match="already holds a run") as caught:  # whose traceback holds the frames
        start(tmp_path, flow_matching())
    assert list(start(tmp_path, flow_matching(), resume=True)) == []
    del caught


# ------------------------------------------------------------------------------------------------------------- the best


BEST = tiny.settings(STEPS, log_every=2, save_every=2, keep=1, keep_best="loss")


def best_of(directory: Path) -> dict[str, Any]:
    state = latest_state(directory / "state")
    assert state is not None
    return check_state(state)["best"]


def test_the_state_with_the_smallest_figure_is_kept_and_its_model(tmp_path: Path) -> None:
    list(start(tmp_path / "all", flow_matching(), settings=replace(BEST, keep=99, keep_best=None)))
    assert best_of(tmp_path / "all") is None
    list(start(tmp_path / "run", flow_matching(), settings=BEST))
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "run")}
    step = min(losses, key=lambda step: losses[step])
    assert 2 < step < STEPS
    assert best_of(tmp_path / "run") == {"name": "loss", "figure": losses[step], "step": step}
    kept = sorted(path.name for path in (tmp_path / "run" / "state").iterdir())
    assert kept == [f"{step:08d}", f"{STEPS:08d}"]
    model = tmp_path / "run" / "model-best.safetensors"
    assert described(model) == {"recipe": "flow-matching", "images": 16 * step, "step": step}
    want = load_file(str(tmp_path / "all" / "state" / f"{step:08d}" / "average.safetensors"))
    got = load_file(str(model))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("k", [1, 3, 5, 8, 11])
def test_the_best_state_survives_resuming(tmp_path: Path, k: int) -> None:
    """Also where a signal saves between two lines of the log: such a state is no candidate."""
    list(start(tmp_path / "whole", flow_matching(), settings=BEST))

    def interrupted() -> None:
        for record in start(tmp_path / "run", flow_matching(), settings=BEST):
            if record.step == k:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        interrupted()
    list(start(tmp_path / "run", flow_matching(), settings=BEST, resume=True))
    assert best_of(tmp_path / "run") == best_of(tmp_path / "whole")
    for pattern in ("state/*/*.safetensors", "model*.safetensors"):
        want = {str(path.relative_to(tmp_path / "whole")): path for path in (tmp_path / "whole").glob(pattern)}
        got = {str(path.relative_to(tmp_path / "run")): path for path in (tmp_path / "run").glob(pattern)}
        assert got.keys() == want.keys()
        assert all(got[name].read_bytes() == want[name].read_bytes() for name in want)


def test_a_best_state_that_is_gone_or_best_in_something_else_is_forgotten(tmp_path: Path) -> None:
    first = replace(BEST, keep_best="grad_norm")
    for change in ("gone", "another name"):
        run = tmp_path / change.replace(" ", "-")
        records = start(run, flow_matching(), settings=first)
        for _ in range(6):
            next(records)
        del records
        best = best_of(run)
        assert best["step"] < 6
        if change == "gone":
            shutil.rmtree(run / "state" / f"{best['step']:08d}")
        list(start(run, flow_matching(), settings=first if change == "gone" else BEST, resume=True))
        assert best_of(run)["step"] > 6
        assert best_of(run)["name"] == ("grad_norm" if change == "gone" else "loss")


@pytest.mark.parametrize("name", ["los", "lr", "step", "error_by_time", "images_per_second"])
def test_the_best_of_something_that_is_not_in_the_log_is_refused_with_the_first_line(tmp_path: Path, name: str) -> None:
    records = start(tmp_path, flow_matching(), settings=replace(BEST, keep_best=name))
    next(records)
    with pytest.raises(ShortflowError, match=rf"keep_best = '{name}' is no quantity .*; it has loss, grad_norm, "):
        next(records)


def test_the_best_needs_lines_at_saved_steps() -> None:
    with pytest.raises(ShortflowError, match=r"save_every must be a multiple of train.log_every, got 6 and 4"):
        tiny.settings(save_every=6, keep_best="loss")
