"""Cells of a study: only what is missing is made, what fails stops nobody, what belongs to another one is refused."""

import csv
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from shortflow import hub, runs, studies
from shortflow.errors import ConfigError, ShortflowError
from shortflow.evaluate import write_record
from shortflow.lock import RunLock
from shortflow.studies import LocalWorkers, StudyPlan, begin, cells, look, planning, read_plan, study_of, work
from shortflow.studies.cells import KILLS, claim, fail, forget_failures, record_of
from shortflow.studies.forecast import forecast
from shortflow.studies.scheduling import State, Worker, compare

SCRIPTS = Path(__file__).parents[1] / "scripts"
CELLS = tuple((name, seed) for name in ("flow-matching", "meanflow") for seed in (0, 1))
SMALL = {"train.batch": 16, "train.group": 4, "train.log_every": 2, "network.width": 16, "network.depth": 2}


def asked(**values: Any) -> dict[str, Any]:
    defaults = {"data": "mixture", "budget": {"images": 96}, "seeds": 2, "steps": [1, 2], "n": 50, "threads": 1}
    return {"recipes": ["flow-matching", "meanflow"], **defaults, "settings": SMALL} | values


def of(variants: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    return {name: value for name, value in asked(**values).items() if name != "recipes"} | {"variants": variants}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_cost", lambda recipe: 4.0)
    monkeypatch.setattr("shortflow.studies.working.POLL", 0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four cells, made."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_cost", lambda recipe: 4.0)
        begin(study_of(asked()), out)
    assert work(out)
    return out


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "study")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained and what is scored from now on."""
    done: list[str] = []
    training, score = runs.training, runs.score

    def trains(run: Any, dataset: Any, directory: Path, **options: Any) -> Any:
        for record in training(run, dataset, directory, **options):
            if record.step == run.train.steps:
                done.append(f"train {directory.parent.name} {run.train.seed}")
            yield record

    def scores(model: Any, *arguments: Any, **options: Any) -> Any:
        done.append(f"score {model.path.parent.parent.name} {model.path.parent.name[-1]}")
        return score(model, *arguments, **options)

    monkeypatch.setattr(runs, "training", trains)
    monkeypatch.setattr(runs, "score", scores)
    return done


def phases(plan: StudyPlan, out: Path) -> dict[str, str]:
    return {cell.name: cell.phase for cell in look(plan, out)}


# --------------------------------------------------------------------------------------------------------- what is made


def test_a_cell_is_a_run_with_its_scores(made: Path) -> None:
    for name, seed in (("flow-matching", 0), ("meanflow", 1)):
        directory = studies.cell_directory(made, name, seed)
        model, record = hub.load(directory), record_of(directory)
        assert record is not None
        assert (model.run.recipe.name, model.run.train.seed, model.images) == (name, seed, 96)
        assert (record["variant"], record["seed"], record["images"], record["steps"]) == (name, seed, 96, 6)
        assert set(record["rows"]) == {"1 step", "2 steps", "real (train)"}
        assert record["rows"]["2 steps"]["n"] == 50
        assert record["rows"] == runs.score(model, (1, 2), n=50, seed=seed)["rows"]
        assert 0 < record["training_seconds"] < 600
        assert "done after" in (directory / "log.txt").read_text()


def test_the_logs_of_a_study_are_two_tables(made: Path, tmp_path: Path) -> None:
    runpy.run_path(str(SCRIPTS / "study_logs.py"))["main"]([str(made), "--into", str(tmp_path / "logs")])
    scores, training = (
        list(csv.DictReader((tmp_path / "logs" / f"{made.name}-{what}.csv").open())) for what in ("scores", "training")
    )
    found = sorted((row["variant"], int(row["seed"]), int(row["steps"])) for row in scores)
    assert found == [(name, seed, steps) for name, seed in CELLS for steps in (1, 2)]
    record = record_of(studies.cell_directory(made, "meanflow", 1))
    assert record is not None
    assert float(scores[-1]["energy_distance"]) == pytest.approx(record["rows"]["2 steps"]["energy_distance"], rel=1e-5)
    ends = [row for row in training if row["images"] == "96"]
    assert sorted((row["variant"], int(row["seed"])) for row in ends) == list(CELLS)
    log = (studies.cell_directory(made, "meanflow", 1) / "stats.jsonl").read_text().splitlines()
    assert float(ends[-1]["loss"]) == pytest.approx(json.loads(log[-1])["loss"], rel=1e-5)


def test_what_is_done_is_not_made_again(study: Path, counted: list[str]) -> None:
    assert work(study)
    assert counted == []
    shutil.rmtree(studies.cell_directory(study, "meanflow", 0))
    (studies.cell_directory(study, "flow-matching", 1) / "evaluation.json").unlink()
    assert work(study)
    assert counted == ["train meanflow 0", "score meanflow 0", "score flow-matching 1"]


def test_a_study_that_grows_makes_what_is_new(study: Path, counted: list[str]) -> None:
    more = asked(seeds=[1, 2], recipes=["meanflow", "flow-matching"])
    plan = begin(study_of(more), study)
    assert work(study)
    assert sorted(counted) == sorted(
        f"{what} {name} 2" for what in ("train", "score") for name in ("meanflow", "flow-matching")
    )
    assert set(phases(plan, study).values()) == {"done"}


def test_other_steps_are_scored_without_training(study: Path, counted: list[str]) -> None:
    begin(study_of(asked(steps=[1, 4], seeds=1)), study)
    assert work(study)
    assert counted == ["score flow-matching 0", "score meanflow 0"]
    record = record_of(studies.cell_directory(study, "meanflow", 0))
    assert record is not None
    assert set(record["rows"]) == {"1 step", "4 steps", "real (train)"}


def test_the_noise_of_the_samples_is_that_of_the_seed(study: Path, counted: list[str]) -> None:
    """So that errors over seeds contain it; variants are still compared with the same noise. What was scored with
    other noise, as all was once, is scored anew."""
    records = {(name, seed): record_of(studies.cell_directory(study, name, seed)) for name, seed in CELLS}
    assert {cell: record["seed"] for cell, record in records.items() if record} == {cell: cell[1] for cell in CELLS}
    place = studies.cell_directory(study, "meanflow", 1)
    old = runs.score(hub.load(place), (1, 2), n=50)
    record = records["meanflow", 1]
    assert record is not None
    assert old["rows"]["1 step"] != record["rows"]["1 step"]
    asked = {name: value for name, value in record["asked"].items() if name != "noise"}
    write_record(place / "evaluation.json", {**record, "asked": asked, "rows": old["rows"]})
    counted.clear()
    assert work(study)
    assert counted == ["score meanflow 1"]
    again = record_of(place)
    assert again is not None
    assert again["rows"] == record["rows"]


def test_runs_of_another_study_are_copied_and_scored(study: Path, tmp_path: Path, counted: list[str]) -> None:
    # Another name and place, one number of steps more, and a variant that differs.
    other = {"recipe": "meanflow", "name": "b", "settings": ["train.log_every=3"]}
    again, taken = tmp_path / "again", studies.cell_directory(study, "meanflow", 1)
    begin(study_of(of([{"recipe": "meanflow", "name": "mf"}, other], steps=[1, 4])), again)
    assert work(again, sources=[study])
    assert sorted(counted) == ["score b 0", "score b 1", "score mf 0", "score mf 1", "train b 0", "train b 1"]
    ours = studies.cell_directory(again, "mf", 1)
    assert {each.name for each in ours.iterdir()} == {
        *("evaluation.json", "log.txt"),
        *("model.safetensors", "run.yaml", "state", "stats.jsonl"),
    }
    for name in ("model.safetensors", "run.yaml", "stats.jsonl"):
        assert (ours / name).read_bytes() == (taken / name).read_bytes()
    record, before = record_of(ours), record_of(taken)
    assert record is not None
    assert before is not None
    assert record["rows"]["1 step"] == before["rows"]["1 step"]
    assert (record["variant"], record["training_seconds"]) == ("mf", before["training_seconds"])
    assert f"copying the same run from {taken}" in (ours / "log.txt").read_text()
    assert not list(ours.parent.glob(".writing-*"))


def test_a_run_that_follows_another_is_copied_where_this_one_is_the_same(tmp_path: Path, counted: list[str]) -> None:
    first = asked(recipes=["flow-matching", "cd-linear"], seeds=1)
    begin(study_of(first), tmp_path / "first")
    assert work(tmp_path / "first")
    begin(study_of(first), tmp_path / "same")
    counted.clear()
    assert work(tmp_path / "same", sources=[tmp_path / "first"])
    assert counted == ["score flow-matching 0", "score cd-linear 0"]
    other = {"recipe": "flow-matching", "name": "rare", "settings": ["train.batch=32"]}
    begin(
        study_of(of([other, {"recipe": "cd-linear", "teacher": "rare"}], seeds=1)),
        tmp_path / "other",
    )
    counted.clear()
    assert work(tmp_path / "other", sources=[tmp_path / "first"])
    assert "train cd-linear 0" in counted


def test_runs_without_the_shares_that_are_asked_for_are_made_again(
    study: Path, tmp_path: Path, counted: list[str]
) -> None:
    begin(study_of(asked(at=[0.5, 1], seeds=1, recipes=["meanflow"])), tmp_path / "again")
    assert work(tmp_path / "again", sources=[study])
    assert counted[0] == "train meanflow 0"


def test_what_was_copied_in_part_is_copied_again(study: Path, tmp_path: Path, counted: list[str]) -> None:
    again = tmp_path / "again"
    begin(study_of(asked(seeds=1, recipes=["meanflow"])), again)
    directory = studies.cell_directory(again, "meanflow", 0)
    (directory / "state" / "00000003").mkdir(parents=True)
    (directory.parent / ".writing-seed-0").mkdir()
    (directory.parent / ".writing-seed-0" / "run.yaml").write_text("half")
    assert work(again, sources=[study])
    assert counted == ["score meanflow 0"]
    assert not (directory / "state" / "00000003").exists()


def test_a_source_that_is_no_study_is_refused_at_once(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        work(study, sources=[tmp_path])
    with pytest.raises(ConfigError, match="holds no study"):
        compare(study_of(asked()), tmp_path / "out", sources=[tmp_path])
    assert not (tmp_path / "out").exists()


def test_what_will_be_copied_is_forecast(study: Path, tmp_path: Path) -> None:
    begin(study_of(asked()), tmp_path / "again")
    found = forecast(read_plan(tmp_path / "again"), tmp_path / "again", [study])
    assert sorted(found.copied) == [f"{name} seed {seed}" for name in ("flow-matching", "meanflow") for seed in (0, 1)]
    assert found.forwards == 0


def test_shares_that_were_not_kept_are_missed_by_name(study: Path) -> None:
    plan = begin(study_of(asked(at=[0.5], seeds=1)), study)
    assert not work(study)
    errors = [cell.error or "" for cell in look(plan, study)]
    assert all("model-step-00000003.safetensors is not there" in error for error in errors)


def test_shares_of_the_budget_have_their_weights_and_rows(tmp_path: Path) -> None:
    begin(study_of(asked(at=[0.3, 0.5], seeds=1, recipes=["meanflow"])), tmp_path)
    assert work(tmp_path)
    directory = studies.cell_directory(tmp_path, "meanflow", 0)
    record = record_of(directory)
    assert record is not None
    assert [(point["share"], point["step"], point["images"]) for point in record["curve"]] == [
        (0.3, 2, 32), (0.5, 3, 48), (1.0, 6, 96)
    ]  # fmt: skip
    half = hub.load(directory / "model-step-00000003.safetensors")
    assert half.images == 48
    assert record["curve"][1]["row"] == runs.score(half, [1], n=50)["rows"]["1 step"]
    assert record["curve"][2]["row"] == record["rows"]["1 step"]


def test_steps_that_a_method_cannot_take_are_left_out(tmp_path: Path) -> None:
    begin(study_of(asked(steps=[1, 3, 64], seeds=1, recipes=["shortcut"])), tmp_path)
    assert work(tmp_path)
    record = record_of(studies.cell_directory(tmp_path, "shortcut", 0))
    assert record is not None
    assert set(record["rows"]) == {"1 step", "real (train)"}
    assert set(record["impossible"]) == {"3 steps", "64 steps"}


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_cell_that_fails_stops_only_those_that_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = begin(study_of(asked(recipes=["meanflow", "cd-linear"], seeds=[0])), tmp_path)
    training = runs.training

    def broken(run: Any, *arguments: Any, **options: Any) -> Any:
        if run.recipe.name == "flow-matching":
            raise ShortflowError("the disk is on fire")
        return training(run, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "training", broken)
        assert not work(tmp_path)
    found = {cell.variant: cell for cell in look(plan, tmp_path)}
    assert {name: cell.phase for name, cell in found.items()} == {
        "meanflow": "done",
        "flow-matching": "failed",
        "cd-linear": "failed",
    }
    assert found["flow-matching"].error == "the disk is on fire"
    assert found["cd-linear"].error == "it needs flow-matching of the same seed, which failed"
    assert "the disk is on fire" in (found["flow-matching"].directory / "log.txt").read_text()
    results = studies.write_results(plan, tmp_path)
    assert any("2 of 3 cells failed" in sentence for sentence in results["verdict"])
    assert (
        "flow-matching seed 0: the disk is on fire (log: cells/flow-matching/seed-0/log.txt)"
        in (tmp_path / "table.md").read_text()
    )
    forget_failures(plan, tmp_path)  # as the next command does
    assert work(tmp_path)
    assert set(phases(plan, tmp_path).values()) == {"done"}


def test_a_cell_that_holds_another_run_fails_with_what_differs(study: Path) -> None:
    directory = studies.cell_directory(study, "meanflow", 0)
    (directory / "evaluation.json").unlink()
    text = (directory / "run.yaml").read_text()
    (directory / "run.yaml").write_text(text.replace("depth: 2", "depth: 3"))
    assert not work(study)
    error = json.loads((directory / "failed.json").read_text())["error"]
    assert "holds a run with other settings (network.depth was 3, is 2)" in error


def test_a_process_that_dies_over_a_cell_again_and_again_has_failed(study: Path) -> None:
    plan = studies.read_plan(study)
    directory = studies.cell_directory(study, "meanflow", 1)
    (directory / "evaluation.json").unlink()
    for count in range(1, KILLS + 1):
        (directory / "claim").mkdir(exist_ok=True)
        (directory / "claim" / ".lock").write_text("{}")  # what a killed process leaves
        cell = next(cell for cell in look(plan, study) if cell.name == "meanflow seed 1")
        assert cell.phase == "missing"
        lock = claim(plan, cell)
        assert (lock is None) == (count == KILLS)
        if lock is not None:
            lock.release()
    assert phases(plan, study)["meanflow seed 1"] == "failed"
    forget_failures(plan, study)
    assert phases(plan, study)["meanflow seed 1"] == "missing"


def test_a_cell_that_somebody_holds_is_left_to_him(study: Path, counted: list[str]) -> None:
    plan = studies.read_plan(study)
    directory = studies.cell_directory(study, "meanflow", 1)
    (directory / "evaluation.json").unlink()
    before = next(cell for cell in look(plan, study) if cell.name == "meanflow seed 1")
    lock = RunLock(directory / "claim")
    assert phases(plan, study)["meanflow seed 1"] == "running"
    assert claim(plan, before) is None
    fail(directory, "nobody reads this while it runs")
    forget_failures(plan, study)
    assert (directory / "failed.json").is_file()
    (directory / "failed.json").unlink()
    lock.release()
    assert work(study)
    assert counted == ["score meanflow 1"]
    assert claim(plan, before) is None  # done meanwhile


# ----------------------------------------------------------------------------------------------------------- schedulers


class Inline:
    """Workers that work where they are started, or do nothing at all."""

    def __init__(self, out: Path, idle: bool = False) -> None:
        self.out, self.idle, self.started = out, idle, 0

    def start(self, number: int) -> Worker:
        self.started += 1
        if not self.idle:
            work(self.out)
        return self

    def ended(self) -> bool:
        return True

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def said(self) -> str:
        return "no module named torch"


def test_a_study_is_compared_and_has_results(tmp_path: Path) -> None:
    states: list[State] = list(compare(asked(), tmp_path, launcher=Inline(tmp_path), poll=0))
    assert [cell.phase for cell in states[0].cells] == ["missing"] * 4
    assert states[-1].finished
    results = studies.read_results(tmp_path)
    assert {cell["status"] for cell in results["cells"]} == {"done"}
    again = Inline(tmp_path)
    assert len(list(compare(None, tmp_path, launcher=again, poll=0))) == 1
    assert again.started == 0


def test_workers_that_do_nothing_are_not_started_for_ever(tmp_path: Path) -> None:
    idle = Inline(tmp_path, idle=True)
    with pytest.raises(
        ShortflowError, match=r"without having done anything; the last one said:\nno module named torch"
    ):
        for _ in compare(asked(), tmp_path, jobs=2, launcher=idle, poll=0):
            pass
    assert idle.started < 20


def test_nothing_to_go_on_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what is to be compared"):
        compare(None, tmp_path)
    with pytest.raises(ConfigError, match="jobs must be 1 or more"):
        compare(asked(), tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="holds no study"):
        work(tmp_path)


def test_a_worker_is_told_its_threads_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this machine; several GPUs are dealt out."""
    started: list[Any] = []

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append((command, options))

    monkeypatch.setattr("subprocess.Popen", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    launcher = LocalWorkers(out=tmp_path, threads=3, imports=(Path("own.py"),))
    for number in range(3):
        launcher.start(number)
    command, options = started[0]
    assert command[1:] == [
        "-m", "shortflow", "compare", "--out", str(tmp_path), "--work", "--import", "own.py", "--tied"
    ]  # fmt: skip
    assert options["env"]["OMP_NUM_THREADS"] == "3"
    assert [each[1]["env"]["CUDA_VISIBLE_DEVICES"] for each in started] == ["4", "6", "4"]


@pytest.mark.parametrize(("said", "threads"), [("", 4), ("2", 2), ("16", 4), ("0", 4), ("4,2", 4)])
def test_threads_are_the_cores_over_the_jobs_or_fewer(said: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortflow.studies.scheduling.cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert studies.threads_of(2) == threads
    assert studies.threads_of(100) == 1


def test_cells_are_looked_at_without_torch_state(made: Path) -> None:
    """Looking changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    look(studies.read_plan(made), made)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert cells.record_of(made) is None
