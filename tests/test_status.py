"""How a run is, read from a directory that another process may be writing to."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import Shortflow
from shortflow import runs
from shortflow.cli import main, watching
from shortflow.cli.common import duration
from shortflow.errors import CheckpointError, ConfigError
from shortflow.lock import RunLock
from shortflow.status import Breakdown, breakdown, read_status, runs_below

FILE = "recipe:\n  name: esc\ntrain:\n  images: 6400\n  batch: 64\ndata:\n  source: digits\n"


def line(step: int, speed: float = 1000.0, **figures: Any) -> str:
    figures = {"loss": 1.0 / step, "grad_norm": 0.5, "velocity_error": 0.25, "lr": 1e-3, **figures}
    return json.dumps({"step": step, "images": 64 * step, **figures, "error_by_time": [], "images_per_second": speed})


def made(directory: Path, lines: str = "", states: dict[int, float] | None = None, best: Any = None) -> Path:
    """A run with a record and states of an age in seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.yaml").write_text(FILE)
    if lines:
        (directory / "stats.jsonl").write_text(lines)
        os.utime(directory / "stats.jsonl", (time.time() - 7,) * 2)
    for step, age in (states or {}).items():
        state = directory / "state" / f"{step:08d}"
        state.mkdir(parents=True)
        (state / "network.safetensors").write_bytes(b"x" * 1000)
        (state / "state.json").write_text(json.dumps({"step": step, "best": best}))
        os.utime(state / "state.json", (time.time() - age,) * 2)
    return directory


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that was stopped after step 80 of 100, with everything that a run may have."""
    rows = "".join(f"{line(step, speed=500 if step == 10 else 2000)}\n" for step in range(10, 81, 10))
    best = {"name": "velocity_error", "figure": 0.125, "step": 40}
    run = made(tmp_path / "run", rows, {40: 500.0, 70: 100.0}, best)
    (run / "model.safetensors").write_bytes(b"x" * 300)
    (run / "samples").mkdir()
    for step in (9, 10):
        (run / "samples" / f"step-{step:08d}.png").write_bytes(b"x" * 20)
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "events").write_bytes(b"x" * 40)
    scores = {"conditional_accuracy": 0.98, "fd_percent": 2.5, "kid": 1.0, "recall": None, "classifier": {"name": "d"}}
    (run / "evaluation.json").write_text(json.dumps({"rows": {"1 step": scores}}))
    return run


# --------------------------------------------------------------------------------------------------------------- values


def test_every_record_of_scores_is_told(whole: Path, shortflow: Shortflow) -> None:
    row = {"n": 5000, "name": "FID-5k", "distance": 12.345, "spatial_distance": None, "recall": 0.5, "precision": 0.25}
    (whole / "evaluation-inception.json").write_text(json.dumps({"rows": {"1 step": row}}))
    (whole / "evaluation-half.json").write_text('{"rows": {"1 st')
    (whole / ".evaluation-inception.json-0123").mkdir()
    found = read_status(whole).scores
    assert list(found) == ["1 step", "1 step, inception"]
    assert found["1 step, inception"] == {name: value for name, value in row.items() if value is not None}
    said = shortflow("status", whole).out
    assert "  1 step, inception  FID-5k 12.35, recall 0.500, precision 0.250\n" in said
    assert "  1 step             accuracy 0.980, FD % 2.50\n" in said


def test_a_run_is_what_its_directory_says(whole: Path) -> None:
    found = read_status(whole)
    assert (found.phase, found.recipe, found.data, found.holder) == ("stopped", "esc", "digits", None)
    assert (found.step, found.steps, found.images, found.total, found.share) == (80, 100, 5120, 6400, 0.8)
    assert found.speed == pytest.approx(2000)  # without the first line, which compiled
    assert found.left == pytest.approx(1280 / 2000)
    assert found.figures == {"loss": 1 / 80, "grad_norm": 0.5, "velocity_error": 0.25, "lr": 1e-3}
    assert found.since == pytest.approx(7, abs=30)
    assert found.newest is not None
    assert (found.newest.step, found.newest.age) == (70, pytest.approx(100, abs=30))
    assert found.best == ("velocity_error", 0.125, 40)
    states = 2000 + sum(path.stat().st_size for path in whole.glob("state/*/state.json"))
    logs = 40 + (whole / "stats.jsonl").stat().st_size
    other = len(FILE) + (whole / "evaluation.json").stat().st_size
    assert found.disk == {"states": states, "models": 300, "previews": 40, "logs": logs, "other": other}
    assert found.free > 0
    assert found.preview == whole / "samples" / "step-00000010.png"
    assert found.scores == {"1 step": {"conditional_accuracy": 0.98, "fd_percent": 2.5}}
    assert found.remarks == ()


def test_a_run_that_goes_on_is_running_in_its_process(whole: Path) -> None:
    lock = RunLock(whole)
    found = read_status(whole)
    lock.release()
    assert found.phase == "running"
    assert (found.holder or {})["pid"] == os.getpid()
    assert read_status(whole).phase == "stopped"


def test_a_run_without_a_line_has_begun(tmp_path: Path) -> None:
    found = read_status(made(tmp_path / "run"))
    assert (found.step, found.share, found.speed, found.left, found.since) == (0, 0, None, None, None)
    assert (found.newest, found.best, found.preview, found.scores, found.figures) == (None, None, None, {}, {})
    assert found.phase == "stopped"


def test_a_run_is_finished_when_its_last_step_is_saved(tmp_path: Path) -> None:
    assert read_status(made(tmp_path / "a", line(100) + "\n", {90: 1.0})).phase == "stopped"  # killed before it was
    found = read_status(made(tmp_path / "b", line(100) + "\n", {100: 1.0}))
    assert (found.phase, found.left) == ("finished", 0)
    cleaned = made(tmp_path / "c", line(100) + "\n")
    assert read_status(cleaned).phase == "stopped"
    (cleaned / "model.safetensors").write_bytes(b"x")
    assert read_status(cleaned).phase == "finished"


def test_a_line_that_is_being_written_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    text = f"{line(10)}\n\x00\x00\n{line(20)}\n[1]\n{{}}\n{line(30)}\n{line(40)[:-9]}"
    found = read_status(made(tmp_path / "run", text))
    assert (found.step, found.figures["loss"]) == (30, 1 / 30)
    assert found.remarks == ("3 lines of stats.jsonl cannot be read",)
    for cut in range(len(line(40)) + 1):  # at any moment of writing
        (tmp_path / "run" / "stats.jsonl").write_text(f"{line(30)}\n{line(40)[:cut]}")
        assert read_status(tmp_path / "run").step == 30
    (tmp_path / "run" / "stats.jsonl").write_text(line(5)[:20])
    assert read_status(tmp_path / "run").step == 0


def test_speed_is_taken_over_the_newest_lines_by_time(tmp_path: Path) -> None:
    """Images over seconds, so that a slow line counts for as long as it took."""
    slow = "".join(f"{line(step, speed=1)}\n" for step in range(10, 101, 10))
    run = made(tmp_path / "run", f"{slow}{line(110, 100)}\n{line(120, 300)}\n")
    (run / "run.yaml").write_text(FILE.replace("6400", "64000"))
    speeds = [1.0] * 8 + [100.0, 300.0]  # of the ten newest
    assert read_status(run).speed == pytest.approx(6400 / sum(640 / speed for speed in speeds))
    only = read_status(made(tmp_path / "one", line(10, 250) + "\n"))
    assert only.speed == pytest.approx(250)
    assert only.left == pytest.approx(5760 / 250)


def errors(*values: float) -> str:
    """A record with these velocity errors, ten steps apart."""
    old = '"velocity_error": 0.25'
    return "".join(f"{line(10 * k).replace(old, f'{old[:-4]}{value}')}\n" for k, value in enumerate(values, 1))


def test_a_run_whose_velocity_error_has_grown_and_stayed_may_have_broken_down(tmp_path: Path) -> None:
    text = errors(*[1.0] * 5, *[0.25] * 10, *[0.8] * 5)
    found = read_status(made(tmp_path / "run", text)).remarks
    said = "the run may have broken down (velocity error 3.2 times its least, since step 170)"
    assert found == (f"{said}: look at its samples, or try a smaller learning rate",)
    assert breakdown(tmp_path / "run") == Breakdown(times=pytest.approx(3.2), step=170)
    # With the second 0.8: the mean over two lines, a tenth of the record, is 2.1 times the least with the first.


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 5 + [0.25] * 10 + [0.7] * 5,  # 2.8 times
        [0.1] * 5 + [0.8] * 10 + [0.2] * 5,  # it has come back
        [0.25] * 39 + [2.0],  # one line is noise: 2.75 times over the four of a tenth
        [0.1] * 9 + [0.8] * 10,  # too few lines
        [0.0] * 10 + [0.8] * 10,
    ],
)
def test_what_is_no_breakdown(values: list[float], tmp_path: Path) -> None:
    assert read_status(made(tmp_path / "run", errors(*values))).remarks == ()
    assert breakdown(tmp_path / "run") is None


def test_a_run_without_a_record_has_not_broken_down(tmp_path: Path) -> None:
    assert breakdown(made(tmp_path / "run")) is None
    assert breakdown(tmp_path) is None


def test_a_long_record_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shortflow.status._TAIL", 1000)
    run = made(tmp_path / "run", "".join(f"{line(step)}\n" for step in range(1, 91)))
    found = read_status(run)
    assert (found.step, found.remarks) == (90, ())


def test_numbers_that_are_none_and_skipped_steps(tmp_path: Path) -> None:
    text = line(10, loss=1.0, skipped=3).replace('"grad_norm": 0.5', '"grad_norm": NaN')
    assert read_status(made(tmp_path / "run", text + "\n")).figures["skipped"] == 3
    assert "grad_norm" not in read_status(tmp_path / "run").figures


def test_damaged_states_and_records_are_odd_and_no_error(whole: Path) -> None:
    (whole / "state" / "00000070" / "state.json").write_text("{")
    (whole / "state" / "00000060.damaged").mkdir()
    (whole / "evaluation.json").write_text('{"rows": 3}')
    found = read_status(whole)
    assert (found.best, found.scores, found.step) == (None, {}, 80)
    assert found.remarks == ("damaged states: 00000060.damaged",)
    (whole / "state" / "00000070" / "state.json").unlink()
    assert read_status(whole).newest is not None


def test_files_that_vanish_while_they_are_counted_are_left_out(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstat = Path.lstat

    def vanished(path: Path) -> os.stat_result:
        if path.suffix == ".safetensors":
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanished)
    assert read_status(whole).disk["models"] == 0


@pytest.mark.parametrize("content", ["", "3", "train: {images: many}", "a: &b [*b]", "recipe: esc\ntrain: {}"])
def test_what_is_no_run_is_told_so(tmp_path: Path, content: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds no run \(no run.yaml\), nor do the folders in it; start one with"
    ):
        read_status(tmp_path)
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ConfigError):
        read_status(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; give the directory of a run"):
        read_status(tmp_path / "run.yaml")


def test_a_real_run_is_read_while_it_trains(tmp_path: Path) -> None:
    settings = ["train.images=512", "train.batch=64", "train.log_every=2", "train.save_every=4", "network.width=8"]
    run, dataset = runs.configure("esc", "gaussian", settings=[*settings, "preview_every=0", "trackers=[]"])
    phases = []
    for record in runs.training(run, dataset, tmp_path):
        found = read_status(tmp_path)
        phases.append(found.phase)
        assert (found.step, found.steps) == (max(record.step // 2 * 2, 0), 8)
        assert (found.newest is None) == (record.step < 4)
    assert phases == ["running"] * 8
    found = read_status(tmp_path)
    logged = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])
    assert (found.phase, found.left, found.figures["loss"]) == ("finished", 0, logged["loss"])
    assert found.disk["states"] > found.disk["models"] > 0


def test_folders_of_runs_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        made(tmp_path / name)
    (tmp_path / "c").mkdir()
    assert runs_below(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert runs_below(tmp_path / "c") == runs_below(tmp_path / "none") == []


# --------------------------------------------------------------------------------------------------------- command line


Told = Callable[..., list[str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The lines that `shortflow status` says."""

    def run(*arguments: object, code: int = 0) -> list[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["status", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert int(caught.value.code or 0) == code, err
        return (err if code else out).splitlines()

    return run


def test_one_run_is_told_whole(whole: Path, told: Told) -> None:
    lines = told(whole)
    assert lines[0] == f"{whole}: esc on digits, stopped"
    rows = {row.split("  ")[1]: row.split("  ", 2)[2].strip() for row in lines[1:]}
    assert list(rows) == ["progress", "figures", "states", "disk", "preview", "1 step"]
    assert rows["progress"].startswith(
        "step 80 of 100 (80.0%), 5,120 images; 2,000 images/s; 0:01 would be left; last "
    )
    assert rows["figures"] == "loss 0.0125, velocity error 0.25, grad norm 0.5, lr 0.001"
    assert rows["states"].startswith("step 70, ")
    assert rows["states"].endswith(" old; best velocity_error 0.125 at step 40")
    assert re.search(r"KiB \(states 2 KiB, models 0 KiB, previews 0 KiB, logs 1 KiB, other 0 KiB\); ", rows["disk"])
    assert rows["preview"] == str(whole / "samples/step-00000010.png")
    assert rows["1 step"] == "accuracy 0.980, FD % 2.50"


def test_a_running_run_names_its_process(whole: Path, told: Told) -> None:
    lock = RunLock(whole)
    assert f"esc on digits, running in process {os.getpid()} on " in told(whole)[0]
    assert "0:01 left" in told(whole)[1]
    (whole / ".lock").write_text("")
    assert told(whole)[0].endswith("running in a process that has not said its name")
    lock.release()


def test_what_is_odd_stands_below_the_table_with_the_name_of_its_run(whole: Path, told: Told) -> None:
    made(whole.parent / "lost", errors(*[0.25] * 20, *[1.0] * 10))
    *_, last = told(whole.parent)
    assert last.startswith("note: lost: the run may have broken down (velocity error 4.0 times its least, since step ")


def test_a_folder_of_runs_is_a_table(whole: Path, told: Told) -> None:
    made(whole.parent / "later")
    (whole.parent / "notes").mkdir()
    broken = whole.parent / "zero"
    broken.mkdir()
    (broken / "run.yaml").write_text("3")
    lines = told(whole.parent)
    assert lines[0].split() == ["run", "recipe", "data", "step", "images/s", "left", "loss", "disk"]
    assert lines[1].split()[:6] == ["later", "esc", "digits", "stopped", "0/100", "0%"]
    assert lines[2].split()[:9] == ["run", "esc", "digits", "stopped", "80/100", "80%", "2,000", "–", "0.0125"]
    assert lines[3].startswith(f"note: {broken}/run.yaml must hold the settings")
    assert len(lines) == 4
    assert told(whole, whole.parent)[0] == f"{whole}: esc on digits, stopped"


def test_json_is_an_object_a_run(whole: Path, told: Told) -> None:
    made(whole.parent / "later")
    found = [json.loads(each) for each in told(whole.parent, "--json")]
    assert [(each["directory"], each["step"], each["phase"]) for each in found] == [
        (str(whole.parent / "later"), 0, "stopped"),
        (str(whole), 80, "stopped"),
    ]
    assert found[1]["best"] == {"quantity": "velocity_error", "value": 0.125, "step": 40}
    assert found[1]["newest"]["step"] == 70
    assert found[1]["scores"] == {"1 step": {"conditional_accuracy": 0.98, "fd_percent": 2.5}}
    assert found[1]["share"] == 0.8


def test_what_is_no_run_ends_with_two(tmp_path: Path, told: Told) -> None:
    assert told(tmp_path, code=2)[0].startswith(f"error: {tmp_path} holds no run (no run.yaml)")
    assert "--watch 0: give a number of seconds above 0" in told(made(tmp_path / "a"), "--watch", "0", code=2)[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two looks, which take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(watching.time, "sleep", pauses.append)
    return pauses


def test_watching_says_a_line_each_time_until_the_run_ends(
    whole: Path, told: Told, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(whole)

    def pause(seconds: float) -> None:
        clock.append(seconds)
        with open(whole / "stats.jsonl", "a") as file:
            file.write(f"{line(80 + 10 * len(clock), 2000)}\n")
        if len(clock) == 2:
            lock.release()

    monkeypatch.setattr(watching.time, "sleep", pause)
    lines = told("--watch", "0.5", whole)
    assert clock == [0.5, 0.5]
    assert [f"step {step} of 100" in row for step, row in zip((80, 90, 100), lines, strict=True)] == [True] * 3
    assert [row.split(": ")[1].split("  ")[0] for row in lines] == ["running", "running", "stopped"]
    assert told(whole, "--watch")[0].split(": ")[1].startswith("stopped")  # nothing to wait for
    assert clock == [0.5, 0.5]


def test_watching_has_a_rhythm_of_its_own_and_ends_with_ctrl_c(
    whole: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pause(seconds: float) -> None:
        asked.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", pause)
    lock = RunLock(whole)
    assert "running" in told("--watch", whole)[0]
    assert json.loads(told("--watch", "--json", whole)[0])["phase"] == "running"
    lock.release()
    assert asked == [5.0, 5.0]


def test_the_answer_needs_no_torch_and_less_than_a_second(whole: Path) -> None:
    code = (
        f"import sys\nfrom shortflow.cli import main\ntry: main(['status', {str(whole)!r}])\nexcept SystemExit: pass\n"
    )
    code += "found = {'torch', 'numpy', 'accelerate'} & set(sys.modules)\nassert not found, found"
    times = []
    for _ in range(3):
        began = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        now = os.times()  # of the processor, so that a busy machine is no fault
        times.append(now.children_user + now.children_system - began.children_user - began.children_system)
    assert 0 < min(times) < 1.0


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (0.0, 35.4, 65.0, 3723.0, 183845.0)] == [
        "0:00",
        "0:35",
        "1:05",
        "1:02:03",
        "2 d 03:04:05",
    ]
