"""The command line as its user sees it: help, output, errors, exit codes, interruption."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from commands import Shortflow
from shortflow import hub, runs
from shortflow.cli import app
from shortflow.config import difference, difference_in_words, load_run, recipe_named, to_yaml
from shortflow.cost import known_costs
from shortflow.guidance import guide
from shortflow.nn import compiling
from shortflow.recipes import RECIPES, SETTINGS
from shortflow.runs import streaming
from shortflow.sample import Euler, Gamma, Heun, Restart, Sampler
from shortflow.status import Breakdown
from shortflow.train.weights import save_weights

TINY = ("--set", "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}", "--set", "preview_every=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a conditional run with a null class, after two tiny steps."""
    directory = tmp_path_factory.mktemp("cli") / "run"
    settings = [*TINY[1::2], "images=64", "batch=32", "objective.label_dropout=0.1"]
    for _ in runs.training(*runs.configure("esc", settings=settings), directory):
        pass
    return directory


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an unconditional run on points."""
    directory = tmp_path_factory.mktemp("cli") / "points"
    settings = ["network.width=16", "preview_every=0", "images=64", "batch=32"]
    for _ in runs.training(*runs.configure("shortcut", "gaussian", settings=settings), directory):
        pass
    return directory


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model that is told its guidance, with weights that see it."""
    directory = tmp_path_factory.mktemp("cli") / "told"
    guidance = ["objective.target.velocity=GuidanceAsInput", "objective.guidance=PowerGuidance"]
    settings = [*TINY[1::2], "images=64", "batch=32", *guidance, "objective.label_dropout=0.2"]
    for _ in runs.training(*runs.configure("imf", settings=settings), directory):
        pass
    model, generator = hub.load(directory, "cpu"), torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(w.shape, generator=generator) for name, w in model.flow.state_dict().items()}
    save_weights(weights, model.path, hub.read_header(model.path))
    return model.path


# ----------------------------------------------------------------------------------------------------------------- help


def test_every_command_argument_and_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    commands = "train encode sample evaluate reference compare diagnose status report recipes show cost demo import"
    assert list(group.commands) == commands.split()
    explained = 0
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name != "help":
                assert parameter.help, f"{name} {parameter.name}"
                assert re.match(r"[A-Z1-9a-z]", parameter.help)
                assert parameter.help.rstrip(")").endswith((".", "`")), f"{name} {parameter.name}: {parameter.help}"
                explained += 1
    assert explained > 25


@pytest.mark.parametrize(
    "command",
    [
        *("", "train", "encode", "sample", "evaluate", "reference", "status", "report", "recipes", "show", "cost"),
        *("demo", "import"),
    ],
)
def test_help_ends_well_and_names_every_option(command: str, shortflow: Shortflow) -> None:
    said = shortflow(*command.split(), "--help")
    assert (said.code, said.err) == (0, "")
    group: Any = typer.main.get_command(app)
    options = group.commands[command].params if command else ()
    for parameter in options:
        assert any(option in said.out for option in parameter.opts) or parameter.metavar in said.out


def test_help_answers_in_less_than_a_second_without_torch() -> None:
    code = "import sys\nfrom shortflow.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    times = []
    for _ in range(3):
        began = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        now = os.times()  # of the processor, so that a busy machine is no fault
        times.append(now.children_user + now.children_system - began.children_user - began.children_system)
    assert 0 < min(times) < 1.0


def test_every_command_is_summed_up_in_a_whole_line(shortflow: Shortflow) -> None:
    assert "..." not in shortflow("--help").out.replace("ARGS]...", "")


def test_without_a_command_there_is_the_help(shortflow: Shortflow) -> None:
    said = shortflow()
    assert "Start with" in said.out + said.err
    assert "train" in said.out + said.err


# ---------------------------------------------------------------------------------------------------------------- train


def test_training_says_at_its_end_that_it_may_have_broken_down(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortflow.status._breakdown", lambda lines: Breakdown(times=4.0, step=2))
    said = shortflow("train", "esc", *TINY, "--set", "images=128", "--set", "batch=32", "--out", tmp_path / "run")
    noted = "note: the run may have broken down (velocity error 4.0 times its least, since step 2): look at its samples"
    assert noted in said.out.split("Done: ")[1]


def test_training_says_what_it_does_and_what_comes_next(shortflow: Shortflow, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = shortflow("train", "esc", *TINY, "--set", "images=128", "--set", "batch=32", "--out", out)
    lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert lines[0] == f"esc on digits (1,297 samples, 10 classes): 4 steps of 32 → {out}"
    assert lines[1].startswith("note: the adaptive weight")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("velocity error" in line and "images/s" in line for line in lines if line.startswith("step "))
    assert lines[-3:] == [
        f"Done: {out}/model.safetensors",
        f"Samples: shortflow sample {out} --out samples.png",
        f"Scores:  shortflow evaluate {out}",
    ]
    assert hub.load(out).step == 4
    # The commands that it names work.
    assert shortflow("sample", out, "-n", 4, "--out", tmp_path / "samples.png").code == 0
    again = shortflow("train", "--resume", "--out", out)
    assert (again.code, "This run is complete: all 4 steps are done." in again.out) == (0, True)
    taken = shortflow("train", "esc", *TINY, "--out", out)
    assert (taken.code, taken.out) == (2, "")
    assert taken.err.startswith(f"error: {out} already holds a run (up to step 4); use --resume")


def test_data_without_classes_are_said_to_be_so(shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("train", "meanflow", "--data", "rings", "--set", "images=8", "--set", "batch=8", "--out", tmp_path)
    assert said.out.startswith("meanflow on rings (20,000 samples, unconditional): 1 step of 8")
    assert "note: rings has no classes: guidance, label dropout and class-consistent batches are off" in said.out
    assert load_run(tmp_path / "run.yaml").recipe.objective.label_dropout == 0


def test_a_long_output_line_is_not_cut_at_eighty_columns(shortflow: Shortflow, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    said = shortflow("train", "esc", *TINY, "--set", "images=8", "--set", "batch=8", "--out", long)
    assert f"Samples: shortflow sample {long} --out samples.png" in said.out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "error: which recipe? For example: shortflow train esc --data digits --out out/esc"),
        (("train", "meanflwo"), "error: there is no recipe called 'meanflwo', did you mean 'meanflow'?"),
        (("train", "esc", "--data", "digts"), "did you mean 'digits'?"),
        (("train", "esc", "--dat", "digits"), "No such option: --dat"),
        (("train", "esc", "--resolution", "big"), "Invalid value for '--resolution'"),
        (("train", "esc", "--set", "optimizer.lrr=1"), "did you mean 'lr'?"),
        (("train", "esc", "--set", "batch=x", "--set", "seed=y"), "train.batch: expected a whole number, got 'x'\n"),
        (("train", "esc", "--set", "patch=3"), "patch=3 does not divide the image of 8×8"),
        (("train", "my.yaml"), "error: my.yaml cannot be read: No such file or directory"),
        (("train", "--resume", "--out", "nowhere"), "nowhere holds no run (no run.yaml); start one with"),
        (("train", "--resume", "--set", "batch=3"), "leave out --set"),
        (("train", "esc", "--out", "/dev/null/run"), "error: /dev/null"),
        (("trian",), "No such command 'trian'"),
        (("sample", "nowhere"), "error: there is no model at nowhere: expected a run directory"),
        (("evaluate", "nowhere"), "error: there is no model at nowhere"),
        (("show", "nowhere"), "error: there is no recipe called 'nowhere'"),
        (("show", "no.yaml"), "error: no.yaml cannot be read"),
        (("recipes", "--diff", "esc", "mean"), "error: there is no recipe called 'mean', did you mean 'meanflow'?"),
        (("recipes", "--diff", "esc"), "requires 2 arguments"),
        (("demo", "--set", "nothing"), "error: 'nothing': expected field.path=value"),
    ],
)
def test_mistakes_end_with_two_and_are_told_on_standard_error(
    arguments: tuple[str, ...], message: str, shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = shortflow(*arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_in_settings_are_told_at_once(shortflow: Shortflow) -> None:
    wrong = ["batch=x", "network.size=tinny", "objective.metric=PseudoHubber", "optimizer.betas=[1]", "zzz=1"]
    said = shortflow("train", "esc", *(part for setting in wrong for part in ("--set", setting)))
    assert len(said.err.splitlines()) == 5


def test_resuming_something_else_is_refused(trained: Path, shortflow: Shortflow) -> None:
    said = shortflow("train", "imm", "--data", "mnist", "--resume", "--out", trained)
    assert said.code == 2
    assert "is a run with recipe esc, not imm; --data digits, not mnist" in said.err
    assert shortflow("train", "esc", "--data", "digits", "--resume", "--out", trained).code == 0


def test_a_run_file_is_printed_edited_and_trained(shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("show", "shortcut", "--data", "moons", "--set", "images=16", "--set", "batch=8")
    file = tmp_path / "my.yaml"
    file.write_text(said.out.replace("seed: 0", "seed: 3"))
    assert shortflow("train", file, "--out", tmp_path / "run").code == 0
    run = load_run(tmp_path / "run" / "run.yaml")
    assert run == load_run(file)
    assert (run.recipe.name, run.data.source, run.train.steps, run.train.seed) == ("shortcut", "moons", 2, 3)
    assert shortflow("show", file).out == file.read_text()
    # Resuming may name the file again.
    assert shortflow("train", file, "--resume", "--out", tmp_path / "run").code == 0


def test_auto_begins_and_goes_on_with_the_same_command(shortflow: Shortflow, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("train", "esc", *TINY, "--set", "images=16", "--set", "batch=8", "--out", out, "--resume", "auto")
    assert "2/2" in shortflow(*command).out
    again = shortflow(*command)
    assert (again.code, "This run is complete: all 2 steps are done." in again.out) == (0, True)
    changed = shortflow(*command, "--set", "optimizer.lr=0.5")
    assert changed.code == 2
    assert "a run with other settings (recipe.optimizer.lr is 0.002, not 0.5); leave out --set" in changed.err
    assert shortflow("train", "--out", out, "--resume=auto").code == 0
    assert shortflow("train", "--resume", "esc", "--out", out).code == 0  # only auto is a value
    assert "--resume soon: give --resume, or --resume auto" in shortflow("train", "--resume=soon", "--out", out).err
    assert "which recipe?" in shortflow("train", "--resume", "auto", "--out", tmp_path / "none").err
    assert not (tmp_path / "none").exists()


def test_a_damaged_state_is_told_in_a_line(shortflow: Shortflow, tmp_path: Path) -> None:
    settings = ("--set", "images=16", "--set", "batch=8", "--set", "save_every=1")
    assert shortflow("train", "esc", *TINY, *settings, "--out", tmp_path).code == 0
    (tmp_path / "state" / "00000002" / "state.json").unlink()
    with pytest.warns(UserWarning, match=r"^the state .*00000002 is damaged: state.json is missing. It is kept aside"):
        said = shortflow("train", "--resume", "--out", tmp_path)
    assert (said.code, "2/2" in said.out) == (0, True)
    assert warnings.formatwarning(UserWarning("it is so"), UserWarning, "x.py", 1) == "warning: it is so\n"


# -------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_says_how_to_go_on_and_ends_with_130(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("train", "esc", *TINY, "--set", "images=64000", "--set", "batch=32", "--set", "log_every=1")
    command = [sys.executable, "-c", "from shortflow.cli import main; main()", *arguments, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = out / "stats.jsonl"
        for _ in range(1200):  # until it has taken steps
            if log.exists() and log.stat().st_size > 0:
                break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.1)
        process.send_signal(number)
        said, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    match = re.search(r"Stopped after step ([\d,]+) of 2,000; everything is saved. Go on with:\n  (.*)\n", said)
    assert match, said + error
    assert match[2] == f"shortflow train --resume --out {out}"
    step = int(match[1].replace(",", ""))
    assert hub.load(out).step == step
    # It goes on from there, and can be stopped in this process as well.
    run, dataset = runs.open_run(out)
    assert next(runs.training(run, dataset, out, resume=True)).step == step + 1


def test_an_interruption_before_or_outside_of_training_ends_with_130(
    shortflow: Shortflow, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt
        yield  # a generator, as training returns

    monkeypatch.setattr(runs, "training", interrupted)
    said = shortflow("train", "esc", *TINY, "--out", tmp_path)
    assert said.code == 130
    assert said.out.endswith(f"Go on from the last saved state with:\n  shortflow train --resume --out {tmp_path}\n")
    monkeypatch.setattr(runs, "score", lambda *_, **__: next(interrupted()))
    said = shortflow("evaluate", trained)
    assert (said.code, "Traceback" in said.err) == (130, False)
    assert said.out == "\nStopped; nothing is kept, which --keep FOLDER would change\n"
    said = shortflow("evaluate", trained, "--keep", tmp_path / "kept")
    assert said.out == f"\nStopped; the same command goes on with the samples in {tmp_path}/kept\n"


# --------------------------------------------------------------------------------------------------------------- sample


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_samples_are_drawn_into_a_grid(trained: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("sample", trained, "-n", 9, "--steps", 2, "--out", tmp_path / "a.png")
    assert said.out == f"9 samples, 2 steps → {tmp_path}/a.png\n"
    model = hub.load(trained)
    pixels, _ = runs.generate(model.flow, model.spec, 9, steps=2)
    assert np.array_equal(picture(tmp_path / "a.png"), np.asarray(runs.picture(pixels, 3)))
    assert shortflow("sample", trained, "-n", 1, "--out", tmp_path / "a.png").out.startswith("1 sample, 1 step →")
    shortflow("sample", trained, "-n", 9, "--times", "1,0.5,0", "--out", tmp_path / "b.png")
    shortflow("sample", trained / "model.safetensors", "-n", 9, "--steps", 2, "--out", tmp_path / "c.png")
    assert np.array_equal(picture(tmp_path / "b.png"), picture(tmp_path / "c.png"))


def test_classes_are_chosen_by_name_or_index(trained: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    shortflow("sample", trained, "-n", 4, "--single", "--class", "3, 7", "--out", tmp_path / "single")
    names = sorted(p.name for p in (tmp_path / "single").glob("*.png"))
    assert names == ["000000-3.png", "000001-7.png", "000002-3.png", "000003-7.png"]
    assert Image.open(tmp_path / "single" / names[0]).size == (8, 8)
    model = hub.load(trained)
    pixels, _ = runs.generate(model.flow, model.spec, 4, classes=[3, 7])
    assert np.array_equal(picture(tmp_path / "single" / names[1]), pixels[1, 0])


def test_samples_are_streamed_and_go_on_after_an_interruption(
    trained: Path, shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, array = hub.load(trained), tmp_path / "s.npy"
    pixels, _ = runs.generate(model.flow, model.spec, 600, steps=2)
    draw = streaming.draw

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        yield next(draw(*arguments, **settings))
        raise KeyboardInterrupt

    command = ("sample", trained, "-n", 600, "--steps", 2, "--out", array)
    with monkeypatch.context() as patched:
        patched.setattr(streaming, "draw", interrupted)
        said = shortflow(*command)
    assert (said.code, "Traceback" in said.err) == (130, False)
    assert f"Stopped after 256 of 600 samples → {array}; the same command goes on from there" in said.out
    assert not array.exists()
    assert shortflow(*command).out == f"600 samples → {array} (256 of them were there)\n"
    assert np.array_equal(np.load(array), pixels)
    assert shortflow(*command).out == f"600 samples → {array} (600 of them were there)\n"
    other = shortflow(*command, "--seed", 1)
    assert other.code == 2
    assert "s.json belongs to samples that were made with seed 0, not 1; give another name, or remove them" in other.err


def test_bf16_says_how_far_it_is_from_fp32(trained: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("sample", trained, "-n", 5, "--bf16", "--out", tmp_path / "s.png").out.splitlines()
    assert said[0] == f"5 samples, 1 step → {tmp_path}/s.png"
    found = re.fullmatch(r"bf16: the first 5 samples differ from fp32 by (\d+\.\d\d)% of their deviation", said[1])
    assert found is not None
    assert float(found[1]) < 5
    shortflow("evaluate", trained, "--steps", 1, "-n", 40, "--bf16", "--out", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["precision"] == "bf16"


def test_a_network_can_be_compiled_for_sampling(
    trained: Path, shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(compiling, "compile_network", compiled.append)
    shortflow("sample", trained, "-n", 4, "--compile", "--out", tmp_path / "a.png")
    shortflow("evaluate", trained, "--steps", 1, "-n", 40, "--compile", "--out", tmp_path / "e.json")
    shortflow("sample", trained, "-n", 4, "--out", tmp_path / "b.png")
    assert len(compiled) == 2
    assert all(type(network).__name__ == "SiT" for network in compiled)


def test_class_names_are_no_paths(trained: Path, tmp_path: Path, shortflow: Shortflow, monkeypatch: Any) -> None:
    model = hub.load(trained)
    object.__setattr__(model.spec, "classes", ("../../evil", "a b", *"23456789"))
    monkeypatch.setattr(hub, "load", lambda *_: model)
    shortflow("sample", trained, "-n", 2, "--single", "--out", tmp_path / "in" / "single")
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        "in/single/000000-_evil.png",
        "in/single/000001-a_b.png",
    ]


def test_interpolations_and_samplers(trained: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("sample", trained, "-n", 16, "--interpolate", "--steps", 2, "--out", tmp_path / "i.png")
    assert said.out == f"2 rows of 8 samples, 2 steps → {tmp_path}/i.png\n"
    width, height = Image.open(tmp_path / "i.png").size
    assert width == pytest.approx(4 * height, rel=0.1)
    for sampler in ("auto", "push-forward", "re-noise"):
        said = shortflow("sample", trained, "-n", 4, "--sampler", sampler, "--steps", 3, "--out", tmp_path / "s.png")
        assert said.out == f"4 samples, 3 steps → {tmp_path}/s.png\n"


@pytest.mark.parametrize(
    ("arguments", "rule", "times"),
    [
        (("--sampler", "restart", "--steps", 3), Restart(), (1.0, 2 / 3, 1 / 3, 0.0)),
        (("--sampler", "gamma", "--steps", 2), Gamma(gamma=0.5), (1.0, 0.5, 0.0)),
        (("--sampler", "gamma", "--gamma", 0.25, "--steps", 2), Gamma(gamma=0.25), (1.0, 0.5, 0.0)),
        (("--sampler", "heun", "--times", "1,0.7,0"), Heun(), (1.0, 0.7, 0.0)),
        (("--sampler", "euler", "--steps", 2, "--grid", "karras"), Euler(), (1.0, 0.5**7, 0.0)),
        (("--steps", 2, "--middle", 0.7), None, (1.0, 0.7, 0.0)),
    ],
)
def test_every_sampler_and_grid_can_be_asked_for(
    arguments: tuple[object, ...],
    rule: Sampler | None,
    times: tuple[float, ...],
    trained: Path,
    shortflow: Shortflow,
    tmp_path: Path,
) -> None:
    said = shortflow("sample", trained, "-n", 4, *arguments, "--out", tmp_path / "s.png")
    assert said.out == f"4 samples, {len(times) - 1} steps → {tmp_path}/s.png\n"
    model = hub.load(trained)
    pixels, _ = runs.generate(model.flow, model.spec, 4, times=times, sampler=rule)
    assert np.array_equal(picture(tmp_path / "s.png"), runs.picture(pixels))


def test_a_network_that_is_told_its_guidance_is_told_its_window(
    told: Path, shortflow: Shortflow, tmp_path: Path
) -> None:
    """What is drawn and what is scored is `guide`'s, and another window is another picture."""
    model, out = hub.load(told), tmp_path / "s.png"
    pictures = []
    for options, flow in (
        (("--guidance", 3), guide(model.flow, 3.0)),
        (("--guidance", 3, "--window", "0.4,0.65"), guide(model.flow, 3.0, (0.4, 0.65))),
        (("--guidance", 3, "--window", "0, 0.5"), guide(model.flow, 3.0, (0.0, 0.5))),
    ):
        assert shortflow("sample", told, "-n", 4, *options, "--out", out).code == 0
        pictures.append(picture(out))
        wanted, _ = runs.generate(flow, model.spec, 4)
        assert np.array_equal(pictures[-1], runs.picture(wanted))
    assert not any(np.array_equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    windowed = ("-n", 8, "--guidance", 3, "--window", "0.4,0.65")
    assert shortflow("sample", told, *windowed, "--interpolate", "--out", out).code == 0
    wanted, columns = runs.interpolation(model, rows=1, guidance=3.0, window=(0.4, 0.65))
    assert np.array_equal(picture(out), runs.picture(wanted, columns))
    said = shortflow("evaluate", told, "--steps", 1, *windowed, "--out", tmp_path / "e.json")
    record = json.loads((tmp_path / "e.json").read_text())
    assert said.code == 0, said.err
    assert (record["guidance"], record["window"]) == (3.0, [0.4, 0.65])
    assert record["rows"] == runs.score(model, (1,), n=8, guidance=3.0, window=(0.4, 0.65))["rows"]
    assert record["rows"] != runs.score(model, (1,), n=8, guidance=3.0)["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--window", "0.4,0.65"), "the window [0.4, 0.65] says when guidance acts, but a scale of 1 is none"),
        (("--guidance", "3", "--window", "0.4"), "--window: expected the first and the last time, such as 0.4,0.65"),
        (("--guidance", "3", "--window", "0.1,0.5,1"), "--window: expected the first and the last time"),
        (("--guidance", "3", "--window", "low,high"), "--window: expected numbers with commas between them"),
        (("--guidance", "3", "--window", "0.65,0.4"), "the guidance window [0.65, 0.4] is empty or outside [0, 1]"),
        (("--guidance", "3", "--window", "nan,0.6"), "the guidance window [nan, 0.6] is empty or outside [0, 1]"),
        (("--guidance", "3", "--window", "0.4,1.5"), "the guidance window [0.4, 1.5] is empty or outside [0, 1]"),
        (("--guidance", "3", "--window", "0.6,0.9"), "knows windows around 0.5 only, got [0.6, 0.9]; give [low, high]"),
        (("--guidance", "0.5", "--window", "0.4,0.65"), "knows scales from 1 only, got 0.5"),
    ],
)
def test_impossible_windows_are_refused(
    arguments: tuple[str, ...], message: str, told: Path, shortflow: Shortflow, tmp_path: Path
) -> None:
    for command, out in (("sample", "s.png"), ("evaluate", "e.json")):
        said = shortflow(command, told, *arguments, "--out", tmp_path / out)
        assert (said.code, said.out) == (2, "")
        assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_window_for_a_network_that_is_not_told_one_is_refused(trained: Path, shortflow: Shortflow) -> None:
    for command in ("sample", "evaluate"):
        said = shortflow(command, trained, "--guidance", 2, "--window", "0.2,0.8")
        assert (said.code, said.out) == (2, "")
        assert "the window [0.2, 0.8] is for networks that are told their guidance" in said.err
        assert "leave out the window" in said.err


def test_default_outputs_lie_in_the_working_directory(
    trained: Path, points: Path, shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shortflow("sample", points, "-n", 500).out == "500 samples, 1 step → samples.png\n"
    model = hub.load(points)
    assert np.array_equal(picture(Path("samples.png")), runs.picture(runs.generate(model.flow, model.spec, 500)[0]))
    assert shortflow("sample", trained, "-n", 1, "--single").out == "1 file → samples/\n"
    assert sorted(os.listdir("samples")) == [".samples.json", "000000-0.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "eleven"), "--class: there is no class 'eleven', there are: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (("--class", "10"), "there is no class '10'"),
        (("--class", "-1"), "there is no class '-1'"),
        (("--class", ","), "--class ',' names no class"),
        (("--sampler", "push"), "there is no sampler called 'push', did you mean 'push-forward'?"),
        (("--sampler", "restarts"), "there is no sampler called 'restarts', did you mean 'restart'?"),
        (("--gamma", "0.5"), "gamma = 0.5 is a setting of the sampler gamma, not of auto; choose that sampler"),
        (("--sampler", "gamma", "--gamma", "1.5"), "Gamma needs 0 ≤ gamma ≤ 1, got 1.5"),
        (("--grid", "uniforn"), "there is no grid called 'uniforn', did you mean 'uniform'?"),
        (("--grid", "edm", "--times", "1,0"), "--times and --grid say the same thing in two ways; give one of them"),
        (("--middle", "0.5"), "--middle is the middle time of two steps, not of 1; add --steps 2"),
        (("--steps", "2", "--middle", "1.5"), "the middle time must be between 0 and 1, got 1.5"),
        (("--interpolate", "--grid", "edm"), "--interpolate goes with --steps only"),
        (("--times", "1,half,0"), "--times: expected numbers with commas between them, got '1,half,0'"),
        (("--times", ","), "--times: expected numbers"),
        (("--times", "0,1"), "times of a grid must decrease"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("-n", "0"), "n must be at least 1, got 0"),
        (("--interpolate", "--times", "1,0"), "--interpolate goes with --steps only"),
        (("--interpolate", "--sampler", "re-noise"), "--interpolate goes with --steps only"),
        (("--interpolate", "--single"), "--interpolate goes with --steps only"),
        (("--out", "a.jpg"), "--out a.jpg: pictures are PNG files; give a name that ends in .png"),
    ],
)
def test_impossible_samples_are_refused(
    arguments: tuple[str, ...],
    message: str,
    trained: Path,
    shortflow: Shortflow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = shortflow("sample", trained, *arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_points_have_neither_classes_nor_files(points: Path, shortflow: Shortflow) -> None:
    assert "this model makes points" in shortflow("sample", points, "--single").err
    assert "this model is unconditional, it has no classes" in shortflow("sample", points, "--class", "1").err
    assert "use 1, 2, 4, 8, … steps" in shortflow("sample", points, "--steps", "3").err


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_scores_are_a_table_and_a_record(trained: Path, shortflow: Shortflow) -> None:
    said = shortflow("evaluate", trained, "--steps", "1,4", "-n", 20)
    record = json.loads((trained / "evaluation.json").read_text())
    assert list(record["rows"]) == ["1 step", "4 steps", "real (held out)"]
    assert record["images_seen"] == 64
    lines = said.out.splitlines()
    assert lines[0].split() == ["acc", "FD", "FD", "%", "KID", "precision", "recall", "density", "coverage", "N"]
    assert lines[1].startswith("1 step ")
    assert f"{record['rows']['1 step']['fd']:.3f}" in lines[1]
    assert lines[4] == f"features: classifier digits, sha256 {record['rows']['1 step']['classifier']['sha256'][:12]}"
    assert lines[5].startswith("One step is ")
    assert lines[6] == f"→ {trained}/evaluation.json"


def test_the_record_names_sampler_and_grid(points: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    def record(*arguments: object) -> dict[str, Any]:
        said = shortflow("evaluate", points, "-n", 50, *arguments, "--out", tmp_path / "e.json")
        assert said.code == 0, said.err
        return json.loads((tmp_path / "e.json").read_text())

    plain = record("--steps", "1,2")
    assert (plain["sampler"], plain["grid"], plain["middle"]) == ({"kind": "PushForward"}, "uniform", None)
    other = record("--steps", "1,2", "--sampler", "gamma", "--gamma", 1, "--grid", "uniform", "--middle", 0.5)
    assert (other["sampler"], other["grid"], other["middle"]) == ({"kind": "Gamma", "gamma": 1.0}, "uniform", 0.5)
    # One step is the same for both, two steps are not.
    assert other["rows"]["1 step"] == plain["rows"]["1 step"]
    assert other["rows"]["2 steps"] != plain["rows"]["2 steps"]
    again = record("--steps", "2", "--sampler", "re-noise", "--grid", "uniform")
    assert again["rows"]["2 steps"] == other["rows"]["2 steps"]


def test_points_are_scored_by_distances(points: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    said = shortflow("evaluate", points, "--steps", "1,2", "-n", 100, "--out", tmp_path / "deep" / "e.json")
    record = json.loads((tmp_path / "deep" / "e.json").read_text())
    assert f"{record['rows']['1 step']['energy_distance']:.5f}" in said.out.splitlines()[1]
    assert not (points / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "one"), "--steps: expected numbers with commas between them, got 'one'"),
        (("--steps", "1.5"), "--steps: expected numbers"),
        (("--steps", "0"), "steps must be at least 1, got 0"),
        (("-n", "5"), "n = 5 samples are too few to score"),
        (("--sampler", "euller"), "there is no sampler called 'euller', did you mean 'euler'?"),
        (("--grid", "cosine"), "there is no grid called 'cosine', there are: auto, uniform, karras, edm"),
        (("--steps", "1,4", "--middle", "0.5"), "the middle time 0.5 is that of 2 steps, which are not among [1, 4]"),
        (("--steps", "1,2", "--middle", "2"), "the middle time must be between 0 and 1, got 2"),
    ],
)
def test_impossible_scores_are_refused(
    arguments: tuple[str, ...], message: str, trained: Path, shortflow: Shortflow
) -> None:
    said = shortflow("evaluate", trained, *arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


# ----------------------------------------------------------------------------------------------------- recipes and show


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_list_of_recipes_is_whole_at_any_width(
    columns: str, shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = shortflow("recipes")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["recipe", "year", "arXiv", "time", "cost", "sampling", "needs"]
    heads = [line for line in lines if line.isupper()]
    assert heads == ["MANY STEPS", "ONE STEP, FROM SCRATCH", "FROM ANOTHER MODEL"]
    rows = {
        line.split()[0]: re.split(r"  +", line) for line in lines[1:] if line.split() and line.split()[0] in RECIPES
    }
    assert list(rows) == sorted(RECIPES, key=list(rows).index)
    assert set(rows) == set(RECIPES)
    for name, row in rows.items():
        recipe = recipe_named(name)
        assert row[1:3] == [str(recipe.year), recipe.arxiv or "–"]
        assert row[4] == f"{known_costs()[name]:.1f} F"
        assert row[6] == (", ".join(sorted(recipe.objective.needs)) or "–")
    assert rows["meanflow"][3::2] == ["continuous", "jumps"]
    assert rows["ct"][3::2] == ["discrete", "re-noise"]
    assert rows["alphaflow"][3] == "both"
    assert rows["shortcut"][5] == "jumps of 2⁻ʲ"
    assert rows["reflow"][3:] == ["–", "3.0 F", "ODE steps", "pairs"]
    text = " ".join(said.out.split())
    for name, settings in SETTINGS.items():
        assert all(f"{name}/{setting}" in text for setting in settings)


def test_recipes_are_in_the_group_that_they_belong_to(shortflow: Shortflow) -> None:
    listed = json.loads(shortflow("recipes", "--json").out)
    assert [facts["name"] for facts in listed] != []
    groups = {facts["name"]: facts["group"] for facts in listed}
    assert set(groups) == set(RECIPES)
    many = {name for name, group in groups.items() if group == "many steps"}
    assert many == {"flow-matching", "edm"}
    other = {name for name, group in groups.items() if group == "from another model"}
    assert other == {name for name in RECIPES if recipe_named(name).objective.needs}
    facts = next(facts for facts in listed if facts["name"] == "cd")
    assert (facts["needs"], facts["time"], facts["year"]) == (["teacher"], "discrete", 2023)
    assert facts["cost"] == known_costs()["cd"]


def test_listing_the_recipes_takes_less_than_two_seconds(shortflow: Shortflow) -> None:
    """Without the time to import torch, which is the same for every command."""
    shortflow("recipes")
    began = time.process_time()
    shortflow("recipes")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_differences_are_sentences_and_a_table(
    columns: str, shortflow: Shortflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    said = shortflow("recipes", "--diff", "esc", "imm")
    words, settings = said.out.split("\n\n")
    assert max(map(len, words.splitlines())) <= 80
    sentences = difference_in_words(recipe_named("esc"), recipe_named("imm"), ("esc", "imm"))
    assert " ".join(words.split()) == " ".join(sentences)
    wanted = [row for row in difference(recipe_named("esc"), recipe_named("imm")) if "." in row[0]]
    for path, _, _ in wanted:
        assert sum(line.startswith(f"{path} ") for line in settings.splitlines()) == 1
    assert "…" not in said.out


def test_differences_are_written_as_in_a_run_file(shortflow: Shortflow) -> None:
    said = shortflow("recipes", "--diff", "esc", "imm").out.split("\n\n")[1]
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert rows["setting"] == ["esc", "imm"]
    assert rows["sigma_data"] == ["null", "0.5"]
    assert rows["parameterization.normalize"] == ["false", "true"]
    assert rows["objective.times.ramp"] == ["0.0333333", "—"]
    assert rows["optimizer.betas"] == ["[0.9,", "0.95]", "[0.9,", "0.999]"]
    assert "title" not in rows
    assert shortflow("recipes", "--diff", "esc", "esc").out == "esc and esc do not differ.\n"
    assert shortflow("recipes", "--diff", "esc", "esc/latents").out == "esc and esc/latents do not differ.\n"
    found = json.loads(shortflow("recipes", "--diff", "meanflow/pixels", "esc/pixels", "--json").out)
    assert (found["a"], found["b"]) == ("meanflow/pixels", "esc/pixels")
    assert found["words"][0].startswith(
        "meanflow/pixels takes the limit s → t along the pair's own velocity; esc/pixels"
    )
    assert {"setting": "objective.times.kind", "a": "Independent", "b": "Gradual"} in found["settings"]


@pytest.mark.parametrize("name", ["meanflow/pixels", "imm/latents"])
def test_a_setting_of_a_recipe_is_shown(name: str, shortflow: Shortflow) -> None:
    said = shortflow("show", name)
    assert (said.code, said.err) == (0, "")
    assert to_yaml(recipe_named(name)) in said.out


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_shown_with_its_table_settings_and_source(name: str, shortflow: Shortflow) -> None:
    said = shortflow("show", name)
    recipe = recipe_named(name)
    assert said.code == 0
    assert re.search(r"^\| symb.* \| field \|$", said.out, re.MULTILINE)
    assert to_yaml(recipe) in said.out
    assert "@" in said.out.split("optimizer:")[1]  # BibTeX


def test_a_run_is_shown_with_its_progress(trained: Path, shortflow: Shortflow, tmp_path: Path) -> None:
    for what in (trained, trained / "model.safetensors"):
        said = shortflow("show", what)
        first, rest = said.out.split("\n", 1)
        assert re.search(r"model.safetensors: esc, [\d,]+ parameters, step 2 of 2, 64 images seen$", first)
        assert rest == (trained / "run.yaml").read_text()
    (tmp_path / "run.yaml").write_text(rest)
    said = shortflow("show", tmp_path)
    assert said.out == f"# {tmp_path}: started, but no state is saved yet\n{rest}"
    said = shortflow("show", trained, "--data", "mnist")
    assert (said.code, "is a run, with its own data and settings" in said.err) == (2, True)


def test_a_name_wins_over_a_folder_of_the_same_name(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "esc").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "symbol in the paper" in shortflow("show", "esc").out
    assert "there is no model at ./esc" in shortflow("show", "./esc").err.replace("at esc", "at ./esc")


# ----------------------------------------------------------------------------------------------------------------- demo


def test_the_demo_trains_scores_and_draws_and_goes_on_where_it_was(
    shortflow: Shortflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = runs.score
    monkeypatch.setattr(runs, "score", lambda model, steps, **others: score(model, steps, n=12, **others))
    out = tmp_path / "demo"
    small = ("--set", "images=64", "--set", "batch=32", *TINY, "--out", out)
    said = shortflow("demo", *small)
    assert said.code == 0, said.err
    assert said.out.startswith("esc on digits (1,297 samples, 10 classes): 2 steps of 32")
    assert "\nThe picture: " in said.out
    assert Image.open(out / "samples.png").size[0] > 600
    record = json.loads((out / "evaluation.json").read_text())
    assert list(record["rows"]) == ["1 step", "2 steps", "4 steps", "8 steps", "128 steps", "real (held out)"]
    again = shortflow("demo", "--out", out)
    assert again.code == 0
    assert again.out.startswith(f"{out} holds this demo already; going on with it as it was started.")
    other = shortflow("demo", "--recipe", "imm", "--out", out)
    assert (other.code, "is a run with recipe esc, not imm" in other.err) == (2, True)
