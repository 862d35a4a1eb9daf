import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tiny
from shortflow.errors import CheckpointError
from shortflow.flowmap import FlowMap
from shortflow.recipes import consistency_training, esc, flow_matching, shortcut
from shortflow.train import Interrupted, fit
from shortflow.train.state import latest_state
from tinyruns import OPTIMIZER, STEPS, described, files, lines, start, untouched

RECIPES = {
    "esc": (esc(), 0.0),
    "esc, guided, dropout": (esc(omega=2.0, kappa=0.3), 0.3),
    "shortcut": (shortcut(), 0.0),
    "ct, dropout": (consistency_training(), 0.3),
}


# -------------------------------------------------------------------------------------------------------- exact resume


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """SIGINT as it is at a terminal: a process that was started in the background may be told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def test_more_sigterms_do_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    """A job system sends one to every process, and a launcher that has got one passes it on."""
    records = start(tmp_path, flow_matching())
    next(records)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        next(records)
    assert latest_state(tmp_path / "state") == tmp_path / "state" / "00000001"
    records = start(tmp_path, flow_matching(), resume=True)
    next(records)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):  # who sits at the keyboard need not wait
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        next(records)


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

    list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, trackers=("tensorboard",))))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    got = [(event.step, event.value) for event in events.Scalars("loss")]
    assert got == [(line["step"], pytest.approx(line["loss"])) for line in lines(tmp_path)]


# ------------------------------------------------------------------------------------ refusals, before anything is done


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
