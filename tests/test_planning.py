"""A dry run: what training would refuse is refused, what it would need is said, and nothing is written."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands import Shortflow
from shortflow import hub, runs
from shortflow.cli.common import size
from shortflow.config.words import described
from shortflow.errors import CheckpointError, ConfigError, ShortflowError
from shortflow.lock import RunLock
from shortflow.nn.configs import parameter_count
from shortflow.runs import planning
from tinyruns import untouched

SMALL = ["train.images=512", "train.batch=64", "train.save_every=4", "train.preview_every=0", "network.width=32"]


def configured(*settings: str, recipe: str = "esc", data: str = "gaussian", **others: Any) -> Any:
    return runs.configure(recipe, data, settings=[*SMALL, "trackers=[]", *settings], **others)


def trained(directory: Path, *settings: str, recipe: str = "esc", steps: int = 99, **others: Any) -> Path:
    records = runs.training(*configured(*settings, recipe=recipe, **others), directory)
    for record in records:
        if record.step == steps:
            records.close()  # type: ignore[attr-defined]
            break
    return directory


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 5 of 8, with a state after step 4."""
    return trained(tmp_path_factory.mktemp("begun") / "run", steps=5)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optimizer.extra_ema=[0.9, 0.99]",),
        ("optimizer.algorithm=radam", "keep_best=velocity_error", "log_every=4"),
    ],
    ids=["plain", "averages", "best"],
)
@pytest.mark.parametrize("recipe", ["esc", "shortcut"])
def test_the_size_of_states_and_models_is_that_on_disk(settings: tuple[str, ...], recipe: str, tmp_path: Path) -> None:
    """Up to the headers of the files, which are some kilobytes."""
    run, dataset = configured(*settings, "network.width=128", recipe=recipe)
    found = runs.plan(run, dataset, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    list(runs.training(run, dataset, tmp_path / "run"))
    state = sum(path.stat().st_size for path in (tmp_path / "run/state/00000008").glob("*.safetensors"))
    models = sum(path.stat().st_size for path in (tmp_path / "run").glob("*.safetensors"))
    assert found.state == pytest.approx(state, rel=0.03)
    assert found.models == pytest.approx(models, rel=0.05)
    kept = run.train.keep + (run.train.keep_best is not None)
    assert found.disk == (kept + 1) * found.state + found.models
    assert found.parameters == parameter_count(hub.load(tmp_path / "run").flow.network)
    assert (found.begun, found.processes, found.parts, found.rows) == (0, 1, 1, 64)


def test_parts_and_processes_are_those_of_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(planning.Engine):
        def __init__(self) -> None:
            super().__init__()
            self.world = 8

    monkeypatch.setattr(planning, "Engine", Many)
    found = runs.plan(*configured(), tmp_path)
    assert (found.processes, found.parts, found.rows) == (8, 8, 8)
    assert runs.plan(*configured("parts=16"), tmp_path).rows == 4
    with pytest.raises(ShortflowError, match=r"train.batch = 60 cannot be shared evenly by 8 processes"):
        runs.plan(*configured("batch=60", "group=null"), tmp_path)
    with pytest.raises(ShortflowError, match=r"train.parts = 12 cannot be shared evenly by 8 processes"):
        runs.plan(*configured("batch=96", "parts=12"), tmp_path)


# Each breaks what it gets, and training and its plan must say the same of it.
def model_without_states(run: Path) -> None:
    shutil.rmtree(run / "state")


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("precious")


def other_seed(run: Path) -> None:
    (run / "run.yaml").write_text((run / "run.yaml").read_text().replace("seed: 0", "seed: 1"))


def damaged(run: Path) -> None:
    for state in (run / "state").iterdir():
        (state / "average.safetensors").write_bytes(b"x")


def nothing(run: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "resume", "message"),
    [
        (nothing, False, "already holds a run"),
        (model_without_states, False, "already holds a model"),
        (no_run, True, "nothing to resume"),
        (a_file, False, "is a file; give the directory"),
        (other_seed, True, "was trained with .* which cannot go on with"),
        (damaged, True, "no training state in .* is whole"),
    ],
)
def test_what_training_refuses_is_refused(
    change: Callable[[Path], None], resume: bool, message: str, begun: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(begun, out)
    run, dataset = configured()
    change(out)
    if resume and (out / "run.yaml").is_file():
        run, dataset = runs.open_run(out)
    before = untouched(tmp_path)
    for look in (runs.plan, runs.training):
        with pytest.raises(CheckpointError, match=message):
            look(run, dataset, out, resume=resume)
    assert untouched(tmp_path) == before


def test_a_run_that_is_going_on_is_refused(begun: Path) -> None:
    lock = RunLock(begun)
    with pytest.raises(CheckpointError, match=f"is in use: a run is going on there in process {os.getpid()}"):
        runs.plan(*runs.open_run(begun), begun, resume=True)
    lock.release()


def test_a_run_that_goes_on_is_checked_and_stays_as_it_is(begun: Path, tmp_path: Path) -> None:
    before = untouched(begun)
    found = runs.plan(*runs.open_run(begun), begun, resume=True)
    assert found.begun == 4
    assert runs.plan(*runs.open_run(begun), begun, resume="auto").begun == 4
    assert untouched(begun) == before
    out = tmp_path / "run"
    shutil.copytree(begun, out)
    shutil.copytree(out / "state/00000004", out / "state/00000006")  # says of itself that it is another one
    found = runs.plan(*runs.open_run(out), out, resume=True)
    assert found.begun == 4
    assert any("00000006 is damaged: it says that it is that of step 4" in note for note in found.notes)
    assert (out / "state/00000006").is_dir()
    assert runs.plan(*configured(), tmp_path / "new", resume="auto").begun == 0


def test_teachers_are_checked(begun: Path, tmp_path: Path) -> None:
    follows = {"recipe": "sct-distilled", "data": "gaussian"}
    with pytest.raises(ConfigError, match="follows a teacher, and none was given"):
        configured(**follows)
    teacher = trained(tmp_path / "teacher", recipe="flow-matching")
    run, dataset = configured(**follows, teacher=str(teacher))
    runs.plan(run, dataset, tmp_path / "run")
    list(runs.training(run, dataset, tmp_path / "run"))
    runs.plan(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)
    (teacher / "model.safetensors").write_bytes((begun / "model.safetensors").read_bytes())
    with pytest.raises((CheckpointError, ConfigError)):
        runs.plan(*runs.open_run(tmp_path / "run"), tmp_path / "run", resume=True)


def test_too_little_space_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, dataset = configured()
    enough = runs.plan(run, dataset, tmp_path / "run")
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: SimpleNamespace(free=enough.disk - 1))
    assert "make space, or keep fewer states (train.keep)" in runs.plan(run, dataset, tmp_path / "run").notes[-1]
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: SimpleNamespace(free=enough.disk))
    assert runs.plan(run, dataset, tmp_path / "run").notes == enough.notes


# --------------------------------------------------------------------------------------------------------- command line


def given(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


def test_a_dry_run_says_what_would_be(shortflow: Shortflow, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = shortflow("train", "esc", "--data", "mixture", *given("parts=2"), "--out", out, "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = said.out.splitlines()
    run, dataset = configured("parts=2", data="mixture")
    found = runs.plan(run, dataset, out)
    assert lines[0].startswith("esc on mixture (")
    assert lines[0].endswith(f"8 steps of 64 → {out}")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:11]}
    assert list(rows) == ["network", "data", "budget", "batch", "processes", "memory", "work", "time", "states", "disk"]
    assert rows["network"].endswith(f": {found.parameters:,} parameters")
    assert rows["data"] == f"mixture, {len(dataset):,} of shape 2"
    assert rows["budget"] == f"512 images, {512 / len(dataset):.1f} times the data"
    assert rows["batch"] == "64 in 2 parts of 32 rows, fp32"
    assert rows["processes"] == "1, the first on cpu"
    held = f"{size(found.estimate.held)} for weights, gradient, moments and averages; "
    assert rows["memory"].startswith(f"about {size(found.memory)}: {held}")
    assert found.memory == found.estimate.held + 32 * found.estimate.kept
    assert re.fullmatch(
        r"about .+, [\d.,]+ s a step: an estimate, from a pass timed over 32 of 32 rows: .*", rows["time"]
    )
    assert rows["work"].startswith(f"{found.estimate.step:.2f} F a step, ")
    assert rows["states"] == f"{size(found.state)} each, every 4 steps, the newest 2 kept"
    assert rows["disk"].startswith(f"up to {size(found.disk)} for states and models; ")
    assert lines[11] == "The method, resolved (shortflow show prints every setting):"
    words = described(run.recipe)
    method = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[12:-1] if line.startswith("  ")}
    for name in ("target", "times", "weighting", "guidance", "teacher", "optimiser"):
        assert method[name] == words[name][0].upper() + words[name][1:]
    assert "sampled with an average of 0.995" in method["optimiser"]
    notes = [line.removeprefix("note: ") for line in lines[12:-1] if not line.startswith("  ")]
    assert notes == list(found.notes)
    departs = "esc has 512 for train.batch (64 here) and 1,024,000 for train.images (512 here) on data like this; "
    assert any(note.startswith(departs) for note in notes)
    assert lines[-1] == "Nothing was trained, and nothing written: this was --dry-run."


def test_a_dry_run_of_a_run_that_goes_on(shortflow: Shortflow, begun: Path) -> None:
    said = shortflow("train", "--resume", "--out", begun, "--dry-run")
    assert said.code == 0
    assert said.out.splitlines()[1].split() == ["goes", "on", "after", "step", "4"]
    before = json.loads((begun / "state/00000004/state.json").read_text())
    assert before["step"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("esc", "--set", "optimizer.lrr=1"), "did you mean 'lr'?"),
        (("esc", "--data", "digts"), "did you mean 'digits'?"),
        (("esc", "--set", "train.trackers=wnadb"), "there is no tracker called 'wnadb', there are aim"),
        (("esc", "--set", "batch=100", "--set", "parts=3"), "cannot be split into train.parts = 3"),
        (("reflow",), "learns from pairs that a teacher makes, and none was given"),
        (("--resume",), "holds no run"),
    ],
)
def test_what_is_wrong_ends_with_two(
    arguments: tuple[str, ...], message: str, shortflow: Shortflow, tmp_path: Path
) -> None:
    said = shortflow("train", *arguments, "--out", tmp_path / "run", "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert list(tmp_path.iterdir()) == []
