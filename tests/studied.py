"""Studies whose workers and schedulers are killed, by a parent that has never trained: studied.py DIRECTORY.

DIRECTORY/whole is made by one worker that is left alone. In DIRECTORY/workers a scheduler's workers are killed while
they train; in DIRECTORY/scheduler the scheduler is, again and again; DIRECTORY/beside has two schedulers. Printed is
how many processes were killed, and how many of those side by side failed, as JSON.
"""

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from shortflow import studies
from shortflow.studies import Cell, State, Study, compare, look, read_plan, study_of
from shortflow.studies.scheduling import Worker

STEPS = 60


def study() -> Study:
    """A variant that follows another, which is made for it, with two seeds: 4 cells of 60 small steps."""
    return study_of(
        {
            "recipes": ["cd-linear"],
            "data": "mixture",
            "budget": {"images": 16 * STEPS},
            "seeds": 2,
            "steps": [1, 2],
            "at": [0.5, 1],
            "n": 200,
            "threads": 1,
            "settings": {
                "train.batch": 16,
                "train.group": 4,
                "train.log_every": 4,
                "train.save_every": 5,
                "network.width": 16,
                "network.depth": 2,
            },
        }
    )


def ended(code: int) -> None:
    """The end of a fork, which says why."""
    if code:
        traceback.print_exc()
    os._exit(code)


@dataclass
class Forked:
    """A worker in a fork of this process, tied to it."""

    pid: int
    end: int  # of the pipe that it listens to
    over: bool = False

    def ended(self) -> bool:
        if not self.over:
            self.over = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self.over

    def stop(self) -> None:
        if self.end >= 0:
            os.close(self.end)
            self.end = -1

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def said(self) -> str:
        return ""


@dataclass
class Forks:
    """Starts workers without loading the library anew."""

    out: Path

    def start(self, number: int) -> Worker:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(write)
                os.dup2(read, 0)
                os.setsid()
                for descriptor in range(3, 64):  # the ends of the pipes of other workers
                    try:
                        os.close(descriptor)
                    except OSError:
                        continue
                studies.tied()
                studies.work(self.out)
                code = 0
            finally:
                ended(code)
        os.close(read)
        return Forked(pid, write)


def schedule(out: Path, jobs: int = 2):  # type: ignore[no-untyped-def]
    return compare(study(), out, jobs=jobs, launcher=Forks(out), poll=0.02)


def training(state: State) -> list[Cell]:
    return [cell for cell in state.cells if cell.phase == "running" and 8 <= cell.step < STEPS - 16]


def killed_workers(out: Path, kills: int = 3) -> int:
    """Kill who holds a cell that is being trained, each time another cell; the scheduler goes on by itself."""
    hit: set[str] = set()
    for state in schedule(out):
        for cell in training(state):
            if len(hit) < kills and cell.name not in hit:
                holder = json.loads((cell.directory / "claim" / ".lock").read_text())["pid"]
                os.kill(holder, signal.SIGKILL)
                hit.add(cell.name)
    return len(hit)


def killed_scheduler(out: Path, kills: int = 2) -> int:
    """Kill the scheduler while its workers train; they stop with it. The last one may finish."""
    done = 0
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in schedule(out):
                    pass
                code = 0
            finally:
                ended(code)
        if done == kills:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            return done
        while True:
            time.sleep(0.02)
            if (out / "study.yaml").is_file():
                plan = read_plan(out)
                if training(State(plan=plan, cells=look(plan, out), workers=0)):
                    break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        until = time.monotonic() + 60
        while any(cell.phase == "running" for cell in look(read_plan(out), out)):
            assert time.monotonic() < until, "workers outlive their scheduler"
            time.sleep(0.05)


def beside(out: Path) -> int:
    """Two schedulers at once."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in schedule(out, jobs=1):
                    pass
                code = 0
            finally:
                ended(code)
        children.append(child)
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main(directory: Path) -> None:
    studies.begin(study(), directory / "whole")
    child = os.fork()
    if child == 0:
        os._exit(0 if studies.work(directory / "whole") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for name in ("workers", "scheduler", "beside"):  # planned once
        (directory / name).mkdir()
        (directory / name / "study.yaml").write_text((directory / "whole" / "study.yaml").read_text())
    print(
        json.dumps(
            {
                "workers": killed_workers(directory / "workers"),
                "scheduler": killed_scheduler(directory / "scheduler"),
                "beside": beside(directory / "beside"),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
