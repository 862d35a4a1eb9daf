import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from shortflow.errors import CheckpointError, ShortflowError
from shortflow.flowmap import FlowMap
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe
from shortflow.recipes import consistency_training, esc, flow_matching, shortcut
from shortflow.train import Interrupted, StepRecord, TrainSettings, fit, saved, space
from shortflow.train import engine as engine_module
from shortflow.train.state import check_state, latest_state

OPTIMIZER = Optimizer(lr=5e-3, betas=(0.9, 0.95), clip=1.0, warmup=0.3, ema=0.95)
STEPS = 12

RECIPES = {
    "esc": (esc(), 0.0),
    "esc, guided, dropout": (esc(omega=2.0, kappa=0.3), 0.3),
    "shortcut": (shortcut(), 0.0),
    "ct, dropout": (consistency_training(), 0.3),
}


@pytest.fixture(autouse=True)
def no_tracker(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """TensorBoard is slow to load and has a test of its own."""
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda name: None)


def start(
    directory: Path,
    recipe: Recipe,
    dropout: float = 0.0,
    settings: TrainSettings | None = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[StepRecord]:
    return fit(
        directory,
        tiny.flow_map(recipe, dropout, seed),
        recipe.objective,
        tiny.batches(recipe),
        settings=settings or tiny.settings(STEPS),
        optimizer=OPTIMIZER,
        metadata={"recipe": recipe.name},
        **options,
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    """The record of a run, without the speed."""
    rows = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def described(path: Path) -> dict[str, Any]:
    """What a model file says of itself, without its sum."""
    with safe_open(str(path), "pt") as opened:
        header = json.loads(opened.metadata()["shortflow"])
    assert re.fullmatch(r"[0-9a-f]{64}", header.pop("sha256"))
    return header


def files(directory: Path) -> dict[str, bytes]:
    """Every tensor file of a run's last state, and the model."""
    state = latest_state(directory / "state")
    assert state is not None
    found = {path.name: path.read_bytes() for path in sorted(state.glob("*.safetensors"))}
    return {**found, "model": (directory / "model.safetensors").read_bytes()}


# -------------------------------------------------------------------------------------------------------- exact resume


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("k", [4, 7])
def test_a_resumed_run_is_the_run_uninterrupted_bit_for_bit(tmp_path: Path, name: str, k: int) -> None:
    """Weights, average, teacher, moments, the model file and the log; also where k is within a line of the log."""
    recipe, dropout = RECIPES[name]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    plain = list(start(whole, recipe, dropout))
    first = start(parts, recipe, dropout, tiny.settings(STEPS, save_every=k))
    records = [next(first) for _ in range(k + 1)]  # a crash one step after the state was saved
    del first
    assert [int(path.name) for path in (parts / "state").iterdir()] == [k]
    rest = list(start(parts, recipe, dropout, seed=99, resume=True))
    assert [record.step for record in rest] == list(range(k + 1, STEPS + 1))
    got, want = ([replace(r, seconds=0.0) for r in run] for run in ([*records[:k], *rest], plain))
    assert got == want
    assert lines(parts) == lines(whole)
    assert [line["step"] for line in lines(whole)] == [4, 8, 12]
    assert files(parts).keys() == files(whole).keys()
    for file, content in files(whole).items():
        assert files(parts)[file] == content, file


def test_the_cases_differ_in_what_has_to_be_restored(tmp_path: Path) -> None:
    """The average, the teacher and the weights of a run are three different things here."""
    list(start(tmp_path, RECIPES["shortcut"][0]))
    content = files(tmp_path)
    assert {"network.safetensors", "average.safetensors", "teacher.safetensors", "optimizer.safetensors"} < set(content)
    state = latest_state(tmp_path / "state")
    tensors = []
    for part in ("network", "average", "teacher"):
        with safe_open(str(state / f"{part}.safetensors"), "pt") as opened:
            tensors.append(opened.get_tensor("network.last.weight"))
    assert min(float((a - b).abs().max()) for a, b in zip(tensors, [*tensors[1:], tensors[0]], strict=True)) > 1e-4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_is_the_run_uninterrupted(tmp_path: Path, number: int) -> None:
    recipe, dropout = RECIPES["esc"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(start(whole, recipe, dropout))
    before = signal.getsignal(number)

    def watch() -> None:
        for record in start(parts, recipe, dropout):
            if record.step == 7:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"stopped after step 7 of 12; the state is saved in .*parts") as stopped:
        watch()
    assert (stopped.value.step, stopped.value.total, stopped.value.directory) == (7, STEPS, parts)
    assert signal.getsignal(number) is before
    assert [line["step"] for line in lines(parts)] == [4]
    assert described(parts / "model.safetensors") == {"recipe": "esc", "images": 7 * 16, "step": 7}
    list(start(parts, recipe, dropout, resume=True))
    assert files(parts) == files(whole)
    assert lines(parts) == lines(whole)


def test_a_second_signal_acts_as_usual(tmp_path: Path) -> None:
    records = start(tmp_path, flow_matching())
    next(records)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        next(records)
    assert latest_state(tmp_path / "state") == tmp_path / "state" / "00000001"


def test_a_signal_at_the_last_step_is_too_late(tmp_path: Path) -> None:
    for record in start(tmp_path, flow_matching()):
        if record.step == STEPS:
            os.kill(os.getpid(), signal.SIGINT)
    assert latest_state(tmp_path / "state") == tmp_path / "state" / "00000012"


def test_signal_handlers_are_restored_when_the_consumer_stops_or_fails(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    records = start(tmp_path, flow_matching())
    next(records)
    assert signal.getsignal(signal.SIGINT) is not before
    del records
    assert signal.getsignal(signal.SIGINT) is before
    assert latest_state(tmp_path / "state") is None


def test_other_threads_train_too_without_signals(tmp_path: Path) -> None:
    steps: list[int] = []
    thread = threading.Thread(target=lambda: steps.extend(r.step for r in start(tmp_path, flow_matching())))
    thread.start()
    thread.join()
    assert steps == list(range(1, STEPS + 1))
    assert (tmp_path / "model.safetensors").exists()


# ------------------------------------------------------------------------------------------------- the run's directory


def test_saving_and_previews_follow_their_rhythm(tmp_path: Path) -> None:
    looked: list[tuple[bool, str]] = []

    def preview(flow: FlowMap, path: Path) -> None:
        looked.append((flow.training, path.name))

    settings = tiny.settings(STEPS, save_every=5, preview_every=5, keep=2)
    seen = []
    for record in start(tmp_path, flow_matching(), settings=settings, preview=preview):
        seen.append(sorted(int(path.name) for path in (tmp_path / "state").glob("0*")))
        assert (tmp_path / "stats.jsonl").exists()
        assert record.step == len(seen)
    assert seen[3:5] == [[], [5]]
    assert seen[8:10] == [[5], [5, 10]]
    assert seen[-1] == [10, 12]
    assert looked == [(False, f"step-{step:08d}.png") for step in (5, 10, 12)]


def test_the_model_is_the_average_of_the_weights(tmp_path: Path) -> None:
    recipe = flow_matching()
    flow = tiny.flow_map(recipe)
    want = {name: value.clone() for name, value in flow.state_dict().items()}
    records = fit(
        tmp_path,
        flow,
        recipe.objective,
        tiny.batches(recipe),
        settings=tiny.settings(STEPS),
        optimizer=OPTIMIZER,
        metadata={"format": 1},
    )
    for k, _ in enumerate(records):
        decay = min(0.95, (1 + k) / (10 + k))
        want = {name: decay * want[name] + (1 - decay) * now for name, now in flow.state_dict().items()}
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as opened:
        assert set(opened.keys()) == set(want)
        for name, value in want.items():
            torch.testing.assert_close(opened.get_tensor(name), value, rtol=1e-5, atol=1e-6)
    assert described(tmp_path / "model.safetensors") == {"format": 1, "images": 192, "step": 12}


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    list(start(tmp_path, flow_matching()))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert list(start(tmp_path, flow_matching(), resume=True)) == []
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_tensorboard_gets_the_lines_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    list(start(tmp_path, flow_matching()))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    got = [(event.step, event.value) for event in events.Scalars("loss")]
    assert got == [(line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path)]


# ------------------------------------------------------------------------------------ refusals, before anything is done


def untouched(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_directory_with_a_run_is_refused_at_once(tmp_path: Path) -> None:
    list(start(tmp_path, flow_matching()))
    before = untouched(tmp_path)
    with pytest.raises(CheckpointError, match=r"already holds a run \(up to step 12\); use --resume or another"):
        start(tmp_path, flow_matching())
    assert untouched(tmp_path) == before


def test_a_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="already holds a model, which training would overwrite"):
        start(tmp_path, flow_matching())
    assert untouched(tmp_path) == {tmp_path / "model.safetensors": b"precious"}


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*run: no training state.*leave out --resume"):
        start(tmp_path / "run", flow_matching(), resume=True)
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_before_the_first_record_is_asked_for(tmp_path: Path) -> None:
    records = start(tmp_path / "run", flow_matching())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    del records
    assert not (tmp_path / "run").exists()
    next(start(tmp_path / "run", flow_matching()))
    assert (tmp_path / "run" / "stats.jsonl").exists()


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


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"batch": 8}, {"steps": 20}, {"precision": "bf16"}],
    ids=lambda other: next(iter(other)),
)
def test_a_run_cannot_go_on_with_other_settings(tmp_path: Path, other: dict[str, Any]) -> None:
    list(start(tmp_path, flow_matching()))
    with pytest.raises(
        CheckpointError, match=r"was trained with .*cannot go on with .*resume with the settings it had"
    ):
        start(tmp_path, flow_matching(), settings=tiny.settings(**other), resume=True)


def test_a_run_may_go_on_with_another_rhythm(tmp_path: Path) -> None:
    records = start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, save_every=6))
    for _ in range(6):
        next(records)
    del records
    list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, log_every=2, save_every=3), resume=True))
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 10, 12]
