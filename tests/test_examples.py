"""The examples for clusters: scripts that a shell understands, launchers' own options, and a run that could start."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from shortflow.cli import main
from shortflow.config import load_run
from shortflow.runs import planning
from shortflow.train.engine import Engine

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.rglob("*.sh"))

RECORD = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$CALLS"
printf '\\n' >> "$CALLS"
"""
FAKES = {
    "srun": RECORD + 'exec "$@"\n',
    "scontrol": RECORD + 'if [ "$1" = show ]; then printf "node-7\\nnode-8\\n"; fi\n',
    "torchrun": RECORD + 'exit "${EXIT:-0}"\n',
    "accelerate": RECORD + 'exit "${EXIT:-0}"\n',
}
SLURM = {"SLURM_JOB_ID": "41234", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "node-[7-10]"}
WORLDS = {
    "slurm/one-node.sh": 8,
    "slurm/many-nodes.sh": 32,
    "torchrun/one-machine.sh": 8,
    "torchrun/many-machines.sh": 16,
    "accelerate/one-machine.sh": 8,
}


class Called(NamedTuple):
    code: int
    calls: list[list[str]]
    error: str

    def of(self, name: str) -> list[list[str]]:
        """The arguments of every call of a program."""
        return [call[1:] for call in self.calls if call[0] == name]


def called(script: Path, tmp_path: Path, *arguments: str, **environment: str) -> Called:
    """What a script calls, with programs on its path that only write down their arguments."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir(exist_ok=True)
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    calls.unlink(missing_ok=True)
    there = {**os.environ, **SLURM, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), **environment}
    done = subprocess.run(["bash", str(script), *arguments], env=there, capture_output=True, text=True, timeout=30)
    lines = calls.read_text().splitlines() if calls.exists() else []
    return Called(done.returncode, [line.split("\0")[:-1] for line in lines], done.stderr)


def name_of(script: Path) -> str:
    return script.relative_to(EXAMPLES).as_posix()


def first(script: Path) -> tuple[str, ...]:
    """What comes before the run file."""
    return ("gpu-1", "2") if script.name == "many-machines.sh" else ()


def launched(found: Called) -> tuple[list[str], str, list[str]]:
    """(options of the launcher on the number of processes, the module, its arguments), read by its parser."""
    for arguments in found.of("torchrun"):
        options = get_args_parser().parse_args(arguments)
        assert options.module
        return [options.nnodes, options.nproc_per_node], options.training_script, options.training_script_args
    (arguments,) = found.of("accelerate")
    assert arguments[0] == "launch"
    options = launch_command_parser().parse_args(arguments[1:])
    assert options.module
    assert options.multi_gpu
    return [str(options.num_processes)], options.training_script, options.training_script_args


def test_there_is_an_example_for_each_launcher() -> None:
    assert {name_of(script) for script in SCRIPTS} == set(WORLDS)


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_is_one(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n# ")
    assert "set -euo pipefail" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_what_a_script_starts_is_a_run_that_could_begin(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher takes its options; the command behind them passes its checks in as many processes as there would be,
    and again when the job starts once more."""
    run, out = tmp_path / "run file.yaml", tmp_path / "out" / "photos"
    small = ["--set", "train.batch=1024", "--set", "train.images=2048"]
    with pytest.raises(SystemExit) as ended:
        main(["show", "esc", "--data", "gaussian", *small])
    assert not ended.value.code
    run.write_text(capsys.readouterr().out)
    found = called(script, tmp_path, *first(script), str(run), str(out), "--set", "train.trackers=[]")
    assert (found.code, found.error) == (0, "")
    _, module, arguments = launched(found)
    assert (module, arguments[0]) == ("shortflow", "train")

    class Many(Engine):
        def __init__(self) -> None:
            super().__init__()
            self.world = WORLDS[name_of(script)]

    monkeypatch.setattr(planning, "Engine", Many)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run"])
    said = capsys.readouterr().out
    assert not ended.value.code
    assert said.startswith(f"esc on gaussian (20,000 samples, unconditional): 2 steps of 1024 → {out}\n")
    assert f"processes  {WORLDS[name_of(script)]}, the first on " in said
    assert not out.exists()
    assert load_run(run).train.trackers == ("tensorboard",)  # the option stands behind the file's own


def test_processes_are_as_many_as_the_machines_have(tmp_path: Path) -> None:
    asked = {}
    for script in SCRIPTS:
        found = called(script, tmp_path, *first(script), "run.yaml", "out")
        asked[name_of(script)] = launched(found)[0]
    assert asked == {
        "accelerate/one-machine.sh": ["8"],
        "slurm/many-nodes.sh": ["4", "8"],
        "slurm/one-node.sh": ["1:1", "8"],
        "torchrun/many-machines.sh": ["2", "gpu"],
        "torchrun/one-machine.sh": ["1:1", "gpu"],
    }


def test_all_machines_meet_at_the_first_one(tmp_path: Path) -> None:
    found = called(EXAMPLES / "slurm/many-nodes.sh", tmp_path, "run.yaml", "out")
    assert found.of("scontrol") == [["show", "hostnames", "node-[7-10]"]]
    options: Any = get_args_parser().parse_args(found.of("torchrun")[0])
    assert (options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id) == ("c10d", "node-7:21234", "41234")
    assert found.of("srun")[0][0] == "torchrun"
    found = called(EXAMPLES / "torchrun/many-machines.sh", tmp_path, "gpu-1", "2", "run.yaml", "out")
    options = get_args_parser().parse_args(found.of("torchrun")[0])
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "gpu-1:29500")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.parent.name == "slurm"], ids=name_of)
def test_a_job_that_its_time_has_stopped_is_queued_again_and_one_that_fails_is_not(
    script: Path, tmp_path: Path
) -> None:
    now = int(time.time())
    near, far = {"SLURM_JOB_END_TIME": str(now + 60)}, {"SLURM_JOB_END_TIME": str(now + 3600)}

    def queued(**environment: str) -> tuple[int, bool]:
        found = called(script, tmp_path, "run.yaml", "out", **environment)
        return found.code, ["requeue", "41234"] in found.of("scontrol")

    assert queued(EXIT="1", **near) == (1, True)
    assert queued(EXIT="1", **far) == (1, False)
    assert queued(EXIT="1") == (1, False)  # where Slurm does not say when the job ends
    assert queued(**near) == (0, False)
    text = script.read_text()
    for option in ("--signal=TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert option in [word for line in text.splitlines() if line.startswith("#SBATCH") for word in line.split()]


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_without_arguments_says_what_is_missing(script: Path, tmp_path: Path) -> None:
    found = called(script, tmp_path)
    assert found.code != 0
    assert "?" in found.error
    assert found.calls == []
