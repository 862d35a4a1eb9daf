"""`shortflow compare`: what is asked for, what is said before, while and after."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands import Shortflow
from shortflow import studies
from shortflow.cli import comparing, studying
from shortflow.config import RunConfig
from shortflow.data import Dataset
from shortflow.studies import StudyPlan, forecast, planning, read_plan, ready_studies, scheduling, speed, work

SMALL = ("train.batch=16", "train.group=4", "train.log_every=2", "network.width=16", "network.depth=2")
OPTIONS = [word for setting in SMALL for word in ("--set", setting)]
OPTIONS += ["--data", "mixture", "--images", "96", "--steps", "1,2", "--n", "50", "--threads", "1"]


class Inline:
    """A worker that works where it is started."""

    def __init__(self, *, out: Path, sources: tuple[Path, ...] = (), **_: Any) -> None:
        self.out, self.sources = out, sources

    def start(self, number: int) -> Any:
        work(self.out, sources=self.sources)
        return self

    def ended(self) -> bool:
        return True

    def said(self) -> str:
        return ""

    def stop(self) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_cost", lambda recipe: 4.0)
    monkeypatch.setattr(scheduling, "LocalWorkers", Inline)
    monkeypatch.setattr(comparing, "EVERY", 0.0)


def test_recipes_are_compared_and_the_answer_is_said(shortflow: Shortflow, tmp_path: Path) -> None:
    out = tmp_path / "study"
    said = shortflow("compare", "flow-matching,meanflow", *OPTIONS, "--seeds", 2, "--out", out)
    assert said.code == 0, said.err
    assert f"study: 2 variants on mixture, 2 seeds, 4 cells → {out}" in said.out
    assert said.out.count(": done, energy_distance") == 4
    assert "Best of 2 in 1 step: " in said.out
    assert f"a page of it: shortflow report {out}" in said.out
    assert "→ " + str(out / "table.md") in said.out
    assert (out / "table.md").read_text().startswith("# study\n")
    again = shortflow("compare", "--out", out)
    assert again.code == 0
    assert "done," not in again.out  # nothing was made
    assert "Best of 2 in 1 step: " in again.out


def test_a_study_that_was_begun_takes_options(shortflow: Shortflow, tmp_path: Path) -> None:
    """With --out alone: more seeds of what is there. Its plan is a file that begins the same study elsewhere."""
    out, again = tmp_path / "study", tmp_path / "again"
    planning.begin(studies.study_of({"recipes": ["meanflow"], "data": "mixture", "seeds": 1}), out, threads=1)
    said = shortflow("compare", "--out", out, "--seeds", 3, "--dry-run")
    assert said.code == 0, said.err
    assert "3 cells of 3 missing" in said.out
    assert read_plan(out).study.seeds == (0,)  # a dry run
    said = shortflow("compare", out / "study.yaml", "--out", again, "--dry-run")
    assert said.code == 0, said.err
    assert "1 cell of 1 missing" in said.out
    assert studies.load_study(str(out / "study.yaml")) == read_plan(out).study


def test_a_dry_run_names_what_differs(shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("compare", "meanflow,esc", *OPTIONS, "--seeds", 1, "--out", tmp_path / "new", "--dry-run")
    assert said.code == 0, said.err
    assert "differs from meanflow in" in said.out
    line = next(line for line in said.out.splitlines() if line.startswith("esc "))
    assert "target, times, weighting, batches" in line


def test_runs_of_another_study_are_copied(shortflow: Shortflow, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    assert shortflow("compare", "meanflow", *OPTIONS, "--seeds", 1, "--out", first).code == 0
    asked = ("compare", "meanflow,esc", *OPTIONS, "--seeds", 1, "--out", out, "--reuse", first)
    said = shortflow(*asked, "--dry-run")
    assert "1 cell to be copied: meanflow seed 0" in said.out, said.err
    assert shortflow(*asked).code == 0
    cells = [study / "cells" / "meanflow" / "seed-0" for study in (first, out)]
    assert len({(cell / "model.safetensors").read_bytes() for cell in cells}) == 1
    assert "copying the same run" in (cells[1] / "log.txt").read_text()
    said = shortflow("compare", "meanflow", *OPTIONS, "--out", tmp_path / "new", "--reuse", tmp_path)
    assert said.code == 2
    assert f"{tmp_path} holds no study" in said.err
    assert not (tmp_path / "new").exists()


def test_the_time_that_is_left_falls_while_a_cell_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 equal cells one was done after 100 s: 300 s are left, and a minute later, with nothing new, 240 s."""
    board, now = studying.Board(Path("out")), [0.0]
    monkeypatch.setattr(studying, "clock", lambda: now[0])
    variant = SimpleNamespace(name="a", cost=1.0, images=100)
    plan = SimpleNamespace(variants=[variant], sampled=lambda _: 0)

    def overview(at: float, done: int) -> str:
        now[0] = at
        phases = ["done"] * done + ["running"] + ["missing"] * (3 - done)
        cells = [SimpleNamespace(name="a", variant="a", phase=phase, step=0, steps=10) for phase in phases]
        return board._overview(SimpleNamespace(plan=plan, cells=cells))  # type: ignore[arg-type]

    assert "left" not in overview(0.0, 0)
    assert overview(100.0, 1).endswith("left 5:00")
    assert overview(160.0, 1).endswith("left 4:00")
    assert "left" not in overview(500.0, 1)  # longer than was thought: nobody knows


def test_varied_settings_are_variants(shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow(
        *("compare", "meanflow", *OPTIONS, "--seeds", "4", "--vary", "train.group=4,null", "--out", tmp_path),
        *("--at", "0.5", "--against", "group=4", "--metric", "sliced_w2", "--metric-steps", 2, "--dry-run"),
    )
    assert said.code == 0, said.err
    assert "group=null" in said.out
    assert "train.group: 4 → null" in said.out.replace("None", "null")
    assert "decides: sliced_w2 in 2 steps" in said.out
    assert "8 cells of 8 missing" in said.out
    assert list(tmp_path.iterdir()) == []  # a dry run


def test_seeds_are_a_number_or_a_list(shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comparing, "_show", lambda study, *rest: asked.append(study))
    for seeds in ("3", "7,", "0,5"):
        assert shortflow("compare", "esc", "--seeds", seeds, "--dry-run").code == 0
    assert [study.seeds for study in asked] == [(0, 1, 2), (7,), (0, 5)]


def test_a_ready_study_takes_options(shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comparing, "_show", lambda study, out, *rest: asked.append((study, out)))
    options = ["--data", "mixture", "--images", "640", "--set", "train.batch=8", "--seeds", "1"]
    assert shortflow("compare", "--study", "systems", *options, "--dry-run").code == 0
    ((study, out),) = asked
    assert (study.data, study.metric, study.budget.amount, study.settings) == ("mixture", None, 640, ("train.batch=8",))
    assert len(study.variants) == 7
    assert out == Path("out/systems")


def test_ready_studies_are_listed(shortflow: Shortflow) -> None:
    said = shortflow("compare", "--studies")
    assert all(f"\n{name} " in f"\n{said.out}" for name in ready_studies())
    assert "7 × 3 seeds" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["esc", "--study", "systems"], "give one of them"),
        (["--data", "mixture"], "Beside --data give recipes"),
        (["--set", "train.batch=3"], "Beside --set give recipes"),
        (["esk"], "variant esk: there is no recipe called 'esk'"),
        (["esc", "--images", "100", "--seconds", "3"], "budget: give one of"),
        (["esc", "--steps", "one"], "--steps: expected numbers"),
        (["nothing.yaml"], "nothing.yaml cannot be read"),
        (["esc", "--jobs", "0"], "jobs must be 1 or more"),
        (["esc", "--slurm", "x=1,y"], r"expected option=value"),
        (["--work"], "name its directory with --out"),
        ([], "what is to be compared"),
    ],
)
def test_what_makes_no_sense_ends_with_2(
    shortflow: Shortflow, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = shortflow("compare", *arguments)
    assert said.code == 2
    assert message in said.err


def test_cells_that_fail_are_said_and_end_with_2(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortflow.studies.cells._scores", lambda *_: (_ for _ in ()).throw(ValueError("no scores")))
    said = shortflow("compare", "meanflow", *OPTIONS, "--seeds", 1, "--out", tmp_path)
    assert said.code == 2
    assert f"meanflow seed 0: failed: ValueError: no scores (log: {tmp_path}/cells/meanflow/seed-0/log.txt)" in said.out
    assert "1 of 1 cell failed and is left out: meanflow seed 0." in said.out


def test_an_interrupted_study_says_how_to_go_on(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[int] = []

    class Endless(Inline):
        def start(self, number: int) -> Any:
            return self

        def ended(self) -> bool:
            return bool(stopped)

        def stop(self) -> None:
            stopped.append(1)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduling, "LocalWorkers", Endless)
    monkeypatch.setattr(comparing.time, "sleep", interrupted)
    said = shortflow("compare", "meanflow", *OPTIONS, "--seeds", 1, "--out", tmp_path)
    assert said.code == 130
    assert stopped == [1]
    assert f"shortflow compare --out {tmp_path}" in said.out


# ------------------------------------------------------------------------------------------------------ what it takes


def test_a_forecast_is_what_cells_have_taken(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    shortflow("compare", "flow-matching,meanflow", *OPTIONS, "--seeds", 1, "--out", out)
    for name, seconds in (("flow-matching", 2.0), ("meanflow", 4.0)):
        path = out / "cells" / name / "seed-0" / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"training_seconds": seconds}))
    plan = _grown(read_plan(out))
    monkeypatch.setattr(forecast, "images_per_second", None)  # nothing has to be measured
    found = forecast.forecast(plan, out)
    # A pass over one image takes 2 s/(96 · 4); scored are 50 samples in 1 + 2 steps.
    sampling = 50 * 3 * 2.0 / (96 * 4)
    assert found.seconds["flow-matching"] == pytest.approx(2.0 + sampling)
    assert found.left == pytest.approx(found.seconds["flow-matching"] + found.seconds["meanflow"])
    assert found.forwards == pytest.approx(2 * 96 * 4)


def test_a_forecast_measures_each_size_of_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {"recipes": ["flow-matching", "meanflow", "reflow"], "data": "mixture", "budget": {"images": 96}}
    asked = recipes | {"settings": list(SMALL), "vary": {"network.width": [8, 16]}, "seeds": 1}
    plan = studies.plan(studies.study_of(asked), threads=1)
    widths = []

    def speed(run: RunConfig, dataset: Dataset, directory: Path) -> float:
        widths.append(run.network.width)  # type: ignore[union-attr]
        return 1000.0 / run.network.width  # type: ignore[union-attr]

    monkeypatch.setattr(forecast, "images_per_second", speed)
    found = forecast.forecast(plan, tmp_path)
    assert widths == [8, 16, 8, 16]  # of one time and of two; reflow follows another, and is not measured
    costs = {variant.name: variant.cost for variant in plan.variants}
    sampling = plan.sampled(plan.named("meanflow,width=8"))
    for width in (8, 16):
        name = f"meanflow,width={width}"
        rate = width / 1000 / costs[name]
        assert found.seconds[name] == pytest.approx(rate * (96 * costs[name] + sampling))


def _grown(plan: StudyPlan) -> StudyPlan:
    from dataclasses import replace

    return replace(plan, study=replace(plan.study, seeds=(0, 1)))


def test_seconds_are_images_at_a_speed_that_is_measured(tmp_path: Path) -> None:
    asked = {"recipes": ["reflow"], "data": "mixture", "budget": {"seconds": 0.5}, "settings": list(SMALL)}
    plan = studies.begin(studies.study_of(asked), tmp_path, threads=1)
    assert [variant.name for variant in plan.variants] == ["flow-matching", "reflow"]
    assert all(variant.images > 16 for variant in plan.variants)
    assert {path.name for path in tmp_path.iterdir()} <= {"study.yaml", "planning"}  # measured elsewhere


def test_a_speed_is_the_median_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 150.0, *(150.0 + 2 * i for i in range(1, 9)), 999.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))

    class Step:
        loss = 0.0

    monkeypatch.setattr(speed.runs, "training", lambda *_: [Step()] * speed.STEPS)
    from shortflow.config import RunConfig, recipe_named

    run = RunConfig(recipe=recipe_named("flow-matching"))
    assert speed.images_per_second(run, None, tmp_path) == run.train.batch / 2  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ other processes


@pytest.mark.slow
def test_workers_are_processes_of_their_own(tmp_path: Path) -> None:
    """The command as it is given, with two jobs; and a study that is made by a job of submitit's local cluster."""
    line = [sys.executable, "-m", "shortflow", "compare", "flow-matching,meanflow", *OPTIONS, "--seeds", "2"]
    local = subprocess.run([*line, "--jobs", "2", "--out", str(tmp_path / "a")], capture_output=True, text=True)
    assert local.returncode == 0, local.stdout + local.stderr
    assert studies.read_results(tmp_path / "a")["verdict"][0] in " ".join(local.stdout.split())
    logs = list((tmp_path / "a" / "workers").iterdir())
    assert len(logs) >= 2
    cluster = [*line, "--slurm", "cluster=local,timeout_min=5", "--out", str(tmp_path / "b")]
    submitted = subprocess.run(cluster, capture_output=True, text=True, env={**os.environ})
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert list((tmp_path / "b" / "slurm").glob("*_submitted.pkl"))
    for name in ("a", "b"):
        assert {cell["status"] for cell in studies.read_results(tmp_path / name)["cells"]} == {"done"}
    rows = [studies.read_results(tmp_path / name)["rows"] for name in ("a", "b")]
    assert rows[0] == rows[1]
