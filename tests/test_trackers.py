"""Trackers get the run, the lines of its log and its previews, and none of their failures is one of the run."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

import tiny
from shortflow import runs
from shortflow.config import from_plain, override
from shortflow.errors import ConfigError, ShortflowError
from shortflow.pictures import save_png
from shortflow.recipes import flow_matching
from shortflow.train import TrainSettings, trackers
from shortflow.train.trackers import Trackers, check_trackers, missing_curves
from tinyruns import STEPS, lines, start


class Notebook(GeneralTracker):
    """A tracker of a user's own, which notes what it is told."""

    name = "notebook"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.run_name, self.logging_dir = run_name, logging_dir
        self.said: list[Any] = []
        self.broken = False
        books.append(self)

    @property
    def tracker(self) -> list[Any]:
        return self.said

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.said.append(("run", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if self.broken:
            raise ConnectionError("the network is down")
        self.said.append((step, values))

    def finish(self) -> None:
        self.said.append("end")


books: list[Notebook] = []


@pytest.fixture(autouse=True)
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    books.clear()
    yield
    books.clear()


# ---------------------------------------------------------------------------------------------------------- a whole run


def test_a_tracker_gets_the_run_its_name_and_every_line(tmp_path: Path) -> None:
    settings = ["train.images=192", "train.batch=16", "train.log_every=4", "train.trackers=notebook", "network.width=8"]
    run, dataset = runs.configure("esc", "gaussian", settings=settings)
    assert run.train.trackers == ("notebook",)
    list(runs.training(run, dataset, tmp_path / "first"))
    book = books[0]
    assert (book.run_name, book.logging_dir) == ("first", str(tmp_path / "first"))
    (_, about), *logged, end = book.said
    assert about["train.trackers"] == '["notebook"]'
    assert about["recipe.name"] == "esc"
    assert about["recipe.objective.times.kind"] == type(run.recipe.objective.times).__name__
    assert about["recipe.optimizer.betas"] == json.dumps(list(run.recipe.optimizer.betas))
    assert all(isinstance(value, bool | int | float | str | None) for value in about.values())
    written = [json.loads(line) for line in (tmp_path / "first" / "stats.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if not isinstance(value, list)} for line in written]
    assert logged == [(line["step"], line) for line in numbers]
    assert [step for step, _ in logged] == [4, 8, 12]
    assert end == "end"


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Notebook, values: dict[str, Any]) -> None:
        self.broken = True

    monkeypatch.setattr(Notebook, "store_init_configuration", broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = list(
            start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, log_every=1, trackers=("notebook",)))
        )
    messages = [str(one.message) for one in said if "tracker" in str(one.message)]
    assert messages == [
        "the tracker notebook failed (ConnectionError: the network is down); training goes on, and stats.jsonl has "
        "every line"
    ]
    assert [record.step for record in records] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))
    assert books[0].said == ["end"]


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Notebook) -> None:
        raise PermissionError("log in first")

    monkeypatch.setattr(Notebook, "start", refused)
    with pytest.warns(UserWarning, match=r"the tracker notebook failed \(PermissionError: log in first\)"):
        list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, trackers=("notebook",))))
    assert books[0].said == []
    assert len(lines(tmp_path)) == 3


def test_a_tracker_that_fails_is_asked_ever_more_rarely_and_again_when_it_works(tmp_path: Path) -> None:
    """After the k-th failure in a row it is left alone for 2ᵏ − 1 lines; one success, and it gets every line again."""
    found = Trackers(["notebook"], tmp_path, {})
    found.log({"loss": 1.0}, 0)
    book = books[0]
    book.broken = True
    tried = []
    log = book.log

    def counted(values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        tried.append(step)
        log(values, step=step)

    book.log = counted  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="notebook failed"):
        found.log({"loss": 1.0}, 1)
    for step in range(2, 16):
        found.log({"loss": 1.0}, step)
    assert tried == [1, 3, 7, 15]
    book.broken = False
    for step in range(16, 35):
        found.log({"loss": 1.0}, step)
    assert tried == [1, 3, 7, 15, 31, 32, 33, 34]
    assert [step for step, _ in book.said[1:]] == [0, 31, 32, 33, 34]


def test_no_tracker_is_opened_without_a_line(tmp_path: Path) -> None:
    list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, trackers=("notebook",))))
    assert len(books) == 1
    assert (
        list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, trackers=("notebook",)), resume=True)) == []
    )
    assert len(books) == 1


def test_a_run_goes_on_with_other_trackers(tmp_path: Path) -> None:
    records = start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, save_every=6, trackers=()))
    for _ in range(6):
        next(records)
    del records
    assert books == []
    list(
        start(
            tmp_path, flow_matching(), settings=tiny.settings(STEPS, save_every=6, trackers=("notebook",)), resume=True
        )
    )
    assert [step for step, _ in books[0].said[1:-1]] == [8, 12]


# ------------------------------------------------------------------------------------------------- those that are known


def test_tensorboard_gets_lines_previews_and_the_run_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save_png(np.full((3, 4, 5), 7, np.uint8), tmp_path / "p.png")
    found = Trackers(["tensorboard"], tmp_path, {"train": {"batch": 16, "betas": [0.9, 0.5]}})
    found.picture(tmp_path / "p.png", 2)
    found.log({"step": 4, "loss": 0.25, "error_by_time": [1.0, None]}, 4)
    found.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 0.25)]
    image = events.Images("samples")[0]
    assert (image.step, image.width, image.height) == (2, 5, 4)
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    train.batch: 16\n    train.betas: [0.9, 0.5]"
    assert [path.is_file() for path in (tmp_path / "tensorboard").iterdir()] == [True]


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package wandb that writes down what it is asked for."""
    asked: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step=None: asked.append(("log", values, step)), finish=lambda: asked.append("finish")
    )

    def init(**arguments: Any) -> Any:
        asked.append(("init", arguments))
        return run

    config = SimpleNamespace(update=lambda values, **_: asked.append(("config", values)))
    module: Any = SimpleNamespace(init=init, config=config, Image=np.asarray)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.WANDB])
    return asked


def test_wandb_gets_a_project_the_run_and_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_wandb(monkeypatch)
    save_png(np.full((3, 4, 5), 7, np.uint8), tmp_path / "p.png")
    found = Trackers(["wandb"], tmp_path / "photos", {"train": {"batch": 16}})
    found.log({"step": 4, "loss": 0.25}, 4)
    found.picture(tmp_path / "p.png", 4)
    found.finish()
    assert asked[0] == ("init", {"project": "shortflow", "name": "photos", "dir": str(tmp_path / "photos")})
    assert asked[1] == ("config", {"train.batch": 16})
    assert asked[2] == ("log", {"step": 4, "loss": 0.25}, 4)
    _, images, step = asked[3]
    assert (step, images["samples"][0].shape, images["samples"][0].max()) == (4, (4, 5, 3), 7)
    assert asked[4] == "finish"


@pytest.mark.parametrize("name", [name for name in LOGGER_TYPE_TO_CLASS if name != "notebook"])
def test_every_tracker_of_accelerate_takes_what_it_is_told(name: str, tmp_path: Path) -> None:
    """Their classes are made without the packages, which `start` imports."""
    made = trackers._built(name, tmp_path)
    assert type(made) is LOGGER_TYPE_TO_CLASS[name]
    said = repr(sorted((key, str(value)) for key, value in vars(made).items()))
    assert tmp_path.name in said or name == "comet_ml"  # the name of the run, which comet is told when it is open


# ------------------------------------------------------------------------------------------------------------- refusals


def test_unknown_and_missing_trackers_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match=r"there is no tracker called 'wnadb', there are aim, comet_ml, .*wandb"):
        check_trackers(["tensorboard", "wnadb"])
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install wandb, or leave it out"):
        check_trackers(["wandb"])
    with pytest.raises(ConfigError, match="pip install comet-ml"):
        check_trackers(["comet_ml"])
    run, dataset = runs.configure("esc", "gaussian", settings=["train.trackers=[tensorboard, trackio]"])
    with pytest.raises(ConfigError, match="trackio is not installed"):
        runs.training(run, dataset, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_is_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, dataset = runs.configure("esc", "gaussian")
    assert missing_curves(()) is None
    before = runs.notes(run, dataset)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    remark = "TensorBoard is not installed, so there are no curves beside stats.jsonl (pip install tensorboard)"
    assert runs.notes(run, dataset) == [*before, remark]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(start(tmp_path, flow_matching(), settings=tiny.settings(STEPS, trackers=("tensorboard",))))
    assert not (tmp_path / "tensorboard").exists()


def test_trackers_are_a_setting_like_others() -> None:
    run, _ = runs.configure("esc", "gaussian", settings=["trackers=[]"])
    assert run.train.trackers == ()
    assert override(run, ["train.trackers=wandb"]).train.trackers == ("wandb",)
    assert override(run, ["train.trackers=[tensorboard, aim]"]).train.trackers == ("tensorboard", "aim")
    assert from_plain(TrainSettings, {}).trackers == ("tensorboard",)  # runs of earlier versions
    for wrong in ("3", "[3]", "null"):
        with pytest.raises(ConfigError, match=r"train\.trackers: expected a list of texts"):
            override(run, [f"train.trackers={wrong}"])
    with pytest.raises(ShortflowError, match=r"train\.trackers must have each name once, got \[.aim., .aim.\]"):
        TrainSettings(trackers=("aim", "aim"))


def test_previews_that_are_not_there_are_no_failure(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Trackers(["notebook"], tmp_path, {})
        found.picture(tmp_path / "none.png", 1)
        found.finish()
