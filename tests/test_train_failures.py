"""Steps that are not finite: skipped and counted, then a step back with a smaller learning rate, then the end."""

import json
import math
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from shortflow.errors import ShortflowError
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe
from shortflow.recipes import esc, meanflow, shortcut
from shortflow.streams import Streams
from shortflow.train import StepRecord, TrainSettings, TrainStep, fit, train
from shortflow.train.engine import Engine
from shortflow.train.failures import NotFinite, Skips, load_draws
from shortflow.train.fit import Interrupted
from shortflow.train.log import spikes, summary
from shortflow.train.loop import build_optimizer
from shortflow.train.record import CELLS, Measured, Numbers
from shortflow.train.state import optimizer_tensors
from shortflow.typing import Batch, Progress

FAST = Optimizer(lr=1e-2, betas=(0.9, 0.95), clip=1.0, ema=0.9)


class Device(Engine):
    """The processor, taken for a device that works beside the host."""

    asynchronous = True


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def broken(recipe: Recipe, bad: Callable[[int], bool], value: float = math.inf) -> Callable[[int], Batch]:
    """Batches whose third image is not finite where `bad` says so of their step (from 1)."""
    whole = tiny.batches(recipe)

    def batch_of(k: int) -> Batch:
        batch = whole(k)
        if bad(k + 1):
            x = batch.x.clone()
            x[2, 0] = value
            batch = replace(batch, x=x)
        return batch

    return batch_of


def stepped(recipe: Recipe) -> TrainStep:
    return TrainStep(tiny.flow_map(recipe), recipe.objective)


# ------------------------------------------------------------------------------------------------------------ skipping


@pytest.mark.parametrize("engine", [Engine, Device])
@pytest.mark.parametrize("algorithm", ["adamw", "radam"])
def test_a_step_that_is_not_finite_moves_neither_weights_nor_moments(engine: type[Engine], algorithm: str) -> None:
    """After it all goes on as if it had not been: the optimiser has not even counted it."""
    recipe, optimizer = meanflow(ratio=0.5), replace(FAST, algorithm=algorithm)
    got = []
    for bad in ((3, 5), ()):
        step = stepped(recipe)
        adamw = build_optimizer(step, optimizer)
        records = train(
            step, tiny.settings(8), optimizer, broken(recipe, bad.__contains__), adamw=adamw, engine=engine()
        )
        seen: list[dict[str, Tensor]] = []
        for record in records:
            moments = {name: value.clone() for name, value in optimizer_tensors(adamw).items()}
            seen.append(weights(step.flow) | moments)
            assert record.skipped == (record.step in bad)
        got.append(seen)
    for k in (3, 5):
        assert same(got[0][k - 1], got[0][k - 2])
        assert not same(got[0][k], got[0][k - 1])
    assert same(got[0][1], got[1][1])
    steps = [float(value) for name, value in got[0][-1].items() if name.endswith(".step")]
    assert set(steps) == {6.0}  # of eight


def test_a_gradient_alone_may_be_what_is_not_finite() -> None:
    step = stepped(shortcut())
    records = train(step, tiny.settings(skips=0), FAST, tiny.batches(shortcut()))
    next(records)
    before = weights(step.flow)
    step.flow.network.last.weight.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[union-attr]
    with pytest.raises(NotFinite, match=r"^the norm of the gradient is nan at step 2; the weights have not"):
        next(records)
    assert same(weights(step.flow), before)


@pytest.mark.parametrize("engine", [Engine, Device])
def test_no_more_steps_are_skipped_than_may_be(engine: type[Engine]) -> None:
    recipe = shortcut()
    records = train(
        stepped(recipe), tiny.settings(12, skips=2), FAST, broken(recipe, lambda k: k in (2, 6, 7)), engine=engine()
    )
    with pytest.raises(
        NotFinite, match=r"the loss is (nan|inf) at step 7, and 2 of the 100 steps before it were skipped"
    ) as found:
        list(records)
    assert found.value.skipped == (2, 6, 7)
    # The draw is that of the step, made anew: what is not finite is where it was put.
    assert list(found.value.draws) == [0]
    assert (~found.value.draws[0].x.isfinite()).nonzero().tolist() == [[2, 0]]


def test_what_was_skipped_long_ago_does_not_count() -> None:
    skips = Skips(allowed=2)
    assert [skips.add(step) for step in (1, 50, 101, 102, 150)] == [False, False, False, True, True]
    assert skips.steps == [101, 102, 150]


def test_skips_are_no_negative_number() -> None:
    with pytest.raises(ShortflowError, match=r"train\.skips must be at least 0, got -1"):
        TrainSettings(skips=-1)


# ------------------------------------------------------------------------------------------------------- whole runs


def run(
    directory: Path,
    recipe: Recipe,
    batch_of: Callable[[int], Batch],
    *,
    resume: bool = False,
    engine: Engine | None = None,
    **settings: Any,
) -> Iterator[StepRecord]:
    shared: dict[str, Any] = {"save_every": 5, **settings}
    return fit(
        directory,
        tiny.flow_map(recipe),
        recipe.objective,
        batch_of,
        settings=tiny.settings(20, **shared),
        optimizer=FAST,
        metadata={},
        resume=resume,
        engine=engine,
    )


def saved(directory: Path, step: int = 20) -> dict[str, Tensor]:
    files = sorted((directory / "state" / f"{step:08d}").glob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]


def passing(recipe: Recipe) -> Callable[[int], Batch]:
    """Batches of which those of steps 13 and 14 are broken the first time that they are asked for."""
    asked: list[int] = []

    def bad(step: int) -> bool:
        asked.append(step)
        return step in (13, 14) and asked.count(step) == 1

    return broken(recipe, bad)


def test_the_log_says_how_many_were_skipped(tmp_path: Path) -> None:
    recipe = meanflow(ratio=0.5)
    list(run(tmp_path, recipe, broken(recipe, lambda k: k in (2, 5, 6))))
    lines = log(tmp_path)
    assert [line.get("skipped", 0) for line in lines] == [1, 2, 0, 0, 0]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert not (tmp_path / "failures").exists()


def test_a_window_without_any_step_has_no_means(tmp_path: Path) -> None:
    recipe = meanflow(ratio=0.5)
    list(run(tmp_path, recipe, broken(recipe, lambda k: 5 <= k <= 8), skips=4))
    line = log(tmp_path)[1]
    assert (line["loss"], line["grad_norm"], line["skipped"], line["error_by_time"]) == (None, None, 4, [None] * 8)


def test_a_run_goes_back_once_with_half_the_learning_rate(tmp_path: Path) -> None:
    """What follows is the run that goes on from that state with that learning rate, to the last bit."""
    recipe = shortcut()
    with pytest.warns(UserWarning, match=r"at step 14, and 1 of the .* goes back to step 10, once, with 0\.5 of its"):
        records = list(run(tmp_path / "a", recipe, passing(recipe), skips=1))
    assert [record.step for record in records] == [*range(1, 14), *range(11, 21)]
    lr = {i: record.lr for i, record in enumerate(records)}
    assert lr[13] == pytest.approx(0.5 * lr[10], rel=1e-12)  # step 11, the second and the first time
    assert [line["step"] for line in log(tmp_path / "a")] == [4, 8, 12, 16, 20]
    assert "skipped" not in log(tmp_path / "a")[3]

    half = replace(FAST, lr=FAST.lr / 2)
    (tmp_path / "b").mkdir()
    first = run(tmp_path / "b", recipe, tiny.batches(recipe))
    for record in first:
        if record.step == 10:
            break
    first.close()  # type: ignore[attr-defined]
    records = fit(
        tmp_path / "b",
        tiny.flow_map(recipe),
        recipe.objective,
        tiny.batches(recipe),
        settings=tiny.settings(20, save_every=5),
        optimizer=half,
        metadata={},
        resume=True,
    )
    list(records)
    assert same(saved(tmp_path / "a"), saved(tmp_path / "b"))


def test_a_run_that_fails_again_ends_with_what_it_failed_on(tmp_path: Path) -> None:
    recipe = meanflow(ratio=0.5)
    batch_of = broken(recipe, lambda k: k >= 13)
    with pytest.raises(NotFinite) as found, pytest.warns(UserWarning, match="goes back to step 10"):
        list(run(tmp_path, recipe, batch_of, skips=1))
    folder = tmp_path / "failures" / "00000014"
    said = f"kept in {folder}. The run went back from step 14 to step 10 already, and goes on from there with 0.5"
    assert said in str(found.value)
    told = json.loads((folder / "failure.json").read_text())
    assert told == {"step": 14, "what": "loss", "value": "nan", "skipped": [13, 14], "rows_not_finite": {"0": [2]}}

    # The draw and the weights give the loss again, row by row.
    flow = tiny.flow_map(recipe)
    flow.load_state_dict(load_file(folder / "network.safetensors"))
    draw = load_draws(folder)[0]
    step = TrainStep(flow, recipe.objective)
    expected = step.draw(batch_of(13), Streams(seed=0, images=13 * 16), Progress(images=13 * 16, total=320, batch=16))
    for name in ("x", "eps", "x_t", "label", "dropped", "coin"):
        torch.testing.assert_close(getattr(draw, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    assert draw.progress == expected.progress
    assert draw.dropout_seed == expected.dropout_seed
    loss = step(draw)[1].loss
    kept = load_file(folder / "draw-0.safetensors")["loss"]
    torch.testing.assert_close(loss.detach(), kept, rtol=0, atol=0, equal_nan=True)
    assert loss.isfinite().tolist() == [i != 2 for i in range(16)]


def test_where_there_is_no_state_a_run_cannot_go_back(tmp_path: Path) -> None:
    recipe = shortcut()
    with pytest.raises(NotFinite, match=r"There is no state to go back to yet \(train\.save_every\)"):
        list(run(tmp_path, recipe, broken(recipe, lambda k: k > 2), skips=0))
    assert (tmp_path / "failures" / "00000003" / "teacher.safetensors").is_file()


def test_a_setback_and_skips_are_parts_of_the_state(tmp_path: Path) -> None:
    """Stopped after the step back and resumed, the run ends as if it had not been stopped."""
    recipe, whole, cut = shortcut(), tmp_path / "whole", tmp_path / "cut"
    bad = {"skips": 2, "save_every": 5}

    def batches() -> Callable[[int], Batch]:
        """Steps 7 to 9 are broken once; 11 and 14 always."""
        asked: list[int] = []

        def broken_now(step: int) -> bool:
            asked.append(step)
            return step in (11, 14) or (step in (7, 8, 9) and asked.count(step) == 1)

        return broken(recipe, broken_now)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(run(whole, recipe, batches(), **bad))
        for record in (records := run(cut, recipe, batches(), **bad)):
            if record.step == 13:
                break
        records.close()  # type: ignore[attr-defined]
    state = json.loads((cut / "state" / "00000010" / "state.json").read_text())
    assert state["setback"] == {"failed": 9, "back_to": 5, "slowed": 0.5}
    seen = list(run(cut, recipe, broken(recipe, lambda k: k in (11, 14)), resume=True, **bad))
    assert seen[0].step == 11
    assert same(saved(cut), saved(whole))
    assert json.loads((cut / "state" / "00000020" / "state.json").read_text())["skipped"] == [11, 14]
    # With what was skipped before, one more is too many.
    shutil.rmtree(cut / "state" / "00000020")
    (cut / "model.safetensors").unlink()
    with pytest.raises(NotFinite, match=r"at step 16, and 2 of the 100 .* went back from step 9 to step 5 already"):
        list(run(cut, recipe, broken(recipe, lambda k: k in (16,)), resume=True, **bad))


def test_steps_that_a_device_has_skipped_unread_are_parts_of_the_state_that_a_signal_saves(tmp_path: Path) -> None:
    recipe = shortcut()
    records = run(tmp_path, recipe, broken(recipe, lambda k: k in (4, 7)), engine=Device(), log_every=20, save_every=20)
    while next(records).step < 8:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        next(records)
    state = json.loads((tmp_path / "state" / "00000008" / "state.json").read_text())
    assert state["skipped"] == [4, 7]


# ------------------------------------------------------------------------------------------------ derivatives by cell


def measured(tangent: list[float], t: list[float], r: list[float]) -> Numbers:
    logs = {"error": torch.ones(len(t)), "tangent": torch.tensor(tangent)}
    return Measured.of(1, torch.tensor(1.0), torch.tensor(1.0), logs, torch.tensor(t), torch.tensor(r)).numbers


def test_derivatives_are_kept_by_cell() -> None:
    """Rows (t, r) in cells of a quarter; rows with r = t have no derivative."""
    numbers = measured([2.0, 4.0, math.nan, 5.0], [0.3, 0.49, 0.3, 1.0], [0.1, 0.24, 0.3, 0.0])
    assert CELLS == 4
    cells = dict(enumerate(numbers.cells))
    assert cells.pop(1 * 4 + 0) == (3.0, 4.0, 2)
    assert cells.pop(3 * 4 + 0) == (5.0, 5.0, 1)
    assert set(cells.values()) == {None}
    assert measured([math.nan], [0.5], [0.5]).cells == ()

    other = measured([10.0], [0.26], [0.0])
    both = Numbers.merged([numbers, other])
    assert both.cells[4] == (16 / 3, 10.0, 3)
    record = StepRecord(step=3, images=3, batch=1, lr=1.0, seconds=1.0, measured=both)
    again = StepRecord.from_json(json.loads(json.dumps(record.as_json())))
    assert again == record
    line = summary([record])
    assert line["tangent_max"] == [[None], [10.0, None], [None] * 3, [5.0, None, None, None]]
    assert line["tangent_mean"][1][0] == 16 / 3


def test_errors_are_kept_by_cell() -> None:
    """Of all rows, also those with r = t; records of earlier versions, which have none, go on."""
    logs = {"error": torch.tensor([1.0, 3.0, 5.0, 8.0])}
    t, r = torch.tensor([0.3, 0.49, 0.3, 1.0]), torch.tensor([0.1, 0.24, 0.3, 0.0])
    one = Measured.of(1, torch.tensor(1.0), torch.tensor(1.0), logs, t, r).numbers
    assert {k: cell for k, cell in enumerate(one.errors) if cell is not None} == {
        4: (2.0, 3.0, 2),
        5: (5.0, 5.0, 1),
        12: (8.0, 8.0, 1),
    }
    assert one.cells == ()
    many = Numbers.merged([one, measured([1.0], [0.26], [0.0])])
    assert many.errors[4] == (5 / 3, 3.0, 3)
    record = StepRecord(step=3, images=3, batch=1, lr=1.0, seconds=1.0, measured=many)
    plain = json.loads(json.dumps(record.as_json()))
    assert StepRecord.from_json(plain) == record
    assert summary([record])["error_by_cell"] == [[None], [5 / 3, 5.0], [None] * 3, [8.0, None, None, None]]
    del plain["errors"]
    earlier = StepRecord.from_json(plain)
    assert earlier.numbers.errors == ()
    assert "error_by_cell" not in summary([earlier])
    assert summary([earlier, record])["error_by_cell"] == summary([record])["error_by_cell"]


def test_a_spike_is_ten_times_the_median_of_the_lines_before() -> None:
    def line(value: float | None) -> dict[str, Any]:
        return {"tangent_max": [[None], [value, None], [None] * 3, [1.0, None, None, None]]}

    before = [line(value) for value in (1.0, 2.0, 3.0, 4.0, 50.0)]
    assert spikes(line(30.0), before) == []
    assert spikes(line(30.1), before) == [{"t": [0.25, 0.5], "r": [0.0, 0.25], "tangent": 30.1, "usual": 3.0}]
    assert spikes(line(30.1), before[1:]) == []  # too few to say what is usual
    assert spikes(line(None), before) == []
    assert spikes({"loss": 1.0}, before) == []


def test_a_run_with_derivatives_logs_them_and_others_do_not(tmp_path: Path) -> None:
    list(run(tmp_path / "a", esc(), tiny.batches(esc()), log_every=10))
    list(run(tmp_path / "b", shortcut(), tiny.batches(shortcut()), log_every=10))
    for line in log(tmp_path / "a"):
        assert [len(row) for row in line["tangent_max"]] == [1, 2, 3, 4]
        values = [value for row in line["tangent_max"] for value in row if value is not None]
        assert values
        assert min(values) > 0
        assert max(values) >= line["tangent"]
    assert all("tangent_max" not in line for line in log(tmp_path / "b"))
    for name in "ab":
        for line in log(tmp_path / name):
            errors = [value for row in line["error_by_cell"] for value in row if value is not None]
            assert min(errors) <= line["error"] <= max(errors)
